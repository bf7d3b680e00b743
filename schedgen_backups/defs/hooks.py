"""What happens the moment a step fails or the recovery point is committed: people are told, and the run is tagged so that nobody tells it twice.

Hooks sit on the assets and checks themselves, since hooks of a job are silent when somebody presses Materialize. They see neither cancelled nor
killed runs: the outbox in `sensors` does. A hook that raises changes nothing but its own event, and the outbox tells instead.
"""

from contextlib import suppress
from datetime import datetime, timezone

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.run_kinds import BACKUP, RETENTION
from schedgen_backups.alerts.service import (
    STALE_KIND,
    AlertService,
    Failure,
)
from schedgen_backups.config.environment import load_environment
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups.monitoring.failures import explain_exception, find_check_description


@dg.failure_hook(name="alert_on_step_failure")
def alert_on_step_failure(context: dg.HookContext) -> None:
    """People know which step failed and why; the run is tagged for this step when a channel accepted that."""
    step = context.step_key
    cause, next_step = explain_exception(context.op_exception)
    for asset in ("database_dump", "minio_archive", "restore_drill"):
        if step.startswith(f"{asset}_"):
            check_key = dg.AssetCheckKey(dg.AssetKey(asset), step.removeprefix(f"{asset}_"))
            cause = find_check_description(context.instance, check_key, context.run_id) or cause
    service = AlertService(load_environment())
    failure = Failure(step, cause, next_step, context.run_id, context.job_name)
    outcome = service.raise_failure(failure)
    context.log.info(f"alert: {outcome.value}")
    tags = {f"{run_tags.ALERTED_PREFIX}{step}": outcome.name.lower()} if outcome.is_settled else {}
    if service.ping_failure(failure):
        tags[run_tags.HEARTBEAT] = Signal.FAIL.name.lower()
    if tags:
        context.instance.add_run_tags(context.run_id, tags)


@dg.success_hook(name="announce_retention")
def announce_retention(context: dg.HookContext) -> None:
    """The incidents of retention are over, and people are told once."""
    service = AlertService(load_environment())
    outcome = service.report_resolved(service.list_open_kinds(RETENTION.kind_prefix))
    context.log.info(f"recovery of retention: {outcome.value}")


@dg.success_hook(name="announce_recovery_point")
def announce_recovery_point(context: dg.HookContext) -> None:
    """The heartbeat service knows of the verified point, open incidents are over, and who wants good news gets them."""
    service = AlertService(load_environment())
    ping_heartbeat(service.settings.heartbeat_url, Signal.SUCCESS, f"recovery point verified, run {context.run_id}")
    service.report_resolved(service.list_open_kinds(BACKUP.kind_prefix, STALE_KIND))
    if service.settings.is_success_told:
        alert = Alert(
            incident="success",
            severity=Severity.INFO,
            title="Recovery point verified",
            cause="Database and bucket were captured, read again and committed.",
            link=service.make_link(context.run_id),
            raised_at=datetime.now(timezone.utc),
        )
        for delivery in service.notifier.send(alert):
            context.log.info(f"success message to {delivery.channel}: {delivery.answer}")


def report_start(run_id: str) -> None:
    """The heartbeat service knows that a backup began. Settings of alerts that are wrong fail the run at its end, when everything is captured."""
    with suppress(ConfigurationError):
        ping_heartbeat(AlertService(load_environment()).settings.heartbeat_url, Signal.START, f"backup started, run {run_id}")
