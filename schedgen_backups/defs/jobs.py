"""The jobs: `backup_job` takes, checks and commits a recovery point, `restore_drill_job` proves one, `prune_job` removes those that may go.

A job is a selection of assets with their checks, or one op; add one when a run of another kind is wanted. Work belongs to assets and core, times to
`schedules`, asking for a run to `sensors`.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from typing import Any

import dagster as dg

from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.core.drill.drill import PIN_TIME_FACTOR
from schedgen_backups.core.retention.plan import make_retention_table
from schedgen_backups.core.retention.prune import remove_points
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.defs.assets import describe_holder, recovery_point
from schedgen_backups.defs.hooks import alert_on_step_failure, announce_retention
from schedgen_backups.defs.resources import POOL, BackupResource
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure

MAX_RUNTIME_TAG = "dagster/max_runtime"
"""Seconds after which Dagster's run monitoring ends a run (Dagster documentation, run monitoring)."""


def make_asset_jobs(settings: DefinitionSettings) -> list[Any]:
    """Return the jobs that materialize assets, with the time limits of this site. Their class has no public name in Dagster."""
    return [
        dg.define_asset_job(
            "backup_job",
            selection=dg.AssetSelection.assets("database_dump", "minio_archive", "recovery_point"),
            description="Takes a recovery point of the database and the bucket, verifies it and commits it.",
            tags={MAX_RUNTIME_TAG: str(settings.max_hours * 3600)},
        ),
        dg.define_asset_job(
            "restore_drill_job",
            selection=dg.AssetSelection.assets("restore_drill"),
            description="Restores a recovery point into scratch servers, compares it, opens PDFs by key and measures how long that takes.",
            tags={MAX_RUNTIME_TAG: str(settings.drill_max_minutes * PIN_TIME_FACTOR * 60)},
        ),
    ]


@dg.op(pool=POOL)
def prune_recovery_points(context: dg.OpExecutionContext, backup: dg.ResourceParam[BackupResource]) -> None:
    """Recovery points that no rule keeps are gone; the asset's history says which and why."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        policy = backup.config.retention
        catalog = backup.open_catalog(describe_holder(context.run_id))
        report = remove_points(catalog, policy, lambda point: verify_point(catalog, point, checked_by=context.run_id))
    table = make_retention_table(report.plan)
    context.log.info(f"retention kept {len(report.plan.kept)} and removed {len(report.plan.removed)} recovery points\n{table}")
    context.log_event(
        dg.AssetObservation(
            recovery_point.key,
            metadata={
                "recovery_points_kept": len(report.plan.kept),
                "recovery_points_removed": len(report.plan.removed),
                "bytes_freed": report.freed_bytes,
                "refusal": report.plan.refusal or "none",
                "decisions": dg.MetadataValue.md(table),
            },
        )
    )


@dg.job(
    hooks={alert_on_step_failure, announce_retention},
    executor_def=dg.in_process_executor,
    description="Removes the recovery points that no rule of retention keeps.",
)
def prune_job() -> None:
    """Plans again and removes exactly the files of the points that may go."""
    prune_recovery_points()
