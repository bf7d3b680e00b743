"""Prepares the bucket half of a restore and writes an archive's objects, in parallel.

Each object's digest is checked before it goes out; S3 metadata, content type and tags go along. S3 has no
transactions: `ObjectWriter` knows what it wrote and can remove that again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Event, Lock
from typing import TypeVar

from schedgen_backups.core.concurrency.limits import MemoryBudget
from schedgen_backups.core.errors import BackupError, BucketError, RestoreError, TargetNotEmptyError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.block_stream import BlockReader
from schedgen_backups.core.formats.records import ArchiveRecord, ArtifactFile, ObjectEntry
from schedgen_backups.core.formats.tar_member import digest_name
from schedgen_backups.core.s3.client import (
    IN_MEMORY_BYTES,
    PARALLEL_PARTS,
    PART_BYTES,
    BucketClient,
    StoredObject,
    new_md5,
)
from schedgen_backups.core.s3.refusals import ObjectGoneError
from schedgen_backups.core.settings import BucketSettings, TransferSettings
from schedgen_backups.core.units import count, format_bytes, name_some

_AHEAD = 4
_MEMORY_BUDGET_BYTES = 64 << 20
"""Bodies on their way into the bucket; the SDK holds those of small objects twice."""
_JOURNAL_IN_MEMORY_BYTES = 8 << 20
_NO_VERSION = "null"
"""S3's word for the version of an object in a bucket whose versioning is suspended (S3 user guide)."""

OnProgress = Callable[[int], object]
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class RemovedObjects:
    """What came of removing the objects again that a restore had written."""

    removed_count: int = 0
    left: tuple[str, ...] = ()
    """Keys with the reason why each is still there."""
    has_removed_bucket: bool = False
    """Whether the bucket itself was made for the restore, and is gone again."""

    def describe(self, label: str) -> str:
        """Return a sentence that says what the bucket of this name holds now."""
        if self.has_removed_bucket:
            return f"The bucket {label}, which was made for this restore, was removed again."
        if not self.left and not self.removed_count:
            return f"The bucket {label} is as it was."
        if not self.left:
            return f"What was written into {label}, {count(self.removed_count, 'object')}, was removed again."
        total = self.removed_count + len(self.left)
        return (
            f"Of {total} objects that were written into {label}, {self.removed_count} were removed "
            f"again; left are {name_some(self.left)}."
        )


