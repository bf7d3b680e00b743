"""Finds out which open incidents are over: what failed has gone well since.

The hooks say so at once; this is for those that could not, because the channels were down or the process was killed. It reads, and tells nobody:
`outbox` does. Add a rule with each new kind of incident, or nobody ever hears that it is over.
"""

from __future__ import annotations

from datetime import datetime, timezone

import dagster as dg

from schedgen_backups.alerts.run_kinds import BACKUP, OTHER_DUTIES, Duty
from schedgen_backups.alerts.service import CHECK_KIND_PREFIX, STALE_KIND, TICK_KIND_PREFIX, AlertDesk
from schedgen_backups.core.catalog.freshness import look_at_freshness
from schedgen_backups.core.notify.incidents import Incident
from schedgen_backups.monitoring.ticks import list_recovered

_HISTORY_LIMIT = 20


def list_ended_kinds(instance: dg.DagsterInstance, desk: AlertDesk, check_keys: list[dg.AssetCheckKey]) -> frozenset[str]:
    """The kinds of open incidents whose cause has gone well after their last alert."""
    incidents = desk.notifier.read_incidents()
    if not incidents:
        return frozenset()
    kinds = frozenset(incident.kind for incident in incidents)
    names = frozenset(kind.removeprefix(TICK_KIND_PREFIX) for kind in kinds if kind.startswith(TICK_KIND_PREFIX))
    over = {f"{TICK_KIND_PREFIX}{name}" for name in list_recovered(instance, names)}
    newest = look_at_freshness(desk.catalog, datetime.now(timezone.utc)).newest
    if newest is not None and newest.manifest is not None:
        over |= _select(incidents, (BACKUP.kind_prefix, STALE_KIND), newest.manifest.sealed_at)
    for duty in OTHER_DUTIES:
        over |= _select(incidents, (duty.kind_prefix,), _find_success(instance, duty))
    for key in check_keys:
        over |= _select(incidents, (f"{CHECK_KIND_PREFIX}{key.name}",), _find_pass(instance, key))
    return frozenset(over)


def _select(incidents: tuple[Incident, ...], prefixes: tuple[str, ...], went_well_at: datetime | None) -> set[str]:
    if went_well_at is None:
        return set()
    return {incident.kind for incident in incidents if incident.kind.startswith(prefixes) and went_well_at > incident.announced_at}


def _find_success(instance: dg.DagsterInstance, duty: Duty) -> datetime | None:
    """When a run of the duty's jobs last succeeded, if none has failed since."""
    newest: datetime | None = None
    for job_name in duty.job_names:
        finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        records = instance.get_run_records(dg.RunsFilter(job_name=job_name, statuses=finished), limit=1)
        if records and records[0].dagster_run.status is dg.DagsterRunStatus.SUCCESS and records[0].end_time is not None:
            ended_at = datetime.fromtimestamp(records[0].end_time, timezone.utc)
            newest = max(ended_at, newest) if newest is not None else ended_at
    return newest


def _find_pass(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> datetime | None:
    """When the check was last seen to hold, if it has not failed since."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_HISTORY_LIMIT):
        if record.event is not None and isinstance(record.evaluation, dg.AssetCheckEvaluation):
            # Not the record's own time: that is when the check was planned, to the second.
            return datetime.fromtimestamp(record.event.timestamp, timezone.utc) if record.evaluation.passed else None
    return None
