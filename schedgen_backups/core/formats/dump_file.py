"""The dump file: plain SQL in gzip members, references, record and index as SQL comments, and a footer.

Writer and reader of the format in docs/file-format.md. Each table starts a gzip member, so that it can be
read without the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.formats.block_stream import split_lines
from schedgen_backups.core.formats.dump_text import (
    SECTION_END,
    DumpDigest,
    DumpFacts,
    Segment,
    TableEnd,
    TableFacts,
    TableStart,
    Text,
)
from schedgen_backups.core.formats.gzip_members import (
    BLOCK_BYTES,
    read_footer,
    read_members,
    read_members_concurrently,
)
from schedgen_backups.core.formats.gzip_writer import DigestedMemberWriter, PieceWriter
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.records import DumpRecord, TableEntry, make_format_error, open_artifact
from schedgen_backups.core.system.writeback import WriteBack

_COPY_BYTES = 4 * BLOCK_BYTES
LINE_PREFIX = "-- schedgen-backups: "
ROLE_PREFIX = "-- role: "


@dataclass(frozen=True)
class CapturedDump:
    """A finished dump."""

    record: DumpRecord
    tables: tuple[TableEntry, ...]
    sha256: str
    """Digest of the whole file."""
    size_bytes: int
    """Size of the file."""
    damaged_sources: tuple[Path, ...] = ()
    """Older dumps and archives in packs that turned out damaged."""
    healed_packs: tuple[str, ...] = ()
    """Damaged packs of older points that were made whole again."""


@dataclass(frozen=True)
class SeparateTable:
    """A separately dumped table."""

    comment: bytes
    """The comment that pg_dump writes before the COPY statement."""
    facts: TableFacts
    size_bytes: int
    """Size of COPY statement, rows and end line as plain text."""
    file: BinaryIO
    """Contains exactly these as gzip members."""
    length: int
    """Size of the members."""


@dataclass
class _Position:
    offset: int = 0
    end: int = 0


class DumpFileWriter:
    """Writes a dump file in order: segments, references, then `finish`."""

    def __init__(self, file: BinaryIO, *, threads: int) -> None:
        self._write_back = WriteBack(file)
        self._writer = DigestedMemberWriter(file, threads=threads, written=self._write_back.note)
        self._worker = SerialWorker("digest")
        self._digest = DumpDigest(self._worker)
        self._pieces = PieceWriter(self._writer)
        self._positions: list[tuple[TableFacts, _Position]] = []
        self._open_position = _Position()
        self._content_length: int | None = None
        self.reference_count = 0

    def add(self, segment: Segment) -> None:
        """Append the segment; a table's first segment starts a gzip member."""
        if isinstance(segment, TableStart):
            self._pieces.end_piece()
            self._open_position = position = _Position()
            self._writer.call_at_position(lambda offset: setattr(position, "offset", offset))
        self._pieces.append(segment.data)
        table = self._digest.add(segment)
        if isinstance(segment, TableEnd) and table is not None:
            self._pieces.end_piece()
            position = self._open_position
            self._writer.call_at_position(lambda offset: setattr(position, "end", offset))
            self._positions.append((table, position))

    def add_separate_table(self, table: SeparateTable) -> None:
        """Append the table's comment, its members unchanged and the end of its section; close its file."""
        self.add(Text(table.comment))
        self._digest.add_table(table.facts, table.size_bytes)
        self._pieces.end_piece()
        position = _Position(self._writer.flush())
        with table.file as file:
            file.seek(0)
            for block in iter(partial(file.read, _COPY_BYTES), b""):
                self._writer.copy_members(file.fileno(), self._writer.flush() - position.offset, block)
        position.end = self._writer.flush()
        self._positions.append((table.facts, position))
        self.add(Text(SECTION_END))

    def facts(self) -> DumpFacts:
        """Return the facts of what was written so far."""
        return self._digest.facts()

    def add_references(self, keys: list[str]) -> None:
        """Append object keys that the database refers to, after the dump."""
        _ = self.content_length
        self.reference_count += len(keys)
        self._pieces.append(_to_line("references", keys))

    @property
    def content_length(self) -> int:
        """Compressed size of the dump itself; available once the last segment was added."""
        if self._content_length is None:
            self._pieces.end_piece()
            self._content_length = self._writer.flush()
        return self._content_length

    def finish(
        self, record: DumpRecord, expected_rows: Mapping[tuple[str, str], int], roles: str
    ) -> CapturedDump:
        """Append record, roles, index and footer.

        `expected_rows` maps (schema, table) to the rows counted in the snapshot.
        """
        _ = self.content_length
        self._pieces.end_piece()
        index_offset = self._writer.flush()
        announced = {_flatten(table): rows for table, rows in expected_rows.items()}
        entries = tuple(
            TableEntry(
                schema_name=table.schema_name,
                name=table.name,
                columns=table.columns,
                # The name of a table loaded through its root is only in a comment, where pg_dump writes no
                # line breaks.
                expected_rows=(announced if table.root else expected_rows).get(
                    (table.schema_name, table.name)
                ),
                rows=table.rows,
                size_bytes=table.size_bytes,
                sha256=table.sha256,
                root=table.root,
                offset=position.offset,
                length=position.end - position.offset,
            )
            for table, position in self._positions
        )
        captured = {(entry.schema_name, entry.name) for entry in entries if not entry.root}
        through_root = {(entry.schema_name, entry.name) for entry in entries if entry.root}
        missing = tuple(
            ".".join(table)
            for table in expected_rows
            if table not in captured and _flatten(table) not in through_root
        )
        record = record.model_copy(update={"missing_tables": missing})
        self._pieces.append(_to_line("record", record.model_dump(mode="json")))
        # What stands behind it is the same for an unchanged database.
        self._pieces.end_piece()
        for line in filter(None, roles.split("\n")):
            self._pieces.append(f"{ROLE_PREFIX}{line}\n".encode())
        for entry in entries:
            self._pieces.append(_to_line("table", entry.model_dump(mode="json")))
        self._pieces.end_piece()
        sha256 = self._writer.finish(index_offset)
        self._write_back.finish()
        return CapturedDump(record, entries, sha256, self._writer.flush())

    def __enter__(self) -> DumpFileWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.close()
        self._writer.close()
        self._write_back.close()


