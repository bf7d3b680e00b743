"""The jobs `backup_job`, `prune_job` and `verify_job`; drills, audits and restores have their own modules.

A job is a selection of assets with their checks, or one op. Add one for another run kind. Assets and core do
the work; `schedules` and `sensors` start the runs.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from collections.abc import Callable
from inspect import getdoc
from typing import Any

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.retention.plan import make_retention_table
from schedgen_backups.core.retention.prune import remove_points
from schedgen_backups.core.units import format_bytes, name_some
from schedgen_backups.core.verify.commit import check_point
from schedgen_backups.core.verify.reread import read_unread
from schedgen_backups.defs.assets import CAPTURE_ASSETS, describe_holder, make_points_observation
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import MAX_RUNTIME_TAG, BackupResource, get_backup
from schedgen_backups.defs.retention_sensor import make_rules_tag
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.site_names import (
    BACKUP_JOB,
    PRUNE_JOB,
    RECOVERY_POINT,
    VERIFY_JOB,
    SiteNames,
)

_REREAD_SECONDS = 1800
"""A backup waits at most this long plus the time to read one point; the rest is requested again."""
_OpFunction = Callable[[dg.OpExecutionContext, BackupResource, SiteNames], None]


def make_backup_job(
    names: SiteNames, settings: DefinitionSettings, kinds: frozenset[ArtifactKind], database_server: str
) -> Any:
    """Return the job that takes a recovery point of databases, buckets or both, with the site's time limit.

    Its runs bear the name of the database server, so that their number can be limited.

    The return type has no public name in Dagster.
    """
    return dg.define_asset_job(
        names.qualify(BACKUP_JOB),
        selection=dg.AssetSelection.assets(
            *(names.make_asset_path(asset) for kind, asset in CAPTURE_ASSETS.items() if kind in kinds),
            names.make_asset_path(RECOVERY_POINT),
        ),
        description="Take a recovery point of the database and the bucket, verify it and commit it.",
        tags={
            MAX_RUNTIME_TAG: str(settings.max_hours * 3600),
            **({run_tags.DATABASE_SERVER: database_server} if database_server else {}),
        },
    )


def make_prune_job(names: SiteNames) -> dg.JobDefinition:
    """Return the job that plans again, and removes only the files of the points that no rule keeps."""
    hooks = make_hooks(names)
    prune_recovery_points = _make_op(names, "prune_recovery_points", _prune_recovery_points)

    @dg.job(
        name=names.qualify(PRUNE_JOB),
        hooks={hooks.alert_on_step_failure, hooks.announce_retention},
        executor_def=dg.in_process_executor,
        description="Remove the recovery points that no retention rule keeps.",
    )
    def prune_job() -> None:
        prune_recovery_points()

    return prune_job


def make_verify_job(names: SiteNames) -> dg.JobDefinition:
    """Return the job that stores the results next to each point, like the command `verify`."""
    hooks = make_hooks(names)
    reread_recovery_points = _make_op(names, "reread_recovery_points", _reread_recovery_points)

    @dg.job(
        name=names.qualify(VERIFY_JOB),
        hooks={hooks.alert_on_step_failure, hooks.announce_verification},
        executor_def=dg.in_process_executor,
        description="Verify the recovery points again whose files were copied, moved or modified after they "
        "were read.",
    )
    def verify_job() -> None:
        reread_recovery_points()

    return verify_job


def _make_op(names: SiteNames, local: str, work: _OpFunction) -> dg.OpDefinition:
    """Return the op that calls this function, whose docstring is its description."""

    @dg.op(
        name=names.qualify(local),
        description=getdoc(work),
        pool=names.directory_pool,
        required_resource_keys={names.resource_key},
    )
    def compute(context: dg.OpExecutionContext) -> None:
        work(context, get_backup(context, names), names)

    return compute


def _prune_recovery_points(context: dg.OpExecutionContext, backup: BackupResource, names: SiteNames) -> None:
    """Remove the recovery points that no retention rule keeps; the asset's history records the decisions."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        policy = backup.config.retention
        requested = context.run.tags.get(run_tags.RETENTION_RULES)
        if requested is not None and requested != make_rules_tag(policy):
            context.log.info(
                "the rules changed while this run waited: the sensor announces the new ones first"
            )
            return
        catalog = backup.open_catalog(describe_holder(context.run_id))
        report = remove_points(
            catalog, policy, lambda point: check_point(catalog, point, checked_by=context.run_id)[0]
        )
    table = make_retention_table(report.plan)
    context.log.info(
        f"retention kept {len(report.plan.kept)} and removed {len(report.plan.removed)} recovery "
        f"points\n{table}"
    )
    context.log_event(
        make_points_observation(
            names,
            catalog,
            {
                "recovery_points_kept": dg.MetadataValue.int(len(report.plan.kept)),
                "recovery_points_removed": dg.MetadataValue.int(len(report.plan.removed)),
                "freed": dg.MetadataValue.text(format_bytes(report.freed_bytes)),
                "bytes_freed": dg.MetadataValue.int(report.freed_bytes),
                "refusal": dg.MetadataValue.text(report.plan.refusal or "none"),
                "packs_kept_because": dg.MetadataValue.text(report.packs_kept_because or "none is"),
                "decisions": dg.MetadataValue.md(table),
            },
        )
    )


def _reread_recovery_points(context: dg.OpExecutionContext, backup: BackupResource, names: SiteNames) -> None:
    """Read the recovery points again whose files were modified after they were read, newest first.

    Raise VerificationError if one differs from what was captured.
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
        context.log_event(make_points_observation(names, catalog))
        for point in report.points:
            context.log.info(f"{point.point_id}: {point.state.value}")
        if report.due_count:
            context.log.info(f"{report.due_count} recovery points are left for the next run")
        if report.wrong or report.problems:
            wrong = name_some(
                [*(f"{point.point_id} ({point.state.value})" for point in report.wrong), *report.problems]
            )
            raise VerificationError(
                f"recovery points differ from what was captured: {wrong}",
                hint="`schedgen-backups show ID` shows what is wrong. Restore the files from a copy, or take "
                "a new recovery point.",
            )
