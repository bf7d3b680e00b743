"""The restore drill: the job that restores a point into scratch servers, and its asset and checks.

The asset cannot be executed: "Materialize all" takes a backup and drills nothing (docs/decisions/0021).
`core.drill` restores, checks and measures; the checks here read the results that it stored next to the point.
`schedules` defines when it runs.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
from pydantic import Field

from schedgen_backups import run_tags
from schedgen_backups.config.config import Config, Part
from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    BOTH_KINDS,
    KINDS_BY_CHECK,
    Check,
    CheckResult,
    CheckStatus,
)
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import LATEST
from schedgen_backups.core.drill.drill import PIN_TIME_FACTOR, drill_point, find_drill_point
from schedgen_backups.core.drill.report import DrillReport, find_replaced, merge_reports
from schedgen_backups.core.errors import BackupError, ConfigurationError, VerificationError
from schedgen_backups.core.history.events import DrillEnded, Outcome
from schedgen_backups.core.model import ArtifactKind, PartName, RecoveryPointId
from schedgen_backups.core.receipts.receipts import list_subjects, record_with_receipt
from schedgen_backups.core.system.files import read_small_file
from schedgen_backups.defs.assets import OWNERS, make_points_observation, raise_failures
from schedgen_backups.defs.checks import with_alerts
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import MAX_RUNTIME_TAG, BackupResource, get_backup
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.site_names import DRILL_JOB, RECOVERY_POINT, RESTORE_DRILL, SiteNames

REPORT_KEY = "report"


class DrillConfig(dg.Config):
    """The recovery point that is drilled."""

    point_id: str = Field(
        default=LATEST,
        description="Recovery point such as 20261122_020000, or `latest`: the newest verified one.",
    )


def _drill_and_report(
    context: dg.OpExecutionContext, config: DrillConfig, site: Config, names: SiteNames
) -> Iterator[dg.AssetCheckEvaluation]:
    try:
        report, seconds = _drill(context, config, site)
    except dg.Failure as failure:
        yield _evaluate(
            names,
            _CHECKS[0],
            dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=f"the drill failed without a result: {failure.description}",
            ),
        )
        raise
    for note in report.notes:
        context.log.warning(note)
    context.log_event(
        dg.AssetMaterialization(
            dg.AssetKey(names.make_asset_path(RESTORE_DRILL)),
            metadata={**_make_figures(report), "seconds_with_removal": round(seconds, 3)},
        )
    )
    context.log_event(make_points_observation(names, Catalog(site.site_directory)))


def _drill(context: dg.OpExecutionContext, config: DrillConfig, site: Config) -> tuple[DrillReport, float]:
    """Drill the configured point; return the report, and the seconds including the clean-up."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        for part in site.parts:
            part.check("drill", "capture", *_require_server(part))
        point_id = None if config.point_id == LATEST else RecoveryPointId.parse(config.point_id)
        catalog = site.make_catalog()
        chosen = find_drill_point(catalog, point_id)
        context.instance.add_run_tags(context.run_id, {run_tags.POINT: chosen.text})
        started = time.monotonic()
        reports: dict[PartName | None, DrillReport] = {}
        errors: dict[str, BackupError] = {}
        for part, its_catalog in _choose_parts(site, catalog, chosen):
            try:
                reports[part.part] = drill_point(
                    its_catalog,
                    chosen,
                    part.capture.transfer,
                    part.drill,
                    source=part.database_server if _require_server(part) else None,
                    drilled_by=context.run_id,
                )
            except BackupError as error:
                errors[str(part.part)] = error
        raise_failures(errors, is_alone=not site.is_divided)
        report = merge_reports(reports)
        if len(reports) > 1 and (replaced := find_replaced(reports)):
            catalog.record_results(chosen, replaced)
        # The drill of one part does not prove that the point can be restored.
        if site.part is None:
            _record_event(site, catalog, _make_event(report, catalog, context.run_id, site.store))
        return report, time.monotonic() - started


