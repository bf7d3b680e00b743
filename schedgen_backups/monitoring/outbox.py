"""Send the alerts that no hook delivered until a channel accepts them, and report resolved incidents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.guides import CHECK_AREA, OUTBOX_AREA, SKIP_AREA, TICK_AREA
from schedgen_backups.alerts.run_kinds import (
    BACKUP,
    OTHER_RUN_KINDS,
    RESTORE,
    STORE_RUN_KINDS,
    RunKind,
    find_run_kind,
)
from schedgen_backups.alerts.service import RUN_SUBJECT, STALE_KEY, AlertService, Failure, judge_warning
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.selection import measure_freshness
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.heartbeat import Signal
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.notify.notifier import Outcome
from schedgen_backups.core.restore.log import find_last_success
from schedgen_backups.monitoring.failures import explain_exception, explain_run_failure, explain_step_failure
from schedgen_backups.monitoring.orphaned_runs import fail_orphaned_runs
from schedgen_backups.monitoring.skipped_backups import (
    SKIP_KEY,
    is_schedule_kept_again,
    report_skipped_backups,
)
from schedgen_backups.monitoring.ticks import list_failed_ticks, list_resolved
from schedgen_backups.site_names import OUTBOX_SENSOR, InstallationNames, SiteNames, name_shared

_HISTORY_LIMIT = 20


def list_resolved_keys(
    instance: dg.DagsterInstance,
    service: AlertService,
    check_keys: list[dg.AssetCheckKey],
    installation: InstallationNames,
) -> frozenset[IncidentKey]:
    """Return the keys of open incidents whose cause succeeded after their last alert."""
    incidents, names = service.notifier.read_incidents(), service.names
    if not incidents:
        return frozenset()
    areas = frozenset(incident.key.area for incident in incidents)
    newest = measure_freshness(service.catalog, datetime.now(timezone.utc)).newest
    committed_at = (
        newest.manifest.committed_at if newest is not None and newest.manifest is not None else None
    )
    succeeded_at = {BACKUP.area: committed_at, STALE_KEY.area: committed_at}
    succeeded_at |= {
        run_kind.area: _find_success(instance, _list_job_names(names, installation, run_kind))
        for run_kind in OTHER_RUN_KINDS
        if run_kind.area in areas
    }
    if RESTORE.area in areas:
        # From the restore log: a run without confirmation succeeds and restores nothing, and operators
        # restore on the command line too.
        succeeded_at[RESTORE.area] = find_last_success(service.catalog.directory)
    passed_at = (
        {check_key.name: _find_pass(instance, check_key) for check_key in check_keys}
        if CHECK_AREA in areas
        else {}
    )
    tick_names = {incident.key.subject for incident in incidents if incident.key.area == TICK_AREA}
    good_ticks = list_resolved(
        instance,
        lambda name: names.localize(name) in tick_names and installation.find_owner(name) == names,
    )
    resolved = {IncidentKey(area=TICK_AREA, subject=names.localize(name)) for name in good_ticks}
    if SKIP_AREA in areas and is_schedule_kept_again(instance, names):
        resolved.add(SKIP_KEY)
    kinds_of_stores = {run_kind.area: run_kind for run_kind in STORE_RUN_KINDS}
    for incident in incidents:
        key = incident.key
        if key.area in kinds_of_stores:
            good_at = _find_success(instance, [names.qualify(kinds_of_stores[key.area].find_job_name(key))])
        else:
            good_at = passed_at.get(key.subject) if key.area == CHECK_AREA else succeeded_at.get(key.area)
        if good_at is not None and good_at > incident.announced_at:
            resolved.add(key)
    return frozenset(resolved)


def _list_job_names(names: SiteNames, installation: InstallationNames, run_kind: RunKind) -> list[str]:
    """Return the full names of the site's jobs of this kind, with those of the installation that it keeps."""
    candidates = {*run_kind.job_names, *map(names.qualify, run_kind.job_names)}
    return [name for name in candidates if installation.find_owner(name) == names]


def _make_check_key(check_key: dg.AssetCheckKey) -> IncidentKey:
    return IncidentKey(area=CHECK_AREA, subject=check_key.name)


def _find_success(instance: dg.DagsterInstance, job_names: Iterable[str]) -> datetime | None:
    """Return when a run of these jobs last succeeded; None if one has failed since."""
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    records: list[dg.RunRecord] = []
    for job_name in job_names:
        records += instance.get_run_records(dg.RunsFilter(job_name=job_name, statuses=finished), limit=1)
    ended = [
        (record.end_time, record.dagster_run.status) for record in records if record.end_time is not None
    ]
    end_time, status = max(ended, key=lambda pair: pair[0], default=(0.0, None))
    return datetime.fromtimestamp(end_time, timezone.utc) if status is dg.DagsterRunStatus.SUCCESS else None


