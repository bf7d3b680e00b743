"""The schedules, in BACKUP_TIMEZONE, running as soon as the daemon does: BACKUP_SCHEDULE, DRILL_SCHEDULE,
AUDIT_SCHEDULE.

Add other schedules here; what they run belongs to `jobs`. How Dagster treats missed ticks: one run is made up
for after the daemon was down.
"""

from __future__ import annotations

import dagster as dg

from schedgen_backups.config.schedules import DefinitionSettings


def make_schedules(settings: DefinitionSettings) -> list[dg.ScheduleDefinition]:
    """Return the schedules of this site."""
    return [
        _make_schedule(
            "daily_backup_schedule",
            "backup_job",
            settings.backup_cron,
            settings.backup_timezone,
            "Takes a recovery point every night (BACKUP_SCHEDULE, BACKUP_TIMEZONE).",
        ),
        _make_schedule(
            "weekly_drill_schedule",
            "restore_drill_job",
            settings.drill_cron,
            settings.timezone,
            "Drills a restore every week (DRILL_SCHEDULE, BACKUP_TIMEZONE).",
        ),
        *([_make_audit_schedule(settings)] if settings.has_references else []),
    ]


def _make_audit_schedule(settings: DefinitionSettings) -> dg.ScheduleDefinition:
    return _make_schedule(
        "weekly_audit_schedule",
        "audit_job",
        settings.audit_cron,
        settings.timezone,
        "Looks every week whether each row of the live database has its object in the live bucket "
        "(AUDIT_SCHEDULE).",
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
