"""Verify two files and commit them as a recovery point by writing the manifest.

Checks without a result of this run are performed first. The manifest is the commit mark, so it is written
only when every required check has an acceptable result.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    BOTH_KINDS,
    COMMIT_CHECKS,
    KINDS_BY_CHECK,
    STORED_CHECKS,
    Check,
    CheckResult,
    CheckStatus,
    Verification,
)
from schedgen_backups.core.catalog.missing_objects import settle_baseline
from schedgen_backups.core.catalog.part_results import name_source, select_part_results
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.archive_writer import CapturedArchive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.packed_file import is_recipe_name, open_packed_file
from schedgen_backups.core.history.events import Outcome, PointCommitted
from schedgen_backups.core.model import (
    FORMAT_VERSION,
    OWN_VERSION,
    PARTS_FORMAT_VERSION,
    TOOL_VERSION,
    Artifact,
    ArtifactKind,
    LeftOut,
    Manifest,
    ManifestPart,
    Origin,
    PartName,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
    ReferenceVerdict,
    Site,
)
from schedgen_backups.core.receipts.receipts import make_subject, record_with_receipt
from schedgen_backups.core.system.files import read_small_file
from schedgen_backups.core.verify.files import (
    OnProgress,
    report_read_back,
    select_current,
    verify_archive,
    verify_dump,
    verify_dump_against_snapshot,
    verify_every_object,
)
from schedgen_backups.core.verify.live_system import LiveSystem, SitePart
from schedgen_backups.core.verify.references import NAMED_MISSING, verify_references

_COMMITTABLE = frozenset({CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE})


def verify_point(
    catalog: Catalog,
    point: PointListing,
    *,
    checked_by: str,
    live: LiveSystem | None = None,
    parts: Sequence[SitePart] = (),
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[Verification, ReferenceSummary | None]:
    """Perform and record all checks on the point's files; return all known results and the references.

    Raise the errors of `check_point`, and StorageError when the results cannot be recorded.
    """
    results, summary = check_point(
        catalog, point, checked_by=checked_by, live=live, parts=parts, on_progress=on_progress
    )
    verification = catalog.record_results(point.point_id, results)
    return select_part_results(verification, point.part) if point.part else verification, summary


def check_point(
    catalog: Catalog,
    point: PointListing,
    *,
    checked_by: str,
    live: LiveSystem | None = None,
    parts: Sequence[SitePart] = (),
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[tuple[CheckResult, ...], ReferenceSummary | None]:
    """Perform all checks on the point's files; return their results as they are stored, and the references.

    `live` is asked about missing objects, or what `parts` have for a point of several databases or buckets.
    Checks on what the point lacks stay unknown. Errors of `live` are raised. VerificationError when the point
    is removed in the meantime.
    """
    results: dict[tuple[Check, str], CheckResult] = {}
    summaries: list[ReferenceSummary] = []
    for part in _divide(point, parts):
        found, summary = _check_part(
            catalog, part, live=_find_live(part, live, parts), known=results, on_progress=on_progress
        )
        results |= {(result.check, result.source): result for result in found}
        summaries += [summary] if summary is not None else []
    if not any(
        path.exists()
        for path in (catalog.manifest_path(point.point_id), *(artifact.path for artifact in point.artifacts))
    ):
        raise VerificationError(
            f"recovery point {point.point_id} was removed while it was being read",
            hint="`schedgen-backups list` shows the existing ones.",
        )
    return _sign(results.values(), checked_by), _merge_references(summaries) if summaries else None


def divide_point(point: PointListing, names: Sequence[PartName]) -> tuple[PointListing, ...]:
    """Return the parts of the point: by its manifest, or those of these names, which it is to have."""
    if point.manifest is not None or len(names) < 2:  # noqa: PLR2004 - one part is the whole point
        return point.parts
    return point.divide(names)


def _divide(point: PointListing, parts: Sequence[SitePart]) -> tuple[PointListing, ...]:
    return divide_point(point, [part.name for part in parts])


def _find_live(point: PointListing, live: LiveSystem | None, parts: Sequence[SitePart]) -> LiveSystem | None:
    if point.part is not None:
        return next((part.live for part in parts if part.name == point.part), None)
    return parts[0].live if len(parts) == 1 else live


def _sign(results: Iterable[CheckResult], checked_by: str) -> tuple[CheckResult, ...]:
    return tuple(result.model_copy(update={"checked_by": checked_by}) for result in results)


def _check_part(
    catalog: Catalog,
    point: PointListing,
    *,
    live: LiveSystem | None,
    known: Collection[tuple[Check, str]] = (),
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[tuple[CheckResult, ...], ReferenceSummary | None]:
    """Perform the checks that are not `known` on a point of at most one database and one bucket.

    Return the results as they are stored, and the reference summary.
    """
    results: list[CheckResult] = []
    summary: ReferenceSummary | None = None
    expected = _find_digests(point)
    dump = point.artifact(ArtifactKind.DATABASE)
    archive = point.artifact(ArtifactKind.BUCKET)
    if dump is not None and not _is_known(point, Check.DUMP_IS_STORED, known):
        results += verify_dump(
            dump.path,
            point.keys,
            expected_sha256=expected.get(ArtifactKind.DATABASE),
            on_progress=on_progress,
        )
        results.append(verify_dump_against_snapshot(dump.path, point.keys))
    if archive is not None and not _is_known(point, Check.ARCHIVE_IS_STORED, known):
        results += verify_archive(
            archive.path,
            point.keys,
            expected_sha256=expected.get(ArtifactKind.BUCKET),
            on_progress=on_progress,
        )
        results.append(verify_every_object(archive.path, point.keys))
    if dump is not None and archive is not None:
        result, summary = _check_references(catalog, point, live)
        results.append(result)
    for kind in expected:
        if point.artifact(kind) is None:
            now = datetime.now(timezone.utc)
            results.append(
                CheckResult(
                    check=STORED_CHECKS[kind],
                    status=CheckStatus.FAILED,
                    summary="the file is missing",
                    checked_at=now,
                )
            )
    return point.label_results(results), summary


def _is_known(point: PointListing, check: Check, known: Collection[tuple[Check, str]]) -> bool:
    """Return whether another part, with the same database or bucket, was checked already."""
    return point.part is not None and (check, name_source(check, point.part)) in known


def _find_digests(point: PointListing) -> dict[ArtifactKind, str]:
    manifest = point.manifest
    return {artifact.kind: artifact.sha256 for artifact in manifest.artifacts} if manifest else {}


def _check_references(
    catalog: Catalog, point: PointListing, live: LiveSystem | None
) -> tuple[CheckResult, ReferenceSummary]:
    return verify_references(
        point.get_path(ArtifactKind.DATABASE),
        point.get_path(ArtifactKind.BUCKET),
        point.keys,
        live=live,
        baseline=partial(settle_baseline, catalog, source=str(point.part or "")),
        known=point.manifest.references if point.manifest else None,
    )


def check_references(
    catalog: Catalog, point: PointListing, *, live: LiveSystem | None, parts: Sequence[SitePart] = ()
) -> tuple[CheckResult, ...]:
    """Check the references of every part that has both halves; return the results as they are stored.

    VerificationError if a part lacks one of its halves, errors of `live`, as in `check_point`.
    """
    return tuple(
        result
        for part in _divide(point, parts)
        if _find_kinds(part, parts) == BOTH_KINDS
        for result in part.label_results([_check_references(catalog, part, _find_live(part, live, parts))[0]])
    )


def record_read_back(
    catalog: Catalog,
    point_id: RecoveryPointId,
    path: Path,
    captured: CapturedArchive,
    *,
    checked_by: str,
    source: str = "",
) -> None:
    """Record the capture's own reading of the archive at `path` as check results of the run `checked_by`.

    Nothing is recorded when the file is not the one that was read: its checks then read it. `source` is the
    name of the bucket if the point has several databases or buckets.
    """
    results = tuple(
        result.model_copy(update={"source": source}) for result in report_read_back(path, captured)
    )
    if results:
        catalog.record_results(point_id, _sign(results, checked_by))


def commit_point(
    catalog: Catalog,
    point_id: RecoveryPointId,
    *,
    origin: Origin,
    live: LiveSystem | None = None,
    parts: Sequence[SitePart] = (),
) -> tuple[Manifest, Verification]:
    """Commit the recovery point: write its manifest unless it has one. Return both as of now.

    It is to have one database and one bucket, about whose missing objects `live` is asked, or all of `parts`.
    Checks without a result of this run (`origin.run_id`) are performed first. A point that is already
    committed is verified again and keeps its manifest.

    VerificationError (permanent) when a half is missing or a check fails: the files stay as a partial point.
    """
    point = catalog.get_point(point_id)
    summaries: list[ReferenceSummary] = []
    reasons: list[str] = []
    for part in _divide(point, parts):
        kinds = _find_kinds(part, parts)
        results, summary = _verify_unseen(catalog, part, kinds, origin, _find_live(part, live, parts))
        summaries.append(summary)
        reasons += _find_reasons(part, kinds, results, summary)
    if reasons:
        raise VerificationError(
            f"recovery point {point_id} is not committed: {'; '.join(dict.fromkeys(reasons))}",
            hint="The files stay in the directory as a partial point. Find the cause and run the backup "
            "again.",
        )
    point = catalog.get_point(point_id)
    if point.manifest is not None:
        return point.manifest, point.verification
    divided = _divide(point, parts)
    kinds = frozenset(kind for part in divided for kind in _find_kinds(part, parts))
    manifest = _build_manifest(catalog.settle_site(), point, divided, kinds, summaries, origin)
    path = catalog.write_manifest(manifest)
    digest = hashlib.sha256(read_small_file(path)).hexdigest()
    committed = catalog.get_point(point_id)
    record_with_receipt(
        catalog.directory,
        PointCommitted(
            at=manifest.committed_at,
            point_id=point_id.text,
            snapshot_at=manifest.snapshot_at,
            manifest_sha256=digest,
            size_bytes=sum(artifact.whole_bytes for artifact in manifest.artifacts),
            run_id=origin.run_id,
            outcomes=tuple(
                Outcome(check=result.name, status=result.status.value, summary=result.summary)
                for result in (committed.recorded or committed.verification).results
            ),
            versions=_read_versions(point),
        ),
        [make_subject(point_id.text, digest)],
        site_id=manifest.site_id,
    )
    return manifest, committed.verification


def _find_kinds(point: PointListing, parts: Sequence[SitePart]) -> frozenset[ArtifactKind]:
    """Return what the point, or this part of it, must have."""
    if point.part is not None:
        return point.part.kinds
    if point.manifest is not None:
        return frozenset(artifact.kind for artifact in point.manifest.artifacts)
    return parts[0].name.kinds if parts else frozenset(ArtifactKind)


def _read_versions(point: PointListing) -> dict[str, str]:
    versions = dict(OWN_VERSION)
    for found in point.list_sources(ArtifactKind.DATABASE)[:1]:
        with open_dump(found.path, point.keys) as dump:
            versions |= {"PostgreSQL": dump.record.server_version, "pg_dump": dump.record.client_version}
    return versions


def _verify_unseen(
    catalog: Catalog,
    point: PointListing,
    kinds: frozenset[ArtifactKind],
    origin: Origin,
    live: LiveSystem | None,
) -> tuple[Verification, ReferenceSummary]:
    """Perform the checks that have no result of this run; return all results and the reference summary.

    A result of reading a file that was touched since then does not count.
    """
    results = point.verification.results
    current = [result for kind in sorted(kinds) for result in select_current(results, point.get_path(kind))]
    own = {
        result.check
        for result in results
        if result.checked_by == origin.run_id
        and result.status is not CheckStatus.UNKNOWN
        and (result.file_identity is None or result in current)
    }
    wanted = {check for check in COMMIT_CHECKS if KINDS_BY_CHECK.get(check, BOTH_KINDS) <= kinds}
    unseen = wanted - own
    found: tuple[CheckResult, ...] = ()
    references: ReferenceSummary | None = None
    if point.manifest is not None or not origin.run_id or not unseen <= {Check.REFERENCES_RESOLVE}:
        found, references = _check_part(catalog, point, live=live)
    elif wanted >= {Check.REFERENCES_RESOLVE}:
        result, references = _check_references(catalog, point, live)
        found = point.label_results([result]) if unseen else ()
    if found:
        catalog.record_results(point.point_id, _sign(found, origin.run_id))
    stripped = tuple(result.model_copy(update={"source": ""}) for result in found)
    return point.verification.with_results(stripped), references or _NO_REFERENCES


_NO_REFERENCES = ReferenceSummary(
    state=ReferenceState.NOT_CONFIGURED, note="the point has no database with a bucket to which it refers"
)


def _find_reasons(
    point: PointListing,
    kinds: frozenset[ArtifactKind],
    verification: Verification,
    references: ReferenceSummary,
) -> list[str]:
    """Return why the point, or this part of it, cannot be committed.

    Acceptable are passed, not configured and incomplete, but not unknown.
    """
    prefix = f"{point.part}: " if point.part is not None else ""
    results = {
        check: verification.result(check)
        for check in COMMIT_CHECKS
        if KINDS_BY_CHECK.get(check, BOTH_KINDS) <= kinds
    }
    reasons = [
        f"{prefix}{check.value}: {result.summary if result is not None else 'was never performed'}"
        for check, result in results.items()
        if result is None or result.status not in _COMMITTABLE
    ]
    if references.lost_count:
        reasons.append(
            f"{prefix}{Check.REFERENCES_RESOLVE.value}: objects were lost, or their state is unknown"
        )
    return reasons


def _build_manifest(
    site: Site,
    point: PointListing,
    parts: Sequence[PointListing],
    kinds: frozenset[ArtifactKind],
    summaries: Sequence[ReferenceSummary],
    origin: Origin,
) -> Manifest:
    taken: list[datetime] = []
    left_out: list[LeftOut] = []
    artifacts: list[Artifact] = []
    for found in dict.fromkeys(artifact for part in parts for artifact in part.artifacts):
        if found.name.kind is ArtifactKind.DATABASE:
            with open_dump(found.path, point.keys) as dump:
                taken.append(dump.record.snapshot_at)
                left_out.append(dump.record.left_out)
        else:
            with open_archive(found.path, point.keys) as archive:
                left_out.append(archive.record.left_out)
                # Of a point without a database, the moment at which its state was captured.
                taken += [] if len(kinds) > 1 else [archive.record.listed_at]
        reading = point.find_reading(found.name)
        artifacts.append(_describe_artifact(found, reading.artifacts[found.name.kind] if reading else ""))
    named = [part.part for part in parts if part.part is not None]
    is_usual = not named and kinds == BOTH_KINDS
    return Manifest(
        format_version=FORMAT_VERSION if is_usual else PARTS_FORMAT_VERSION,
        tool_version=TOOL_VERSION,
        point_id=point.point_id.text,
        site_id=site.site_id,
        snapshot_at=min(taken),
        committed_at=datetime.now(timezone.utc),
        artifacts=tuple(artifacts),
        references=_merge_references(summaries),
        left_out=_merge_left_out(left_out),
        origin=origin,
        parts=tuple(
            ManifestPart(database=name.database, bucket=name.bucket, references=summary)
            for name, summary in zip(named, summaries, strict=False)
        ),
        snapshot_spread_seconds=round((max(taken) - min(taken)).total_seconds(), 3),
    )


def _merge_references(summaries: Sequence[ReferenceSummary]) -> ReferenceSummary:
    """Return the sums of all parts."""
    if len(summaries) == 1:
        return summaries[0]
    counts: Counter[ReferenceVerdict] = Counter()
    for summary in summaries:
        counts.update(summary.verdict_counts)
    is_read = any(summary.state is ReferenceState.READ for summary in summaries)
    return ReferenceSummary(
        state=ReferenceState.READ if is_read else ReferenceState.NOT_CONFIGURED,
        reference_count=sum(summary.reference_count for summary in summaries),
        resolved_count=sum(summary.resolved_count for summary in summaries),
        verdict_counts=dict(counts),
        missing=tuple(missing for summary in summaries for missing in summary.missing)[:NAMED_MISSING],
        newly_missing_count=sum(summary.newly_missing_count for summary in summaries),
        note="; ".join(dict.fromkeys(summary.note for summary in summaries if summary.note)),
    )


def _merge_left_out(found: Sequence[LeftOut]) -> LeftOut:
    def join(texts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for each in texts for text in each))

    return LeftOut(
        table_patterns=join(each.table_patterns for each in found),
        tables=join(each.tables for each in found),
        object_patterns=join(each.object_patterns for each in found),
        object_count=sum(each.object_count for each in found),
        size_bytes=sum(each.size_bytes for each in found),
    )


def _describe_artifact(found: FoundArtifact, sha256: str) -> Artifact:
    path = found.path
    return Artifact(
        kind=found.name.kind,
        file_name=path.name,
        source_name=found.name.source_name,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        content_bytes=open_packed_file(path).size_bytes if is_recipe_name(path.name) else None,
    )