def _record_event(site: Config, catalog: Catalog, event: DrillEnded) -> None:
    own = catalog.read_site()
    record_with_receipt(
        site.site_directory,
        event,
        list_subjects(catalog.directory, [event.point_id]),
        site_id=own.site_id if own is not None else "",
    )


def _require_server(part: Config) -> tuple[Part, ...]:
    """Return what must be right to know the server that was backed up; nothing without a database."""
    return ("database_server",) if part.part is None or part.part.database else ()


def _choose_parts(
    site: Config, catalog: Catalog, point_id: RecoveryPointId
) -> tuple[tuple[Config, Catalog], ...]:
    """Return the parts of the site that the point has, and what shows the point as one of the part.

    Of a point from before the site was divided, that is the part with the same database and bucket.
    """
    point = catalog.get_point(point_id)
    held = {part.part for part in point.parts}
    chosen = tuple((part, part.make_catalog()) for part in site.parts if part.part in held)
    if len(chosen) == len(held):
        return chosen
    if held == {None} and len(site.parts) == 1:  # the manifest of its points names no parts
        return ((site.parts[0], site.parts[0].make_catalog()),)
    if held == {None}:
        return ((_find_part_of_before(site, point), catalog),)
    lacking = ", ".join(str(part) for part in held - {part.part for part, _catalog in chosen})
    raise ConfigurationError(
        f"recovery point {point_id} has parts that the file of sites no longer describes: {lacking}",
        hint="Drill a newer recovery point.",
    )


def _find_part_of_before(site: Config, point: PointListing) -> Config:
    names = {found.name.kind: found.name.source_name for found in point.artifacts}
    for part in site.parts:
        if part.part is not None and part.part.kinds == BOTH_KINDS:
            own = {ArtifactKind.DATABASE: part.database.database, ArtifactKind.BUCKET: part.bucket.bucket}
            if own == names:
                return part
    raise ConfigurationError(
        f"recovery point {point.point_id} is older than the tables of databases and buckets, and no part of "
        f"the site has its {' and '.join(names.values())}",
        hint="Drill a newer recovery point.",
    )


def _make_event(report: DrillReport, catalog: Catalog, run_id: str, store: str) -> DrillEnded:
    manifest = catalog.manifest_path(RecoveryPointId.parse(report.point_id))
    return DrillEnded(
        at=datetime.now(timezone.utc),
        began_at=report.began_at,
        point_id=report.point_id,
        manifest_sha256=hashlib.sha256(read_small_file(manifest)).hexdigest() if manifest.exists() else "",
        is_passed=report.is_passed,
        rto_seconds=report.rto_seconds,
        rpo_seconds=report.rpo_seconds,
        seconds=report.seconds.model_dump(),
        object_count=report.object_count,
        target=report.target,
        outcomes=tuple(
            Outcome(check=result.check.value, status=result.status.value, summary=result.summary)
            for result in report.results
        ),
        drilled_by=run_id,
        store=store,
        versions=report.versions,
    )


def make_drill_asset(names: SiteNames, max_age: timedelta) -> dg.AssetSpec:
    """Return the asset that drills report to.

    It cannot be executed, so that "Materialize all" restores nothing. After `max_age` the UI shows it as
    overdue; for the UI, failed drills count too.
    """
    return dg.AssetSpec(
        dg.AssetKey(names.make_asset_path(RESTORE_DRILL)),
        deps=[dg.AssetKey(names.make_asset_path(RECOVERY_POINT))],
        group_name=names.group,
        owners=OWNERS,
        kinds={"postgres", "s3"},
        description=(
            "The restore of a recovery point into an empty PostgreSQL server and an empty bucket, compared "
            "with what was captured; PDFs are opened by key. "
            "`restore_drill_job` writes nothing to the live system, and removes everything that it started. "
            "`rto_seconds` is the duration."
        ),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=max_age),
    )