def _find_pass(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> datetime | None:
    """Return when the check last passed; None if it has failed since."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_HISTORY_LIMIT):
        if record.event is not None and isinstance(record.evaluation, dg.AssetCheckEvaluation):
            # The record's own time is when the check was planned, in whole seconds.
            return (
                datetime.fromtimestamp(record.event.timestamp, timezone.utc)
                if record.evaluation.passed
                else None
            )
    return None


WILL_RETRY_TAG = "dagster/will_retry"
_IMPLICIT_JOB_PREFIX = "__ASSET_JOB"
"""Start of the job's name of runs that are started in the UI from assets (Dagster 1.13)."""
_BATCH = 20
_PART_SECONDS = 8
_TICK_SECONDS = 18
"""Time limits of one part and of the whole tick; nothing further is reported afterwards.

A report that has already started takes one exchange with a channel at most: ten seconds. Dagster aborts a
tick after 60 s, and then the cursor does not advance."""
_MAX_INITIAL_AGE = timedelta(days=2)
"""The first run of the outbox ignores events that are older than this."""
_UNREMARKABLE = (f" {CheckStatus.NOT_CONFIGURED.value}: ", f" {CheckStatus.SAMPLED.value}: ")
"""Parts of the description of a warning without an alert: it never changes, and the UI shows it."""
_REMARKABLE = tuple(
    f"{check.value} {status.value}: "
    for check in Check
    for status in (CheckStatus.UNKNOWN, CheckStatus.FAILED)
)
"""Parts of a warning with an alert, whatever else it contains."""
_Result = TypeVar("_Result")


class OutboxCursor(FrozenModel):
    """The position up to which everything was reported."""

    since_seconds: float = 0
    """Earlier events are ignored. Set by the first run and then kept, so that alerts that no channel accepted
    for days are sent late instead of never."""
    failure_id: int = 0
    cancel_id: int = 0
    tick_seconds: dict[str, float] = {}
    """Per schedule and sensor. A tick's time is when it was due, which may be hours before it fails."""
    check_ids: dict[str, int] = {}
    skip_seconds: float = 0
    """When the last skipped backup that was reported was due."""


def work_through_outbox(
    instance: dg.DagsterInstance,
    service: AlertService,
    cursor: OutboxCursor,
    check_keys: list[dg.AssetCheckKey],
    installation: InstallationNames,
) -> OutboxCursor:
    """Report everything of this site after the cursor, as time permits; return the new cursor.

    A part that raises is reported, and the other parts continue.
    """
    tick_ends_at = time.monotonic() + _TICK_SECONDS
    since_seconds = cursor.since_seconds or (datetime.now(timezone.utc) - _MAX_INITIAL_AGE).timestamp()

    def begin() -> _Part:
        ends_at = min(tick_ends_at, time.monotonic() + _PART_SECONDS)
        horizon = datetime.fromtimestamp(since_seconds, timezone.utc)
        return _Part(instance, service, installation, horizon, ends_at)

    failed = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=cursor.failure_id
    )
    cancelled = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_CANCELED, after_storage_id=cursor.cancel_id
    )
    _guard(service, "runs whose process is gone", lambda: len(fail_orphaned_runs(instance)), 0)
    failure_id = _guard(
        service, "failed runs", lambda: _report_runs(begin(), failed, cursor.failure_id), cursor.failure_id
    )
    cancel_id = _guard(
        service,
        "cancelled runs",
        lambda: _report_runs(begin(), cancelled, cursor.cancel_id),
        cursor.cancel_id,
    )
    tick_seconds = _guard(
        service, "failed ticks", lambda: _report_ticks(begin(), cursor.tick_seconds), cursor.tick_seconds
    )
    skip_seconds = _guard(
        service, "skipped backups", lambda: _report_skips(begin(), cursor.skip_seconds), cursor.skip_seconds
    )
    check_ids = _guard(
        service,
        "warnings of checks",
        lambda: _report_checks(begin(), check_keys, cursor.check_ids),
        cursor.check_ids,
    )
    _guard(
        service,
        "what is over",
        lambda: service.report_resolved(list_resolved_keys(instance, service, check_keys, installation)),
        None,
    )
    # Last, so that a channel that does not answer delays no new alerts.
    if time.monotonic() < tick_ends_at:
        _guard(service, "alerts that wait for a channel", service.notifier.flush_spool, 0)
    return OutboxCursor(
        since_seconds=since_seconds,
        failure_id=failure_id,
        cancel_id=cancel_id,
        tick_seconds=tick_seconds,
        check_ids=check_ids,
        skip_seconds=skip_seconds,
    )


