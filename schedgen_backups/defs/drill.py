"""The weekly proof: the asset `restore_drill`, which restores a recovery point into scratch servers, and its checks, one check each.

A drill writes into nothing but what it starts or makes itself, so that it may be an asset where a restore may not. What is looked at and measured is
core's business (`core.drill`); the checks read what it recorded beside the point. When it runs stands in `schedules`.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

import time
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.selection import LATEST
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.defs.assets import OWNERS, recovery_point
from schedgen_backups.defs.checks import with_alerts
from schedgen_backups.defs.hooks import alert_on_step_failure
from schedgen_backups.defs.resources import BackupResource
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure

GROUP = "restore_drill"
DRILL_POOL = "restore_drill"
"""One drill at a time; it waits for no backup, and no backup for it."""
REPORT_KEY = "report"


class DrillConfig(dg.Config):
    """Which recovery point is drilled."""

    point_id: str = Field(default=LATEST, description="A recovery point such as 20261122_020000, or `latest`: the newest verified one.")


@dg.asset(
    deps=[recovery_point],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres", "s3"},
    pool=DRILL_POOL,
    hooks={alert_on_step_failure},
    description=(
        "A recovery point was restored into an empty PostgreSQL and an empty bucket, compared with what was captured, and opened by key. "
        "Nothing that lives is written to, and everything that was started is gone afterwards. `rto_seconds` is how long it took."
    ),
)
def restore_drill(context: dg.AssetExecutionContext, config: DrillConfig, backup: dg.ResourceParam[BackupResource]) -> dg.MaterializeResult:
    """The recovery point was restored somewhere else and looked at; the checks say whether it is what it should be."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        site = backup.config
        site.check("drill", "capture", "database")
        point_id = None if config.point_id == LATEST else RecoveryPointId.parse(config.point_id)
        catalog = Catalog(site.backup_directory)
        started = time.monotonic()
        report = drill_point(catalog, point_id, site.capture.transfer, site.drill, source=site.database, drilled_by=context.run.run_id)
        seconds = time.monotonic() - started
    for note in report.notes:
        context.log.warning(note)
    return dg.MaterializeResult(metadata={**_make_figures(report), "seconds_with_removal": round(seconds, 3)})


def with_freshness(asset: dg.AssetsDefinition, max_age: timedelta) -> dg.AssetsDefinition:
    """Return the asset with the age at which the UI shows it as overdue. For the UI only: there, any drill counts, whatever it found."""
    policy = dg.FreshnessPolicy.time_window(fail_window=max_age)
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(freshness_policy=policy))


@dg.asset_check(asset=restore_drill, blocking=True)
def point_is_restored(context: dg.AssetCheckExecutionContext, backup: dg.ResourceParam[BackupResource]) -> dg.AssetCheckResult:
    """All tables with their rows and all objects were there after the restore."""
    return _report(context, backup, Check.DATABASE_IS_RESTORED, Check.BUCKET_IS_RESTORED)


@dg.asset_check(asset=restore_drill, blocking=True)
def point_is_equal(context: dg.AssetCheckExecutionContext, backup: dg.ResourceParam[BackupResource]) -> dg.AssetCheckResult:
    """Dumped and read again from there, it was identical: every row, the schema, every object with its metadata.

    A warning, never green, where two versions of PostgreSQL write the schema's text differently.
    """
    return _report(context, backup, Check.DATABASE_IS_EQUAL, Check.BUCKET_IS_EQUAL)


@dg.asset_check(asset=restore_drill, blocking=True)
def referenced_pdfs_open(context: dg.AssetCheckExecutionContext, backup: dg.ResourceParam[BackupResource]) -> dg.AssetCheckResult:
    """A sample of the objects that the restored database names was fetched by key from the restored bucket, and opened as PDF."""
    return _report(context, backup, Check.REFERENCED_PDFS_OPEN)


@dg.asset_check(asset=restore_drill, blocking=True)
def operator_checks_hold(context: dg.AssetCheckExecutionContext, backup: dg.ResourceParam[BackupResource]) -> dg.AssetCheckResult:
    """Each statement of DRILL_SQL_CHECKS returned true in the restored database. A warning, never green, where there are none."""
    return _report(context, backup, Check.OPERATOR_CHECKS_HOLD)


@dg.asset_check(asset=restore_drill)
def drill_is_in_time(context: dg.AssetCheckExecutionContext, backup: dg.ResourceParam[BackupResource]) -> dg.AssetCheckResult:
    """The drill took no longer than DRILL_MAX_MINUTES. A warning: the data is none the worse for it."""
    result = _report(context, backup, Check.DRILL_IS_IN_TIME)
    return result._replace(severity=dg.AssetCheckSeverity.WARN)


DRILL_CHECKS = [with_alerts(check) for check in (point_is_restored, point_is_equal, referenced_pdfs_open, operator_checks_hold, drill_is_in_time)]


def _make_figures(report: DrillReport) -> dict[str, Any]:
    """Numbers by themselves, so that the UI plots them from drill to drill."""
    phases = report.seconds.model_dump()
    return {
        "recovery_point": report.point_id,
        "rto_seconds": round(report.rto_seconds, 3),
        "rpo_seconds": round(report.rpo_seconds, 3),
        **{f"{name}_seconds": round(seconds, 3) for name, seconds in phases.items() if name != "total"},
        "objects": report.object_count,
        "restored_into": report.target,
        "snapshot_at": dg.MetadataValue.timestamp(report.snapshot_at),
        "checks": "; ".join(f"{result.check.value} {result.status.value}" for result in report.results),
        "notes": "\n".join(report.notes) or "none",
        REPORT_KEY: dg.MetadataValue.json(report.model_dump(mode="json")),
    }


def _report(context: dg.AssetCheckExecutionContext, backup: BackupResource, *checks: Check) -> dg.AssetCheckResult:
    with explain_failure(VERIFICATION_EXIT_CODE):
        catalog = Catalog(backup.config.backup_directory)
        point = _find_subject(catalog, context.run.run_id, checks[0])
    results = [result for check in checks if (result := point.verification.result(check)) is not None]
    return dg.AssetCheckResult(
        passed=len(results) == len(checks) and all(result.is_passed for result in results),
        severity=_judge(results, len(checks)),
        description="; ".join(f"{result.check.value} {result.status.value}: {result.summary}" for result in results),
        metadata={"recovery_point": point.point_id.text, **{name: value for result in results for name, value in result.figures.items()}},
    )


def _judge(results: list[CheckResult], check_count: int) -> dg.AssetCheckSeverity:
    is_wrong = len(results) < check_count or any(result.status is CheckStatus.FAILED for result in results)
    return dg.AssetCheckSeverity.ERROR if is_wrong else dg.AssetCheckSeverity.WARN


def _find_subject(catalog: Catalog, run_id: str, check: Check) -> PointListing:
    """The point that this run drilled, otherwise the one that was drilled last."""
    found = [(result, point) for point in catalog.list_points() if (result := point.verification.result(check)) is not None]
    own = [point for result, point in found if result.checked_by == run_id]
    if own:
        return own[0]
    if not found:
        raise VerificationError(f"no recovery point in {catalog.directory} was ever drilled", hint="Materialise restore_drill first.")
    return max(found, key=lambda pair: pair[0].checked_at)[1]
