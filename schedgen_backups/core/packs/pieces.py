"""Cut an artifact into pieces, of which a store keeps only those that it does not hold yet.

A piece is an object's members, or one member of a dump; a large object is cut at its members, too. Equal
input gives equal pieces, since members depend on their content only (docs/decisions/0022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.gzip_members import MEMBER_HEADER, SMALLEST_FILLER_BYTES, measure_filler
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.pack_writer import Piece

LARGEST_PIECE_BYTES = 4 << 20
_READ_BYTES = 1 << 20
_HINT = "Use another copy or another recovery point."


def cut_artifact(kind: ArtifactKind, artifact: ArtifactFile) -> Iterator[Piece]:
    """Yield the pieces of the artifact in order, none larger than 4 MiB.

    VerificationError (permanent) when it is not such an artifact or ends too early.
    """
    file = artifact.open_reader()
    position = 0
    if kind is ArtifactKind.DATABASE:
        tail_offset = DumpFile(artifact.open_reader()).record.content_length
        yield from map(Piece, _cut_at_members(file, 0, tail_offset))
    else:
        archive = ArchiveFile(artifact.open_reader())
        tail_offset = archive.footer.index_offset
        for entry in archive.read_entries():
            yield from map(Piece, _cut_range(file, position, entry.offset))
            position = entry.offset + entry.length
            yield from map(Piece, _cut_object(file, entry.offset, position))
        yield from map(Piece, _cut_range(file, position, tail_offset))
    for data in _cut_at_members(file, tail_offset, file.seek(0, 2)):
        yield Piece(data, is_tail=True)


def _cut_object(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield an object apart from what precedes it, which depends on where its blocks lie."""
    if end - start <= LARGEST_PIECE_BYTES:
        data = b"".join(_cut_range(file, start, end))
        filler_bytes = min(measure_filler(data), len(data))
        yield from filter(None, (data[:filler_bytes], data[filler_bytes:]))
        return
    file.seek(start)
    filler_bytes = measure_filler(file.read(SMALLEST_FILLER_BYTES))
    yield from _cut_range(file, start, start + filler_bytes)
    yield from _cut_range(file, start + filler_bytes, end)


def _cut_range(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    if end - start > LARGEST_PIECE_BYTES or end < start:
        yield from _cut_at_members(file, start, end)
    elif end > start:
        # Seeking discards what was read ahead.
        if file.tell() != start:
            file.seek(start)
        yield _read(file, end - start)


def _cut_at_members(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of the range in pieces that begin where a member does, as far as its first bytes show.

    Bytes that look the same within a member cut it in two, which only matters to somebody who opens one pack
    on its own.
    """
    if start > end:
        raise VerificationError("a position in the file is out of range", hint=_HINT)
    file.seek(start)
    remaining = end - start
    pending = b""
    while remaining or pending:
        if remaining:
            data = _read(file, min(_READ_BYTES, remaining))
            remaining -= len(data)
            pending += data
        while (cut := _find_cut(pending, is_last=not remaining)) is not None:
            yield pending[:cut]
            pending = pending[cut:]


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise VerificationError("the file ends too early", hint=_HINT)
    return data


def _find_cut(pending: bytes, *, is_last: bool) -> int | None:
    """Return the size of the next piece; None if more data is needed."""
    cut = pending.find(MEMBER_HEADER, 1)
    if 0 < cut <= LARGEST_PIECE_BYTES:
        return cut
    if len(pending) > LARGEST_PIECE_BYTES:
        return LARGEST_PIECE_BYTES
    return len(pending) if is_last and pending else None