def _guard(service: AlertService, part: str, work: Callable[[], _Result], default: _Result) -> _Result:
    """Return the part's result; if it raises, send an alert and return the default.

    An error in one part must not stop the others, and nothing else reports it.
    """
    key = IncidentKey(area=OUTBOX_AREA, subject=part)
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - other parts must go on; the reason is in the alert
        reason = explain_exception(error)
        next_step = reason.next_step or "Check the page of the sensor alert_outbox in the UI."
        service.raise_trouble(
            key, Severity.HIGH, f"Alerts may be missing: {part}", reason.cause, next_step=next_step
        )
        return default
    if key in service.list_open_keys(OUTBOX_AREA):
        service.report_resolved({key})
    return result


@dataclass(frozen=True)
class _Part:
    """One part of a tick."""

    instance: dg.DagsterInstance
    service: AlertService
    installation: InstallationNames
    horizon: datetime
    """Earlier events are ignored."""
    ends_at: float
    """On the monotonic clock."""

    @property
    def is_over(self) -> bool:
        """Whether the time limit has passed; the rest is left to the next tick."""
        return time.monotonic() >= self.ends_at

    def owns(self, name: str) -> bool:
        """Return whether the job, step, schedule or sensor of this full name belongs to the site."""
        return self.installation.find_owner(name) == self.service.names

    def owns_run(self, run: dg.DagsterRun) -> bool:
        """Return whether some of the run belongs to the site.

        A run that was started in the UI from assets has no job of ours, and may be of several sites.
        """
        keys = {*(run.asset_selection or ()), *(key.asset_key for key in run.asset_check_selection or ())}
        if not run.job_name.startswith(_IMPLICIT_JOB_PREFIX) or not keys:
            return self.owns(run.job_name)
        return any(self.installation.find_owner_of_asset(key.path) == self.service.names for key in keys)


def _report_runs(part: _Part, wanted: dg.RunStatusChangeRecordsFilter, after_id: int) -> int:
    instance, service = part.instance, part.service
    for record in instance.fetch_run_status_changes(wanted, limit=_BATCH, ascending=True).records:
        if part.is_over:
            return after_id
        entry = record.event_log_entry
        run = instance.get_run_by_id(entry.run_id)
        if (
            run is not None
            and part.owns_run(run)
            and run.tags.get(WILL_RETRY_TAG) != "true"
            and entry.timestamp >= part.horizon.timestamp()
        ):
            is_settled = (
                _report_cancelled(service, run)
                if wanted.event_type is dg.DagsterEventType.RUN_CANCELED
                else _report_failed(part, run, entry.dagster_event)
            )
            if not is_settled:
                return after_id
        after_id = record.storage_id
    return after_id


def _report_failed(part: _Part, run: dg.DagsterRun, ended_by: dg.DagsterEvent | None) -> bool:
    """Report the run's failures of this site; return whether none is left to report.

    Tag each reported failure, so that only undelivered alerts are retried.
    """
    instance, service = part.instance, part.service
    failures = _list_failures(part, run, ended_by)
    heartbeat = service.names.make_tag(run_tags.HEARTBEAT)
    if heartbeat not in run.tags and any(service.ping_failure(failure) for failure in failures.values()):
        instance.add_run_tags(run.run_id, {heartbeat: Signal.FAIL.name.lower()})
    is_settled = True
    for name, failure in failures.items():
        tag = f"{run_tags.ALERTED_PREFIX}{name}"
        if tag in run.tags:
            continue
        outcome = service.raise_failure(failure)
        if outcome.is_settled:
            instance.add_run_tags(run.run_id, {tag: outcome.name.lower()})
        is_settled = is_settled and outcome.is_settled
    return is_settled


def _list_failures(part: _Part, run: dg.DagsterRun, ended_by: dg.DagsterEvent | None) -> dict[str, Failure]:
    logs = part.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    events = [
        entry.dagster_event
        for entry in logs
        if entry.dagster_event is not None and entry.dagster_event.step_key
    ]
    if not events:
        cause = explain_run_failure(ended_by) or "the process exited without reporting an error"
        return {
            part.service.names.qualify(RUN_SUBJECT): Failure(
                run.job_name,
                cause,
                "Check the run's page in the UI, and whether the machine ran out of memory.",
                run.run_id,
                run.job_name,
            )
        }
    failures: dict[str, Failure] = {}
    for event in events:
        step, reason = str(event.step_key), explain_step_failure(event)
        if part.owns(step):
            failures[step] = Failure(step, reason.cause, reason.next_step, run.run_id, run.job_name)
    return failures


