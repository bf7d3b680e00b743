"""The bucket half of a restore: prepares it and writes an archive's objects, in parallel.

Each object's digest is checked before the upload, which includes S3 metadata, content type and tags. S3 has
no transactions: `ObjectWriter` records what it wrote and can remove it again.
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

from schedgen_backups.core.concurrency.limits import MemoryBudget, NestedKeys
from schedgen_backups.core.errors import BackupError, BucketError, RestoreError, TargetNotEmptyError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.block_stream import BlockReader
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
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
"""Memory for objects being uploaded; the SDK holds small objects twice."""
_JOURNAL_IN_MEMORY_BYTES = 8 << 20
_NO_VERSION = "null"
"""S3's version id of an object in a bucket whose versioning is suspended (S3 user guide)."""

OnProgress = Callable[[int], object]
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class RemovedObjects:
    """The result of removing objects that a restore had written."""

    removed_count: int = 0
    left: tuple[str, ...] = ()
    """Keys that remain, each with the reason."""
    has_removed_bucket: bool = False
    """Whether the bucket itself was created for the restore and was removed."""

    def describe(self, label: str) -> str:
        """Return a sentence on what the bucket of this name contains now."""
        if self.has_removed_bucket:
            return f"The bucket {label}, which was created for this restore, was removed again."
        if not self.left and not self.removed_count:
            return f"The bucket {label} is unchanged."
        if not self.left:
            return f"Removed {count(self.removed_count, 'object')} that the restore had written into {label}."
        total = self.removed_count + len(self.left)
        return (
            f"Of {total} objects written into {label}, {self.removed_count} were removed "
            f"again; remaining: {name_some(self.left)}."
        )


