"""The map of the project: which assets, checks, jobs, schedules and resources there are. No logic, no connections."""

from __future__ import annotations

import dagster as dg

from schedgen_backups.defs.assets import database_dump, minio_archive, recovery_point
from schedgen_backups.defs.audit import AUDIT_CHECKS, audit_job, live_system
from schedgen_backups.defs.checks import ALL_CHECKS
from schedgen_backups.defs.drill import DRILL_CHECKS, restore_drill
from schedgen_backups.defs.jobs import backup_job, prune_job, restore_drill_job
from schedgen_backups.defs.resources import BackupResource
from schedgen_backups.defs.restore import restore_job
from schedgen_backups.defs.schedules import make_daily_backup_schedule, make_weekly_audit_schedule, make_weekly_drill_schedule
from schedgen_backups.defs.sensors import alert_outbox, freshness_watch, retention_sensor

defs = dg.Definitions(
    assets=[database_dump, minio_archive, recovery_point, restore_drill, live_system],
    asset_checks=[*ALL_CHECKS, *DRILL_CHECKS, *AUDIT_CHECKS],
    jobs=[backup_job, restore_drill_job, prune_job, restore_job, audit_job],
    sensors=[alert_outbox, freshness_watch, retention_sensor],
    schedules=[make_daily_backup_schedule(), make_weekly_drill_schedule(), make_weekly_audit_schedule()],
    resources={"backup": BackupResource()},
    # One process per run: the lock lives in it, and nothing is left behind when it ends.
    executor=dg.in_process_executor,
)