class ObjectWriter:
    """Writes objects of an archive into a bucket, from any thread, and removes them again when the restore
    fails. A context manager.
    """

    def __init__(self, artifact: ArtifactFile, client: BucketClient, *, threads: int) -> None:
        self._artifact, self._client, self._threads = artifact, client, threads
        self._journal = SpooledTemporaryFile(max_size=_JOURNAL_IN_MEMORY_BYTES)  # noqa: SIM115 - closed in __exit__
        self._lock = Lock()
        self._has_made_bucket = False
        self._removed: RemovedObjects | None = None

    def make_bucket(self) -> None:
        """Make the bucket that is not there; `undo` removes it again. Errors of the bucket are raised."""
        self._client.make_bucket()
        self._has_made_bucket = True

    def write(self, entry: ObjectEntry, *, is_replacing: bool) -> None:
        """Write the object as it was captured.

        VerificationError when the archive is damaged there: then nothing was written.

        Errors of the bucket are raised. Of a damaged object above `IN_MEMORY_BYTES` parts may have gone up,
        which S3 never shows.
        """
        with self._artifact.read_as(ArchiveFile) as archive:
            blocks = archive.read_object(entry)
            if entry.size_bytes > IN_MEMORY_BYTES:
                self._put(entry, BlockReader(blocks), "", is_replacing=is_replacing)
                return
            # Read to its end first: damaged bytes must not go out.
            body = b"".join(blocks)
            md5 = new_md5()
            md5.update(body)
            self._put(entry, io.BytesIO(body), md5.hexdigest(), is_replacing=is_replacing)

    def undo(self) -> RemovedObjects:
        """Remove what was written and is still as it was written; return the same again when it was done
        before.

        What replaced another object of its key stays, unless the bucket keeps versions.
        """
        if self._removed is None:
            with self._lock:
                self._journal.seek(0)
                lines = self._journal.readlines()
            with ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="undo") as pool:
                outcomes = list(pool.map(self._remove, lines))
            left = tuple(f"{key} ({problem})" for key, problem in outcomes if problem)
            removed_count = sum(problem == "" for _key, problem in outcomes)
            self._removed = RemovedObjects(
                removed_count, left, has_removed_bucket=not left and self._remove_bucket()
            )
        return self._removed

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()

    def _put(
        self, entry: ObjectEntry, body: BlockReader | io.BytesIO, md5: str, *, is_replacing: bool
    ) -> None:
        try:
            stored = self._client.put_object(entry, body)
        except BucketError:
            # It may be there all the same, and only the answer was lost.
            self._note(entry.key, StoredObject(md5, None), is_replacing=is_replacing)
            raise
        self._note(entry.key, stored, is_replacing=is_replacing)

    def _note(self, key: str, stored: StoredObject, *, is_replacing: bool) -> None:
        line = json.dumps([key, stored.etag, stored.version_id or "", is_replacing])
        with self._lock:
            self._journal.write(f"{line}\n".encode())

    def _remove_bucket(self) -> bool:
        if not self._has_made_bucket:
            return False
        try:
            # Asked first: some servers remove a bucket with all that others put into it.
            if not self._client.is_empty():
                return False
            self._client.remove_bucket()
        except BackupError:
            return False
        return True

    def _remove(self, line: bytes) -> tuple[str, str | None]:
        """The key and why it stays; an empty text when it was removed, None when there was nothing to remove."""
        key, etag, version_id, is_replacing = json.loads(line)
        try:
            if version_id and version_id != _NO_VERSION:
                self._client.remove_object(key, version_id=version_id)
                return key, ""
            head = self._client.find_head(key)
            if head is None:
                return key, None
            if is_replacing:
                return key, "as it was captured, in place of the one before" if head.etag == etag else None
            if head.etag != etag:
                return key, "written by somebody else since, or not known to be ours"
            self._client.remove_object(key)
        except BackupError as error:
            return key, error.message
        return key, ""


@dataclass(frozen=True)
class PreparedBucket:
    """An archive and the bucket that it goes into, both open and looked at."""

    artifact: ArtifactFile
    record: ArchiveRecord
    client: BucketClient
    writer: ObjectWriter
    is_empty: bool
    transfer: TransferSettings
    is_missing: bool = False
    """Whether there is no such bucket yet: writing makes it."""

    @property
    def target(self) -> BucketSettings:
        """The bucket that is written to."""
        return self.client.settings


@contextmanager
def prepare_bucket(
    path: Path, target: BucketSettings, transfer: TransferSettings
) -> Generator[PreparedBucket, None, None]:
    """Archive and S3 client are there within the block.

    Errors of the bucket are raised; whether it is empty is not judged here.
    """
    with _open_half(path, target, transfer) as prepared:
        prepared.client.check_exists()
        yield replace(prepared, is_empty=prepared.client.is_empty())


@contextmanager
def prepare_missing_bucket(
    path: Path, target: BucketSettings, transfer: TransferSettings
) -> Generator[PreparedBucket, None, None]:
    """As `prepare_bucket`, for a bucket that is not there and that `write_bucket` makes."""
    with _open_half(path, target, transfer) as prepared:
        yield replace(prepared, is_missing=True)


