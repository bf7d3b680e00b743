"""Hooks that send an alert when a step fails or a recovery point is committed, and tag the run accordingly.

They are attached to assets and checks, because hooks of a job do not run when an asset is materialized in the
UI. They do not see cancelled or killed runs: the outbox does. If a hook raises, the outbox sends the alert.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache

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
from schedgen_backups.defs.resources import get_backup
from schedgen_backups.monitoring.failures import explain_exception, find_check_description
from schedgen_backups.site_names import DATABASE_DUMP, MINIO_ARCHIVE, RESTORE_DRILL, SiteNames

_ASSETS_WITH_CHECKS = (DATABASE_DUMP, MINIO_ARCHIVE, RESTORE_DRILL)
_HookFunction = Callable[[dg.HookContext, SiteNames], None]


@dataclass(frozen=True)
class Hooks:
    """The hooks of one site."""

    alert_on_step_failure: dg.HookDefinition
    announce_retention: dg.HookDefinition
    announce_verification: dg.HookDefinition
    announce_housekeeping: dg.HookDefinition
    announce_copies: dg.HookDefinition
    announce_recovery_point: dg.HookDefinition


@cache
def make_hooks(names: SiteNames) -> Hooks:
    """Return the hooks of this site: the same ones for all its definitions."""
    return Hooks(
        alert_on_step_failure=_make_failure_hook(names),
        announce_retention=_make_success_hook(names, "announce_retention", _announce_retention),
        announce_verification=_make_success_hook(names, "announce_verification", _announce_verification),
        announce_housekeeping=_make_success_hook(names, "announce_housekeeping", _announce_housekeeping),
        announce_copies=_make_success_hook(names, "announce_copies", _announce_copies),
        announce_recovery_point=_make_success_hook(
            names, "announce_recovery_point", _announce_recovery_point
        ),
    )


def _make_failure_hook(names: SiteNames) -> dg.HookDefinition:
    @dg.failure_hook(name=names.qualify("alert_on_step_failure"), required_resource_keys={names.resource_key})
    def alert_on_step_failure(context: dg.HookContext) -> None:
        _alert_on_step_failure(context, names)

    return alert_on_step_failure


def _make_success_hook(names: SiteNames, name: str, work: _HookFunction) -> dg.HookDefinition:
    @dg.success_hook(name=names.qualify(name), required_resource_keys={names.resource_key})
    def announce(context: dg.HookContext) -> None:
        work(context, names)

    return announce


def _alert_on_step_failure(context: dg.HookContext, names: SiteNames) -> None:
    """Send an alert with the step and the cause; tag the run for this step if a channel accepted it."""
    step = context.step_key
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None and run.tags.get(f"{run_tags.ALERTED_PREFIX}{step}") == run_tags.REHEARSAL:
        context.log.info("no alert: the restore was not confirmed and wrote nothing")
        return
    reason = explain_exception(context.op_exception)
    cause = reason.cause
    local_step = names.localize(step)
    for asset in _ASSETS_WITH_CHECKS:
        if local_step.startswith(f"{asset}_"):
            asset_key = dg.AssetKey(names.make_asset_path(asset))
            check_key = dg.AssetCheckKey(asset_key, local_step.removeprefix(f"{asset}_"))
            cause = find_check_description(context.instance, check_key, context.run_id) or cause
    service = AlertService(get_backup(context, names).config)
    failure = Failure(step, cause, reason.next_step, context.run_id, context.job_name)
    outcome = service.raise_failure(failure)
    context.log.info(f"alert: {outcome.value}")
    tags = {f"{run_tags.ALERTED_PREFIX}{step}": outcome.name.lower()} if outcome.is_settled else {}
    if service.ping_failure(failure):
        tags[names.make_tag(run_tags.HEARTBEAT)] = Signal.FAIL.name.lower()
    if tags:
        context.instance.add_run_tags(context.run_id, tags)


def _announce_retention(context: dg.HookContext, names: SiteNames) -> None:
    """Close the incidents of retention with one message."""
    service = AlertService(get_backup(context, names).config)
    outcome = service.report_resolved(service.list_open_keys(RETENTION.area))
    context.log.info(f"recovery of retention: {outcome.value}")


def _announce_verification(context: dg.HookContext, names: SiteNames) -> None:
    """Close the incidents of verification with one message."""
    service = AlertService(get_backup(context, names).config)
    outcome = service.report_resolved(service.list_open_keys(VERIFICATION.area))
    context.log.info(f"recovery of verification: {outcome.value}")


def _announce_housekeeping(context: dg.HookContext, names: SiteNames) -> None:
    """Close the incidents of this job with one message."""
    service = AlertService(get_backup(context, names).config)
    own = {names.localize(context.step_key), names.localize(context.job_name)}
    resolved = {key for key in service.list_open_keys(HOUSEKEEPING.area) if key.subject.split(" ")[0] in own}
    outcome = service.report_resolved(resolved)
    context.log.info(f"recovery of housekeeping: {outcome.value}")


def _announce_copies(context: dg.HookContext, names: SiteNames) -> None:
    """Close the incidents of this store's job with one message."""
    service = AlertService(get_backup(context, names).config)
    resolved = {
        key
        for run_kind in STORE_RUN_KINDS
        for key in service.list_open_keys(run_kind.area)
        if run_kind.find_job_name(key) == names.localize(context.job_name)
    }
    outcome = service.report_resolved(resolved)
    context.log.info(f"recovery of copies: {outcome.value}")


def _announce_recovery_point(context: dg.HookContext, names: SiteNames) -> None:
    """Ping the heartbeat service, close open incidents, and report the success if configured."""
    service = AlertService(get_backup(context, names).config)
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