@dataclass(frozen=True)
class _DrillCheck:
    """A check of the asset, from the results that a drill stores next to the point."""

    name: str
    description: str
    checks: tuple[Check, ...]
    is_blocking: bool = True

    @property
    def step_name(self) -> str:
        """Local name of the step that reports it, also when the check is started in the UI."""
        return f"{RESTORE_DRILL}_{self.name}"


_CHECKS = (
    _DrillCheck(
        "point_is_restored",
        "All tables with their rows and all objects exist after the restore.",
        (Check.DATABASE_IS_RESTORED, Check.BUCKET_IS_RESTORED),
    ),
    _DrillCheck(
        "point_is_equal",
        "The restored data was dumped and read again and is identical: every row, the schema, every object "
        "with its metadata. "
        "A warning if two versions of PostgreSQL write the schema's text differently.",
        (Check.DATABASE_IS_EQUAL, Check.BUCKET_IS_EQUAL),
    ),
    _DrillCheck(
        "referenced_pdfs_open",
        "A sample of the objects that the restored database refers to was read by key from the restored "
        "bucket and opened by type.",
        (Check.REFERENCED_PDFS_OPEN,),
    ),
    _DrillCheck(
        "operator_checks_hold",
        "Each statement of DRILL_SQL_CHECKS returned true in the restored database.",
        (Check.OPERATOR_CHECKS_HOLD,),
    ),
    _DrillCheck(
        "drill_is_in_time",
        "The drill took no longer than DRILL_MAX_MINUTES. Otherwise a warning: the data is not affected.",
        (Check.DRILL_IS_IN_TIME,),
        is_blocking=False,
    ),
)


def _make_asset_check(names: SiteNames, check: _DrillCheck) -> dg.AssetChecksDefinition:
    """Return the check as it runs alone, with alerts: it reports the results of the last drill."""

    @dg.asset_check(
        name=check.name,
        asset=dg.AssetKey(names.make_asset_path(RESTORE_DRILL)),
        description=check.description,
        blocking=check.is_blocking,
        required_resource_keys={names.resource_key},
    )
    def report_last_drill(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        found = _read_results(get_backup(context, names), context.run.run_id, check)
        if not found:
            unknown = (
                "unknown: no recovery point has been drilled yet. Launch restore_drill_job, or run: "
                "schedgen-backups drill"
            )
            return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=unknown)
        return _judge(found, check)

    return with_alerts(report_last_drill, names)


