"""Capture a bucket into an archive file.

Lists the bucket page by page, reads objects on several threads and writes them in the listing's order.
Handles objects that change, vanish or arrive damaged. Memory is bounded by MEMORY_BUDGET_BYTES, whatever
the bucket's size.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, Protocol

from schedgen_backups.core.capture.object_reader import FailedObject, GoneObject, LargeObject, ObjectReader
from schedgen_backups.core.capture.unchanged import (
    LOOKUP_COUNT,
    PreviousObject,
    PreviousObjects,
    UnchangedRun,
    split_into_runs,
)
from schedgen_backups.core.catalog.resume import JOURNAL_NAME
from schedgen_backups.core.concurrency.adaptive_pool import AdaptivePool
from schedgen_backups.core.concurrency.prefetch import prefetch
from schedgen_backups.core.errors import (
    BucketError,
    BucketUnreachableError,
    ObjectError,
    PackKeyError,
    ReadBackError,
    VerificationError,
)
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter, ArchiveWriter, CapturedArchive
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.records import ArchiveRecord, MissedObject, ObjectEntry
from schedgen_backups.core.formats.tar_member import MemberNames, PackedObject
from schedgen_backups.core.model import TOOL_VERSION, ArtifactName
from schedgen_backups.core.patterns import matches_any_key
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES, LISTING_HINT, BucketClient
from schedgen_backups.core.s3.listing_page import ListedObject
from schedgen_backups.core.settings import BucketSettings, CaptureSettings
from schedgen_backups.core.system.garbage import collect_garbage_rarely

MEMORY_BUDGET_BYTES = 64 << 20
"""Total size of the bodies that wait to be written; each takes up to twice its size while it is packed."""
_BATCHES_AHEAD = 20
"""Batches of the listing: two pages of S3, half a kilobyte per object."""
_FAILURES_IN_A_ROW = 20
"""Abort the capture after this many consecutive objects that failed because of the server or the login.
Failures of single objects, such as a refusal, do not count: a whole prefix may be in cold storage."""
_NAMED_MISSES = 1000
_GONE_IN_A_ROW = 1000
"""After this many consecutive listed objects that do not exist, list again to see whether they are named."""
_GONE_LOOKS = 2
"""An object may be deleted between the listing and the read."""
_ODD_SIGN = re.compile(r"[^A-Za-z0-9/._-]")
"""Characters that a listing may replace: XML cannot express some, and servers differ in how they encode
others. A prefix with such a character may find nothing."""


_Read = PackedObject | LargeObject | GoneObject | FailedObject
_Outcome = UnchangedRun | _Read


@dataclass(frozen=True)
class _Wanted:
    """A listed object, its name in the tar, and its unchanged copy in an older archive, if any."""

    listed: ListedObject
    name: str
    found: PreviousObject | None

    @property
    def has_tags(self) -> bool:
        """Whether an older archive contains it with its tags."""
        return self.found is not None and not self.found.entry.tags_note


@dataclass(frozen=True)
class _Waiting:
    """Objects that a thread reads or looks up: a single one or a run of unchanged ones."""

    wanted: Sequence[_Wanted]
    future: Future[list[_Outcome]]

    @property
    def size_bytes(self) -> int:
        """Memory for their bodies; those of unchanged objects are not read."""
        return sum(min(one.listed.size_bytes, IN_MEMORY_BYTES) for one in self.wanted if not one.has_tags)


@dataclass
class _Tally:
    listed: int = 0
    changed: int = 0
    reused: int = 0
    gone: list[MissedObject] = field(default_factory=list[MissedObject])
    failed: list[MissedObject] = field(default_factory=list[MissedObject])
    gone_count: int = 0
    """Number of objects that the listing no longer names."""
    failed_count: int = 0
    excluded_count: int = 0
    excluded_bytes: int = 0
    failures_in_a_row: int = 0
    gone_in_a_row: int = 0
    damaged_sources: dict[Path, None] = field(default_factory=dict[Path, None])
    """Older archives that could not be read to copy from them."""


class ArchiveTarget(Protocol):
    """Where an archive is written."""

    def open_writer(self) -> AbstractContextManager[ArchiveWriter]:
        """Return a writer within a block."""
        ...

    def discard(self) -> None:
        """Remove what was written, before another attempt."""
        ...


@dataclass(frozen=True)
class FileTarget:
    """An empty file, with a journal in `folder`."""

    file: BinaryIO
    folder: Path
    threads: int

    def open_writer(self) -> ArchiveFileWriter:
        """Return a writer."""
        return ArchiveFileWriter(
            self.file, threads=self.threads, folder=self.folder, journal_name=JOURNAL_NAME
        )

    def discard(self) -> None:
        """Empty the file; the journal goes first, so that it never names what the file lacks."""
        (self.folder / JOURNAL_NAME).unlink()
        self.file.seek(0)
        self.file.truncate()


def capture_bucket(
    settings: BucketSettings,
    capture: CaptureSettings,
    name: ArtifactName,
    target: ArchiveTarget,
    *,
    folder: Path,
    previous: Sequence[Path] = (),
    resumable: Sequence[Path] = (),
    keys: PackKeys = NO_KEYS,
    is_wanted: Callable[[str], bool] = lambda _key: True,
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> CapturedArchive:
    """Write every listed object for which `is_wanted(key)` is true to `target`, with record and index.

    Objects that the bucket could not deliver are listed in the record. Objects excluded by the settings are
    only counted. Unchanged objects are copied from `resumable`, staging directories of killed captures, and
    from the first of the `previous` archives whose index can be read, if need be with the `keys` of their
    packs. The file is then read back. If objects
    are not what their entries state, it is written again without copies of these, then without any copies.
    `folder` holds temporary data and the journal; `on_progress` gets each object's size in bytes.

    StorageError when `folder` is full; BucketError (permanent) when the bucket cannot be opened;
    BucketUnreachableError (retryable) when the server stops answering; ReadBackError (retryable) when even
    objects that were read from the bucket cannot be read back. The file is unusable after an error.
    """
    source = _Source(settings, capture, is_wanted, on_progress)
    distrusted: set[str] = set()
    damaged: dict[Path, None] = {}
    reread_days = iter((capture.reread_days, capture.reread_days, 0))
    while True:
        with (
            collect_garbage_rarely(),
            PreviousObjects(
                folder, settings, reread_days=next(reread_days), distrusted=frozenset(distrusted), keys=keys
            ) as objects,
        ):
            for path in resumable:
                objects.add_resumable(path)
            any(objects.add_archive(path) for path in previous)
            try:
                captured = _capture_once(source, name, target, objects)
            except ReadBackError as error:
                found = objects.find_sources(error.keys)
                if not found:  # always so after the last attempt, which copies nothing
                    raise
                distrusted.update(error.keys)
                damaged |= dict.fromkeys(found)
                target.discard()
            else:
                damaged |= dict.fromkeys(captured.damaged_sources)
                return replace(captured, damaged_sources=tuple(damaged))


@dataclass(frozen=True)
class _Source:
    """What is captured, with which settings."""

    settings: BucketSettings
    capture: CaptureSettings
    is_wanted: Callable[[str], bool]
    on_progress: Callable[[int], object]


def _capture_once(
    source: _Source, name: ArtifactName, target: ArchiveTarget, objects: PreviousObjects
) -> CapturedArchive:
    settings, capture = source.settings, source.capture
    with (
        AdaptivePool(capture.transfer.download_threads, "download") as pool,
        BucketClient(
            settings,
            threads=capture.transfer.download_threads,
            stall_timeout_seconds=capture.transfer.stall_timeout_seconds,
            max_mb_per_second=capture.transfer.max_mb_per_second,
            on_busy=pool.note_refusal,
        ) as client,
    ):
        client.check_exists()
        listed_at = datetime.now(timezone.utc)
        with target.open_writer() as writer:
            tally = _Capture(
                client,
                writer,
                objects,
                pool,
                source.on_progress,
                max_pending=8 * capture.transfer.download_threads,
            ).run(source.is_wanted, capture.exclusions.objects)
            captured = writer.finish(
                ArchiveRecord(
                    tool_version=TOOL_VERSION,
                    point_id=name.point_id.text,
                    bucket=settings.bucket,
                    source_name=name.source_name if name.source_name != settings.bucket else "",
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
                    unproven_count=writer.unproven_count,
                    unread_tags_count=writer.unread_tags_count,
                    is_versioned=client.is_versioned(),
                    reused_count=tally.reused,
                    excluded_patterns=capture.exclusions.objects,
                    excluded_count=tally.excluded_count,
                    excluded_bytes=tally.excluded_bytes,
                )
            )
    return replace(captured, damaged_sources=tuple(tally.damaged_sources))


class _Capture:
    """One pass over the bucket: threads read objects ahead, which are appended in the listing's order."""

    def __init__(
        self,
        client: BucketClient,
        writer: ArchiveWriter,
        previous: PreviousObjects,
        pool: AdaptivePool,
        on_progress: Callable[[int], object],
        *,
        max_pending: int,
    ) -> None:
        self._client = client
        self._writer = writer
        self._previous = previous
        self._pool = pool
        self._max_pending = max_pending
        self._on_progress = on_progress
        self._names = MemberNames()
        self._stop = threading.Event()
        self._reader = ObjectReader(client, self._stop)
        self._tally = _Tally()
        self._gone: list[_Wanted] = []
        """Listed objects that did not exist when read and are not yet checked against a new listing."""
        self._waiting: deque[_Waiting] = deque()

    def run(self, is_wanted: Callable[[str], bool], excluded: Sequence[str]) -> _Tally:
        """Append every wanted object of the listing and return the tally.

        Objects that are gone, failed or match an `excluded` pattern are counted in the tally instead.
        """
        waiting_bytes = 0
        try:
            listing = (
                listed
                for listed in self._client.list_objects()
                if is_wanted(listed.key) and not self._is_excluded(listed, excluded)
            )
            # Looked up on a thread of its own: copying is the kernel's work.
            with (
                closing(prefetch(listing, batch_count=LOOKUP_COUNT, batches=_BATCHES_AHEAD)) as batches,
                closing(prefetch(self._look_up(batches), batch_count=1, batches=2)) as looked_up,
            ):
                for [wanted] in looked_up:
                    rest = wanted
                    for count in split_into_runs([one.found if one.has_tags else None for one in wanted]):
                        group, rest = rest[:count], rest[count:]
                        self._waiting.append(_Waiting(group, self._pool.submit(self._read, group)))
                        waiting_bytes += self._waiting[-1].size_bytes
                        while waiting_bytes > MEMORY_BUDGET_BYTES or len(self._waiting) > self._max_pending:
                            waiting_bytes -= self._append_next()
            while self._waiting:
                self._append_next()
            self._settle_gone()
        finally:
            self._stop.set()
            self._pool.close()
        return self._tally

    def _look_up(self, batches: Iterable[Sequence[ListedObject]]) -> Iterator[list[_Wanted]]:
        for listed_batch in batches:
            batch = [(listed, self._choose_name(listed.key)) for listed in listed_batch]
            self._tally.listed += len(batch)
            yield [
                _Wanted(listed, name, found)
                for (listed, name), found in zip(batch, self._previous.find(batch), strict=True)
            ]

    def _is_excluded(self, listed: ListedObject, patterns: Sequence[str]) -> bool:
        if not matches_any_key(patterns, listed.key):
            return False
        self._tally.excluded_count += 1
        self._tally.excluded_bytes += listed.size_bytes
        return True

    def _choose_name(self, key: str) -> str:
        if self._names.has_named(key):
            raise BucketError(
                f"the listing of the bucket names the object {key!r} twice, so the whole listing cannot be "
                "trusted",
                hint=LISTING_HINT,
            )
        return self._names.choose(key)

    def _append_next(self) -> int:
        waiting = self._waiting.popleft()
        left = deque(waiting.wanted)
        for outcome in waiting.future.result():
            first = left.popleft()
            if isinstance(outcome, UnchangedRun):
                self._append_copies([first, *(left.popleft() for _object in outcome.objects[1:])], outcome)
            elif self._append(first, outcome):
                self._tally.gone_in_a_row = 0
            else:
                self._note_gone(first)
        self._on_progress(sum(one.listed.size_bytes for one in waiting.wanted))
        return waiting.size_bytes

    def _append_copies(self, wanted: Sequence[_Wanted], run: UnchangedRun) -> None:
        """Append the run; what the older archive's disk cannot read is read from the bucket instead."""
        if self._copy(run):
            self._tally.reused += len(wanted)
            return
        for one, single in zip(wanted, run.split(), strict=True):
            if len(wanted) > 1 and self._copy(single):
                self._tally.reused += 1
            elif self._append(one, self._read_small(one)):
                self._tally.gone_in_a_row = 0
            else:
                self._note_gone(one)

    def _copy(self, run: UnchangedRun) -> bool:
        try:
            self._writer.add_copies(
                [previous.entry for previous in run.objects],
                run.file,
                lines=[previous.line for previous in run.objects],
            )
        except VerificationError:
            self._tally.damaged_sources[run.file.path] = None
            return False
        except PackKeyError:  # of an older key; the bucket has the objects
            return False
        return True

    def _append(self, wanted: _Wanted, outcome: _Read) -> bool:
        """Append the object, or count it as failed; return False when it is gone."""
        if isinstance(outcome, LargeObject):
            done = self._reader.stream_to(self._writer, wanted.listed, wanted.name)
        elif isinstance(outcome, PackedObject):
            self._writer.add_packed(outcome)
            done = outcome.entry
        else:
            done = outcome
        if isinstance(done, FailedObject):
            self._count_failed(done)
        else:
            self._tally.failures_in_a_row = 0
        if isinstance(done, ObjectEntry):
            self._tally.changed += done.is_changed
        return not isinstance(done, GoneObject)

    def _read(self, group: Sequence[_Wanted]) -> list[_Outcome]:
        found = [one.found for one in group if one.found is not None]
        if not found or not self._may_copy(group[0]):
            return [self._read_small(group[0])]
        return [UnchangedRun(tuple(found))]

    def _may_copy(self, wanted: _Wanted) -> bool:
        """Return False when the older archive lacks the object's tags and the server can provide them now.

        The tags are part of the object's header, so it must then be packed again.
        """
        return wanted.has_tags or not self._reader.can_read_tags(wanted.listed.key)

    def _read_small(self, wanted: _Wanted) -> _Read:
        outcome = self._reader.read_packed(wanted.listed, wanted.name)
        if isinstance(outcome, PackedObject):
            self._pool.note_answer(outcome.entry.size_bytes)
        return outcome

    def _count_failed(self, failed: FailedObject) -> None:
        tally = self._tally
        tally.failed_count += 1
        tally.failures_in_a_row = 0 if isinstance(failed.error, ObjectError) else tally.failures_in_a_row + 1
        if len(tally.failed) < _NAMED_MISSES:
            tally.failed.append(MissedObject(key=failed.key, reason=failed.error.message))
        if tally.failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise BucketUnreachableError(
                f"{tally.failures_in_a_row} objects in a row could not be read, the last one: "
                f"{failed.error.message}",
                hint=failed.error.hint or "Check the S3 server's log, then run the backup again.",
            )

    def _note_gone(self, wanted: _Wanted) -> None:
        self._gone.append(wanted)
        self._tally.gone_in_a_row += 1
        if self._tally.gone_in_a_row % _GONE_IN_A_ROW == 0:
            self._check_gone(wanted.listed.key)
        if len(self._gone) >= _GONE_IN_A_ROW:
            self._settle_gone()

    def _check_gone(self, key: str) -> None:
        """Raise BucketError when the listing still names an object that cannot be read.

        A server that invents keys would never reach the end of its listing.
        """
        if next(self._client.list_objects(key), None) is not None and self._client.find_head(key) is None:
            raise BucketError(
                f"the listing of the bucket names {self._tally.gone_in_a_row} consecutive objects that do "
                f"not exist, and still names {key!r}",
                hint=LISTING_HINT,
            )

    def _settle_gone(self) -> None:
        """Count objects that the listing no longer names as deleted, and read the others again.

        For the latter, either the listing or the answer to the read was wrong.
        """
        for _look in range(_GONE_LOOKS):
            if not self._gone:
                return
            named = self._find_named([one.listed.key for one in self._gone])
            for one in self._gone:
                if one.listed.key not in named:
                    self._count_deleted(one.listed.key)
            still_named = [one for one in self._gone if one.listed.key in named]
            self._gone = [one for one in still_named if not self._append(one, self._read_small(one))]
        for one in self._gone:
            message = f"object {one.listed.key!r} does not exist, but the listing names it again"
            self._count_failed(FailedObject(one.listed.key, ObjectError(message, hint=LISTING_HINT)))
        self._gone = []

    def _count_deleted(self, key: str) -> None:
        self._tally.gone_count += 1
        if len(self._tally.gone) < _NAMED_MISSES:
            self._tally.gone.append(MissedObject(key=key, reason="deleted after it was listed"))

    def _find_named(self, keys: Sequence[str]) -> set[str]:
        """Return the keys that the listing names now, and those for which it gives no answer."""
        by_prefix: dict[str, set[str]] = {}
        for key in keys:
            by_prefix.setdefault(_ODD_SIGN.split(key, maxsplit=1)[0], set()).add(key)
        named: set[str] = set()
        for prefix, wanted in by_prefix.items():
            for listed in self._client.list_objects(prefix):
                # A line without the prefix comes from a server that does not support prefixes.
                named |= {listed.key} & wanted if listed.key.startswith(prefix) else wanted
                if wanted <= named:
                    break
        return named
