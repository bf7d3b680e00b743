"""Write an archive into packs: new objects as pieces, unchanged ones as lines of a recipe."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import ClassVar

from schedgen_backups.core.catalog.resume import JOURNAL_NAME, PLACES_NAME
from schedgen_backups.core.errors import ReadBackError, VerificationError
from schedgen_backups.core.formats.archive_writer import ArchiveWriter, CapturedArchive
from schedgen_backups.core.formats.gzip_members import Digest, packed_footer_member, read_members
from schedgen_backups.core.formats.gzip_writer import MemberQueue
from schedgen_backups.core.formats.index_lines import (
    locate_lines,
    move_line,
    place_line,
    place_lines,
    to_line,
)
from schedgen_backups.core.formats.packed_file import PackedFile
from schedgen_backups.core.formats.pieces import SMALL_PIECES, PieceSizes
from schedgen_backups.core.formats.read_back import find_damaged
from schedgen_backups.core.formats.recipe import Segment, Segments, write_recipe
from schedgen_backups.core.formats.records import ArchiveRecord, ArtifactFile, ObjectEntry, make_format_error
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.pack_shelf import PackShelf
from schedgen_backups.core.packs.pack_writer import PackWriter, Piece
from schedgen_backups.core.system.files import identify_file
from schedgen_backups.core.units import name_some

_COPY_BYTES = 4 << 20
_TAIL_ATTEMPTS = 3
"""How often the index is placed, if a pack turns out damaged in which parts of it lay already."""


@dataclass(frozen=True)
class _Index:
    """Where the index of the archive lies, and the digest of its plain bytes."""

    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class PackTarget:
    """Where an archive in packs is written: `path` is its recipe."""

    shelf: PackShelf
    path: Path
    folder: Path
    point_id: RecoveryPointId
    threads: int
    pack_bytes: int

    @contextmanager
    def open_writer(self) -> Generator[PackedArchiveWriter, None, None]:
        """Yield a writer within the block."""
        with (
            self.shelf.open_writer(self.point_id, pack_bytes=self.pack_bytes) as packs,
            PackedArchiveWriter(
                self.shelf, packs, self.path, threads=self.threads, folder=self.folder
            ) as writer,
        ):
            yield writer

    def discard(self) -> None:
        """Remove the journals; the next attempt uses what is good of the packs."""
        for name in (JOURNAL_NAME, PLACES_NAME):
            (self.folder / name).unlink()


class PackedMemberWriter(MemberQueue):
    """Places members as pieces in packs, and notes where they lie."""

    def __init__(self, packs: PackWriter, journal: Path, *, threads: int) -> None:
        super().__init__(threads=threads)
        self._packs = packs
        self._journal = journal.open("xb")
        self._is_tail = False
        self._tail_digest: Digest | None = None
        self.segments = Segments()

    def copy_segments(self, segments: Iterable[Segment]) -> None:
        """Append bytes that lie in packs already."""
        self.flush()
        for segment in segments:
            self._join(segment)
            self._offset += segment.length

    def note(self) -> None:
        """Hand to the kernel where everything so far lies."""
        self.flush()
        self._journal.flush()

    def close(self) -> None:
        """End the threads, and close the journal."""
        super().close()
        self._journal.close()

    def rollback(self, offset: int) -> None:
        """Forget where the bytes behind the offset lie; they stay in their packs, unused."""
        self.flush()
        self.segments.cut(offset)
        self._journal.write(b"= %d\n" % offset)
        self._offset = offset

    def begin_tail(self) -> None:
        """Put what follows into packs of its own, and digest it."""
        self.flush()
        self._is_tail = True
        self._tail_digest = hashlib.sha256()

    def finish_tail(self) -> bytes:
        """Return the digest of what was written since `begin_tail`."""
        self.flush()
        digest = self._tail_digest.digest() if self._tail_digest is not None else b""
        self._tail_digest = None
        return digest

    def _append(self, member: bytes) -> None:
        if self._tail_digest is not None:
            self._tail_digest.update(member)
        self._join(self._packs.place(Piece(member, is_tail=self._is_tail)))
        self._offset += len(member)

    def _join(self, segment: Segment) -> None:
        self.segments.join(segment)
        self._journal.write(b"%s %d %d\n" % (segment.pack.encode("ascii"), segment.offset, segment.length))


class PackedArchiveWriter(ArchiveWriter):
    """Writes an archive into packs, and its recipe to `path`."""

    pieces: ClassVar[PieceSizes] = SMALL_PIECES

    def __init__(
        self, shelf: PackShelf, packs: PackWriter, path: Path, *, threads: int, folder: Path
    ) -> None:
        self._shelf = shelf
        self._packs = packs
        self._path = path
        self._threads = threads
        self._writer = PackedMemberWriter(packs, folder / PLACES_NAME, threads=threads)
        super().__init__(self._writer, folder=folder, journal_name=JOURNAL_NAME)

    def add_copies(
        self, entries: Sequence[ObjectEntry], source: ArtifactFile, *, lines: Sequence[bytes] = ()
    ) -> None:
        """Append the objects; those in packs that are still used are not even read."""
        before = self._writer.flush()
        lengths: list[int] = []
        try:
            packed = source.open_packed() if source.is_packed else None
            for entry in entries:
                start = self._writer.flush()
                segments = (
                    tuple(packed.find_segments(entry.offset, entry.length)) if packed is not None else ()
                )
                if any(segment.pack in self._shelf.damaged for segment in segments):
                    raise make_format_error("a pack is damaged")
                if segments and all(segment.pack in self._shelf.usable for segment in segments):
                    self._writer.copy_segments(segments)
                else:
                    self._copy_bytes(entry, source)
                lengths.append(self._writer.flush() - start)
        except BaseException:
            self._writer.rollback(before)
            raise
        for entry, length, line in zip(entries, lengths, lines or repeat(b""), strict=False):
            # Its offset is not in the index.
            self._add_copied_line(entry, line, offset=0, length=length)
        self._note_entry()

    def finish(self, record: ArchiveRecord) -> CapturedArchive:
        """Append the index, close the packs, read new and due ones back, and write the recipe."""
        index_offset = self._writer.flush()
        damaged: dict[str, str] = {}
        unread: set[str] = set()
        for _attempt in range(_TAIL_ATTEMPTS):
            self._writer.rollback(index_offset)
            index = self._write_tail(record)
            packed = self._shelf.packs.open_file(
                self._shelf.make_recipe(self._writer.segments, self._packs.new_packs)
            )
            # Those of a killed capture are known, and were never read.
            unread |= self._shelf.find_unread(packed.recipe)
            damaged = self._read_due(packed)
            if not damaged:
                break
        else:
            raise ReadBackError("; ".join(damaged.values()), keys=())
        self._read_back(packed, index, unread)
        recipe = packed.recipe
        data = write_recipe(recipe)
        with self._path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            identity = identify_file(os.fstat(file.fileno()))
        return CapturedArchive(
            record,
            hashlib.sha256(data).hexdigest(),
            packed.size_bytes,
            identity,
            oldest_reading_at=self._shelf.find_oldest_reading(recipe),
        )

    def _copy_bytes(self, entry: ObjectEntry, source: ArtifactFile) -> None:
        reader = source.open_reader()
        reader.seek(entry.offset)
        left = entry.length
        while left:
            data = reader.read(min(left, _COPY_BYTES))
            if not data:
                raise make_format_error("it ends too early")
            left -= len(data)
            self._writer.write_member(data)

    def _write_tail(self, record: ArchiveRecord) -> _Index:
        """Append index and footer, and close the packs."""
        start = self._writer.flush()
        self._writer.begin_tail()
        sha256 = self._write_index(record)
        end = self._writer.flush()
        self._writer.write_member(packed_footer_member(start, self._writer.finish_tail()))
        self._writer.flush()
        self._packs.finish_artifact()
        return _Index(start, end, sha256)

    def _read_due(self, packed: PackedFile) -> dict[str, str]:
        """Read the packs that are new or due; return what is wrong with those of the index.

        ReadBackError if objects lie in a damaged one.
        """
        damaged = self._shelf.read_due(packed.recipe)
        entries = self._read_entries() if damaged else ()
        keys = [entry.key for entry in entries if self._find_packs(packed, entry) & damaged.keys()]
        if keys:
            raise ReadBackError("; ".join(damaged.values()), keys=keys)
        return damaged

    def _read_back(self, packed: PackedFile, index: _Index, unread: set[str]) -> None:
        """Read the objects in packs that are new or were not read before, and the index; ReadBackError."""
        found = self._find_damaged(packed, unread | {pack.name for pack in self._packs.new_packs})
        if found:
            raise ReadBackError(
                f"objects cannot be read back as they were captured: {name_some(found)}", keys=found
            )
        digest = hashlib.sha256()
        try:
            for block in read_members(packed.open_reader(), index.start, index.end - index.start):
                digest.update(block)
        except VerificationError as error:
            raise ReadBackError(f"the index cannot be read back: {error.message}", keys=()) from error
        if digest.hexdigest() != index.sha256:
            raise ReadBackError("the index cannot be read back as it was written", keys=())

    def _find_damaged(self, packed: PackedFile, new: set[str]) -> list[str]:
        """Return the keys of the objects in new packs that do not unpack to what their entries state."""
        reader = packed.open_reader()
        found: list[str] = []
        with ThreadPoolExecutor(self._threads, thread_name_prefix="read back") as pool:
            waiting: deque[Future[list[str]]] = deque()
            for entry in self._read_entries_in(find_ranges(packed.recipe.segments, new)):
                if entry.length > _COPY_BYTES:
                    found += find_damaged(entry, read_members(reader, entry.offset, entry.length))
                    continue
                reader.seek(entry.offset)
                waiting.append(pool.submit(_check_one, entry, reader.read(entry.length)))
                if len(waiting) > 2 * self._threads:
                    found += waiting.popleft().result()
            for checking in waiting:
                found += checking.result()
        return found

    def _find_packs(self, packed: PackedFile, entry: ObjectEntry) -> set[str]:
        return {segment.pack for segment in packed.find_segments(entry.offset, entry.length)}

    def _read_entries(self) -> Iterator[ObjectEntry]:
        self._index.seek(0)
        for line in place_lines(self._index):
            yield ObjectEntry.model_validate_json(line)

    def _read_entries_in(self, ranges: Sequence[tuple[int, int]]) -> Iterator[ObjectEntry]:
        """Yield the entries of which some byte lies in these ranges (begin, end), which are in order."""
        self._index.seek(0)
        left = deque(ranges)
        for begin, end, line in locate_lines(self._index):
            while left and left[0][1] <= begin:
                left.popleft()
            if not left:
                return
            if left[0][0] < end:
                yield ObjectEntry.model_validate_json(place_line(line, begin))

    def _make_line(self, placed: ObjectEntry) -> bytes:
        return to_line(placed.model_dump_json(exclude_defaults=True, exclude={"offset"}))

    def _move_line(self, line: bytes, offset: int, length: int) -> bytes:  # noqa: ARG002 - has no offsets
        return move_line(line, length=length)

    def _note_entry(self) -> None:
        self._writer.note()
        self._index.flush()


def find_ranges(segments: Iterable[Segment], packs: Collection[str]) -> list[tuple[int, int]]:
    """Return which bytes of an artifact lie in these packs: begin and end, in order."""
    found: list[tuple[int, int]] = []
    offset = 0
    for segment in segments:
        if segment.pack in packs:
            found.append((offset, offset + segment.length))
        offset += segment.length
    return found


def _check_one(entry: ObjectEntry, data: bytes) -> list[str]:
    return find_damaged(entry, read_members(io.BytesIO(data), 0, len(data)))
