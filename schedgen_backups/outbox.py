"""The alarm of record: goes through what happened since the last look and tells what nobody has told yet.

Failed and cancelled runs, failed ticks, checks that failed without failing their run. The cursor goes on only past what a channel accepted, so that
an alert is late when the channels are down, and not lost. Called by the sensor `alert_outbox`; what an alert says is the business of `alerting`.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg

from schedgen_backups.alerting import (
    ALERTED_TAG,
    CHECK_KIND_PREFIX,
    RUN_KIND_PREFIX,
    STALE_KIND,
    TICK_KIND_PREFIX,
    AlertDesk,
    Failure,
    explain_run_failure,
    explain_step_failure,
)
from schedgen_backups.core.alerts import Severity
from schedgen_backups.core.freshness import look_at_freshness
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.dead_runs import fail_dead_runs
from schedgen_backups.ticks import list_failed_ticks, list_recovered

OUTBOX_NAME = "alert_outbox"
WILL_RETRY_TAG = "dagster/will_retry"
_BATCH = 20
_OLDEST = timedelta(days=2)
"""What happened longer ago than this before the outbox first looked is history, not news."""
_UNREMARKABLE_CHECKS = frozenset({"references_resolve"})
"""A warning of it says that references are not configured: every night the same, and `doctor` says it too."""


class OutboxCursor(FrozenModel):
    """Up to where everything was told."""

    failure_id: int = 0
    cancel_id: int = 0
    tick_seconds: dict[str, float] = {}
    """For each schedule and sensor by itself: a tick bears the time it was due, which may be hours before it fails."""
    check_ids: dict[str, int] = {}


def work_through_outbox(instance: dg.DagsterInstance, desk: AlertDesk, cursor: OutboxCursor, check_keys: list[dg.AssetCheckKey]) -> OutboxCursor:
    """Everything since the cursor was told or is still to be told; returns how far it came."""
    fail_dead_runs(instance)
    desk.notifier.flush_spool()
    horizon = datetime.now(timezone.utc) - _OLDEST
    failed = dg.RunStatusChangeRecordsFilter(event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=cursor.failure_id)
    cancelled = dg.RunStatusChangeRecordsFilter(event_type=dg.DagsterEventType.RUN_CANCELED, after_storage_id=cursor.cancel_id)
    failure_id = _tell_runs(instance, desk, failed, cursor.failure_id, horizon)
    cancel_id = _tell_runs(instance, desk, cancelled, cursor.cancel_id, horizon)
    tick_seconds = _tell_ticks(instance, desk, cursor.tick_seconds, horizon)
    check_ids = {key.to_user_string(): _tell_check(instance, desk, key, cursor.check_ids.get(key.to_user_string(), 0), horizon) for key in check_keys}
    _report_recoveries(instance, desk)
    return OutboxCursor(failure_id=failure_id, cancel_id=cancel_id, tick_seconds=tick_seconds, check_ids=check_ids)


def _tell_runs(instance: dg.DagsterInstance, desk: AlertDesk, wanted: dg.RunStatusChangeRecordsFilter, after_id: int, horizon: datetime) -> int:
    for record in instance.fetch_run_status_changes(wanted, limit=_BATCH, ascending=True).records:
        entry = record.event_log_entry
        run = instance.get_run_by_id(entry.run_id)
        is_told = run is None or ALERTED_TAG in run.tags or run.tags.get(WILL_RETRY_TAG) == "true"
        if not is_told and entry.timestamp >= horizon.timestamp():
            assert run is not None  # noqa: S101 - is_told otherwise
            is_settled = (
                _tell_cancelled(desk, run)
                if wanted.event_type is dg.DagsterEventType.RUN_CANCELED
                else _tell_failed(instance, desk, run, entry.dagster_event)
            )
            if not is_settled:
                return after_id
        after_id = record.storage_id
    return after_id


def _tell_failed(instance: dg.DagsterInstance, desk: AlertDesk, run: dg.DagsterRun, ended_by: dg.DagsterEvent | None) -> bool:
    logs = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    events = [entry.dagster_event for entry in logs if entry.dagster_event is not None]
    if events:
        cause, next_step = explain_step_failure(events[0])
        return desk.raise_failure(Failure(events[0].step_key or run.job_name, cause, next_step, run.run_id)).is_settled
    cause = explain_run_failure(ended_by) or "its process ended without a word"
    return desk.raise_failure(Failure(run.job_name, cause, "Look at the run's page and at the machine's memory.", run.run_id)).is_settled


def _tell_cancelled(desk: AlertDesk, run: dg.DagsterRun) -> bool:
    return desk.raise_trouble(
        f"{RUN_KIND_PREFIX}{run.job_name} cancelled",
        Severity.HIGH,
        f"Backup cancelled: {run.job_name}",
        "Somebody or something ended the run; nothing of its unfinished steps was kept.",
        next_step="Run it again: schedgen-backups backup",
        run_id=run.run_id,
    ).is_settled


def _tell_ticks(instance: dg.DagsterInstance, desk: AlertDesk, after_seconds: dict[str, float], horizon: datetime) -> dict[str, float]:
    told = dict(after_seconds)
    for tick in list_failed_ticks(instance, after_seconds=after_seconds, floor_seconds=horizon.timestamp(), except_names=frozenset({OUTBOX_NAME})):
        outcome = desk.raise_trouble(
            f"{TICK_KIND_PREFIX}{tick.name}",
            Severity.CRITICAL,
            f"No run was started: {tick.name}",
            tick.reason,
            next_step="Look at the schedule's or sensor's page; `schedgen-backups doctor` checks the settings.",
        )
        if not outcome.is_settled:
            return told
        told[tick.source] = tick.at_seconds
    return told


def _tell_check(instance: dg.DagsterInstance, desk: AlertDesk, key: dg.AssetCheckKey, after_id: int, horizon: datetime) -> int:
    """Checks that failed as a warning: their run went on, so nothing else tells of them."""
    history = instance.event_log_storage.get_asset_check_execution_history(key, limit=_BATCH)
    for record in sorted((record for record in history if record.id > after_id), key=lambda record: record.id):
        evaluation = record.evaluation
        if not isinstance(evaluation, dg.AssetCheckEvaluation):  # planned
            run = instance.get_run_by_id(record.run_id)
            if run is not None and not run.is_finished:
                break  # looked at again next time
            after_id = record.id  # its run ended before it was reached
            continue
        is_news = record.create_timestamp >= horizon.timestamp() and key.name not in _UNREMARKABLE_CHECKS
        if is_news and not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.WARN:
            outcome = desk.raise_trouble(
                f"{CHECK_KIND_PREFIX}{key.name}",
                Severity.LOW,
                f"Check warns: {key.name}",
                evaluation.description or "no reason is known",
                run_id=record.run_id,
            )
            if not outcome.is_settled:
                return after_id
        after_id = record.id
    return after_id


def _report_recoveries(instance: dg.DagsterInstance, desk: AlertDesk) -> None:
    incidents = {incident.kind: incident for incident in desk.notifier.read_incidents()}
    names = frozenset(kind.removeprefix(TICK_KIND_PREFIX) for kind in incidents if kind.startswith(TICK_KIND_PREFIX))
    over = {f"{TICK_KIND_PREFIX}{name}" for name in list_recovered(instance, names)}
    newest = look_at_freshness(desk.catalog, datetime.now(timezone.utc)).newest
    if newest is not None and newest.manifest is not None:
        sealed_at = newest.manifest.sealed_at
        # For runs whose own hook could not say so, because the channels were down or the process was killed behind the seal.
        over |= {
            kind
            for kind, incident in incidents.items()
            if kind.startswith((RUN_KIND_PREFIX, STALE_KIND, CHECK_KIND_PREFIX)) and sealed_at > incident.announced_at
        }
    if over:
        desk.report_recovery(frozenset(over))
