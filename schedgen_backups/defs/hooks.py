"""Hooks that send an alert when a step fails or a recovery point is committed, and tag the run accordingly.

They are attached to assets and checks, because hooks of a job do not run when an asset is materialized in the
UI. They do not see cancelled or killed runs: the outbox does. If a hook raises, the outbox sends the alert.
"""

from contextlib import suppress
from datetime import datetime, timezone

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.run_kinds import BACKUP, HOUSEKEEPING, RETENTION, STORE_RUN_KINDS, VERIFICATION
from schedgen_backups.alerts.service import STALE_KEY, AlertService, Failure
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.history.events import RunStarted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups.defs.resources import RESOURCE_KEY, BackupResource
from schedgen_backups.monitoring.failures import explain_exception, find_check_description

_NEEDED = {RESOURCE_KEY}


@dg.failure_hook(name="alert_on_step_failure", required_resource_keys=_NEEDED)
def alert_on_step_failure(context: dg.HookContext) -> None:
    """Send an alert with the step and the cause; tag the run for this step if a channel accepted it."""
    step = context.step_key
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None and run.tags.get(f"{run_tags.ALERTED_PREFIX}{step}") == run_tags.REHEARSAL:
        context.log.info("no alert: the restore was not confirmed and wrote nothing")
        return
    reason = explain_exception(context.op_exception)
    cause = reason.cause
    for asset in ("database_dump", "minio_archive", "restore_drill"):
        if step.startswith(f"{asset}_"):
            check_key = dg.AssetCheckKey(dg.AssetKey(asset), step.removeprefix(f"{asset}_"))
            cause = find_check_description(context.instance, check_key, context.run_id) or cause
    service = AlertService(_get_config(context))
    failure = Failure(step, cause, reason.next_step, context.run_id, context.job_name)
    outcome = service.raise_failure(failure)
    context.log.info(f"alert: {outcome.value}")
    tags = {f"{run_tags.ALERTED_PREFIX}{step}": outcome.name.lower()} if outcome.is_settled else {}
    if service.ping_failure(failure):
        tags[run_tags.HEARTBEAT] = Signal.FAIL.name.lower()
    if tags:
        context.instance.add_run_tags(context.run_id, tags)


@dg.success_hook(name="announce_retention", required_resource_keys=_NEEDED)
def announce_retention(context: dg.HookContext) -> None:
    """Close the incidents of retention with one message."""
    service = AlertService(_get_config(context))
    outcome = service.report_resolved(service.list_open_keys(RETENTION.area))
    context.log.info(f"recovery of retention: {outcome.value}")


@dg.success_hook(name="announce_verification", required_resource_keys=_NEEDED)
def announce_verification(context: dg.HookContext) -> None:
    """Close the incidents of verification with one message."""
    service = AlertService(_get_config(context))
    outcome = service.report_resolved(service.list_open_keys(VERIFICATION.area))
    context.log.info(f"recovery of verification: {outcome.value}")


@dg.success_hook(name="announce_housekeeping", required_resource_keys=_NEEDED)
def announce_housekeeping(context: dg.HookContext) -> None:
    """Close the incidents of this job with one message."""
    service = AlertService(_get_config(context))
    resolved = {
        key
        for key in service.list_open_keys(HOUSEKEEPING.area)
        if key.subject.split(" ")[0] in {context.step_key, context.job_name}
    }
    outcome = service.report_resolved(resolved)
    context.log.info(f"recovery of housekeeping: {outcome.value}")


@dg.success_hook(name="announce_copies", required_resource_keys=_NEEDED)
def announce_copies(context: dg.HookContext) -> None:
    """Close the incidents of this store's job with one message."""
    service = AlertService(_get_config(context))
    resolved = {
        key
        for run_kind in STORE_RUN_KINDS
        for key in service.list_open_keys(run_kind.area)
        if run_kind.find_job_name(key) == context.job_name
    }
    outcome = service.report_resolved(resolved)
    context.log.info(f"recovery of copies: {outcome.value}")


@dg.success_hook(name="announce_recovery_point", required_resource_keys=_NEEDED)
def announce_recovery_point(context: dg.HookContext) -> None:
    """Ping the heartbeat service, close open incidents, and report the success if configured."""
    service = AlertService(_get_config(context))
    ping_heartbeat(
        service.settings.heartbeat_url, Signal.SUCCESS, f"recovery point verified, run {context.run_id}"
    )
    service.report_resolved({*service.list_open_keys(BACKUP.area), STALE_KEY})
    if service.settings.is_success_reported:
        alert = Alert(
            severity=Severity.INFO,
            title="Recovery point verified",
            cause="Database and bucket were captured, read again and committed.",
            link=service.make_link(context.run_id),
            raised_at=datetime.now(timezone.utc),
        )
        for delivery in service.notifier.send(alert):
            context.log.info(f"success message to {delivery.channel}: {delivery.answer}")


def report_start(config: Config, run_id: str) -> None:
    """Record the start of a backup, and report it to the heartbeat service.

    Ignore wrong alert settings here: they fail the run at its end, when everything is captured.
    """
    History(config.site_directory).record(
        RunStarted(at=datetime.now(timezone.utc), kind=BACKUP.area, run_id=run_id)
    )
    with suppress(ConfigurationError):
        ping_heartbeat(config.alerts.heartbeat_url, Signal.START, f"backup started, run {run_id}")


def _get_config(context: dg.HookContext) -> Config:
    backup = getattr(context.resources, RESOURCE_KEY)
    if not isinstance(backup, BackupResource):
        raise TypeError(f"the resource {RESOURCE_KEY} is {type(backup).__name__}")
    return backup.config
