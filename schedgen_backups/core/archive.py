"""Captures a bucket into an archive file: lists it page by page, reads objects on several threads, writes them in the listing's order.

Add what belongs to taking an archive: retries, what to do with an object that changes, vanishes or comes damaged. How the file is laid out is
`archive_file`'s business, how S3 is asked `bucket`'s. Memory stays bounded by MEMORY_BUDGET_BYTES, whatever the bucket's size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, TypeVar

from schedgen_backups.core.archive_file import ArchiveFileWriter, CapturedArchive, PackedObject, pack_object
from schedgen_backups.core.bucket import BucketClient, ListedObject, ObjectChangedError, ObjectGoneError, ObjectHead, compute_md5, new_md5
from schedgen_backups.core.errors import BucketError, BucketUnreachableError, ObjectError
from schedgen_backups.core.member_name import MemberNames
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.records import ArchiveRecord, MissedObject, ObjectEntry
from schedgen_backups.core.settings import BackupSettings, BucketSettings
from schedgen_backups.core.version import TOOL_VERSION

IN_MEMORY_BYTES = 16 << 20
"""Objects up to this are read whole on one of the threads; larger ones are streamed one at a time."""
MEMORY_BUDGET_BYTES = 64 << 20
"""Bodies that may wait for their turn; each takes up to twice its size while it is packed."""
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5
_FAILURES_IN_A_ROW = 20
"""So many objects one after the other that cannot be read are no longer about objects: the capture ends."""
_NAMED_MISSES = 1000


@dataclass(frozen=True)
class _Gone:
    """The object was there when the bucket was listed and is not there any more."""

    key: str


@dataclass(frozen=True)
class _Failed:
    """The object could not be read, however often it was tried."""

    key: str
    error: BucketError


@dataclass(frozen=True)
class _TooLarge:
    """The object does not fit into memory and must be streamed."""


_Outcome = PackedObject | _Gone | _Failed | _TooLarge
_Result = TypeVar("_Result")


@dataclass
class _Tally:
    listed: int = 0
    changed: int = 0
    gone: list[MissedObject] = field(default_factory=list[MissedObject])
    failed: list[MissedObject] = field(default_factory=list[MissedObject])
    gone_count: int = 0
    failed_count: int = 0
    failures_in_a_row: int = 0


def capture_bucket(
    settings: BucketSettings,
    backup: BackupSettings,
    point_id: RecoveryPointId,
    file: BinaryIO,
    *,
    folder: Path,
    is_wanted: Callable[[str], bool] = lambda _key: True,
    observe: Callable[[int], object] = lambda _size_bytes: None,
) -> CapturedArchive:
    """The file holds every listed object whose key `is_wanted` and that the bucket could deliver; record and index tell of those it could not.

    `folder` takes temporary data, `observe` gets each object's size. BucketError (permanent) when the bucket cannot be opened,
    BucketUnreachableError (retryable) when the server stops answering. After an error the file's content is worthless.
    """
    with BucketClient(settings, threads=backup.download_threads, stall_timeout_seconds=backup.stall_timeout_seconds) as client:
        client.check_exists()
        listed_at = datetime.now(timezone.utc)
        with ArchiveFileWriter(file, threads=backup.compression_threads, folder=folder) as writer:
            tally = _Capture(client, writer, backup.download_threads, observe).run(is_wanted)
            return writer.finish(
                ArchiveRecord(
                    tool_version=TOOL_VERSION,
                    point_id=point_id.text,
                    bucket=settings.bucket,
                    endpoint=settings.endpoint,
                    listed_at=listed_at,
                    finished_at=datetime.now(timezone.utc),
                    listed_count=tally.listed,
                    object_count=writer.object_count,
                    size_bytes=writer.size_bytes,
                    changed_count=tally.changed,
                    deleted_count=tally.gone_count,
                    deleted=tuple(tally.gone),
                    failed_count=tally.failed_count,
                    failed=tuple(tally.failed),
                    is_versioned=client.is_versioned(),
                )
            )


class _Capture:
    """One pass over the bucket: objects are read ahead on threads and appended in the listing's order."""

    def __init__(self, client: BucketClient, writer: ArchiveFileWriter, threads: int, observe: Callable[[int], object]) -> None:
        self._client = client
        self._writer = writer
        self._threads = threads
        self._observe = observe
        self._names = MemberNames()
        self._stop = threading.Event()
        self._tally = _Tally()
        self._waiting: deque[tuple[ListedObject, str, Future[_Outcome]]] = deque()

    def run(self, is_wanted: Callable[[str], bool]) -> _Tally:
        """Every listed object whose key is wanted was appended, or is in the tally as gone or failed."""
        waiting_bytes = 0
        pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="download")
        try:
            for listed in self._client.list_objects():
                if not is_wanted(listed.key):
                    continue
                self._tally.listed += 1
                name = self._names.choose(listed.key)
                self._waiting.append((listed, name, pool.submit(self._read_small, listed, name)))
                waiting_bytes += min(listed.size_bytes, IN_MEMORY_BYTES)
                while waiting_bytes > MEMORY_BUDGET_BYTES or len(self._waiting) > 8 * self._threads:
                    waiting_bytes -= self._append_next()
            while self._waiting:
                self._append_next()
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return self._tally

    def _append_next(self) -> int:
        listed, name, future = self._waiting.popleft()
        outcome = future.result()
        if isinstance(outcome, _TooLarge):
            outcome = self._append_large(listed, name)
        elif isinstance(outcome, PackedObject):
            self._writer.add_packed(outcome)
        self._count(outcome)
        self._observe(listed.size_bytes)
        return min(listed.size_bytes, IN_MEMORY_BYTES)

    def _count(self, outcome: PackedObject | ObjectEntry | _Gone | _Failed) -> None:
        tally = self._tally
        if isinstance(outcome, _Failed):
            tally.failed_count += 1
            tally.failures_in_a_row += 1
            if len(tally.failed) < _NAMED_MISSES:
                tally.failed.append(MissedObject(key=outcome.key, reason=outcome.error.message))
            if tally.failures_in_a_row >= _FAILURES_IN_A_ROW:
                raise BucketUnreachableError(
                    f"{tally.failures_in_a_row} objects in a row could not be read, the last one: {outcome.error.message}",
                    hint=outcome.error.hint or "Look at the S3 server's log; run the backup again.",
                )
            return
        tally.failures_in_a_row = 0
        if isinstance(outcome, _Gone):
            tally.gone_count += 1
            if len(tally.gone) < _NAMED_MISSES:
                tally.gone.append(MissedObject(key=outcome.key, reason="deleted after it was listed"))
            return
        entry = outcome.entry if isinstance(outcome, PackedObject) else outcome
        tally.changed += entry.is_changed

    def _read_small(self, listed: ListedObject, name: str) -> _Outcome:
        if listed.size_bytes > IN_MEMORY_BYTES:
            return _TooLarge()

        def read(etag: str | None) -> _Outcome:
            with self._client.open_object(listed.key, etag=etag) as opened:
                head = opened.head
                if head.size_bytes > IN_MEMORY_BYTES:
                    return _TooLarge()
                data = b"".join(opened.read_blocks())
            _check_body(head, len(data), compute_md5(data) if head.is_etag_md5 else "")
            entry = self._make_entry(head, name, is_changed=bool(listed.etag) and etag is None).model_copy(
                update={"sha256": hashlib.sha256(data).hexdigest()}
            )
            return pack_object(entry, data)

        return self._try(listed, read)

    def _append_large(self, listed: ListedObject, name: str) -> ObjectEntry | _Gone | _Failed:
        def append(etag: str | None) -> ObjectEntry:
            with self._client.open_object(listed.key, etag=etag) as opened:
                head = opened.head
            entry = self._make_entry(head, name, is_changed=bool(listed.etag) and etag is None)
            self._writer.add_stream(entry, self._read_resuming(head))
            return entry

        return self._try(listed, append)

    def _try(self, listed: ListedObject, read: Callable[[str | None], _Result]) -> _Result | _Gone | _Failed:
        """What `read` returns, tried again after failures that may pass; a replaced object is taken as it is now."""
        etag = listed.etag or None
        error: BucketError = ObjectError(f"object {listed.key!r} was not read: the capture was stopped")
        for attempt in range(_ATTEMPTS):
            if attempt and self._stop.wait(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)):
                break
            try:
                return read(etag)
            except ObjectGoneError:
                return _Gone(listed.key)
            except ObjectChangedError as changed:
                etag = None
                error = changed
            except BucketError as failed:
                error = failed
                if not failed.is_retryable:
                    break
        return _Failed(listed.key, error)

    def _read_resuming(self, head: ObjectHead) -> Iterator[bytes]:
        """Yields the body, going on where it broke off; ObjectError when it does not match its ETag at the end."""
        md5 = new_md5()
        offset = failures = 0
        while offset < head.size_bytes:
            before = offset
            try:
                with self._client.open_object(head.key, etag=head.etag or None, offset=offset) as opened:
                    for block in opened.read_blocks():
                        offset += len(block)
                        md5.update(block)
                        yield block
            except BucketUnreachableError:
                failures = 0 if offset > before else failures + 1
                if failures >= _ATTEMPTS:
                    raise
            else:
                if offset == before:
                    break
            if self._stop.wait(_FIRST_PAUSE_SECONDS * failures):
                break
        _check_body(head, offset, md5.hexdigest())

    def _make_entry(self, head: ObjectHead, name: str, *, is_changed: bool) -> ObjectEntry:
        return ObjectEntry(
            key=head.key,
            size_bytes=head.size_bytes,
            sha256="",
            etag=head.etag,
            is_etag_verified=head.is_etag_md5,
            version_id=head.version_id,
            modified_at=head.modified_at,
            content_type=head.content_type,
            headers=head.headers,
            metadata=head.metadata,
            tags=self._read_tags(head),
            member_name=name,
            is_changed=is_changed,
            offset=0,
            length=0,
        )

    def _read_tags(self, head: ObjectHead) -> dict[str, str]:
        if not head.tag_count:
            return {}
        try:
            return self._client.read_tags(head.key)
        except ObjectGoneError:  # deleted just now; its bytes we have
            return {}


def _check_body(head: ObjectHead, size_bytes: int, md5: str) -> None:
    if size_bytes != head.size_bytes:
        raise ObjectError(f"object {head.key!r} came with {size_bytes} of {head.size_bytes} bytes")
    if head.is_etag_md5 and head.etag != md5:
        raise ObjectError(
            f"object {head.key!r} came with other bytes than its ETag says",
            hint="Look for a proxy or a failing disk on the S3 server's side.",
        )
