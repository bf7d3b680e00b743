"""The schedules of the site in BACKUP_TIMEZONE, on by default, such as BACKUP_SCHEDULE and DRILL_SCHEDULE.

Add other schedules here, and their jobs in `jobs`. After the daemon was down, Dagster starts one run for the
missed ticks.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg

from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.monitoring.skipped_backups import describe_skip, find_unfinished_backup
from schedgen_backups.site_names import (
    AUDIT_JOB,
    BACKUP_JOB,
    BACKUP_SCHEDULE,
    DRILL_JOB,
    REPORT_JOB,
    RUN_REMOVAL_JOB,
    SiteNames,
)

_RUN_REMOVAL_CRON = "30 12 * * *"
"""Away from the nights, in which backups run."""


def make_schedules(names: SiteNames, settings: DefinitionSettings) -> list[dg.ScheduleDefinition]:
    """Return the schedules of this site."""
    return [
        _make_backup_schedule(names, settings),
        _make_schedule(
            names.qualify("weekly_drill_schedule"),
            names.qualify(DRILL_JOB),
            settings.drill_cron,
            settings.timezone,
            "Runs a restore drill, by default every week (DRILL_SCHEDULE, BACKUP_TIMEZONE).",
        ),
        _make_schedule(
            names.qualify("monthly_report_schedule"),
            names.qualify(REPORT_JOB),
            settings.report_cron,
            settings.timezone,
            "Writes and sends the report of the last month (REPORT_SCHEDULE, BACKUP_TIMEZONE).",
        ),
        *([_make_audit_schedule(names, settings)] if settings.has_references else []),
    ]


def make_run_removal_schedule(timezone: str) -> dg.ScheduleDefinition:
    """Return the installation's schedule of the removal of old runs."""
    return _make_schedule(
        "daily_run_removal_schedule",
        RUN_REMOVAL_JOB,
        _RUN_REMOVAL_CRON,
        timezone,
        "Removes old runs from Dagster's history (DAGSTER_KEEP_DAYS).",
    )


def _make_backup_schedule(names: SiteNames, settings: DefinitionSettings) -> dg.ScheduleDefinition:
    """Return the schedule of backups; a tick is skipped while the scheduled backup before it is unfinished.

    Otherwise runs would wait in the queue, more of them with each tick. `alert_outbox` sends an alert.
    """

    @dg.schedule(
        name=names.qualify(BACKUP_SCHEDULE),
        job_name=names.qualify(BACKUP_JOB),
        cron_schedule=settings.backup_cron,
        execution_timezone=settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Takes a recovery point, by default every night (BACKUP_SCHEDULE, BACKUP_TIMEZONE). "
        "Starts no run while the one that it started before is unfinished.",
    )
    def daily_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        max_duration = timedelta(hours=settings.max_hours)
        now = datetime.now(timezone.utc)
        unfinished = find_unfinished_backup(context.instance, names, now, max_duration)
        return dg.SkipReason(describe_skip(unfinished)) if unfinished is not None else dg.RunRequest()

    return daily_backup_schedule


def _make_audit_schedule(names: SiteNames, settings: DefinitionSettings) -> dg.ScheduleDefinition:
    return _make_schedule(
        names.qualify("weekly_audit_schedule"),
        names.qualify(AUDIT_JOB),
        settings.audit_cron,
        settings.timezone,
        "Checks, by default every week, that every object that a row of the live database refers to is in "
        "the "
        "live bucket (AUDIT_SCHEDULE, BACKUP_TIMEZONE).",
    )


def _make_schedule(
    name: str, job_name: str, cron: str, timezone: str, description: str
) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name,
        job_name=job_name,
        cron_schedule=cron,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