class ObjectWriter:
    """Writes objects of an archive into a bucket, and removes them again if the restore fails.

    A context manager; usable from any thread.
    """

    def __init__(self, artifact: ArtifactFile, client: BucketClient, *, threads: int) -> None:
        self._artifact, self._client, self._threads = artifact, client, threads
        self._journal = SpooledTemporaryFile(max_size=_JOURNAL_IN_MEMORY_BYTES)  # noqa: SIM115 - closed in __exit__
        self._lock = Lock()
        self._nested_keys = NestedKeys()
        self._has_made_bucket = False
        self._removed: RemovedObjects | None = None

    def make_bucket(self) -> None:
        """Create the missing bucket; `undo` removes it again. Raises errors of the bucket."""
        self._client.make_bucket()
        self._has_made_bucket = True

    def write(self, entry: ObjectEntry, *, is_replacing: bool) -> None:
        """Write the object as it was captured.

        VerificationError if it is damaged in the archive; then nothing was written. Raises errors of the
        bucket. Of a damaged object above `IN_MEMORY_BYTES`, parts may have been uploaded, which S3 never
        shows.
        """
        with self._artifact.read_as(ArchiveFile) as archive:
            blocks = archive.read_object(entry)
            if entry.size_bytes > IN_MEMORY_BYTES:
                self._put(entry, BlockReader(blocks), "", is_replacing=is_replacing)
                return
            # Read completely first: damaged bytes must not be uploaded.
            body = b"".join(blocks)
            md5 = new_md5()
            md5.update(body)
            self._put(entry, io.BytesIO(body), md5.hexdigest(), is_replacing=is_replacing)

    def undo(self) -> RemovedObjects:
        """Remove what was written and is unchanged since; repeated calls return the first result.

        An object that replaced another one of the same key remains, unless the bucket keeps versions.
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
            with self._nested_keys.hold(entry.key):
                stored = self._client.put_object(entry, body)
        except BucketError:
            # The object may exist, with only the answer lost.
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
            # Check first: some servers remove a bucket that still has objects of others.
            if not self._client.is_empty():
                return False
            self._client.remove_bucket()
        except BackupError:
            return False
        return True

    def _remove(self, line: bytes) -> tuple[str, str | None]:
        """Return the key and why the object remains.

        The reason is an empty text if the object was removed, and None if there was nothing to remove.
        """
        key, etag, version_id, is_replacing = json.loads(line)
        with self._nested_keys.hold(key):
            return key, self._remove_object(key, etag, version_id, is_replacing=is_replacing)

    def _remove_object(self, key: str, etag: str, version_id: str, *, is_replacing: bool) -> str | None:
        try:
            if version_id and version_id != _NO_VERSION:
                self._client.remove_object(key, version_id=version_id)
                return ""
            head = self._client.find_head(key)
            if head is None:
                return None
            if is_replacing:
                return "the captured object, which replaced another one" if head.etag == etag else None
            if head.etag != etag:
                return "written by another client since, or not known to be ours"
            self._client.remove_object(key)
        except BackupError as error:
            return error.message
        return ""


@dataclass(frozen=True)
class PreparedBucket:
    """An archive and its target bucket, both open and checked."""

    artifact: ArtifactFile
    record: ArchiveRecord
    client: BucketClient
    writer: ObjectWriter
    is_empty: bool
    transfer: TransferSettings
    is_missing: bool = False
    """Whether the bucket does not exist yet; writing creates it."""
    keys: frozenset[str] | None = None
    """The objects that are written and compared; None for all."""

    @property
    def target(self) -> BucketSettings:
        """The target bucket."""
        return self.client.settings


@contextmanager
def prepare_bucket(
    path: Path, target: BucketSettings, transfer: TransferSettings, *, keys: PackKeys = NO_KEYS
) -> Generator[PreparedBucket, None, None]:
    """Open the archive and the S3 client within the block.

    Raises errors of the bucket. The caller decides whether it must be empty.
    """
    with _open_half(path, target, transfer, keys) as prepared:
        prepared.client.check_exists()
        yield replace(prepared, is_empty=prepared.client.is_empty())


@contextmanager
def prepare_missing_bucket(
    path: Path, target: BucketSettings, transfer: TransferSettings, *, keys: PackKeys = NO_KEYS
) -> Generator[PreparedBucket, None, None]:
    """Like `prepare_bucket`, for a missing bucket that `write_bucket` creates."""
    with _open_half(path, target, transfer, keys) as prepared:
        yield replace(prepared, is_missing=True)


@contextmanager
def _open_half(
    path: Path, target: BucketSettings, transfer: TransferSettings, keys: PackKeys
) -> Generator[PreparedBucket, None, None]:
    threads = transfer.download_threads
    with (
        ArtifactFile(path, keys) as artifact,
        BucketClient(target, threads=threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client,
        ObjectWriter(artifact, client, threads=threads) as writer,
    ):
        with artifact.read_as(ArchiveFile) as archive:
            record = archive.record
        yield PreparedBucket(artifact, record, client, writer, is_empty=True, transfer=transfer)


def check_bucket_empty(target: BucketSettings, *, is_empty: bool) -> None:
    """Raise TargetNotEmptyError if the bucket is not empty."""
    if not is_empty:
        raise TargetNotEmptyError(
            f"the bucket {target.label} is not empty",
            hint="Restore into a new bucket, or overwrite objects of the same keys in this one with "
            "--into-nonempty.",
        )


def describe_write(prepared: PreparedBucket) -> tuple[str, ...]:
    """Return what writing the archive does to the bucket, one line each."""
    record, label = prepared.record, prepared.target.label
    write = (
        f"write {count(record.object_count, 'object')} with {format_bytes(record.size_bytes)} into {label}"
    )
    if prepared.is_missing:
        return (f"create the bucket {label}", write)
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
    """Write every object of the archive; return their number. Objects with other keys remain.

    TargetNotEmptyError if the bucket is not empty and `overwrite` is not set. RestoreError, BucketError or
    VerificationError at the first error or when `stop` is set; the writer's `undo` can remove what was
    written until then. `on_progress` gets each object's size.
    """
    client = prepared.client
    if prepared.is_missing:
        prepared.writer.make_bucket()
    if not overwrite:
        # Verifying the files since the first check may have taken hours.
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
    """Yield the result of `work` for each entry, in order, with a few entries per thread in progress.

    The first error ends all.
    """
    threads = prepared.transfer.download_threads
    waiting: deque[Future[_Done]] = deque()
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="objects")
    try:
        with prepared.artifact.read_as(ArchiveFile) as archive:
            for entry in archive.read_entries():
                if prepared.keys is not None and entry.key not in prepared.keys:
                    continue
                waiting.append(pool.submit(work, entry))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def find_difference(client: BucketClient, entry: ObjectEntry) -> str:
    """Return what differs in the bucket's object (`missing`, `size`, …), or an empty text.

    Raises errors of the bucket. Tags are compared if the entry has them.
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
