"""The jobs: `backup_job` takes, checks and commits a recovery point, `prune_job` removes those that may go.

`verify_job` reads those again whose files were copied or modified. Drills, audits and restores have modules
of their own. A job is a selection of assets with their checks, or one op; add one when a run of another kind
is wanted. Work belongs to assets and core, times to `schedules`, asking for a run to `sensors`.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from typing import Any

import dagster as dg

from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.retention.plan import make_retention_table
from schedgen_backups.core.retention.prune import remove_points
from schedgen_backups.core.units import format_bytes, name_some
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.core.verify.reread import read_unread
from schedgen_backups.defs.assets import describe_holder, make_points_observation
from schedgen_backups.defs.hooks import alert_on_step_failure, announce_retention, announce_verification
from schedgen_backups.defs.resources import MAX_RUNTIME_TAG, POOL, BackupResource
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure

_REREAD_SECONDS = 1800
"""A backup waits for no longer than this and one point's reading; what is left is asked for again."""


def make_backup_job(settings: DefinitionSettings) -> Any:
    """Return the job that takes a recovery point, with the time limit of this site.

    Its class has no public name in Dagster.
    """
    return dg.define_asset_job(
        "backup_job",
        selection=dg.AssetSelection.assets("database_dump", "minio_archive", "recovery_point"),
        description="Takes a recovery point of the database and the bucket, verifies it and commits it.",
        tags={MAX_RUNTIME_TAG: str(settings.max_hours * 3600)},
    )


@dg.op(pool=POOL)
def prune_recovery_points(context: dg.OpExecutionContext, backup: dg.ResourceParam[BackupResource]) -> None:
    """Recovery points that no rule keeps are gone; the asset's history says which and why."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        policy = backup.config.retention
        catalog = backup.open_catalog(describe_holder(context.run_id))
        report = remove_points(
            catalog, policy, lambda point: verify_point(catalog, point, checked_by=context.run_id)
        )
    table = make_retention_table(report.plan)
    context.log.info(
        f"retention kept {len(report.plan.kept)} and removed {len(report.plan.removed)} recovery "
        f"points\n{table}"
    )
    context.log_event(
        make_points_observation(
            catalog,
            {
                "recovery_points_kept": dg.MetadataValue.int(len(report.plan.kept)),
                "recovery_points_removed": dg.MetadataValue.int(len(report.plan.removed)),
                "freed": dg.MetadataValue.text(format_bytes(report.freed_bytes)),
                "bytes_freed": dg.MetadataValue.int(report.freed_bytes),
                "refusal": dg.MetadataValue.text(report.plan.refusal or "none"),
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


@dg.op(pool=POOL)
def reread_recovery_points(context: dg.OpExecutionContext, backup: dg.ResourceParam[BackupResource]) -> None:
    """Recovery points whose files were modified since they were read are read again, newest first.

    VerificationError when one is not as it was.
    """
    with explain_failure(VERIFICATION_EXIT_CODE):
        catalog = backup.open_catalog(describe_holder(context.run_id))
        report = read_unread(
            catalog,
            checked_by=context.run_id,
            budget_seconds=_REREAD_SECONDS,
            on_point=lambda point: context.log.info(
                f"reading {point.point_id} again: {name_some(point.unread_files)}"
            ),
        )
        context.log_event(make_points_observation(catalog))
        for point in report.points:
            context.log.info(f"{point.point_id}: {point.state.value}")
        if report.due_count:
            context.log.info(f"{report.due_count} recovery points are left for the next run")
        if report.wrong or report.problems:
            wrong = name_some(
                [*(f"{point.point_id} ({point.state.value})" for point in report.wrong), *report.problems]
            )
            raise VerificationError(
                f"read again, and not as they were captured: {wrong}",
                hint="`schedgen-backups show ID` says what is wrong with each. Bring its files back from a "
                "copy, or take a new point.",
            )


@dg.job(
    hooks={alert_on_step_failure, announce_verification},
    executor_def=dg.in_process_executor,
    description="Reads the recovery points again whose files were copied, moved or modified since somebody "
    "read them.",
)
def verify_job() -> None:
    """Records what it finds beside each point, as a verification by hand does."""
    reread_recovery_points()
