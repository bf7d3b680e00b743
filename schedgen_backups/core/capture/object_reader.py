"""Read one listed object for the archive.

Retries temporary failures, takes a replaced object in its current version and compares the content with the
ETag. `bucket` decides the order of objects and what their failures mean together.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from schedgen_backups.core.errors import BucketError, BucketUnreachableError, ObjectError
from schedgen_backups.core.formats.archive_writer import ArchiveWriter
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.formats.tar_member import PackedObject, pack_object
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES, READ_BYTES, BucketClient
from schedgen_backups.core.s3.listing_page import ListedObject
from schedgen_backups.core.s3.object_checksum import ObjectChecksum, RunningDigest, Unproven, read_etag
from schedgen_backups.core.s3.object_head import ObjectHead
from schedgen_backups.core.s3.refusals import BucketStalledError, ObjectChangedError, ObjectGoneError

RANGE_BYTES = 8 << 20
PARALLEL_RANGES = 4
"""Number of ranges of a large object that are read at a time; one more is in memory."""
_ATTEMPTS = 4
_STALLS = 2
_TAG_FAILURES_IN_A_ROW = 20
"""After this many consecutive objects whose tags could not be read, no tags are requested any more: each
failure may have taken the full timeout."""
_FIRST_PAUSE_SECONDS = 0.5
_OTHER_BYTES_HINT = "Check for a proxy or a failing disk on the S3 server."
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class GoneObject:
    """The object existed when the bucket was listed and no longer exists."""

    key: str


@dataclass(frozen=True)
class FailedObject:
    """The object could not be read, even after retries."""

    key: str
    error: BucketError


@dataclass(frozen=True)
class LargeObject:
    """The object does not fit into memory and must be streamed."""


class ObjectReader:
    """Reads objects of one bucket on any thread, until `stop` is set."""

    def __init__(self, client: BucketClient, stop: threading.Event) -> None:
        self._client = client
        self._stop = stop
        self._tag_failures = 0
        """Consecutive failures on all threads; small inaccuracies do not matter."""

    def read_packed(
        self, listed: ListedObject, name: str
    ) -> PackedObject | LargeObject | GoneObject | FailedObject:
        """Return the object packed as gzip members, if it is small enough."""
        if listed.size_bytes > IN_MEMORY_BYTES:
            return LargeObject()

        def read(etag: str | None) -> PackedObject | LargeObject:
            whole = self._client.read_object(listed.key, etag=etag)
            data = whole.data
            if data is None:
                return LargeObject()
            expected = self._expect(listed, whole.head, etag)
            running = expected.start()
            running.update(data)
            expected.check(len(data), running.digest())
            return pack_object(
                self._make_entry(whole.head, expected, name, sha256=hashlib.sha256(data).hexdigest()), data
            )

        return self._try(listed, read)

    def stream_to(
        self, writer: ArchiveWriter, listed: ListedObject, name: str
    ) -> ObjectEntry | GoneObject | FailedObject:
        """Append the object to the archive block by block; append nothing when it is gone or failed."""

        def append(etag: str | None) -> ObjectEntry:
            with self._client.open_object(listed.key, etag=etag) as opened:
                head = opened.head
            expected = self._expect(listed, head, etag)
            entry = self._make_entry(head, expected, name, sha256="")
            writer.add_stream(entry, self._read_body(head, expected))
            return entry

        return self._try(listed, append)

    def _try(
        self, listed: ListedObject, read: Callable[[str | None], _Result]
    ) -> _Result | GoneObject | FailedObject:
        """Return the result of `read`, retried after temporary failures.

        A replaced object is read in its current version.
        """
        etag = listed.etag or None
        error: BucketError = ObjectError(f"object {listed.key!r} was not read: the capture was stopped")
        for attempt in range(_ATTEMPTS):
            if attempt and self._stop.wait(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)):
                break
            try:
                return read(etag)
            except ObjectGoneError:
                return GoneObject(listed.key)
            except ObjectChangedError as changed:
                etag = None
                error = changed
            except BucketError as failed:
                error = failed
                # A stalled read was already tried twice and took the full timeout each time.
                if not failed.is_retryable or isinstance(failed, BucketStalledError):
                    break
        return FailedObject(listed.key, error)

    def _expect(self, listed: ListedObject, head: ObjectHead, asked_etag: str | None) -> _Expected:
        """Return what the body must be; raise the errors of `_expect`."""
        expected = _expect(listed, head, asked_etag)
        if isinstance(expected.checksum, ObjectChecksum):
            return expected
        stored = self._client.read_checksum(listed.key, expected.etag)
        if isinstance(stored, Unproven):
            stored = Unproven(f"{expected.checksum.reason}; {stored.reason}")
        return replace(expected, checksum=stored)

    def _read_body(self, head: ObjectHead, expected: _Expected) -> Iterator[bytes]:
        """Yield the body; raise ObjectError at its end when it is not the expected one."""
        running = expected.start()
        size_bytes = 0
        # Without an ETag, ranges could come from two versions.
        is_parted = head.etag and head.size_bytes > RANGE_BYTES * PARALLEL_RANGES
        for block in self._read_ranges(head) if is_parted else self._read_resuming(head, 0, head.size_bytes):
            size_bytes += len(block)
            running.update(block)
            yield block
        expected.check(size_bytes, running.digest())

    def _read_ranges(self, head: ObjectHead) -> Iterator[bytes]:
        """Yield the body in order, reading ranges ahead on threads; end early when the server does."""

        def read(start: int) -> bytes:
            return b"".join(self._read_resuming(head, start, min(start + RANGE_BYTES, head.size_bytes)))

        starts = iter(range(0, head.size_bytes, RANGE_BYTES))
        pool = ThreadPoolExecutor(max_workers=PARALLEL_RANGES, thread_name_prefix="range")
        try:
            waiting = deque(pool.submit(read, start) for start in islice(starts, PARALLEL_RANGES))
            while waiting:
                data = waiting.popleft().result()
                waiting.extend(pool.submit(read, start) for start in islice(starts, 1))
                # In pieces: each piece becomes one gzip member.
                yield from (data[piece : piece + READ_BYTES] for piece in range(0, len(data), READ_BYTES))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_resuming(self, head: ObjectHead, start: int, end: int) -> Iterator[bytes]:
        """Yield this part of the body and resume after interruptions.

        Ends early when the server sends no more.
        """
        offset = start
        failures = stalls = 0
        length = 0 if end == head.size_bytes else end - start
        while offset < end:
            before = offset
            try:
                with self._client.open_object(
                    head.key, etag=head.etag or None, offset=offset, length=length and end - offset
                ) as opened:
                    for block in opened.read_blocks():
                        offset += len(block)
                        yield block
            except BucketUnreachableError as error:
                # A few bytes per attempt are not progress: the object would take forever.
                if offset - before >= READ_BYTES:
                    failures = stalls = 0
                failures += 1
                stalls += isinstance(error, BucketStalledError)
                if failures >= _ATTEMPTS or stalls >= _STALLS:
                    raise
            else:
                if offset == before:
                    break
            if self._stop.wait(_FIRST_PAUSE_SECONDS * failures):
                break

    def _make_entry(self, head: ObjectHead, expected: _Expected, name: str, *, sha256: str) -> ObjectEntry:
        tags, tags_note = ({}, "") if head.tag_count == 0 else self._read_tags(head.key)
        return ObjectEntry(
            key=head.key,
            size_bytes=head.size_bytes,
            sha256=sha256,
            etag=expected.etag,
            unproven=expected.checksum.reason if isinstance(expected.checksum, Unproven) else "",
            version_id=head.version_id,
            modified_at=head.modified_at,
            read_at=head.answered_at,
            content_type=head.content_type,
            headers=head.headers,
            metadata=head.metadata,
            tags=tags,
            tags_note=tags_note,
            member_name=name,
            is_changed=expected.is_changed,
            offset=0,
            length=0,
        )

    def can_read_tags(self, key: str) -> bool:
        """Return whether the server returns the object's tags."""
        return not self._read_tags(key)[1]

    def _read_tags(self, key: str) -> tuple[dict[str, str], str]:
        """Return the object's tags, or no tags and the reason; missing tags do not fail the object."""
        if self._tag_failures >= _TAG_FAILURES_IN_A_ROW:
            return {}, f"not asked for: {self._tag_failures} times in a row the server failed to return tags"
        note = ""
        for attempt in range(_ATTEMPTS):
            if attempt and self._stop.wait(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)):
                break
            try:
                tags = self._client.read_tags(key)
            except BucketUnreachableError as error:
                note = error.message
                if isinstance(error, BucketStalledError):
                    break
            except BucketError as error:  # concerns this object or the permissions of the key pair
                return {}, error.message
            else:
                self._tag_failures = 0
                return tags, ""
        self._tag_failures += 1
        return {}, note


