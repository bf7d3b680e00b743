"""Write an archive file: objects in the order given, then the index, which is read back with everything else.

The format is that of docs/file-format.md; `archive_file` reads it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, ClassVar, cast

from typing_extensions import Self

from schedgen_backups.core.errors import ObjectError, ReadBackError
from schedgen_backups.core.formats.archive_file import INDEX_NAME
from schedgen_backups.core.formats.gzip_members import (
    BLOCK_BYTES,
    SMALLEST_FILLER_BYTES,
    compress_member,
    filler_member,
    footer_member,
    is_compressible,
    measure_filler,
    store_member,
)
from schedgen_backups.core.formats.gzip_writer import MemberQueue, MemberWriter, PieceWriter
from schedgen_backups.core.formats.index_lines import (
    move_line,
    to_line,
)
from schedgen_backups.core.formats.pieces import LARGE_PIECES, PieceSizes
from schedgen_backups.core.formats.read_back import Tail, read_back
from schedgen_backups.core.formats.records import (
    ArchiveRecord,
    ArtifactFile,
    ObjectEntry,
    make_format_error,
)
from schedgen_backups.core.formats.tar_member import (
    FILE_MODE,
    TAR_BLOCK_BYTES,
    PackedObject,
    make_header,
    make_padding,
)
from schedgen_backups.core.system.files import FileIdentity, identify_file
from schedgen_backups.core.system.reflink import SHARED_BLOCK_BYTES, can_share_blocks, measure_gap
from schedgen_backups.core.system.writeback import WriteBack

COPY_BYTES = 8 << 20
"""Size from which a run of objects that are copied from an older archive together gets no further one."""
_WORTH_SHARING_BYTES = 16 * SHARED_BLOCK_BYTES
_END_OF_ARCHIVE = b"\0" * (2 * TAR_BLOCK_BYTES)


@dataclass(frozen=True)
class CapturedArchive:
    """A finished archive, which was read back from the disk."""

    record: ArchiveRecord
    sha256: str
    """Digest of the whole file."""
    size_bytes: int
    """Size of the file."""
    file_identity: FileIdentity
    """The file as it was read back, before it got its name."""
    oldest_reading_at: datetime | None = None
    """When the bytes were read whose reading is longest ago, in packs of older points; None for just now."""
    damaged_sources: tuple[Path, ...] = ()
    """Older archives of which objects could not be copied, because their bytes are not those of their index.
    """
    healed_packs: tuple[str, ...] = ()
    """Damaged packs of older points that were made whole again."""


class ArchiveWriter(ABC):
    """Writes an archive: objects in the order given, then `finish`.

    The growing index is an unnamed file in `folder`. With a `journal_name` it is a named file that lists only
    objects already in the archive, so that a killed capture can be resumed.
    """

    pieces: ClassVar[PieceSizes] = LARGE_PIECES
    """Of the index."""

    def __init__(self, writer: MemberQueue, *, folder: Path, journal_name: str = "") -> None:
        self._members = writer
        opened = (folder / journal_name).open("x+b") if journal_name else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in __exit__
        self._folder = folder
        self._index: BinaryIO = cast("BinaryIO", opened)
        self.object_count = 0
        self.size_bytes = 0
        self.unproven_count = 0
        self.unread_tags_count = 0

    def add_packed(self, packed: PackedObject) -> None:
        """Append an object packed by `pack_object`."""
        start = self._members.flush()
        self._members.write_member(packed.members)
        self._add_entry(packed.entry, start)

    def add_stream(self, entry: ObjectEntry, blocks: Iterable[bytes]) -> None:
        """Append an object block by block.

        When `blocks` raises or yields a size other than the entry's, nothing of the object is kept.
        """
        start = self._members.flush()
        digest = hashlib.sha256()
        size_bytes = 0
        compress: Callable[..., bytes] | None = None
        pending = bytearray()
        try:
            self._members.write_block(make_header(entry))
            for block in blocks:
                digest.update(block)
                size_bytes += len(block)
                pending += block
                if len(pending) >= BLOCK_BYTES:
                    compress = compress or (
                        compress_member if is_compressible(bytes(pending)) else store_member
                    )
                    self._members.write_block(bytes(pending), compress)
                    pending.clear()
            if size_bytes != entry.size_bytes:
                raise ObjectError(
                    f"object {entry.key!r} arrived with {size_bytes} bytes instead of {entry.size_bytes}"
                )
            self._members.write_block(bytes(pending) + make_padding(size_bytes), compress or compress_member)
            self._members.flush()
        except BaseException:
            self._members.rollback(start)
            raise
        self._add_entry(entry.model_copy(update={"sha256": digest.hexdigest()}), start)

    @abstractmethod
    def add_copies(
        self, entries: Sequence[ObjectEntry], source: ArtifactFile, *, lines: Sequence[bytes] = ()
    ) -> None:
        """Append objects that are consecutive in an older archive, without reading them.

        The index gets their `lines` of the older one, where they are given: writing an entry again takes
        longer than all the rest. `finish` reads the objects. After a VerificationError, which means that
        the source cannot be read, nothing of them is kept.
        """

    @abstractmethod
    def finish(self, record: ArchiveRecord) -> CapturedArchive:
        """Append the index, whose first line is the record, read everything back, and append the footer.

        ReadBackError names the objects whose bytes on the disk are not those that their entries state. The
        archive has no footer then.
        """

    def _write_index(self, record: ArchiveRecord) -> str:
        """Append the index as the last entry of the tar; return the SHA-256 of its plain bytes."""
        first_line = to_line(record.model_dump_json())
        # Filled up to whole blocks: what stands behind the record does not depend on its length.
        first_line = (
            first_line.removesuffix(b"\n").ljust(-(-len(first_line) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES - 1)
            + b"\n"
        )
        index_bytes = self._index.tell()
        info = tarfile.TarInfo(INDEX_NAME)
        info.size = len(first_line) + index_bytes
        info.mtime = int(record.finished_at.timestamp())
        info.mode = FILE_MODE
        begin = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + first_line
        end = make_padding(info.size) + _END_OF_ARCHIVE
        digest = hashlib.sha256(begin)
        self._members.write_block(begin)
        self._index.seek(0)
        pieces = PieceWriter(self._members, self.pieces)
        while block := self._index.read(BLOCK_BYTES):
            digest.update(block)
            pieces.append(block)
        pieces.end_piece()
        digest.update(end)
        self._members.write_block(end)
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._index.close()
        self._members.close()

    def _add_entry(self, entry: ObjectEntry, start: int) -> None:
        placed = entry.model_copy(update={"offset": start, "length": self._members.flush() - start})
        self._add_line(placed, self._make_line(placed))
        self._note_entry()

    def _add_copied_line(self, entry: ObjectEntry, line: bytes, *, offset: int, length: int) -> None:
        """Append to the index the `line` of a copied object, with its place; empty to write it again."""
        moved = b""
        if line:
            with suppress(ValueError):  # not written by this program, if valid
                moved = self._move_line(line, offset, length)
        if not moved:
            moved = self._make_line(entry.model_copy(update={"offset": offset, "length": length}))
        self._add_line(entry, moved)

    def _add_line(self, entry: ObjectEntry, line: bytes) -> None:
        self._index.write(line)
        self.object_count += 1
        self.size_bytes += entry.size_bytes
        self.unproven_count += bool(entry.unproven)
        self.unread_tags_count += bool(entry.tags_note)

    def _make_line(self, placed: ObjectEntry) -> bytes:
        return to_line(placed.model_dump_json(exclude_defaults=True))

    def _move_line(self, line: bytes, offset: int, length: int) -> bytes:
        return move_line(line, offset=offset, length=length)

    @abstractmethod
    def _note_entry(self) -> None:
        """Do what makes the last entry usable if this process is killed."""


class ArchiveFileWriter(ArchiveWriter):
    """Writes an archive to a file."""

    def __init__(self, file: BinaryIO, *, threads: int, folder: Path, journal_name: str = "") -> None:
        self._file = file
        self._write_back = WriteBack(file)
        self._threads = threads
        self._writer = MemberWriter(file, threads=threads, written=self._write_back.note)
        super().__init__(self._writer, folder=folder, journal_name=journal_name)
        self._is_sharing: dict[int, bool] = {}
        """Whether blocks can be shared with an open file, by its descriptor."""
        self._is_journal = bool(journal_name)

    def add_copies(
        self, entries: Sequence[ObjectEntry], source: ArtifactFile, *, lines: Sequence[bytes] = ()
    ) -> None:
        """Append the objects, by the kernel where the source is a file."""
        before = self._writer.flush()
        try:
            first = self._copy(entries, source) if source.is_packed else self._copy_file(entries, source)
        except BaseException:
            self._writer.rollback(before)
            raise
        shift = self._writer.flush() - entries[-1].offset - entries[-1].length
        # A filler becomes the first member of the object after it, and unpacks to nothing.
        begin, given = before, lines or repeat(b"")
        for entry, line in zip([first, *entries[1:]], given, strict=False):
            end = entry.offset + shift + entry.length
            self._add_copied_line(entry, line, offset=begin, length=end - begin)
            begin = end
        self._note_entry()

    def _copy(self, entries: Sequence[ObjectEntry], source: ArtifactFile) -> ObjectEntry:
        reader = source.open_reader()
        reader.seek(entries[0].offset)
        for entry in entries:
            left = entry.length
            while left:
                data = reader.read(min(left, COPY_BYTES))
                if not data:
                    raise make_format_error("it ends too early")
                self._writer.write_member(data)
                left -= len(data)
        return entries[0]

    def _copy_file(self, entries: Sequence[ObjectEntry], source: ArtifactFile) -> ObjectEntry:
        descriptor = source.open_descriptor()
        first = leave_out_filler(entries[0], _read_head(descriptor, entries[0].offset))
        length = entries[-1].offset + entries[-1].length - first.offset
        self._write_filler(descriptor, first.offset, length)
        self._writer.copy_range(descriptor, first.offset, length)
        return first

    def finish(self, record: ArchiveRecord) -> CapturedArchive:
        """Append the index, read the file back, and append the footer with its digest."""
        index_offset = self._writer.flush()
        index_sha256 = self._write_index(record)
        end = self._writer.flush()
        self._file.flush()
        self._write_back.finish()
        os.fsync(self._file.fileno())
        before = identify_file(os.fstat(self._file.fileno()))
        digest = read_back(
            self._file.fileno(),
            self._read_entries(),
            Tail(index_offset, end, index_sha256),
            threads=self._threads,
        )
        if identify_file(os.fstat(self._file.fileno())) != before:
            raise ReadBackError("the file was changed while it was read back", keys=())
        footer = footer_member(index_offset, digest.digest())
        digest.update(footer)
        self._writer.write_member(footer)
        size_bytes = self._writer.flush()
        self._file.flush()
        if os.pread(self._file.fileno(), len(footer) + 1, end) != footer:
            raise ReadBackError("the footer cannot be read back", keys=())
        return CapturedArchive(
            record, digest.hexdigest(), size_bytes, identify_file(os.fstat(self._file.fileno()))
        )

    def _read_entries(self) -> Iterator[ObjectEntry]:
        self._index.seek(0)
        for line in self._index:
            yield ObjectEntry.model_validate_json(line)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._write_back.close()

    def _write_filler(self, source: int, offset: int, length: int) -> None:
        """Align the next copy with the source's blocks where this allows sharing them."""
        gap_bytes = measure_gap(offset, self._writer.flush())
        if not gap_bytes or length < _WORTH_SHARING_BYTES:
            return
        if source not in self._is_sharing:
            self._is_sharing[source] = can_share_blocks(source, self._folder)
        if self._is_sharing[source]:
            self._writer.write_member(
                filler_member(
                    gap_bytes if gap_bytes >= SMALLEST_FILLER_BYTES else gap_bytes + SHARED_BLOCK_BYTES
                )
            )

    def _note_entry(self) -> None:
        if self._is_journal:
            self._file.flush()
            self._index.flush()


def leave_out_filler(entry: ObjectEntry, data: bytes | memoryview) -> ObjectEntry:
    """Return the entry without the filler that an older copy put before the object."""
    filler_bytes = measure_filler(data)
    if not 0 < filler_bytes < entry.length:
        return entry
    return entry.model_copy(
        update={"offset": entry.offset + filler_bytes, "length": entry.length - filler_bytes}
    )


def _read_head(source: int, offset: int) -> bytes:
    """Return the bytes that show whether there is a filler; fewer where the file ends or cannot be read."""
    try:
        return os.pread(source, SMALLEST_FILLER_BYTES, offset)
    except OSError:  # the copy raises it again
        return b""
