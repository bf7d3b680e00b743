"""Ticks of the backup schedule that start no run, because the scheduled backup before them still runs.

`find_unfinished_backup` decides, `report_skipped_backups` sends the alert, `is_schedule_kept_again` ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import dagster as dg

from schedgen_backups.alerts.guides import SKIP_AREA
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.monitoring.ticks import list_skipped_ticks, read_newest_tick
from schedgen_backups.site_names import BACKUP_SCHEDULE, SiteNames

SKIP_KEY = IncidentKey(area=SKIP_AREA, subject="scheduled backup")
_SCHEDULE_TAG = "dagster/schedule_name"
UNFINISHED_STATUSES = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_RECORD_GRACE = timedelta(hours=1)
"""A run that is still unfinished an hour after its time limit is a record that nobody updates any more."""


def find_unfinished_backup(
    instance: dg.DagsterInstance, names: SiteNames, now: datetime, max_duration: timedelta
) -> dg.RunRecord | None:
    """Return the scheduled backup that runs or waits in the queue, or None.

    A backup that somebody started by hand does not count: the scheduled one waits for it.
    """
    records = instance.get_run_records(
        dg.RunsFilter(
            statuses=UNFINISHED_STATUSES,
            tags={_SCHEDULE_TAG: names.qualify(BACKUP_SCHEDULE)},
            created_after=now - max_duration - _RECORD_GRACE,
        ),
        limit=1,
    )
    return records[0] if records else None


def describe_skip(record: dg.RunRecord) -> str:
    """Return why a tick starts no run while this one is unfinished."""
    state = "waits in the queue" if record.dagster_run.status is dg.DagsterRunStatus.QUEUED else "still runs"
    return f"the scheduled backup of {record.create_timestamp:%Y-%m-%d %H:%M} UTC {state}"


def report_skipped_backups(
    instance: dg.DagsterInstance,
    service: AlertService,
    *,
    after_seconds: float,
    is_over: Callable[[], bool],
) -> float:
    """Send an alert for each skipped tick after this time; return the time of the last that was reported."""
    schedule = service.names.qualify(BACKUP_SCHEDULE)
    for tick in list_skipped_ticks(instance, schedule, after_seconds=after_seconds):
        if is_over():
            break
        outcome = service.raise_trouble(
            SKIP_KEY,
            Severity.MEDIUM,
            "Scheduled backup skipped",
            f"At {tick.at:%Y-%m-%d %H:%M} UTC no backup was started: {tick.reason}.",
            next_step="Compare the durations of the last runs with BACKUP_SCHEDULE: allow more time between "
            "two backups, or find out what makes them slow.",
        )
        if not outcome.is_settled:
            break
        after_seconds = tick.at.timestamp()
    return after_seconds


def is_schedule_kept_again(instance: dg.DagsterInstance, names: SiteNames) -> bool:
    """Return whether the last tick started a run, and this run ended before the next tick."""
    newest = read_newest_tick(instance, names.qualify(BACKUP_SCHEDULE))
    if newest is None or not newest.run_ids:
        return False
    runs = [instance.get_run_by_id(run_id) for run_id in newest.run_ids]
    return all(run is None or run.is_finished for run in runs)
