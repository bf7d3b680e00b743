"""The blocking checks between capture and commit, and the checks of the state of all recovery points.

A check reads the files again, never metadata of an asset, and stores its result next to them. Only the
capture's own reading of the archive, which is stored there too, spares another one. Run alone, a check reads
the newest point. `core.verify` does the work. A docstring of a check's function is its description in the
UI: it says what is true if the check passed.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg

from schedgen_backups.config.schedules import DefinitionSettings
from schedgen_backups.config.site_parts import read_live_parts, read_part_names
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing
from schedgen_backups.core.catalog.selection import Overview, look_over
from schedgen_backups.core.errors import PackKeyError, StorageError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.pack_reader import PackKeys
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.units import format_bytes
from schedgen_backups.core.verify.commit import check_references, divide_point
from schedgen_backups.core.verify.files import (
    select_current,
    verify_archive,
    verify_dump,
    verify_dump_against_snapshot,
    verify_every_object,
)
from schedgen_backups.core.verify.size_change import SizeComparison, SizeVerdict
from schedgen_backups.defs.assets import CAPTURE_ASSETS, describe_holder, find_point_id
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import BackupResource, get_backup
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.monitoring.watch import (
    FRESH_CHECK,
    INTACT_CHECK,
    make_fresh_result,
    make_intact_result,
)
from schedgen_backups.site_names import DATABASE_DUMP, MINIO_ARCHIVE, RECOVERY_POINT, SiteNames


def _check_dump_is_complete(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """Every byte of the dump was read again: digests match, tables and last line are present."""
    return _check_files(
        context, backup, ArtifactKind.DATABASE, lambda point, found: verify_dump(found.path, point.keys)
    )


def _check_dump_matches_snapshot(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """The dump has every table of the snapshot, with the number of rows that was counted in it."""
    return _check_files(
        context,
        backup,
        ArtifactKind.DATABASE,
        lambda point, found: (verify_dump_against_snapshot(found.path, point.keys),),
    )


def _check_dump_size_is_plausible(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """The dump did not shrink by more than half since the previous point (HIGH).

    A size of three times the previous one is a warning (LOW).
    """
    return _compare_with_previous(context, backup, ArtifactKind.DATABASE)


def _check_archive_is_readable(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """Every byte of the archive was read again: the digests match, and every object can be extracted.

    Of an archive in packs, what is new was; the other packs were within BACKUP_PACK_REREAD_DAYS.

    The capture of this run has read the file back before it was published. It is read once more if it was
    touched since then, or if the capture was another run's.
    """

    def verify(point: PointListing, found: FoundArtifact) -> tuple[CheckResult, ...]:
        results = tuple(
            result
            for result in select_current(point.verification.results, found.path)
            if result.checked_by == context.run.run_id and result.is_passed
        )
        if {result.check for result in results} == {Check.ARCHIVE_IS_STORED, Check.ARCHIVE_IS_READABLE}:
            return results
        return verify_archive(found.path, point.keys)

    return _check_files(context, backup, ArtifactKind.BUCKET, verify)


def _check_every_object_is_archived(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """Every object of the bucket's listing is in the archive, or was deleted before it could be read."""
    return _check_files(
        context,
        backup,
        ArtifactKind.BUCKET,
        lambda point, found: (verify_every_object(found.path, point.keys),),
    )