@contextmanager
def _open_half(
    path: Path, target: BucketSettings, transfer: TransferSettings
) -> Generator[PreparedBucket, None, None]:
    threads = transfer.download_threads
    with (
        ArtifactFile(path) as artifact,
        BucketClient(target, threads=threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client,
        ObjectWriter(artifact, client, threads=threads) as writer,
    ):
        with artifact.read_as(ArchiveFile) as archive:
            record = archive.record
        yield PreparedBucket(artifact, record, client, writer, is_empty=True, transfer=transfer)


def check_bucket_empty(target: BucketSettings, *, is_empty: bool) -> None:
    """Raise TargetNotEmptyError where the bucket holds something."""
    if not is_empty:
        raise TargetNotEmptyError(
            f"the bucket {target.label} is not empty",
            hint="Restore into a new bucket, or overwrite objects of the same keys in this one with "
            "--into-nonempty.",
        )


def describe_write(prepared: PreparedBucket) -> tuple[str, ...]:
    """Return what writing the archive does to the bucket, a line each."""
    record, label = prepared.record, prepared.target.label
    write = (
        f"write {count(record.object_count, 'object')} with {format_bytes(record.size_bytes)} into {label}"
    )
    if prepared.is_missing:
        return (f"make the bucket {label}", write)
    return (
        (write,)
        if prepared.is_empty
        else (f"overwrite objects of the same keys in {label}; others stay", write)
    )


def write_bucket(
    prepared: PreparedBucket,
    *,
    overwrite: bool,
    stop: Event,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> int:
    """Write every object of the archive; return how many. Objects of other keys stay.

    TargetNotEmptyError when the bucket holds something and `overwrite` is not set; RestoreError, BucketError
    or VerificationError at the first error or when `stop` is set: what was written until then can be removed
    by the writer's `undo`. `on_progress` gets each object's size.
    """
    client = prepared.client
    if prepared.is_missing:
        prepared.writer.make_bucket()
    if not overwrite:
        # Files were verified since it was looked at, which may have taken hours.
        check_bucket_empty(prepared.target, is_empty=client.is_empty())
    replaced = (
        {digest_name(listed.key) for listed in client.list_objects()}
        if overwrite and not prepared.is_empty
        else set[str]()
    )
    budget = MemoryBudget(_MEMORY_BUDGET_BYTES)

    def write(entry: ObjectEntry) -> ObjectEntry:
        if stop.is_set():
            raise RestoreError("the restore of the bucket was stopped")
        with budget.hold(
            entry.size_bytes if entry.size_bytes <= IN_MEMORY_BYTES else (PARALLEL_PARTS + 1) * PART_BYTES
        ):
            prepared.writer.write(entry, is_replacing=digest_name(entry.key) in replaced)
        return entry

    written_count = 0
    for entry in for_each_entry(prepared, write):
        on_progress(entry.size_bytes)
        written_count += 1
    return written_count


def for_each_entry(prepared: PreparedBucket, work: Callable[[ObjectEntry], _Done]) -> Iterator[_Done]:
    """Yield what `work` makes of each entry, in order, a few entries ahead on each thread; the first error
    ends all.
    """
    threads = prepared.transfer.download_threads
    waiting: deque[Future[_Done]] = deque()
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="objects")
    try:
        with prepared.artifact.read_as(ArchiveFile) as archive:
            for entry in archive.read_entries():
                waiting.append(pool.submit(work, entry))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def find_difference(client: BucketClient, entry: ObjectEntry) -> str:
    """Return what is different about the object in the bucket, in a word (`missing`, `size` …), or an empty
    text. Errors of the bucket are raised.

    Tags are compared where the entry has them.
    """
    digest = hashlib.sha256()
    try:
        with client.open_object(entry.key) as opened:
            head = opened.head
            if head.size_bytes != entry.size_bytes:
                return "size"
            for block in opened.read_blocks():
                digest.update(block)
        is_asked = not entry.tags_note and (head.tag_count != 0 or entry.tags)
        tags = client.read_tags(entry.key) if is_asked else {}
    except ObjectGoneError:
        return "missing"
    pairs = {
        "bytes": (digest.hexdigest(), entry.sha256),
        "content type": (head.content_type, entry.content_type),
        "headers": (head.headers, entry.headers),
        "metadata": (head.metadata, entry.metadata),
        "tags": (tags, entry.tags),
    }
    return next((name for name, (there, expected) in pairs.items() if there != expected), "")