class DumpFile:
    """An open dump file.

    Reading raises VerificationError (permanent) wherever the file is not what it should be.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.footer = read_footer(file)

    @cached_property
    def _index(self) -> tuple[DumpRecord, tuple[TableEntry, ...], str]:
        record: DumpRecord | None = None
        tables: list[TableEntry] = []
        roles: list[str] = []
        for line in self._read_lines(
            self.footer.index_offset, self.footer.footer_offset - self.footer.index_offset
        ):
            if line.startswith(ROLE_PREFIX):
                roles.append(line.removeprefix(ROLE_PREFIX))
                continue
            name, value = _from_line(line)
            try:
                if name == "record":
                    record = DumpRecord.model_validate(value)
                elif name == "table":
                    tables.append(TableEntry.model_validate(value))
            except ValidationError as error:
                raise make_format_error(
                    f"a {name} line has wrong fields: {error.error_count()} errors"
                ) from error
        if record is None:
            raise make_format_error("it holds no record of a database dump")
        return record, tuple(tables), "".join(f"{line}\n" for line in roles)

    @property
    def record(self) -> DumpRecord:
        """The dump's own record."""
        return self._index[0]

    @property
    def tables(self) -> tuple[TableEntry, ...]:
        """The index in the order of the dump."""
        return self._index[1]

    @property
    def roles(self) -> str:
        """SQL that creates the roles, without passwords; empty when they could not be read."""
        return self._index[2]

    def read_contents(
        self, *, on_progress: Callable[[bytes], object] = lambda _data: None
    ) -> Iterator[bytes]:
        """Yield pg_dump's plain text; `on_progress` gets the compressed bytes."""
        return read_members_concurrently(self._file, 0, self.record.content_length, on_progress=on_progress)

    def read_schema(self) -> Iterator[bytes]:
        """Yield the text before the first table's rows.

        It creates schemas, types, functions and tables, but not constraints and indexes.
        """
        end = self.tables[0].offset if self.tables else self.record.content_length
        return read_members(self._file, 0, end)

    def read_rest_of_text(self) -> Iterator[bytes]:
        """Yield everything after the schema except rows: sequences, large objects, constraints, indexes."""
        ends = [table.offset + table.length for table in self.tables]
        starts = [table.offset for table in self.tables[1:]] + [self.record.content_length]
        for end, start in zip(ends, starts, strict=True):
            yield from read_members(self._file, end, start - end)

    def read_table(self, table: TableEntry) -> Iterator[bytes]:
        """Yield one table's COPY statement, rows and end line, reading only its bytes."""
        return read_members(self._file, table.offset, table.length)

    def read_references(self) -> Iterator[list[str]]:
        """Yield the object keys that the database refers to, in byte order, about a thousand at a time."""
        start = self.record.content_length
        for line in self._read_lines(start, self.footer.index_offset - start):
            name, value = _from_line(line)
            if name != "references" or not isinstance(value, list):
                raise make_format_error("its list of references is damaged")
            # The list comes from JSON.
            yield [str(key) for key in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    def read_rest(self, on_progress: Callable[[bytes], object]) -> None:
        """Pass the bytes between the dump's end and the footer to `on_progress`."""
        self._file.seek(self.record.content_length)
        remaining = self.footer.footer_offset - self.record.content_length
        for block in iter(partial(self._file.read, BLOCK_BYTES), b""):
            on_progress(block[:remaining])
            remaining -= len(block)
            if remaining <= 0:
                return

    def _read_lines(self, offset: int, length: int) -> Iterator[str]:
        for line in split_lines(read_members(self._file, offset, length)):
            yield line.decode("utf-8", "replace")


def open_dump(path: Path, keys: PackKeys = NO_KEYS) -> AbstractContextManager[DumpFile]:
    """Open the dump file within the block; `keys` are those of encrypted packs.

    VerificationError (permanent) when it is missing, truncated or not a dump of this tool.
    """
    return open_artifact(path, DumpFile, keys)


def _to_line(name: str, value: Any) -> bytes:
    return f"{LINE_PREFIX}{json.dumps({name: value}, ensure_ascii=False, separators=(',', ':'))}\n".encode()


def _from_line(line: str) -> tuple[str, Any]:
    try:
        parsed: Any = json.loads(line.removeprefix(LINE_PREFIX))
        ((name, value),) = parsed.items()
    except (ValueError, AttributeError) as error:
        raise make_format_error("a line of its index is damaged") from error
    return str(name), value


def _flatten(table: tuple[str, str]) -> tuple[str, str]:
    schema_name, name = (part.replace("\n", " ").replace("\r", " ") for part in table)
    return schema_name, name