@dataclass(frozen=True)
class _Expected:
    """The expected body of an object, according to the listing and the response headers."""

    key: str
    size_bytes: int
    etag: str
    checksum: ObjectChecksum | Unproven
    is_changed: bool

    def start(self) -> RunningDigest:
        """Return the digest to update with the body; a dummy without a checksum to compare with."""
        return self.checksum.start() if isinstance(self.checksum, ObjectChecksum) else _NoDigest()

    def check(self, size_bytes: int, digest: bytes) -> None:
        """Raise ObjectError when the body has another length or digest."""
        if size_bytes != self.size_bytes:
            raise ObjectError(f"object {self.key!r} arrived with {size_bytes} of {self.size_bytes} bytes")
        if isinstance(self.checksum, ObjectChecksum) and self.checksum.digest != digest:
            what = "ETag" if self.checksum.algorithm == "md5" else f"checksum ({self.checksum.algorithm})"
            raise ObjectError(
                f"the bytes of object {self.key!r} do not match its {what}", hint=_OTHER_BYTES_HINT
            )


class _NoDigest:
    def update(self, data: bytes | bytearray, /) -> None:
        """Do nothing."""

    def digest(self) -> bytes:
        return b""


def _expect(listed: ListedObject, head: ObjectHead, asked_etag: str | None) -> _Expected:
    """Return what the body must be.

    ObjectError when the answer contradicts the listing without being a newer version of the object.
    """
    if listed.etag and not asked_etag and not head.etag:
        # An error page that a proxy sends with status 200 looks like this.
        raise ObjectError(
            f"object {listed.key!r} was replaced and arrived without an ETag", hint=_OTHER_BYTES_HINT
        )
    # For an answer without an ETag, the listing's applies.
    etag = head.etag or listed.etag
    checksum = read_etag(etag, is_user_encrypted=head.is_user_encrypted)
    # Without an ETag in the listing, only an MD5 distinguishes a newer object from a wrong answer.
    is_changed = (
        not asked_etag
        if listed.etag
        else isinstance(checksum, ObjectChecksum) and head.size_bytes != listed.size_bytes
    )
    if not is_changed and head.size_bytes != listed.size_bytes:
        message = (
            f"object {listed.key!r} was listed with {listed.size_bytes} bytes and arrived with "
            f"{head.size_bytes}"
        )
        raise ObjectError(message, hint=_OTHER_BYTES_HINT)
    return _Expected(listed.key, head.size_bytes, etag, checksum, is_changed)
