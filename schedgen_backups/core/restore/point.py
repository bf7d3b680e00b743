"""Restores a recovery point into a database and a bucket: checks first, then both halves at once, then the comparison.

Nothing is written before the files were verified and both targets can take them. The first error stops both halves. How one half is written is
the business of `database_restore` and `bucket_restore`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any

from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.restore.bucket import compare_bucket, make_bucket_not_empty_error, restore_bucket
from schedgen_backups.core.restore.comparison import compare_database
from schedgen_backups.core.restore.database import check_database_target, make_not_empty_error, restore_database
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, TransferSettings
from schedgen_backups.core.verify.files import verify_archive, verify_dump

OnProgress = Callable[[str, int], object]
"""Gets the name of what goes on (`verify`, `database`, `bucket`, `compare`) and the bytes that passed."""


@dataclass(frozen=True)
class RestoreRequest:
    """Which recovery point goes where; a half without a target is left out."""

    point: PointListing
    database: DatabaseSettings | None
    bucket: BucketSettings | None
    replace_contents: bool = False
    """Whether a target may hold something: the database is replaced as a whole, objects of the same keys are overwritten."""
    jobs: int = 1
    """Sessions that load an empty database; more than one give up the single transaction."""


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did and what was seen afterwards."""

    results: tuple[CheckResult, ...]
    seconds: dict[str, float]
    """Phase → seconds: verify, restore, compare."""
    object_count: int
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every comparison passed; unknown is not that."""
        return all(result.status is CheckStatus.PASSED for result in self.results)


def describe_restore(request: RestoreRequest, transfer: TransferSettings) -> tuple[str, ...]:
    """What the restore would do, a line each, after looking at both targets. Raises what `restore_point` would raise before it writes."""
    lines = [f"verify the files of recovery point {request.point.point_id}, taken {request.point.point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC"]
    if request.database is not None:
        with open_dump(request.point.get_path(ArtifactKind.DATABASE)) as dump:
            record = dump.record
            _client, relation_count = check_database_target(record, request.database, transfer)
        if relation_count and not request.replace_contents:
            raise make_not_empty_error(request.database, relation_count)
        if relation_count:
            lines.append(f"remove everything that {request.database.label} holds now, in the same transaction as the load")
        lines.append(f"load {record.table_count} tables with {record.row_count} rows into {request.database.label}")
    if request.bucket is not None:
        with open_archive(request.point.get_path(ArtifactKind.BUCKET)) as archive:
            count, size_bytes = archive.record.object_count, archive.record.size_bytes
        with BucketClient(request.bucket, threads=1, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:
            client.check_exists()
            is_empty = client.is_empty()
        if not is_empty and not request.replace_contents:
            raise make_bucket_not_empty_error(request.bucket)
        if not is_empty:
            lines.append(f"overwrite objects of the same keys in {request.bucket.label}; others stay")
        lines.append(f"write {count} objects with {size_bytes} bytes into {request.bucket.label}")
    lines.append("compare every table and every object with what was captured")
    return tuple(lines)


def restore_point(
    request: RestoreRequest,
    transfer: TransferSettings,
    *,
    catalog: Catalog | None = None,
    restored_by: str = "",
    on_progress: OnProgress = lambda _phase, _size_bytes: None,
) -> RestoreReport:
    """The targets hold the recovery point, and the report says whether they equal it; `catalog` keeps the levels when it is given.

    VerificationError when a file is damaged, RestoreError (TargetNotEmptyError) when a target cannot take it: then nothing was written.
    RestoreError, BucketError or DatabaseError at the first error of writing: the database is as it was, the bucket may hold a part.
    """
    if request.database is None and request.bucket is None:
        raise RestoreError("nothing to restore: neither a database nor a bucket is named", hint="Give --database, --bucket or both.")
    seconds: dict[str, float] = {}
    describe_restore(request, transfer)
    started = time.monotonic()
    _verify_files(request, on_progress)
    seconds["verify"] = time.monotonic() - started
    started = time.monotonic()
    object_count, notes = _write(request, transfer, on_progress)
    seconds["restore"] = time.monotonic() - started
    started = time.monotonic()
    results = _compare(request, transfer, on_progress)
    seconds["compare"] = time.monotonic() - started
    signed = tuple(result.model_copy(update={"checked_by": restored_by}) for result in results)
    if catalog is not None:
        catalog.record_results(request.point.point_id, signed)
    return RestoreReport(signed, seconds, object_count, notes)


def _verify_files(request: RestoreRequest, on_progress: OnProgress) -> None:
    manifest = request.point.manifest
    expected = {artifact.kind: artifact.sha256 for artifact in manifest.artifacts} if manifest else {}
    results: list[CheckResult] = []

    def passed(size_bytes: int) -> None:
        on_progress("verify", size_bytes)

    if request.database is not None:
        path = request.point.get_path(ArtifactKind.DATABASE)
        results += verify_dump(path, expected_sha256=expected.get(ArtifactKind.DATABASE), on_progress=passed)
    if request.bucket is not None:
        path = request.point.get_path(ArtifactKind.BUCKET)
        results += verify_archive(path, expected_sha256=expected.get(ArtifactKind.BUCKET), on_progress=passed)
    failed = [result for result in results if not result.is_passed]
    if failed:
        raise VerificationError(
            f"recovery point {request.point.point_id} is damaged, nothing was written: {failed[0].summary}",
            hint="Restore another recovery point; `schedgen-backups verify --all` tells which are whole.",
        )


def _write(request: RestoreRequest, transfer: TransferSettings, on_progress: OnProgress) -> tuple[int, tuple[str, ...]]:
    stop = Event()
    database_load: Future[tuple[str, ...]] | None = None
    bucket_load: Future[int] | None = None
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="restore") as pool:
        try:
            if request.database is not None:
                database_load = pool.submit(
                    restore_database,
                    request.point.get_path(ArtifactKind.DATABASE),
                    request.database,
                    transfer,
                    replace_contents=request.replace_contents,
                    stop=stop,
                    jobs=request.jobs,
                    on_progress=lambda size_bytes: on_progress("database", size_bytes),
                )
            if request.bucket is not None:
                bucket_load = pool.submit(
                    restore_bucket,
                    request.point.get_path(ArtifactKind.BUCKET),
                    request.bucket,
                    transfer,
                    overwrite=request.replace_contents,
                    stop=stop,
                    on_progress=lambda size_bytes: on_progress("bucket", size_bytes),
                )
            loads: list[Future[Any]] = [load for load in (database_load, bucket_load) if load is not None]
            done, _running = wait(loads, return_when=FIRST_EXCEPTION)
            for load in done:
                load.result()
        finally:
            stop.set()
    return bucket_load.result() if bucket_load else 0, database_load.result() if database_load else ()


def _compare(request: RestoreRequest, transfer: TransferSettings, on_progress: OnProgress) -> tuple[CheckResult, ...]:
    results: list[CheckResult] = []

    def passed(size_bytes: int) -> None:
        on_progress("compare", size_bytes)

    if request.database is not None:
        path = request.point.get_path(ArtifactKind.DATABASE)
        results += compare_database(path, request.database, transfer, on_progress=passed)
    if request.bucket is not None:
        path = request.point.get_path(ArtifactKind.BUCKET)
        results += compare_bucket(path, request.bucket, transfer, on_progress=passed)
    return tuple(results)