def _report_cancelled(service: AlertService, run: dg.DagsterRun) -> bool:
    job_name = service.names.localize(run.job_name)
    run_kind = find_run_kind(job_name, "")
    return service.raise_trouble(
        run_kind.make_cancellation_key(job_name),
        Severity.HIGH if run_kind.is_backup else run_kind.severity,
        f"{run_kind.noun} cancelled: {job_name}",
        "The run was cancelled; nothing of its unfinished steps was kept.",
        next_step=run_kind.next_step,
        run_id=run.run_id,
    ).is_settled


def _report_ticks(part: _Part, after_seconds: dict[str, float]) -> dict[str, float]:
    reported = dict(after_seconds)
    floor_seconds = part.horizon.timestamp()
    for tick in list_failed_ticks(
        part.instance,
        after_seconds=after_seconds,
        floor_seconds=floor_seconds,
        is_wanted=lambda name: (
            part.owns(name)
            and part.service.names.localize(name) not in {OUTBOX_SENSOR, name_shared(OUTBOX_SENSOR)}
        ),
    ):
        if part.is_over:
            return reported
        name = part.service.names.localize(tick.name)
        outcome = part.service.raise_trouble(
            IncidentKey(area=TICK_AREA, subject=name),
            Severity.CRITICAL,
            f"No run was started: {name}",
            tick.reason,
            next_step="Check the page of the schedule or sensor in the UI; `schedgen-backups doctor` checks "
            "the settings.",
        )
        if not outcome.is_settled:
            return reported
        reported[tick.source] = tick.at_seconds
    return reported


def _report_skips(part: _Part, after_seconds: float) -> float:
    return report_skipped_backups(
        part.instance,
        part.service,
        after_seconds=max(after_seconds, part.horizon.timestamp()),
        is_over=lambda: part.is_over,
    )


def _report_checks(part: _Part, keys: list[dg.AssetCheckKey], after_ids: dict[str, int]) -> dict[str, int]:
    # One query for all: their histories take 2 ms each, and most have nothing new.
    newest = part.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    reported = {key.to_user_string(): after_ids.get(key.to_user_string(), 0) for key in keys}
    for key, record in newest.items():
        name = key.to_user_string()
        if record.id > reported[name]:
            reported[name] = _report_check(part, key, reported[name])
    return reported


def _report_check(part: _Part, key: dg.AssetCheckKey, after_id: int) -> int:
    """Report evaluations that failed as a warning: their run continued, so nothing else reports them."""
    history = part.instance.event_log_storage.get_asset_check_execution_history(key, limit=_BATCH)
    for record in sorted(
        (record for record in history if record.id > after_id), key=lambda record: record.id
    ):
        evaluation = record.evaluation
        if not isinstance(evaluation, dg.AssetCheckEvaluation):  # planned
            run = part.instance.get_run_by_id(record.run_id)
            if run is not None and not run.is_finished:
                break  # retried in the next tick
            after_id = record.id  # its run ended before it was evaluated
            continue
        is_news = record.create_timestamp >= part.horizon.timestamp() and _is_warning(evaluation)
        if is_news and (
            part.is_over or not _report_warning(part.service, evaluation, record.run_id).is_settled
        ):
            return after_id
        after_id = record.id
    return after_id


def report_checks_of_run(service: AlertService, result: dg.ExecuteInProcessResult) -> None:
    """Report the check warnings of a run of the command line, and those that are resolved.

    No sensor runs where cron starts the backups.
    """
    evaluations = result.get_asset_check_evaluations()
    for evaluation in filter(_is_warning, evaluations):
        _report_warning(service, evaluation, result.run_id)
    passed = {_make_check_key(evaluation.asset_check_key) for evaluation in evaluations if evaluation.passed}
    if resolved := passed & service.list_open_keys(CHECK_AREA):
        service.report_resolved(resolved)


def _is_warning(evaluation: dg.AssetCheckEvaluation) -> bool:
    description = evaluation.description or ""
    is_remarkable = not any(part in description for part in _UNREMARKABLE) or any(
        part in description for part in _REMARKABLE
    )
    return is_remarkable and not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.WARN


def _report_warning(service: AlertService, evaluation: dg.AssetCheckEvaluation, run_id: str) -> Outcome:
    return service.raise_trouble(
        _make_check_key(evaluation.asset_check_key),
        judge_warning(
            evaluation.check_name, {name: value.value for name, value in evaluation.metadata.items()}
        ),
        f"Check warns: {evaluation.check_name}",
        evaluation.description or "no reason is known",
        run_id=run_id,
    )
