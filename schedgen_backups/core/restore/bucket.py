"""Writes an archive's objects into a bucket, in parallel, and compares what is there afterwards with what was captured.

Each object's digest is checked before it goes out; S3 metadata, content type and tags go along. There is no transaction in S3: a restore that stops
half-way leaves the objects it wrote, and says so. What a restore needs before and beside this belongs to `restore`.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import TypeVar

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.concurrency.limits import MemoryBudget
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.block_stream import BlockReader
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES, PARALLEL_PARTS, PART_BYTES, BucketClient, ObjectGoneError
from schedgen_backups.core.settings import BucketSettings, TransferSettings
from schedgen_backups.core.units import name_some

_AHEAD = 4
_MEMORY_BUDGET_BYTES = 64 << 20
"""Bodies on their way into the bucket; the SDK holds those of small objects twice."""

OnProgress = Callable[[int], object]
_Done = TypeVar("_Done")


def restore_bucket(
    archive_path: Path,
    target: BucketSettings,
    transfer: TransferSettings,
    *,
    overwrite: bool,
    stop: Event,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> int:
    """The target holds every object of the archive; returns how many. Objects of other keys stay.

    TargetNotEmptyError when it holds something and `overwrite` is not set; RestoreError, BucketError or VerificationError at the first
    error or when `stop` is set. `on_progress` gets each object's size once it is written.
    """
    with BucketClient(target, threads=transfer.download_threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:
        client.check_exists()
        if not overwrite and not client.is_empty():
            raise make_bucket_not_empty_error(target)

        budget = MemoryBudget(_MEMORY_BUDGET_BYTES)

        def write(entry: ObjectEntry) -> ObjectEntry:
            if stop.is_set():
                raise RestoreError("the restore of the bucket was stopped")
            with budget.hold(entry.size_bytes if entry.size_bytes <= IN_MEMORY_BYTES else (PARALLEL_PARTS + 1) * PART_BYTES):
                write_object(client, archive_path, entry)
            return entry

        count = 0
        for entry in _for_each(archive_path, transfer.download_threads, write):
            on_progress(entry.size_bytes)
            count += 1
    return count


def write_object(client: BucketClient, archive_path: Path, entry: ObjectEntry) -> None:
    """The bucket holds the object as it was captured. VerificationError when the archive is damaged there: then nothing was written.

    Errors of the bucket are raised. Of a damaged object above `IN_MEMORY_BYTES` parts may have gone up, which S3 never shows.
    """
    with open_archive(archive_path) as archive:
        blocks = archive.read_object(entry)
        if entry.size_bytes <= IN_MEMORY_BYTES:
            # Read to its end first: damaged bytes must not go out.
            client.put_object(entry, io.BytesIO(b"".join(blocks)))
        else:
            client.put_object(entry, BlockReader(blocks))


def compare_bucket(
    archive_path: Path, target: BucketSettings, transfer: TransferSettings, *, on_progress: OnProgress = lambda _size_bytes: None
) -> tuple[CheckResult, CheckResult]:
    """`bucket_is_restored` (every object is there with its size) and `bucket_is_equal` (bytes, content type, headers, metadata, tags).

    Every object is read back from the bucket. Errors of the bucket are raised; `on_progress` gets each object's size.
    """
    missing: list[str] = []
    differing: list[str] = []
    count = size_bytes = 0
    with BucketClient(target, threads=transfer.download_threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:

        def compare(entry: ObjectEntry) -> tuple[ObjectEntry, str]:
            return entry, find_difference(client, entry)

        for entry, difference in _for_each(archive_path, transfer.download_threads, compare):
            on_progress(entry.size_bytes)
            count += 1
            size_bytes += entry.size_bytes
            if difference in {"missing", "size"}:
                missing.append(f"{entry.key} ({difference})")
            if difference:
                differing.append(f"{entry.key} ({difference})")
        listed = sum(1 for _listed in client.list_objects())
    figures: dict[str, Figure] = {"objects": count, "size_bytes": size_bytes, "other_objects": max(0, listed - count)}
    restored = _make_result(
        Check.BUCKET_IS_RESTORED, missing, f"{count} objects with {size_bytes} bytes are there", "are missing or of another size", figures
    )
    equal = _make_result(Check.BUCKET_IS_EQUAL, differing, f"{count} objects are equal in bytes, content type, metadata and tags", "differ", figures)
    return restored, equal


def make_bucket_not_empty_error(target: BucketSettings) -> TargetNotEmptyError:
    """The refusal to write into a bucket that holds something."""
    return TargetNotEmptyError(
        f"the bucket {target.label} is not empty",
        hint="Restore into a new bucket, or overwrite objects of the same keys in this one with --into-nonempty.",
    )


def _for_each(archive_path: Path, threads: int, work: Callable[[ObjectEntry], _Done]) -> Iterator[_Done]:
    """Yields what `work` makes of each entry, in order, a few entries ahead on each thread; the first error ends all."""
    waiting: deque[Future[_Done]] = deque()
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="objects")
    try:
        with open_archive(archive_path) as archive:
            for entry in archive.read_entries():
                waiting.append(pool.submit(work, entry))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def find_difference(client: BucketClient, entry: ObjectEntry) -> str:
    """What is different about the object in the bucket, in a word (`missing`, `size` …), or an empty text. Errors of the bucket are raised."""
    digest = hashlib.sha256()
    try:
        with client.open_object(entry.key) as opened:
            head = opened.head
            for block in opened.read_blocks():
                digest.update(block)
        tags = client.read_tags(entry.key) if head.tag_count or entry.tags else {}
    except ObjectGoneError:
        return "missing"
    pairs = {
        "size": (head.size_bytes, entry.size_bytes),
        "bytes": (digest.hexdigest(), entry.sha256),
        "content type": (head.content_type, entry.content_type),
        "headers": (head.headers, entry.headers),
        "metadata": (head.metadata, entry.metadata),
        "tags": (tags, entry.tags),
    }
    return next((name for name, (there, expected) in pairs.items() if there != expected), "")


def _make_result(check: Check, wrong: list[str], success: str, failure: str, figures: dict[str, Figure]) -> CheckResult:
    return CheckResult(
        check=check,
        status=CheckStatus.FAILED if wrong else CheckStatus.PASSED,
        summary=f"{len(wrong)} objects {failure}: {name_some(wrong)}" if wrong else success,
        figures=figures,
        checked_at=datetime.now(timezone.utc),
    )