def _check_archive_size_is_plausible(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """The objects did not shrink by more than half since the previous point (HIGH).

    A size of three times the previous one is a warning (LOW).
    """
    return _compare_with_previous(context, backup, ArtifactKind.BUCKET)


def _check_references_resolve(
    context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """Every object that the database's snapshot refers to is in the archive, or is known to be lost.

    A warning if no references are configured, or if the live system lost objects since an earlier point.
    """
    with explain_failure(VERIFICATION_EXIT_CODE):
        subject = _find_subject(context, backup, ArtifactKind.BUCKET)
        config = backup.config
        results = check_references(
            subject.catalog,
            subject.point,
            live=None if config.is_divided else config.live_application,
            parts=read_live_parts(config),
        )
        return subject.report(context, results)


def _check_recovery_point_is_intact(
    _context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """No committed recovery point is damaged, failed or ahead of the clock.

    The sensor `freshness_watch` also checks this every five minutes.
    """
    return make_intact_result(_make_overview(backup), backup.config.make_catalog())


def _check_recovery_point_is_fresh(
    _context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """The newest verified recovery point is younger than BACKUP_MAX_AGE_HOURS.

    The sensor `freshness_watch` also checks this every five minutes.
    """
    return make_fresh_result(_make_overview(backup), backup.config.alerts.max_age)


def _make_overview(backup: BackupResource) -> Overview:
    with explain_failure(VERIFICATION_EXIT_CODE):
        return look_over(backup.config.make_catalog(), datetime.now(timezone.utc))


def with_alerts(check: dg.AssetChecksDefinition, names: SiteNames) -> dg.AssetChecksDefinition:
    """Return the check with a hook that sends an alert when it fails."""
    # `with_hooks` returns a plain AssetsDefinition (Dagster 1.13).
    attributes: dict[str, Any] = check.get_attributes_dict() | {
        "hook_defs": {make_hooks(names).alert_on_step_failure}
    }
    with warnings.catch_warnings():
        # One of the attributes is a parameter that Dagster marks as beta.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.AssetChecksDefinition(**attributes)


_CheckFunction = Callable[[dg.AssetCheckExecutionContext, BackupResource], dg.AssetCheckResult]
_FILE_CHECKS: Mapping[str, tuple[str, _CheckFunction]] = {
    "dump_is_complete": (DATABASE_DUMP, _check_dump_is_complete),
    "dump_matches_snapshot": (DATABASE_DUMP, _check_dump_matches_snapshot),
    "dump_size_is_plausible": (DATABASE_DUMP, _check_dump_size_is_plausible),
    "archive_is_readable": (MINIO_ARCHIVE, _check_archive_is_readable),
    "every_object_is_archived": (MINIO_ARCHIVE, _check_every_object_is_archived),
    "archive_size_is_plausible": (MINIO_ARCHIVE, _check_archive_size_is_plausible),
}
"""Name → asset and function."""


def make_checks(
    names: SiteNames, settings: DefinitionSettings, kinds: frozenset[ArtifactKind]
) -> list[dg.AssetChecksDefinition]:
    """Return the blocking checks of a backup; a check that is not configured would always show as failed."""
    assets = {CAPTURE_ASSETS[kind] for kind in kinds}
    checks = [
        _make_blocking_check(names, asset, name, work)
        for name, (asset, work) in _FILE_CHECKS.items()
        if asset in assets
    ]
    if settings.has_references:
        dump_key = dg.AssetKey(names.make_asset_path(DATABASE_DUMP))
        checks.append(
            _make_blocking_check(
                names, MINIO_ARCHIVE, "references_resolve", _check_references_resolve, deps=[dump_key]
            )
        )
    return checks


def make_condition_checks(names: SiteNames) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the directory's current state; `freshness_watch` reports their failures."""
    return [
        make_check(names, RECOVERY_POINT, INTACT_CHECK, _check_recovery_point_is_intact),
        make_check(names, RECOVERY_POINT, FRESH_CHECK, _check_recovery_point_is_fresh),
    ]


def make_check(names: SiteNames, asset: str, name: str, work: _CheckFunction) -> dg.AssetChecksDefinition:
    """Return a check of this asset that blocks nothing, with alerts."""
    decorate = dg.asset_check(
        name=name,
        asset=dg.AssetKey(names.make_asset_path(asset)),
        required_resource_keys={names.resource_key},
    )
    return with_alerts(decorate(_bind(names, work)), names)


def _make_blocking_check(
    names: SiteNames, asset: str, name: str, work: _CheckFunction, deps: Sequence[dg.AssetKey] = ()
) -> dg.AssetChecksDefinition:
    decorate = dg.asset_check(
        name=name,
        asset=dg.AssetKey(names.make_asset_path(asset)),
        additional_deps=deps,
        blocking=True,
        pool=names.directory_pool,
        required_resource_keys={names.resource_key},
    )
    return with_alerts(decorate(_bind(names, work)), names)


def _bind(
    names: SiteNames, work: _CheckFunction
) -> Callable[[dg.AssetCheckExecutionContext], dg.AssetCheckResult]:
    """Return the function for this site; Dagster shows its docstring as the description."""

    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return work(context, get_backup(context, names))

    check.__doc__ = work.__doc__
    return check


@dataclass(frozen=True)
class _Subject:
    """The recovery point that a check is about, and its parts."""

    catalog: Catalog
    point: PointListing
    parts: tuple[PointListing, ...]

    def report(
        self, context: dg.AssetCheckExecutionContext, results: Sequence[CheckResult]
    ) -> dg.AssetCheckResult:
        """Store the results with the point; return them as that of the asset's check."""
        signed = (result.model_copy(update={"checked_by": context.run.run_id}) for result in results)
        known = (self.point.recorded or self.point.verification).results
        # What the capture of this run found is stored already.
        if new := tuple(result for result in signed if result not in known):
            self.catalog.record_results(self.point.point_id, new)
        return _make_check_result(self.point, results)

    def list_artifacts(self, kind: ArtifactKind) -> Iterator[tuple[PointListing, FoundArtifact]]:
        """Yield each artifact of this kind once, with the part in which it is."""
        seen: set[Path] = set()
        for part in self.parts:
            found = part.artifact(kind)
            if found is not None and found.path not in seen:
                seen.add(found.path)
                yield part, found


def _find_subject(
    context: dg.AssetCheckExecutionContext, backup: BackupResource, kind: ArtifactKind
) -> _Subject:
    """Return this run's point if it has such a file, otherwise the newest point that has one."""
    catalog = backup.open_catalog(describe_holder(context.run.run_id))
    own_id = find_point_id(context.instance, context.run.run_id)
    having = [point for point in catalog.list_points() if point.list_sources(kind)]
    own = [point for point in having if point.point_id == own_id]
    if not having:
        raise VerificationError(
            f"no {kind.value} file in {catalog.directory}", hint="Materialize the asset first."
        )
    point = (own or having)[-1]
    return _Subject(catalog, point, divide_point(point, read_part_names(backup.config)))


def _check_files(
    context: dg.AssetCheckExecutionContext,
    backup: BackupResource,
    kind: ArtifactKind,
    verify: Callable[[PointListing, FoundArtifact], Sequence[CheckResult]],
) -> dg.AssetCheckResult:
    """Check every artifact of this kind; the result is that of all together."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        subject = _find_subject(context, backup, kind)
        results = [
            result
            for part, found in subject.list_artifacts(kind)
            for result in part.label_results(verify(part, found))
        ]
        return subject.report(context, results)


def _make_check_result(point: PointListing, results: Sequence[CheckResult]) -> dg.AssetCheckResult:
    is_passed = all(result.is_passed for result in results)
    is_warning = all(
        result.status in {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE}
        for result in results
    )
    return dg.AssetCheckResult(
        passed=is_passed,
        severity=dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR,
        description="; ".join(
            f"{result.source}{': ' if result.source else ''}{result.check.value} {result.status.value}: "
            f"{result.summary}"
            for result in results
        ),
        metadata={
            "recovery_point": point.point_id.text,
            **{
                f"{result.source}: {name}" if result.source else name: value
                for result in results
                for name, value in result.figures.items()
            },
        },
    )


def _compare_with_previous(
    context: dg.AssetCheckExecutionContext, backup: BackupResource, kind: ArtifactKind
) -> dg.AssetCheckResult:
    """Compare each size with that of the newest older file of the same database or bucket, committed or not.

    So after an intended drop, the next night compares with the smaller file. Files that are damaged, have an
    older format or other exclusions are skipped: they must not block the next point.
    """
    with explain_failure(VERIFICATION_EXIT_CODE):
        subject = _find_subject(context, backup, kind)
        compared = {
            found.name.source_name: _compare_size(subject, found)
            for _part, found in subject.list_artifacts(kind)
        }
    verdicts = {comparison.verdict for comparison in compared.values()}
    is_alone = len(compared) == 1
    return dg.AssetCheckResult(
        passed=verdicts <= {SizeVerdict.PLAUSIBLE, SizeVerdict.FIRST},
        severity=dg.AssetCheckSeverity.ERROR
        if SizeVerdict.DROPPED in verdicts
        else dg.AssetCheckSeverity.WARN,
        description="; ".join(
            ("" if is_alone else f"{name}: ") + _describe_comparison(comparison)
            for name, comparison in compared.items()
        ),
        metadata={
            "recovery_point": subject.point.point_id.text,
            **{
                key if is_alone else f"{name}: {key}": value
                for name, comparison in compared.items()
                for key, value in (
                    ("plain_bytes", comparison.size_bytes),
                    ("plain_bytes_before", comparison.previous_bytes or 0),
                    ("change_percent", comparison.change_percent),
                )
            },
        },
    )


def _describe_comparison(comparison: SizeComparison) -> str:
    before = (
        f", {format_bytes(comparison.previous_bytes)} before ({comparison.change_percent:+} %)"
        if comparison.previous_bytes is not None
        else ""
    )
    return f"{comparison.verdict.value}: {format_bytes(comparison.size_bytes)}{before}"


def _compare_size(subject: _Subject, found: FoundArtifact) -> SizeComparison:
    kind, source_name = found.name.kind, found.name.source_name
    older = [
        artifact.path
        for previous in subject.catalog.list_points()
        if previous.point_id < subject.point.point_id
        for artifact in previous.artifacts
        if artifact.name.kind is kind and artifact.name.source_name == source_name
    ]
    keys = subject.catalog.keys
    size_bytes, excluded = _read_size(kind, found.path, keys)
    sizes = filter(None, (_find_size(kind, before, keys) for before in reversed(older)))
    previous_bytes = next(
        (before_bytes for before_bytes, excluded_before in sizes if set(excluded_before) == set(excluded)),
        None,
    )
    return SizeComparison(size_bytes, previous_bytes)


def _find_size(kind: ArtifactKind, path: Path, keys: PackKeys) -> tuple[int, tuple[str, ...]] | None:
    try:
        return _read_size(kind, path, keys)
    except (VerificationError, PackKeyError, StorageError, OSError):
        return None


def _read_size(kind: ArtifactKind, path: Path, keys: PackKeys) -> tuple[int, tuple[str, ...]]:
    """Return the uncompressed bytes of rows and schema, or of the objects, and the exclusion patterns."""
    if kind is ArtifactKind.DATABASE:
        with open_dump(path, keys) as dump:
            return dump.record.size_bytes, dump.record.excluded_patterns
    with open_archive(path, keys) as archive:
        return archive.record.size_bytes, archive.record.excluded_patterns