def _make_report(names: SiteNames, check: _DrillCheck) -> dg.OpDefinition:
    """Return the step of a drill's run that reports the check, and fails if the check fails."""

    @dg.op(
        name=names.qualify(f"report_{check.name}"),
        description=check.description,
        ins={"drilled": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        required_resource_keys={names.resource_key},
    )
    def report(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        found = _read_results(get_backup(context, names), context.run_id, check)
        if not found:
            with explain_failure(VERIFICATION_EXIT_CODE):
                raise VerificationError(
                    f"no result of {check.name}: the drilled recovery point no longer exists",
                    hint="Drill another recovery point.",
                )
        if all(result.status is CheckStatus.NOT_CONFIGURED for _point, result in found):
            context.log.info(f"{check.name} is not configured: {found[0][1].summary}")
            return
        result = _judge(found, check)
        yield _evaluate(names, check, result)
        if check.is_blocking and not result.passed and result.severity is dg.AssetCheckSeverity.ERROR:
            with explain_failure(VERIFICATION_EXIT_CODE):
                raise VerificationError(result.description or check.description)

    return report


def make_drill_checks(names: SiteNames, settings: DefinitionSettings) -> list[dg.AssetChecksDefinition]:
    """Return the checks that drills report to, without those that are not configured."""
    is_configured = {
        Check.REFERENCED_PDFS_OPEN: settings.has_references,
        Check.OPERATOR_CHECKS_HOLD: settings.has_operator_checks,
    }
    return [_make_asset_check(names, check) for check in _CHECKS if is_configured.get(check.checks[0], True)]


def make_drill_job(names: SiteNames, max_minutes: int) -> dg.JobDefinition:
    """Return the job that drills and reports, with the time limit of this site.

    A drill that fails without a result is reported too: the checks would show the previous drill's results.
    """
    reports = {names.qualify(check.step_name): _make_report(names, check) for check in _CHECKS}

    @dg.op(
        name=names.qualify(RESTORE_DRILL),
        description="Restore the recovery point into scratch servers, check it, and report the measurements "
        "to the asset.\n\nA drill that fails without a result is reported too: the checks would show the "
        "previous drill's results.",
        # One drill at a time; drills and backups do not wait for each other.
        pool=names.make_pool(RESTORE_DRILL),
        out=dg.Out(dg.Nothing),
        required_resource_keys={names.resource_key},
    )
    def drill_recovery_point(
        context: dg.OpExecutionContext, config: DrillConfig
    ) -> Iterator[dg.AssetCheckEvaluation]:
        yield from _drill_and_report(context, config, get_backup(context, names).config, names)

    @dg.job(
        name=names.qualify(DRILL_JOB),
        hooks={make_hooks(names).alert_on_step_failure},
        executor_def=dg.in_process_executor,
        description="Restore a recovery point into scratch servers, compare it, open PDFs by key and "
        "measure the time.",
        tags={MAX_RUNTIME_TAG: str(max_minutes * PIN_TIME_FACTOR * 60), run_tags.DRILL: "true"},
    )
    def restore_drill_job() -> None:
        drilled = drill_recovery_point()
        for step_name, report in reports.items():
            report.alias(step_name)(drilled=drilled)

    return restore_drill_job


def _make_figures(report: DrillReport) -> dict[str, Any]:
    """Return the metadata; each number is a separate entry, so that the UI plots it over time."""
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


def _read_results(
    backup: BackupResource, run_id: str, check: _DrillCheck
) -> list[tuple[PointListing, CheckResult]]:
    """Return the check's results of this run's drill, otherwise of the last drill, with the point.

    Return an empty list without a drill.
    """
    with explain_failure(VERIFICATION_EXIT_CODE):
        point = _find_subject(backup.config.make_catalog(), run_id, check.checks)
    if point is None:
        return []
    return [
        (point, result) for kind in check.checks if (result := point.verification.result(kind)) is not None
    ]


def _evaluate(names: SiteNames, check: _DrillCheck, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(names.make_asset_path(RESTORE_DRILL)),
        check_name=check.name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
        blocking=check.is_blocking,
    )


def _judge(found: list[tuple[PointListing, CheckResult]], check: _DrillCheck) -> dg.AssetCheckResult:
    results = [result for _point, result in found]
    kinds = found[0][0].verification.kinds
    wanted = [each for each in check.checks if KINDS_BY_CHECK.get(each, kinds) <= kinds]
    is_wrong = len(results) < len(wanted) or any(result.status is CheckStatus.FAILED for result in results)
    return dg.AssetCheckResult(
        passed=len(results) == len(wanted) and all(result.is_passed for result in results),
        severity=dg.AssetCheckSeverity.ERROR
        if is_wrong and check.is_blocking
        else dg.AssetCheckSeverity.WARN,
        description="; ".join(
            f"{result.check.value} {result.status.value}: {result.summary}" for result in results
        ),
        metadata={
            "recovery_point": found[0][0].point_id.text,
            **{name: value for result in results for name, value in result.figures.items()},
        },
    )


def _find_subject(catalog: Catalog, run_id: str, checks: Sequence[Check]) -> PointListing | None:
    """Return the point that this run drilled, otherwise the point that was drilled last, otherwise None."""
    found = [
        (result, point)
        for point in catalog.list_points()
        for check in checks
        if (result := point.verification.result(check)) is not None
    ]
    own = [point for result, point in found if result.checked_by == run_id]
    if own:
        return own[0]
    return max(found, key=lambda pair: pair[0].checked_at)[1] if found else None
