"""The archive file: a pax tar in gzip members, one or more per object; the last entry is the index.

The reader of the format in docs/file-format.md; `archive_writer` writes it. Each object starts a gzip member,
so that it can be read without the others. A footer ends the file.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import ValidationError

from schedgen_backups.core.formats.block_stream import LINE_LIMIT_BYTES, BlockReader, split_lines
from schedgen_backups.core.formats.gzip_members import (
    read_footer,
    read_members,
)
from schedgen_backups.core.formats.index_lines import (
    locate_lines,
    place_line,
    place_lines,
    read_object_key,
)
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.records import (
    ArchiveRecord,
    ObjectEntry,
    make_format_error,
    open_artifact,
)
from schedgen_backups.core.formats.tar_member import (
    RESERVED_FOLDER,
    TAR_BLOCK_BYTES,
    make_padding,
)

INDEX_NAME = f"{RESERVED_FOLDER}/index.jsonl"
_HEADER_LIMIT_BYTES = LINE_LIMIT_BYTES
"""The header contains the same as the entry's line in the index."""


class ArchiveFile:
    """An open archive file.

    Reading raises VerificationError (permanent) wherever the file is not what it should be.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.footer = read_footer(file)

    @cached_property
    def record(self) -> ArchiveRecord:
        """The archive's own record."""
        for line in self._read_index_lines():
            try:
                return ArchiveRecord.model_validate_json(line)
            except ValidationError as error:
                raise make_format_error(
                    f"its record has wrong fields: {error.error_count()} errors"
                ) from error
        raise make_format_error("its index is empty")

    def read_entries(self, *, on_progress: Callable[[bytes], object] | None = None) -> Iterator[ObjectEntry]:
        """Yield the index in the file's order, without holding it in memory.

        `on_progress` gets its compressed bytes.
        """
        yield from map(_parse_entry, self.read_entry_lines(on_progress=on_progress))

    def find_entries(self, keys: Container[str]) -> Iterator[ObjectEntry]:
        """Yield the entries with these keys in the file's order; no other line of the index is parsed."""
        lines = self._read_index_lines()
        next(lines, None)
        if not self.footer.index_sha256:
            yield from (_parse_entry(line) for line in lines if read_object_key(line) in keys)
            return
        for offset, _end, line in locate_lines(lines):
            if read_object_key(line) in keys:
                yield _parse_entry(place_line(line, offset))

    def read_keys(self) -> Iterator[str]:
        """Yield the key of every entry of the index, without reading the other fields."""
        lines = self._read_index_lines(on_progress=None)
        next(lines, None)
        yield from map(read_object_key, lines)

    def read_entry_lines(self, *, on_progress: Callable[[bytes], object] | None = None) -> Iterator[bytes]:
        """Yield the entries of the index as lines of JSON, unparsed, each with its offset."""
        lines = self._read_index_lines(on_progress=on_progress)
        next(lines, None)
        yield from place_lines(lines) if self.footer.index_sha256 else lines

    def read_object(
        self, entry: ObjectEntry, *, on_progress: Callable[[bytes], object] | None = None
    ) -> Iterator[bytes]:
        """Yield one object's bytes, reading only its part of the file.

        The header must match the index, and the bytes must match the entry's size and digest. Both are known
        only when the iterator ends.
        """
        reader = BlockReader(read_members(self._file, entry.offset, entry.length, on_progress=on_progress))
        try:
            with tarfile.open(
                fileobj=cast("BinaryIO", _HeaderReader(reader)),
                mode="r|",
                bufsize=TAR_BLOCK_BYTES,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar:
                info = tar.next()
                if (
                    info is None
                    or info.name != entry.member_name
                    or info.size != entry.size_bytes
                    or _key_of(info) != entry.key
                ):
                    raise make_format_error(f"there is something else in place of object {entry.key!r}")
        except (tarfile.TarError, ValueError) as error:
            raise make_format_error(f"the header of object {entry.key!r} is damaged: {error}") from error
        digest = hashlib.sha256()
        for block in reader.read_exactly(info.size):
            digest.update(block)
            yield block
        if digest.hexdigest() != entry.sha256:
            raise make_format_error(f"object {entry.key!r} has other bytes than were captured")
        missing = len(make_padding(info.size))
        for rest in reader.read_all():
            missing -= len(rest)
            if missing < 0 or rest.strip(b"\0"):
                break
        if missing:
            raise make_format_error(f"there is unexpected data after object {entry.key!r}")

    def _read_index_lines(self, *, on_progress: Callable[[bytes], object] | None = None) -> Iterator[bytes]:
        length = self.footer.footer_offset - self.footer.index_offset
        reader = BlockReader(
            read_members(self._file, self.footer.index_offset, length, on_progress=on_progress)
        )
        header = reader.read(TAR_BLOCK_BYTES)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise make_format_error(f"its index is damaged: {error}") from error
        if info.name != INDEX_NAME or info.size < 0:
            raise make_format_error("it contains no index of an archive")
        yield from split_lines(reader.read_exactly(info.size))
        if any(block.strip(b"\0") for block in reader.read_all()):
            raise make_format_error("there is unexpected data after its index")


def open_archive(path: Path, keys: PackKeys = NO_KEYS) -> AbstractContextManager[ArchiveFile]:
    """Open the archive file within the block; `keys` are those of encrypted packs.

    VerificationError (permanent) when it is missing, truncated or not an archive of this tool.
    """
    return open_artifact(path, ArchiveFile, keys)


def _parse_entry(line: bytes) -> ObjectEntry:
    try:
        return ObjectEntry.model_validate_json(line)
    except ValidationError as error:
        raise make_format_error(
            f"a line of its index has wrong fields: {error.error_count()} errors"
        ) from error


class _HeaderReader:
    """The beginning of an object's part of the file, for tarfile, with a limit on its length.

    tarfile itself reads headers of any length that they state.
    """

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._left_bytes = _HEADER_LIMIT_BYTES

    def read(self, size: int) -> bytes:
        """Read as `BlockReader.read` does; VerificationError beyond the longest header."""
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise make_format_error("the header of an object is too long")
        return self._reader.read(size)


def _key_of(info: tarfile.TarInfo) -> str:
    return str(json.loads(info.pax_headers.get("comment", "{}")).get("key"))
