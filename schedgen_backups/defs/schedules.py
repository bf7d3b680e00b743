"""The schedules, in BACKUP_TIMEZONE, running as soon as the daemon does: BACKUP_SCHEDULE, DRILL_SCHEDULE, AUDIT_SCHEDULE.

A value that cannot be used leaves the default in place, so that the location loads and the run it starts fails with the reason. Add other
schedules here; what they run belongs to `jobs`. How Dagster treats missed ticks: one run is made up for after the daemon was down.
"""

from __future__ import annotations

import dagster as dg

from schedgen_backups.config.drill import read_drill_schedule
from schedgen_backups.config.environment import DEFAULT_SCHEDULE, load_environment, read_schedule, read_weekly_schedule
from schedgen_backups.config.variables import DEFAULT_AUDIT_SCHEDULE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.defs.audit import audit_job
from schedgen_backups.defs.jobs import backup_job, restore_drill_job


def _read_schedule() -> tuple[str, str]:
    try:
        schedule, timezone = read_schedule(load_environment())
    except ConfigurationError:  # the run that this schedule starts tells what is wrong
        return DEFAULT_SCHEDULE, "UTC"
    return schedule, str(timezone)


def make_daily_backup_schedule() -> dg.ScheduleDefinition:
    """The schedule of `backup_job` as the environment says now."""
    cron_schedule, timezone = _read_schedule()
    return dg.ScheduleDefinition(
        name="daily_backup_schedule",
        job=backup_job,
        cron_schedule=cron_schedule,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Takes a recovery point every night (BACKUP_SCHEDULE, BACKUP_TIMEZONE).",
    )


def make_weekly_audit_schedule() -> dg.ScheduleDefinition:
    """The schedule of `audit_job` as the environment says now."""
    cron_schedule, timezone = read_weekly_schedule("AUDIT_SCHEDULE", DEFAULT_AUDIT_SCHEDULE)
    return dg.ScheduleDefinition(
        name="weekly_audit_schedule",
        job=audit_job,
        cron_schedule=cron_schedule,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Looks every week whether each row of the live database has its object in the live bucket (AUDIT_SCHEDULE).",
    )


def make_weekly_drill_schedule() -> dg.ScheduleDefinition:
    """The schedule of `restore_drill_job` as the environment says now."""
    cron_schedule, timezone = read_drill_schedule()
    return dg.ScheduleDefinition(
        name="weekly_drill_schedule",
        job=restore_drill_job,
        cron_schedule=cron_schedule,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Drills a restore every week (DRILL_SCHEDULE, BACKUP_TIMEZONE).",
    )
