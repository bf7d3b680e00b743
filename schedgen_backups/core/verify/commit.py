"""Verify two files and commit them as a recovery point by writing the manifest.

Checks without a result of this run are performed first. The manifest is the commit mark, so it is written
only when every required check has an acceptable result.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    COMMIT_CHECKS,
    STORED_CHECKS,
    Check,
    CheckResult,
    CheckStatus,
    Verification,
)
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import CapturedArchive
from schedgen_backups.core.formats.packed_file import is_recipe_name, open_packed_file
from schedgen_backups.core.history.events import Outcome, PointCommitted
from schedgen_backups.core.model import (
    OWN_VERSION,
    TOOL_VERSION,
    Artifact,
    ArtifactKind,
    Manifest,
    Origin,
    RecoveryPointId,
    ReferenceSummary,
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
from schedgen_backups.core.verify.live_system import LiveSystem
from schedgen_backups.core.verify.references import verify_references

_COMMITTABLE = frozenset({CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE})


def verify_point(
    catalog: Catalog,
    point: PointListing,
    *,
    checked_by: str,
    live: LiveSystem | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[Verification, ReferenceSummary | None]:
    """Perform and record all checks on the point's files; return all known results and the reference summary.

    Raise the errors of `check_point`, and StorageError when the results cannot be recorded.
    """
    results, summary = check_point(catalog, point, checked_by=checked_by, live=live, on_progress=on_progress)
    return catalog.record_results(point.point_id, results), summary


def check_point(
    catalog: Catalog,
    point: PointListing,
    *,
    checked_by: str,
    live: LiveSystem | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[tuple[CheckResult, ...], ReferenceSummary | None]:
    """Perform all checks on the point's files; return their results and the reference summary.

    Checks on a half that the point lacks stay unknown. Errors of `live` are raised. VerificationError when
    the point is removed in the meantime.
    """
    results: list[CheckResult] = []
    summary: ReferenceSummary | None = None
    manifest = point.manifest
    expected = {artifact.kind: artifact.sha256 for artifact in manifest.artifacts} if manifest else {}
    dump = point.artifact(ArtifactKind.DATABASE)
    archive = point.artifact(ArtifactKind.BUCKET)
    if dump is not None:
        results += verify_dump(
            dump.path,
            point.keys,
            expected_sha256=expected.get(ArtifactKind.DATABASE),
            on_progress=on_progress,
        )
        results.append(verify_dump_against_snapshot(dump.path, point.keys))
    if archive is not None:
        results += verify_archive(
            archive.path,
            point.keys,
            expected_sha256=expected.get(ArtifactKind.BUCKET),
            on_progress=on_progress,
        )
        results.append(verify_every_object(archive.path, point.keys))
    if dump is not None and archive is not None:
        result, summary = verify_references(
            dump.path,
            archive.path,
            point.keys,
            live=live,
            baseline=catalog.settle_baseline,
            known=manifest.references if manifest else None,
        )
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
    if not any(
        path.exists()
        for path in (catalog.manifest_path(point.point_id), *(artifact.path for artifact in point.artifacts))
    ):
        raise VerificationError(
            f"recovery point {point.point_id} was removed while it was being read",
            hint="`schedgen-backups list` shows the existing ones.",
        )
    return tuple(result.model_copy(update={"checked_by": checked_by}) for result in results), summary


def record_read_back(
    catalog: Catalog, point_id: RecoveryPointId, path: Path, captured: CapturedArchive, *, checked_by: str
) -> None:
    """Record the capture's own reading of the archive at `path` as check results of the run `checked_by`.

    Nothing is recorded when the file is not the one that was read: its checks then read it.
    """
    results = report_read_back(path, captured)
    if results:
        catalog.record_results(
            point_id, tuple(result.model_copy(update={"checked_by": checked_by}) for result in results)
        )


def commit_point(
    catalog: Catalog, point_id: RecoveryPointId, *, origin: Origin, live: LiveSystem
) -> tuple[Manifest, Verification]:
    """Commit the recovery point: write its manifest unless it has one.

    Checks without a result of this run (`origin.run_id`) are performed first. A point that is already
    committed is verified again and keeps its manifest.

    VerificationError (permanent) when a half is missing or a check fails: the files stay as a partial point.
    """
    point = catalog.get_point(point_id)
    verification, references = _verify_unseen(catalog, point, origin, live)
    _require_passed(point_id, verification, references)
    if point.manifest is not None:
        return point.manifest, verification
    manifest = _build_manifest(catalog.settle_site(), point, verification, references, origin)
    path = catalog.write_manifest(manifest)
    digest = hashlib.sha256(read_small_file(path)).hexdigest()
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
                Outcome(check=result.check.value, status=result.status.value, summary=result.summary)
                for result in verification.results
            ),
            versions=_read_versions(point),
        ),
        [make_subject(point_id.text, digest)],
        site_id=manifest.site_id,
    )
    return manifest, verification


def _read_versions(point: PointListing) -> dict[str, str]:
    with point.open_dump() as dump:
        record = dump.record
        return {**OWN_VERSION, "PostgreSQL": record.server_version, "pg_dump": record.client_version}


def _verify_unseen(
    catalog: Catalog, point: PointListing, origin: Origin, live: LiveSystem
) -> tuple[Verification, ReferenceSummary]:
    """Perform the checks that have no result of this run; return all results and the reference summary.

    A result of reading a file that was touched since then does not count.
    """
    dump_path, archive_path = point.get_path(ArtifactKind.DATABASE), point.get_path(ArtifactKind.BUCKET)
    results = point.verification.results
    current = [*select_current(results, dump_path), *select_current(results, archive_path)]
    own = {
        result.check
        for result in results
        if result.checked_by == origin.run_id
        and result.status is not CheckStatus.UNKNOWN
        and (result.file_identity is None or result in current)
    }
    verification, references = point.verification, None
    unseen = set(COMMIT_CHECKS) - own
    if point.manifest is not None or not origin.run_id or not unseen <= {Check.REFERENCES_RESOLVE}:
        verification, references = verify_point(catalog, point, checked_by=origin.run_id, live=live)
    elif unseen:
        result, references = verify_references(
            dump_path, archive_path, point.keys, live=live, baseline=catalog.settle_baseline
        )
        verification = catalog.record_results(
            point.point_id, (result.model_copy(update={"checked_by": origin.run_id}),)
        )
    if references is None:
        _result, references = verify_references(
            dump_path, archive_path, point.keys, live=live, baseline=catalog.settle_baseline
        )
    return verification, references


def _require_passed(
    point_id: RecoveryPointId, verification: Verification, references: ReferenceSummary
) -> None:
    """Raise VerificationError unless every check needed for a commit has an acceptable result.

    Acceptable are passed, not configured and incomplete, but not unknown.
    """
    results = {check: verification.result(check) for check in COMMIT_CHECKS}
    reasons = [
        f"{check.value}: {result.summary if result is not None else 'was never performed'}"
        for check, result in results.items()
        if result is None or result.status not in _COMMITTABLE
    ]
    if references.lost_count:
        reasons.append(f"{Check.REFERENCES_RESOLVE.value}: objects were lost, or their state is unknown")
    if reasons:
        raise VerificationError(
            f"recovery point {point_id} is not committed: {'; '.join(dict.fromkeys(reasons))}",
            hint="The files stay in the directory as a partial point. Find the cause and run the backup "
            "again.",
        )


def _build_manifest(
    site: Site, point: PointListing, verification: Verification, references: ReferenceSummary, origin: Origin
) -> Manifest:
    with (
        point.open_dump() as dump,
        point.open_archive() as archive,
    ):
        snapshot_at = dump.record.snapshot_at
        tables, objects = dump.record.left_out, archive.record.left_out
        sources = {ArtifactKind.DATABASE: dump.record.database, ArtifactKind.BUCKET: archive.record.bucket}
    digests = {
        kind: sha256
        for result in verification.results
        for kind, sha256 in result.artifacts.items()
        if result.check in STORED_CHECKS.values()
    }
    return Manifest(
        tool_version=TOOL_VERSION,
        point_id=point.point_id.text,
        site_id=site.site_id,
        snapshot_at=snapshot_at,
        committed_at=datetime.now(timezone.utc),
        artifacts=tuple(
            _describe_artifact(point.get_path(kind), kind, sources[kind], digests[kind])
            for kind in ArtifactKind
        ),
        references=references,
        left_out=objects.model_copy(
            update={"table_patterns": tables.table_patterns, "tables": tables.tables}
        ),
        origin=origin,
    )


def _describe_artifact(path: Path, kind: ArtifactKind, source_name: str, sha256: str) -> Artifact:
    return Artifact(
        kind=kind,
        file_name=path.name,
        source_name=source_name,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        content_bytes=open_packed_file(path).size_bytes if is_recipe_name(path.name) else None,
    )
