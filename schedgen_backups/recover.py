"""Restores a recovery point with nothing but this one file, Python 3.9 or newer and psql: no package, no Dagster, no network but the targets.

For the person who has the backup files and a bare host. It is longer than this project's modules may be, so that it stays one file that can be
copied beside the backups; it shares no code with the package and reads the format of docs/file-format.md on its own. (A Python that
says `future feature annotations is not defined` is too old.)

Files are verified before anything is written. Exit codes: 0 done, 1 database, 2 bucket or folder, 3 damaged or incomplete files,
4 wrong use, 130 cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import hmac
import html
import http.client
import io
import itertools
import json
import os
import re
import secrets
import shutil
import ssl
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar
from urllib.parse import quote, unquote

EXIT_DATABASE, EXIT_BUCKET, EXIT_FILES, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 3, 4, 130
OLDEST_PYTHON = (3, 9)
FOOTER = struct.Struct("<12s2sHBQ32sI10s")
FOOTER_START = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + struct.pack("<H", 49)
READ_BYTES = 1 << 18
PIECE_BYTES = 4 << 20
PART_BYTES = 16 << 20
"""Objects up to this size go up in one request, larger ones in parts; so much of one is in memory per thread."""
MOST_PARTS = 10_000
THREADS = 4
ATTEMPTS = 5
RESERVED = ".schedgen-backups"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LAST_PORT = 65535
ENDPOINT = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-F:.]+(?:%[A-Z0-9._-]+)?\]|[A-Z0-9_-]+(?:\.[A-Z0-9_-]+)*)(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE | re.ASCII,
)
KEPT_HEADERS = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires")
FILE_NAME = re.compile(r"(?P<kind>db|minio)_(?P<source>.+)_(?P<id>[0-9]{8}_[0-9]{6})\.(?:sql|tar)\.gz")
IDENTIFIER = rb'(?:"(?:[^"]|"")+"|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*)'
COPY = re.compile(
    rb"COPY (?P<schema>" + IDENTIFIER + rb")\.(?P<name>" + IDENTIFIER + rb") "
    rb"(?:\(" + IDENTIFIER + rb"(?:, " + IDENTIFIER + rb")*\)|\(\))? ?FROM stdin;\n"
)
DUMP_END = re.compile(rb"\n-- PostgreSQL database dump complete\n--\n\s*(?:\\unrestrict [A-Za-z0-9]+\s*)?\Z")
QUOTE_EDGE = re.compile(
    rb"'|\"|--|/\*|(?<![A-Za-z0-9_$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"
)
ESCAPES = re.compile(rb"(?<![A-Za-z0-9_$\x80-\xff])[eE]\Z")
ESCAPED = re.compile(rb"(?:[^'\\]|\\.|'')*", re.DOTALL)
LINE_LIMIT_BYTES = 16 << 20
LENGTH_LIMIT = 1 << 62
SECTION = re.compile(rb"-- (?:Data for )?Name: .*; Type: (?P<kind>[A-Z ]+); Schema: ")
UNSTABLE_LINES = re.compile(rb"^(?:\\(?:un)?restrict [A-Za-z0-9]+|-- Dumped (?:from|by) .*)\n", re.MULTILINE)
CREATE_ROLE = re.compile(
    r'CREATE ROLE (?P<name>"(?:[^"]|"")+"|[a-z_\u0080-\U0010ffff][a-z0-9_$\u0080-\U0010ffff]*);'
)
ROLE_WORDS = re.compile(
    r"(?: (?:NO)?(?:SUPERUSER|INHERIT|CREATEROLE|CREATEDB|LOGIN|REPLICATION|BYPASSRLS)| CONNECTION LIMIT -?[0-9]+| VALID UNTIL '[^'\\]*')*;"
)
ROLE_NAME = r'(?:"(?:[^"]|"")+"|[a-z_\u0080-\U0010ffff][a-z0-9_$\u0080-\U0010ffff]*)'
ROLE_STRING = r"(?:'(?:[^'\\]|'')*'|E'(?:[^'\\]|''|\\.)*')"
ATTRIBUTES = re.compile(rf"ALTER ROLE {ROLE_NAME} WITH{ROLE_WORDS.pattern}")
ROLE_SETTING = re.compile(
    rf"(?:ALTER ROLE (?P<name>{ROLE_NAME}) SET {ROLE_NAME}(?:\.{ROLE_NAME})* TO {ROLE_STRING}(?:, {ROLE_STRING})*"
    rf"|COMMENT ON ROLE (?P<described>{ROLE_NAME}) IS {ROLE_STRING});"
)
MEMBERSHIP = re.compile(
    rf"(?P<grant>GRANT (?P<role>{ROLE_NAME}) TO (?P<member>{ROLE_NAME})"
    r"(?: WITH (?:ADMIN|INHERIT|SET) (?:OPTION|TRUE|FALSE)(?:, (?:ADMIN|INHERIT|SET) (?:OPTION|TRUE|FALSE))*)?)"
    rf"(?: GRANTED BY {ROLE_NAME})?;"
)
SESSION_OPTIONS = (
    "-c DateStyle=ISO,MDY -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=3 -c bytea_output=hex -c standard_conforming_strings=on"
    " -c array_nulls=on -c transform_null_equals=off -c role=none -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
    " -c idle_in_transaction_session_timeout=0 -c tcp_keepalives_idle=60"
)
"""Whatever the database or the role says. A pooler that refuses options is satisfied with an empty PGOPTIONS in the environment."""
LEADING_RESTRICT = re.compile(rb"\A((?:--[^\n]*\n|\s)*)\\restrict [A-Za-z0-9]+\n")
BEGIN_NAME = re.compile(rb"(?<![A-Za-z0-9_$\x80-\xff])begin(?![A-Za-z0-9_$\x80-\xff])")
ROW_SECURITY = re.compile(rb"^SET row_security = off;\n", re.MULTILINE)
"""It serves no load, since policies come after the rows, and makes the refresh of a materialized view over such a table an error."""
TRAILING_UNRESTRICT = re.compile(rb"\n\\unrestrict [A-Za-z0-9]+\s*\Z")
FIRST_PSQL_WITH_RESTRICT = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
HINT_FILES = (
    "Nothing was written. Use another copy of this file, or another recovery point (`list` shows them)."
)
TARGET_FACTS = """
SELECT pg_catalog.current_setting('server_version_num')::int / 10000;
SELECT pg_catalog.current_setting('server_encoding');
SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint
    * (pg_catalog.current_setting('max_connections')::bigint
        + pg_catalog.current_setting('max_prepared_transactions')::bigint);
WITH extension AS (SELECT objid, classid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
namespace AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
    AND nspname <> 'information_schema'),
object AS (
    SELECT 'pg_class' AS catalog, oid FROM pg_catalog.pg_class
        WHERE relnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_proc', oid FROM pg_catalog.pg_proc WHERE pronamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_type', oid FROM pg_catalog.pg_type WHERE typnamespace IN (SELECT oid FROM namespace)
        AND (typtype IN ('d', 'e', 'r', 'p') OR typtype = 'b' AND typcategory <> 'A')
    UNION ALL SELECT 'pg_operator', oid FROM pg_catalog.pg_operator
        WHERE oprnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_opclass', oid FROM pg_catalog.pg_opclass
        WHERE opcnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_opfamily', oid FROM pg_catalog.pg_opfamily
        WHERE opfnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_collation', oid FROM pg_catalog.pg_collation
        WHERE collnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_conversion', oid FROM pg_catalog.pg_conversion
        WHERE connamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_config', oid FROM pg_catalog.pg_ts_config
        WHERE cfgnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_dict', oid FROM pg_catalog.pg_ts_dict
        WHERE dictnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_parser', oid FROM pg_catalog.pg_ts_parser
        WHERE prsnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_template', oid FROM pg_catalog.pg_ts_template
        WHERE tmplnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_namespace', oid FROM namespace
        WHERE oid IS DISTINCT FROM pg_catalog.to_regnamespace('public')
    UNION ALL SELECT 'pg_foreign_data_wrapper', oid FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_foreign_server', oid FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT 'pg_publication', oid FROM pg_catalog.pg_publication
    UNION ALL SELECT 'pg_subscription', oid FROM pg_catalog.pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    UNION ALL SELECT 'pg_event_trigger', oid FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT 'pg_default_acl', oid FROM pg_catalog.pg_default_acl
    UNION ALL SELECT 'pg_cast', oid FROM pg_catalog.pg_cast WHERE oid >= 16384
    UNION ALL SELECT 'pg_language', oid FROM pg_catalog.pg_language WHERE oid >= 16384
    UNION ALL SELECT 'pg_am', oid FROM pg_catalog.pg_am WHERE oid >= 16384
    UNION ALL SELECT 'pg_transform', oid FROM pg_catalog.pg_transform
    UNION ALL SELECT 'pg_extension', oid FROM pg_catalog.pg_extension WHERE oid >= 16384
        AND pg_catalog.pg_has_role(extowner, 'USAGE')
)
SELECT (SELECT count(*) FROM object WHERE NOT EXISTS (
            SELECT FROM extension WHERE objid = object.oid
                AND classid = ('pg_catalog.' || object.catalog)::pg_catalog.regclass))
     + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata);
SELECT pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles;
"""

Made = TypeVar("Made")


class RecoverError(Exception):
    """A reason to stop, in words for a person, with the exit code that goes with it."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class ObjectRefusedError(RecoverError):
    """The S3 server does not take this one object; the others may go on."""


def damaged(message: str) -> RecoverError:
    """The error of a file that is not what it should be."""
    return RecoverError(EXIT_FILES, message, HINT_FILES)


def say(text: str = "") -> None:
    """The line is on stdout, at once."""
    sys.stdout.write(write_out(text) + "\n")
    sys.stdout.flush()


def write_out(text: str) -> str:
    """The text with everything that a terminal would obey written out: names and keys are anybody's."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode()
        for sign in text
    )


# --- the files of a recovery point --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footer:
    """The last 71 bytes of an artifact."""

    index_offset: int
    content_sha256: str
    offset: int


@dataclass(frozen=True)
class DumpRecord:
    """What a dump says of itself."""

    point_id: str
    database: str
    server_version: str
    server_major: int
    snapshot_at: str
    encoding: str
    table_count: int
    row_count: int
    relation_count: int
    large_object_count: int
    size_bytes: int
    text_sha256: str
    content_length: int
    reference_state: str
    reference_count: int
    snapshot_opened_at: str | None = None
    missing_tables: list[str] = field(default_factory=list[str])
    excluded_tables: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def describe_left_out(self) -> str:
        """What the operator left out of the dump; empty where nothing is."""
        names = [f"{table.get('schema_name')}.{table.get('name')}" for table in self.excluded_tables]
        return f"; left out by BACKUP_EXCLUDE_TABLE_DATA: the rows of {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class Table:
    """One table of a dump."""

    schema_name: str
    name: str
    rows: int
    size_bytes: int
    sha256: str
    offset: int
    length: int
    expected_rows: int | None = None
    root: str = ""
    """The partitioned table through which the rows are loaded; empty where they are loaded into their own table."""

    @property
    def label(self) -> str:
        """`schema.name`, for messages."""
        return f"{self.schema_name}.{self.name}"


@dataclass(frozen=True)
class ArchiveRecord:
    """What an archive says of itself."""

    point_id: str
    bucket: str
    listed_at: str
    listed_count: int
    object_count: int
    size_bytes: int
    deleted_count: int
    failed_count: int
    excluded_patterns: list[str] = field(default_factory=list[str])
    excluded_count: int = 0

    def describe_left_out(self) -> str:
        """What the operator left out of the archive; empty where nothing is."""
        return (
            f"; left out by BACKUP_EXCLUDE_OBJECTS: {self.excluded_count} objects"
            if self.excluded_count
            else ""
        )

    def is_excluded(self, key: str) -> bool:
        """Whether the operator left out an object of this key: by the key, a prefix that ends in a slash, or a glob."""
        return any(
            key == pattern
            or (pattern.endswith("/") and key.startswith(pattern))
            or (set("*?[") & set(pattern) and fnmatch.fnmatchcase(key, pattern))
            for pattern in map(str, self.excluded_patterns)
        )


@dataclass(frozen=True)
class Entry:
    """One object of an archive."""

    key: str
    size_bytes: int
    sha256: str
    member_name: str
    offset: int
    length: int
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    tags_note: str = ""


_JSON_TYPES = {
    "int": (int,),
    "str": (str,),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
    "list[str]": (list,),
    "list[dict[str, str]]": (list,),
    "dict[str, str]": (dict,),
}


def pick(kind: Callable[..., Made], text: str | bytes, *, within: str = "") -> Made:
    """The value that this JSON text spells, other fields passed over; exit 3 when a field lacks or is of another type."""
    try:
        value = json.loads(text)
        value = value[within] if within else value
        chosen = {}
        for known in fields(kind):  # pyright: ignore[reportArgumentType] - a class, called to make its value
            if known.name in value:
                if not isinstance(value[known.name], _JSON_TYPES[str(known.type)]):
                    raise TypeError(known.name)
                chosen[known.name] = value[known.name]
            elif known.default is MISSING and known.default_factory is MISSING:
                raise KeyError(known.name)
        return kind(**chosen)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(f"a line of the index cannot be read ({error})") from None


def open_file(path: Path) -> BinaryIO:
    """The file, open for reading; exit 3 when it cannot be opened, or is none: a FIFO may be waited for without an end."""
    try:
        file = os.fdopen(
            os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
        )
    except OSError as error:
        raise damaged(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise damaged(f"{path} is not a regular file")
    return file


def measure_file(path: Path) -> int | None:
    """How long the file is; None when it is not there (any more)."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_file(file: BinaryIO, size: int) -> bytes:
    """The next bytes; a disk that fails to read them is damage."""
    try:
        return file.read(size)
    except OSError as error:
        raise damaged(f"the disk cannot read the file: {error.strerror}") from None


def read_footer(file: BinaryIO) -> Footer:
    """What the footer says; exit 3 when the file does not end with one."""
    offset = file.seek(0, os.SEEK_END) - FOOTER.size
    if offset >= 0:
        file.seek(offset)
        start, mark, length, version, index_offset, digest, checksum, end = FOOTER.unpack(
            read_file(file, FOOTER.size)
        )
        expected = zlib.crc32(struct.pack("<BQ", version, index_offset) + digest)
        shape = (start, mark, length, version, checksum, end)
        if shape == (FOOTER_START, b"SB", 45, 1, expected, b"\x03\x00" + bytes(8)) and index_offset < offset:
            return Footer(index_offset, digest.hex(), offset)
    raise damaged(
        "it does not end with the footer of a backup: it was cut short, altered, or written by something else"
    )


def read_members(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Yields what the gzip members in exactly this range unpack to, in pieces of at most 4 MiB; exit 3 when they are not whole."""
    if not (0 <= offset <= LENGTH_LIMIT and 0 <= length <= LENGTH_LIMIT):
        raise damaged("its index names a place that is none")
    file.seek(offset)
    member = zlib.decompressobj(wbits=31)
    is_inside = False
    while length > 0:
        chunk = read_file(file, min(length, READ_BYTES))
        if not chunk:
            raise damaged("it ends too early")
        length -= len(chunk)
        plain = b""
        while chunk or len(plain) == PIECE_BYTES:
            try:
                plain = member.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise damaged(f"its compressed data is damaged ({error})") from None
            is_inside = True
            if plain:
                yield plain
            chunk = member.unconsumed_tail
            if member.eof:
                chunk, plain, is_inside = member.unused_data, b"", False
                member = zlib.decompressobj(wbits=31)
    if length < 0 or is_inside:
        raise damaged("it ends inside a gzip member, or its index names a place that is none")


def read_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines; exit 3 when the last one is not finished."""
    unfinished: list[bytes] = []
    size = 0
    for block in blocks:
        first, *lines = block.split(b"\n")
        unfinished.append(first)
        size += len(first)
        if size > LINE_LIMIT_BYTES:
            raise damaged("a line of its index is too long")
        if lines:
            yield b"".join(unfinished)
            yield from lines[:-1]
            unfinished, size = [lines[-1]], len(lines[-1])
    if size:
        raise damaged("its index ends inside a line")


class Dump:
    """A dump file whose index was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: list[Table] = []
        self.roles: list[str] = []
        record: DumpRecord | None = None
        with open_file(path) as file:
            self.footer = read_footer(file)
            for line in read_lines(
                read_members(file, self.footer.index_offset, self.footer.offset - self.footer.index_offset)
            ):
                text = line.decode("utf-8", "replace")
                if text.startswith("-- role: "):
                    self.roles.append(text[len("-- role: ") :])
                elif text.startswith('-- schedgen-backups: {"record":'):
                    record = pick(DumpRecord, text[len("-- schedgen-backups: ") :], within="record")
                elif text.startswith('-- schedgen-backups: {"table":'):
                    self.tables.append(pick(Table, text[len("-- schedgen-backups: ") :], within="table"))
        if record is None:
            raise damaged("it holds no record of a database dump")
        self.record = record

    def read_contents(self) -> Iterator[bytes]:
        """Yields what pg_dump wrote; when it ends without an error, all of it was as captured: every table, and all that is not rows."""
        record = self.record
        text = _SchemaText()
        position = rows_and_marks = 0
        with open_file(self.path) as file:
            for table in self.tables:
                yield from quote_for_psql(text.add(read_members(file, position, table.offset - position)))
                rows_and_marks += yield from _read_table(file, table)
                position = table.offset + table.length
            yield from quote_for_psql(
                leave_out_commits(text.add(read_members(file, position, record.content_length - position)))
            )
        if not DUMP_END.search(text.tail) or position >= record.content_length:
            raise damaged("pg_dump's last line is missing: the dump is cut short")
        if (text.finish(), text.size_bytes + rows_and_marks) != (record.text_sha256, record.size_bytes):
            raise damaged("the schema differs from what was captured")
        if (len(self.tables), sum(table.rows for table in self.tables)) != (
            record.table_count,
            record.row_count,
        ):
            raise damaged("its tables are not those that its record counts")

    def read_references(self) -> Iterator[str]:
        """Yields the object keys that the database refers to, in byte order."""
        start = self.record.content_length
        with open_file(self.path) as file:
            for line in read_lines(read_members(file, start, self.footer.index_offset - start)):
                try:
                    yield from json.loads(line[len("-- schedgen-backups: ") :].decode("utf-8", "replace"))[
                        "references"
                    ]
                except (ValueError, KeyError, TypeError):
                    raise damaged("its list of references is damaged") from None

    def find_gaps(self) -> list[str]:
        """What the dump lacks of the snapshot it was taken from."""
        gaps = [f"the dump lacks the table {name}" for name in self.record.missing_tables]
        counted = [table for table in self.tables if table.expected_rows is not None]
        return gaps + [
            f"{table.label}: {table.rows} of {table.expected_rows} rows"
            for table in counted
            if table.rows != table.expected_rows
        ]


class Quotes:
    """Tells of each line whether it begins outside of strings, names, bodies and comments: what stands there is somebody's words."""

    def __init__(self) -> None:
        self._closing = b""
        self._is_escaped = False

    def begins_outside(self, line: bytes) -> bool:
        """Whether the next line, given with its newline, does."""
        is_outside = not self._closing
        self.find_outside(line)
        return is_outside

    def find_outside(self, line: bytes) -> list[tuple[int, int]]:
        """Where the parts of the next line that stand outside begin and end, in their order."""
        parts: list[tuple[int, int]] = []
        place = 0
        while place < len(line):
            if not self._closing:
                edge = QUOTE_EDGE.search(line, place)
                parts.append((place, edge.start() if edge else len(line)))
                if edge is None:
                    break
                self._closing = {b"--": b"\n", b"/*": b"*/"}.get(edge[0], edge[0])
                self._is_escaped = (
                    edge[0] == b"'"
                    and edge.start() > 0
                    and ESCAPES.match(line, edge.start() - 1, edge.start()) is not None
                )
                place = edge.end()
            elif self._is_escaped:
                end = ESCAPED.match(line, place)
                place = end.end() + 1 if end else len(line)
                if place <= len(line):
                    self._closing, self._is_escaped = b"", False
            else:
                found = line.find(self._closing, place)
                if found < 0:
                    break
                place = found + len(self._closing)
                self._closing = b""
        return parts


def quote_for_psql(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the text so that psql reads it as the server does: it would put variables in place of `:"HOST"`, which is the end of an array's slice.

    It takes the bare name `begin` in CREATE FUNCTION for the start of a body, and waits for its END.
    """
    unfinished = b""
    quotes = Quotes()
    for block in blocks:
        *lines, unfinished = (unfinished + block).split(b"\n")
        yield b"".join(quote_line(line + b"\n", quotes) for line in lines)
    yield quote_line(unfinished, quotes)


def quote_line(line: bytes, quotes: Quotes) -> bytes:
    """The next line as `quote_for_psql` yields it."""
    quoted = b""
    done = 0
    for start, end in quotes.find_outside(line):
        part = BEGIN_NAME.sub(b'"begin"', line[start:end])
        is_variable = part.endswith(b":") and not part.endswith(b"::") and line[end : end + 1] in {b'"', b"'"}
        quoted += line[done:start] + part + (b" " if is_variable else b"")
        done = end
    return quoted + line[done:]


def leave_out_commits(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the text behind the last table without the BEGIN and COMMIT that pg_dump writes around large objects: they would end our transaction."""
    unfinished = b""
    is_inside = False
    quotes = Quotes()
    for block in blocks:
        *lines, unfinished = (unfinished + block).split(b"\n")
        kept: list[bytes] = []
        for line in lines:
            if not quotes.begins_outside(line + b"\n"):
                kept.append(line + b"\n")
                continue
            section = SECTION.match(line)
            if section is not None:
                is_inside = section["kind"] == b"BLOBS"
            if not (is_inside and line in {b"BEGIN;", b"COMMIT;"}):
                kept.append(line + b"\n")
        yield b"".join(kept)
    yield unfinished


class _SchemaText:
    """Adds up the digest of everything in a dump that is not rows, without the lines that differ from dump to dump."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.tail = b""
        self._digest = hashlib.sha256()
        self._unfinished = b""

    def add(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.size_bytes += len(block)
            self.tail = (self.tail + block)[-4096:]
            lines, newline, self._unfinished = (self._unfinished + block).rpartition(b"\n")
            self._digest.update(UNSTABLE_LINES.sub(b"", lines + newline))
            yield block

    def finish(self) -> str:
        self._digest.update(UNSTABLE_LINES.sub(b"", self._unfinished))
        return self._digest.hexdigest()


def _read_table(file: BinaryIO, table: Table) -> Generator[bytes, None, int]:
    """Yields a table's COPY statement, rows and end line and returns their bytes; exit 3 when the rows are not those of the index."""
    blocks = read_members(file, table.offset, table.length)
    head = next(blocks, b"")
    statement = COPY.match(head)
    named = f"{_unquote(statement['schema'])}.{_unquote(statement['name'])}" if statement is not None else ""
    if statement is None or named != (table.root or table.label):
        raise damaged(f"table {table.label} does not lie where the index says")
    yield statement[0]
    digest = hashlib.sha256()
    row_count = size_bytes = 0
    held = b""
    for block in itertools.chain([head[statement.end() :]], blocks):
        rows, held = (held + block)[:-3], (held + block)[-3:]
        digest.update(rows)
        row_count += rows.count(b"\n")
        size_bytes += len(rows)
        yield rows
    if held != b"\\.\n" or (row_count, size_bytes, digest.hexdigest()) != (
        table.rows,
        table.size_bytes,
        table.sha256,
    ):
        raise damaged(f"the rows of table {table.label} are not those that were captured")
    yield held
    return len(statement[0]) + size_bytes + len(held)


def _unquote(identifier: bytes) -> str:
    plain = identifier[1:-1].replace(b'""', b'"') if identifier.startswith(b'"') else identifier
    return plain.decode("utf-8", "replace")


class BlockReader(io.RawIOBase):
    """A stream of blocks as a file that can only be read on, for tarfile."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._buffer = b""

    def read(self, size: int = 512) -> bytes:
        """So many bytes; fewer only at the end."""
        while len(self._buffer) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._buffer += block
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def is_rest_empty(self) -> bool:
        """Whether nothing but zeros is left."""
        return not any(block.strip(b"\0") for block in itertools.chain([self._buffer], self._blocks))

    def read_exactly(self, size: int) -> Iterator[bytes]:
        """Yields so many bytes; exit 3 when there are fewer."""
        while size > 0:
            data = self._buffer or next(self._blocks, b"")
            if not data:
                raise damaged("an entry of it ends too early")
            self._buffer = data[size:]
            yield data[:size]
            size -= len(data[:size])


class HeaderReader(io.RawIOBase):
    """A stream for tarfile that reads no more than a header may take: its length is the file's own word."""

    def __init__(self, reader: BlockReader) -> None:
        super().__init__()
        self._reader = reader
        self._left = LINE_LIMIT_BYTES

    def read(self, size: int = 512) -> bytes:
        """So many bytes; exit 3 when a header asks for more than any has."""
        self._left -= size
        if self._left < 0:
            raise damaged("the header of an object is too long")
        return self._reader.read(size)


class Archive:
    """An archive file whose record was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as file:
            self.footer = read_footer(file)
        self.record = pick(ArchiveRecord, next(self._read_index(), b""))

    def read_entries(self) -> Iterator[Entry]:
        """Yields the index, in the order of the file."""
        for line in itertools.islice(self._read_index(), 1, None):
            yield pick(Entry, line.decode("utf-8", "surrogateescape"))

    def read_object(self, file: BinaryIO, entry: Entry) -> Iterator[bytes]:
        """Yields an object's bytes; when it ends without an error, they were those that were captured."""
        reader = BlockReader(read_members(file, entry.offset, entry.length))
        try:
            with tarfile.open(
                fileobj=HeaderReader(reader),
                mode="r|",
                bufsize=512,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar:
                info = tar.next()
                key = json.loads(info.pax_headers.get("comment", "{}")).get("key") if info else None
        except (tarfile.TarError, ValueError, AttributeError) as error:
            raise damaged(f"the header of object {entry.key!r} is damaged ({error})") from None
        if info is None or (info.name, info.size, key) != (entry.member_name, entry.size_bytes, entry.key):
            raise damaged(f"what lies at the place of object {entry.key!r} is something else")
        digest = hashlib.sha256()
        for block in reader.read_exactly(entry.size_bytes):
            digest.update(block)
            yield block
        rest = reader.read(1024)
        if digest.hexdigest() != entry.sha256 or rest != bytes(-entry.size_bytes % 512):
            raise damaged(f"object {entry.key!r} has other bytes than were captured")

    def check(self) -> None:
        """Every object is as captured, and the file holds nothing else; exit 3 otherwise."""
        count = size_bytes = position = 0
        with open_file(self.path) as file:
            for entry in self.read_entries():
                if entry.offset != position:
                    raise damaged(f"something lies before object {entry.key!r} that the index does not name")
                if not is_path_inside(entry.member_name):
                    raise damaged(f"the archive's name for object {entry.key!r} is no safe path")
                size_bytes += sum(len(block) for block in self.read_object(file, entry))
                position += entry.length
                count += 1
        if (position, count, size_bytes) != (
            self.footer.index_offset,
            self.record.object_count,
            self.record.size_bytes,
        ):
            raise damaged("its objects are not those that its record counts")

    def find_gaps(self) -> list[str]:
        """What the archive lacks of the bucket's listing."""
        record = self.record
        lacking = record.listed_count - record.object_count - record.deleted_count
        return (
            [f"{record.listed_count} objects were listed, {record.failed_count or lacking} could not be read"]
            if record.failed_count or lacking
            else []
        )

    def _read_index(self) -> Iterator[bytes]:
        with open_file(self.path) as file:
            reader = BlockReader(
                read_members(file, self.footer.index_offset, self.footer.offset - self.footer.index_offset)
            )
            try:
                info = tarfile.TarInfo.frombuf(reader.read(512), "utf-8", "surrogateescape")
            except tarfile.TarError:
                raise damaged("it holds no index of an archive") from None
            if info.name != f"{RESERVED}/index.jsonl":
                raise damaged("it holds no index of an archive")
            yield from read_lines(reader.read_exactly(info.size))
            if not reader.is_rest_empty():
                raise damaged("something stands behind its index that does not belong there")


def is_path_inside(name: str) -> bool:
    """Whether this relative path stays inside of the folder it is put into."""
    return all(
        part not in {"", ".", ".."} and "\0" not in part and "\\" not in part for part in name.split("/")
    )


@dataclass(frozen=True)
class Point:
    """One recovery point: the files of one id."""

    point_id: str
    directory: Path
    files: dict[str, Path]
    """`db` and `minio` → the file, where there is one."""

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is, if the point is committed."""
        return self.directory / f"manifest_{self.point_id}.json"

    @property
    def is_committed(self) -> bool:
        """Whether the backup was finished: then it has a manifest."""
        return self.manifest_path.exists()

    def read_manifest(self) -> dict[str, Any]:
        """The manifest; empty when there is none; exit 3 when it is damaged."""
        if not self.is_committed:
            return {}
        try:
            with open_file(self.manifest_path) as file:
                manifest = json.loads(file.read())
            named = {
                entry["file_name"]: (entry["size_bytes"], entry["sha256"]) for entry in manifest["artifacts"]
            }
            references = manifest["references"]
            if not named or not all(isinstance(digest, str) for _size, digest in named.values()):
                raise ValueError
            return {
                "files": named,
                "missing": references.get("missing_sha256", ""),
                "verdicts": references.get("verdict_counts", {}),
            }
        except (RecoverError, OSError, ValueError, KeyError, TypeError, AttributeError):
            hint = "The other files describe themselves: `verify FILE`. Move the manifest away to use them without it, and name the id."
            raise RecoverError(EXIT_FILES, f"{self.manifest_path.name} is damaged", hint) from None

    def get(self, kind: str) -> Path:
        """The file of this kind; exit 3 when there is none."""
        if kind not in self.files:
            raise damaged(f"recovery point {self.point_id} has no {kind}_… file")
        return self.files[kind]

    def describe(self) -> str:
        """`committed`, or why it is not."""
        try:
            named = self.read_manifest().get("files", {})
        except RecoverError:
            return "MANIFEST DAMAGED"
        sizes = {path.name: measure_file(path) for path in self.files.values()}
        if any(sizes.get(name) != size for name, (size, _digest) in named.items()):
            return "FILE MISSING OR CUT"
        return "committed" if named else "not committed"


def find_points(directory: Path) -> list[Point]:
    """Every recovery point of the folder, oldest first; files of other programs are left out. Exit 4 when it is no folder."""
    if not directory.is_dir():
        raise RecoverError(
            EXIT_USAGE, f"{directory} is not a folder", "Give the folder that holds the files, BACKUP_DIR."
        )
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.glob("manifest_*.json")):
        if re.fullmatch(r"[0-9]{8}_[0-9]{6}", path.stem[len("manifest_") :]):
            found[path.stem[len("manifest_") :]] = {}
    named = [
        (name, path)
        for path in sorted(directory.glob("*.gz"))
        if (name := FILE_NAME.fullmatch(path.name)) and path.is_file()
    ]
    known = found.keys() | {name["id"] for name, path in named if has_footer(path)}
    for name, path in named:
        if name["id"] in known:
            files = found.setdefault(name["id"], {})
            if name["kind"] in files:
                raise RecoverError(
                    EXIT_USAGE,
                    f"{files[name['kind']].name} and {path.name} have one id",
                    "Move one of the two elsewhere.",
                )
            files[name["kind"]] = path
    return [Point(point_id, directory, found[point_id]) for point_id in sorted(found)]


def has_footer(path: Path) -> bool:
    """Whether the file ends as ours do; those of the old script do not."""
    try:
        with open_file(path) as file:
            read_footer(file)
    except RecoverError:
        return False
    return True


def choose_point(directory: Path, point_id: str | None) -> Point:
    """The point of this id, or the newest committed one; exit 4 when there is none."""
    points = [
        point
        for point in find_points(directory)
        if (point.is_committed if point_id in {None, "latest"} else point.point_id == point_id)
    ]
    if not points:
        what = (
            f"recovery point {point_id}" if point_id not in {None, "latest"} else "committed recovery point"
        )
        raise RecoverError(
            EXIT_USAGE,
            f"there is no {what} in {directory}",
            "`list` shows those there are; name the id of one that is not committed.",
        )
    return points[-1]


# --- verification -------------------------------------------------------------------------------------------------------------------------------


def check_stored(path: Path, named: dict[str, tuple[int, str]]) -> None:
    """The bytes are those that were written, and those that the manifest names where there is one; exit 3 otherwise."""
    content, whole = hashlib.sha256(), hashlib.sha256()
    with open_file(path) as file:
        footer = read_footer(file)
        file.seek(0)
        remaining = footer.offset
        for block in iter(functools.partial(read_file, file, PIECE_BYTES), b""):
            whole.update(block)
            content.update(block[:remaining])
            remaining = max(0, remaining - len(block))
    if content.hexdigest() != footer.content_sha256:
        raise damaged("its bytes are not those that were written")
    if named and named.get(path.name) != (measure_file(path), whole.hexdigest()):
        raise damaged("it is not the file that the manifest names: one of the two was exchanged or altered")


def verify_file(path: Path, named: dict[str, tuple[int, str]]) -> Dump | Archive:
    """The file is stored and parsed as it was captured, and a line says what is in it; exit 3 names the file otherwise."""
    started = time.monotonic()
    name = FILE_NAME.fullmatch(path.name)
    is_dump = path.name.endswith(".sql.gz") if name is None else name["kind"] == "db"
    try:
        check_stored(path, named)
        opened = Dump(path) if is_dump else Archive(path)
        source = opened.record.database if isinstance(opened, Dump) else opened.record.bucket
        if name is not None and (name["id"], unquote(name["source"])) != (opened.record.point_id, source):
            raise damaged(f"it holds {source} of point {opened.record.point_id}: it was exchanged or renamed")
        if isinstance(opened, Dump):
            deque(opened.read_contents(), maxlen=0)
            contents = f"{opened.record.table_count} tables, {opened.record.row_count} rows"
        else:
            opened.check()
            contents = f"{opened.record.object_count} objects, {opened.record.size_bytes} bytes"
    except RecoverError as error:
        raise RecoverError(error.code, f"{path.name}: {error}", error.hint) from None
    against = "the manifest and its own digests" if named else "its own digests"
    contents += opened.record.describe_left_out()
    say(f"verified  {path.name}: {contents}, as {against} say ({time.monotonic() - started:.1f} s)")
    return opened


def find_reference_gaps(dump: Dump, archive: Archive, manifest: dict[str, Any]) -> list[str]:
    """References of the database without an object in the archive, other than those that were known to be nowhere when the backup was taken."""
    if dump.record.point_id != archive.record.point_id:
        raise damaged(
            f"the dump is of point {dump.record.point_id}, the archive of {archive.record.point_id}"
        )
    if _to_time(archive.record.listed_at) < _to_time(
        dump.record.snapshot_opened_at or dump.record.snapshot_at
    ):
        raise damaged("the bucket was listed before the database's snapshot: uploads in between are missing")
    if dump.record.reference_state != "read":
        say(
            "references  not configured: nothing is known of how the database's rows and the objects fit together"
        )
        return []
    have = {_fingerprint(entry.key) for entry in archive.read_entries()}
    absent = [key for key in dump.read_references() if _fingerprint(key) not in have]
    missing = [key for key in absent if not archive.record.is_excluded(key)]
    excluded = f"; {len(absent) - len(missing)} were left out" if len(absent) > len(missing) else ""
    say(
        f"verified  {dump.record.reference_count - len(absent)} of {dump.record.reference_count} references are in the archive{excluded}"
    )
    if not missing:
        return []
    known = hashlib.sha256("\0".join(missing).encode("utf-8", "surrogateescape")).hexdigest() == manifest.get(
        "missing"
    )
    verdicts: dict[str, int] = {
        word: count for word, count in manifest.get("verdicts", {}).items() if word != "excluded"
    }
    if known and not verdicts.get("lost by us") and not verdicts.get("unknown"):
        say(
            f"          the others were gone when the backup was taken: {', '.join(f'{count} {word}' for word, count in verdicts.items())}"
        )
        return []
    return [
        f"{len(missing)} objects that the database refers to are not in the archive, such as {missing[0]!r}"
    ]


def _fingerprint(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _to_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise damaged(f"its record has no time but {text!r}") from None


def verify_point(point: Point, kinds: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """The opened files by kind, all verified, and what they are known to lack. Each file is looked at; exit 3 when one is damaged."""
    taken_at = datetime.strptime(point.point_id, "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
    say(
        f"recovery point {point.point_id}, taken {taken_at:%Y-%m-%d %H:%M:%S} UTC, {'committed' if point.is_committed else 'NOT committed'}"
    )
    manifest = point.read_manifest()
    opened: dict[str, Any] = {}
    problems: list[RecoverError] = []
    for kind in kinds:
        try:
            opened[kind] = verify_file(point.get(kind), manifest.get("files", {}))
        except RecoverError as error:
            problems.append(error)
    if problems:
        raise RecoverError(EXIT_FILES, "; ".join(map(str, problems)), HINT_FILES)
    gaps = [gap for each in opened.values() for gap in each.find_gaps()]
    if {"db", "minio"} <= set(opened):
        gaps += find_reference_gaps(opened["db"], opened["minio"], manifest)
    return opened, gaps


# --- the database -------------------------------------------------------------------------------------------------------------------------------


def find_psql() -> str:
    """The path of psql; exit 1 when there is none or it is too old for the dump, exit 4 when no database is named."""
    if not os.environ.get("PGDATABASE") and not os.environ.get("PGSERVICE"):
        hint = "Set PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE in the environment."
        raise RecoverError(EXIT_USAGE, "no database is named: PGDATABASE is not set", hint)
    program = shutil.which("psql")
    if program is None:
        raise RecoverError(
            EXIT_DATABASE,
            "there is no psql on this machine",
            "Install postgresql-client (Debian) or postgresql (Red Hat).",
        )
    spoken = (
        subprocess.run([program, "--version"], capture_output=True, check=False)
        .stdout.decode("utf-8", "replace")
        .strip()
    )
    version = re.search(r"(\d+)\.(\d+)", spoken)
    major, minor = (int(version[1]), int(version[2])) if version else (0, 0)
    if major and minor < FIRST_PSQL_WITH_RESTRICT.get(major, 0):
        hint = "Install one of August 2025 or newer: 13.22, 14.19, 15.14, 16.10, 17.6 or any 18."
        raise RecoverError(
            EXIT_DATABASE,
            f"{spoken} does not know \\restrict, without which a changed dump could run programs here",
            hint,
        )
    return program


def psql_environment() -> dict[str, str]:
    """Ours, with a limit to how long a dead server is waited for, and the settings that a session begins with."""
    return {"PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "recover", "PGOPTIONS": SESSION_OPTIONS, **os.environ}


def ask_psql(program: str, script: str, *, stop_at_error: bool = True) -> tuple[str, str]:
    """What psql printed on stdout and stderr; exit 1 when it failed."""
    words = [program, "-X", "-q", "-A", "-t", "-w", "-v", f"ON_ERROR_STOP={int(stop_at_error)}"]
    environment = {**psql_environment(), "PGCLIENTENCODING": "UTF8"}
    done = subprocess.run(words, input=script.encode(), capture_output=True, check=False, env=environment)
    complaint = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        hint = "Nothing was written. Look at PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE."
        raise RecoverError(EXIT_DATABASE, f"psql failed: {' '.join(complaint.split())}", hint)
    return done.stdout.decode("utf-8", "replace"), complaint


def check_database(dump: Dump) -> tuple[str, set[str]]:
    """psql, and the roles that the target has; exit 1 when the target holds something or cannot take the dump."""
    program = find_psql()
    major, encoding, locks, relations, *roles = ask_psql(program, TARGET_FACTS)[0].splitlines()
    record = dump.record
    if int(major) < record.server_major:
        message = f"the dump is of PostgreSQL {record.server_major} and the target is {major}: newer does not load into older"
        raise RecoverError(
            EXIT_DATABASE, message, f"Restore into a server of version {record.server_major} or newer."
        )
    if encoding != record.encoding:
        hint = (
            f"Make the database anew: CREATE DATABASE name ENCODING '{record.encoding}' TEMPLATE template0;"
        )
        raise RecoverError(
            EXIT_DATABASE, f"the dump's encoding is {record.encoding}, the target's is {encoding}", hint
        )
    if int(relations):
        hint = "Restore into a new database: createdb -T template0 NAME, then PGDATABASE=NAME."
        raise RecoverError(
            EXIT_DATABASE,
            f"the target database is not empty: it holds {relations} tables, functions, types or other objects",
            hint,
        )
    if record.relation_count + record.large_object_count >= int(locks) // 2:
        hint = f"Set max_locks_per_transaction to {max(256, record.relation_count + record.large_object_count)} on the target and restart it."
        raise RecoverError(
            EXIT_DATABASE, "the target's lock table is too small to load this dump in one transaction", hint
        )
    return program, set(roles)


def is_role_statement(line: str) -> bool:
    """Whether the line is one whole statement of a known form: what goes on in the next line is somebody's words, and so may that be."""
    words = ATTRIBUTES.fullmatch(line)
    return bool(
        CREATE_ROLE.fullmatch(line) or words or ROLE_SETTING.fullmatch(line) or MEMBERSHIP.fullmatch(line)
    )


def make_roles(program: str, dump: Dump, present: set[str]) -> None:
    """Roles of the source that the target lacked are there, without passwords; what was refused is told, since the load may not need it."""
    wanted: list[str] = []
    made: set[str] = set()
    lines = list(itertools.takewhile(is_role_statement, dump.roles))
    if len(lines) < len(dump.roles):
        say(
            f"note      {len(dump.roles) - len(lines)} lines about roles have no known form, or stand behind such a one: not run"
        )
    for number, statement in enumerate(lines):
        role = CREATE_ROLE.fullmatch(statement)
        if role and role["name"] not in present:
            made.add(role["name"])
            prefix = f"ALTER ROLE {role['name']} WITH"
            wanted += [
                statement,
                *(line for line in lines[number + 1 : number + 2] if line.startswith(prefix)),
            ]
            say(f"role      {role['name']} is made, without a password")
    for statement in lines:
        setting = ROLE_SETTING.fullmatch(statement)
        if setting and (setting["name"] or setting["described"]) in made:
            wanted.append(statement)
        membership = MEMBERSHIP.fullmatch(statement)
        # Nobody who was there before gets into a role that was there before.
        if membership and made & {membership["role"], membership["member"]}:
            wanted.append(f"{membership['grant']};")
        elif membership:
            say(
                f"note      is {membership['member']} still in {membership['role']}? Both were there before, and nothing was changed"
            )
    if wanted:
        script = f"\\restrict {secrets.token_hex(16)}\n" + "".join(f"{line}\n" for line in wanted)
        complaint = ask_psql(program, script, stop_at_error=False)[1]
        if complaint:
            say(f"note      {' '.join(complaint.split())}")


def load_database(dump: Dump, program: str, present: set[str]) -> None:
    """The target database holds the dump, all of it, and each table as many rows as the record says; exit 1 otherwise."""
    make_roles(program, dump, present)
    started = time.monotonic()
    words = [program, "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1"]
    with tempfile.TemporaryFile() as complaints:
        psql = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints, env=psql_environment()
        )
        try:
            feed(psql, dump)
        except BaseException:
            psql.kill()
            raise
        finally:
            psql.wait()
            with contextlib.suppress(BrokenPipeError):
                psql.stdin.close() if psql.stdin else None
        complaints.seek(0)
        said = complaints.read().decode("utf-8", "replace").strip()
    if psql.returncode != 0:
        errors = [
            line for line in said.splitlines() if "ERROR" in line or "FATAL" in line or "error:" in line
        ]
        first = errors[0] if errors else said or str(psql.returncode)
        raise RecoverError(EXIT_DATABASE, f"psql stopped at the first error: {first}", explain_psql(first))
    say(
        f"loaded    {dump.record.table_count} tables, {dump.record.row_count} rows ({time.monotonic() - started:.1f} s)"
    )
    compare_rows(program, dump)


def explain_psql(error: str) -> str:
    """What to do about the first error of a load; its words are PostgreSQL's English ones, and another language gets the general hint."""
    hint = "The message names what the server refused: mend that, then restore again."
    if re.search(r"permission denied|must be (?:owner|superuser|able|member)", error):
        hint = "Restore as a superuser, or as the role that owned the database."
    elif re.search(r'extension ".*" (?:is not available|does not exist)|extension control file', error):
        hint = "Install the extension's package on the server, then restore again."
    elif re.search(r'role ".*" does not exist', error):
        hint = "Make the role on the server, then restore again."
    elif "default_tablespace" in error:
        hint = "Make the tablespace on the server, in whatever empty folder, then restore again: CREATE TABLESPACE name LOCATION '/folder';"
    elif re.search(r"No space left|could not extend|could not write", error):
        hint = "Make room on the server's disk, then restore again."
    elif re.search(r"server closed the connection|connection to server|terminating connection", error):
        hint = "The server's log says why there is no connection; then restore again."
    return f"The database is as it was. {hint}"


def feed(psql: subprocess.Popen[bytes], dump: Dump) -> None:
    """The program psql has read the dump to its end and was told to commit; it stopped by itself before, if the server refused something."""
    stdin = psql.stdin
    if stdin is None:
        raise ValueError("psql was started without a pipe")
    try:
        # Not psql's --single-transaction: that commits at the end of its input, also when we are killed in the middle.
        # Under a key of our own, in place of the dump's: a psql command in a changed dump would run programs on this machine.
        stdin.write(f"\\restrict {secrets.token_hex(16)}\nBEGIN;\n".encode())
        held, is_first = b"", True
        for block in dump.read_contents():
            text = held + block
            if is_first:
                text, is_first = (
                    ROW_SECURITY.sub(b"", LEADING_RESTRICT.sub(rb"\1", text, count=1), count=1),
                    False,
                )
            stdin.write(text[:-256])
            held = text[-256:]
        stdin.write(TRAILING_UNRESTRICT.sub(b"\n", held))
        stdin.write(b"COMMIT;\n")
        stdin.close()
    except BrokenPipeError:
        psql.wait()


def compare_rows(program: str, dump: Dump) -> None:
    """Each table has as many rows as the record says; exit 1 names those that have not. Tables of extensions bring rows of their own."""
    tables = [
        table
        for table in dump.tables
        if table.expected_rows is not None and "\ufffd" not in table.label and not table.root
    ]
    script = "SET row_security = off; SET search_path = '';\n"
    for number, table in enumerate(tables):
        name = ".".join('"' + part.replace('"', '""') + '"' for part in (table.schema_name, table.name))
        script += f"SELECT {number}, pg_catalog.count(*) FROM ONLY {name};\n"  # noqa: S608 - both parts of the name are quoted
    found = dict(line.split("|") for line in ask_psql(program, script)[0].splitlines())
    wrong = [table.label for number, table in enumerate(tables) if found.get(str(number)) != str(table.rows)]
    if wrong:
        raise RecoverError(
            EXIT_DATABASE,
            f"{len(wrong)} tables have other row counts than the record, such as {wrong[0]}",
            "Do not use this database.",
        )
    left_out = len(dump.tables) - len(tables)
    say(
        f"compared  {len(tables)} tables have the rows of the record"
        + (f"; {left_out} of extensions were not counted" if left_out else "")
    )


# --- the objects, into a folder -----------------------------------------------------------------------------------------------------------------


def check_folder(archive: Archive, folder: Path) -> None:
    """The folder is empty or not there yet, and has room; exit 2 otherwise."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise RecoverError(
            EXIT_BUCKET, f"{folder} is not an empty folder", "Name a folder that does not exist yet."
        )
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if shutil.disk_usage(parent).free < archive.record.size_bytes:
        raise RecoverError(
            EXIT_BUCKET,
            f"{folder} has no room for {archive.record.size_bytes} bytes",
            "Name a folder on a larger disk.",
        )


def write_folder(archive: Archive, folder: Path) -> None:
    """Every object is a file in the folder, read back and equal; exit 2 at the first that is not.

    Keys that cannot be paths get the archive's name; `.schedgen-backups/renamed.jsonl` lists those, `index.jsonl` beside it types, metadata and tags.
    """
    renamed = count = 0
    make_folder(folder / RESERVED, folder)
    listing = folder / RESERVED
    with (
        open_file(archive.path) as file,
        make_file(listing / "index.jsonl") as index,
        make_file(listing / "renamed.jsonl") as names,
    ):
        for entry in archive.read_entries():
            name = write_object(archive, file, entry, folder)
            index.write(json.dumps({"file": name, **vars(entry)}).encode() + b"\n")
            if name != entry.key:
                names.write(json.dumps({"file": name, "key": entry.key}).encode() + b"\n")
                renamed += 1
            count += 1
    say(f"written   {count} objects to {folder}, each read back and equal")
    if renamed:
        say(
            f"note      {renamed} keys cannot be paths here; {RESERVED}/renamed.jsonl in that folder says which file is which key"
        )


def write_object(archive: Archive, file: BinaryIO, entry: Entry, folder: Path) -> str:
    """The object is a file of the folder; returns its name there, which is a made one where the file system has that name already."""
    name = entry.member_name
    try:
        make_folder((folder / name).parent, folder)
        target = make_file(folder / name)
    except (FileExistsError, NotADirectoryError):
        # Names that differ only in case, on a file system that takes them for one.
        name = f"{RESERVED}/keys/{hashlib.sha256(entry.key.encode('utf-8', 'surrogateescape')).hexdigest()}"
        make_folder((folder / name).parent, folder)
        target = make_file(folder / name)
    with target:
        for block in archive.read_object(file, entry):
            target.write(block)
    digest = hashlib.sha256()
    with (folder / name).open("rb") as written:
        for block in iter(functools.partial(written.read, PIECE_BYTES), b""):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise RecoverError(
            EXIT_BUCKET, f"{folder / name} does not hold what was written to it", "Use another disk."
        )
    return name


def make_folder(path: Path, root: Path) -> None:
    """The path is a folder, all of it real folders from `root` on; exit 2 when a symbolic link stands in the way."""
    if path != root:
        make_folder(path.parent, root)
        if path.is_symlink():
            raise RecoverError(
                EXIT_BUCKET,
                f"{path} is a symbolic link that was not there before",
                "Who else writes there? Nothing is followed.",
            )
        path.mkdir(mode=0o700, exist_ok=True)
    else:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_file(path: Path) -> BinaryIO:
    """A new file that only its owner may read, open for writing; FileExistsError when the name is taken, by a link too."""
    return os.fdopen(
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600), "wb"
    )


# --- the objects, into a bucket -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the S3 server said."""

    status: int
    headers: http.client.HTTPMessage
    body: Any

    def find(self, name: str) -> str:
        """The text of the first XML element of this name, or an empty one."""
        found = re.search(rf"<{name}>(.*?)</{name}>", self.body.decode("utf-8", "replace"), re.DOTALL)
        return html.unescape(found[1]) if found else ""


class Bucket:
    """One bucket of one S3 server, spoken to with signed plain requests (AWS Signature Version 4). For use from several threads."""

    def __init__(self, endpoint: str, name: str, region: str, *, is_insecure: bool) -> None:
        found = ENDPOINT.fullmatch(endpoint)
        port = int(found["port"]) if found and found["port"] else None
        if not found or (port is not None and not 1 <= port <= LAST_PORT):
            raise RecoverError(
                EXIT_USAGE, "--s3 is no address of a server", "Use https://host:port, or host:port."
            )
        scheme = (found["scheme"] or "").lower()
        self._host = found["host"].strip("[]").lower()
        is_local = self._host in LOOPBACK
        if scheme == "http" and not is_local and not is_insecure:
            raise RecoverError(
                EXIT_USAGE,
                f"{endpoint} would send everything unencrypted",
                "Use https, or add --insecure if that network is yours.",
            )
        self._is_secure = scheme == "https" or (not scheme and not is_local and not is_insecure)
        self._port = port or (443 if self._is_secure else 80)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._netloc = f"{shown}:{port}" if port and port != (443 if self._is_secure else 80) else shown
        self.label = f"{'https' if self._is_secure else 'http'}://{self._netloc}/{name}"
        self._name, self._region = name, region
        self._access_key = os.environ.get("MINIO_ACCESS_KEY", "")
        self._secret_key = os.environ.get("MINIO_SECRET_KEY", "")
        if not self._access_key or not self._secret_key:
            raise RecoverError(
                EXIT_USAGE,
                "MINIO_ACCESS_KEY and MINIO_SECRET_KEY are not both set",
                "Set them in the environment.",
            )
        self._local = threading.local()

    def request(
        self,
        method: str,
        key: str = "",
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        read: Callable[[http.client.HTTPResponse], Any] | None = None,
    ) -> Answer:
        """The server's answer, whatever its status; `read` gets the body of a 200. Tried again when the server is down; exit 2 when it stays so."""
        problem = ""
        for attempt in range(ATTEMPTS):
            time.sleep(0.2 * 2**attempt if attempt else 0)
            try:
                connection = self._connect()
                path = quote(
                    f"/{self._name}" + (f"/{key}" if key else ""), safe="/-_.~", errors="surrogateescape"
                )
                asked = "&".join(
                    f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
                    for name, value in sorted((query or {}).items())
                )
                signed = self._sign(method, path, asked, headers or {}, body)
                connection.request(method, f"{path}?{asked}" if asked else path, body=body, headers=signed)
                response = connection.getresponse()
                is_good = response.status == http.HTTPStatus.OK and read is not None
                answer = Answer(
                    response.status, response.headers, read(response) if is_good and read else response.read()
                )
            except ssl.SSLCertVerificationError as error:
                raise RecoverError(
                    EXIT_BUCKET,
                    f"the certificate of {self._netloc} is not trusted: {error.verify_message}",
                    "Set SSL_CERT_FILE.",
                ) from None
            except (OSError, http.client.HTTPException) as error:
                self._local.connection = None
                problem = str(error) or type(error).__name__
                continue
            if answer.status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                return answer
            problem = f"it answers {answer.status} {answer.find('Code')}"
        raise RecoverError(
            EXIT_BUCKET,
            f"the S3 server at {self._netloc} fails {ATTEMPTS} times: {problem}",
            "Is it up, is --s3 right, http or https?",
        )

    def expect(self, answer: Answer, what: str) -> Answer:
        """The answer, when it is a good one; exit 2 otherwise."""
        if answer.status in {http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT}:
            return answer
        code = (answer.find("Code") if isinstance(answer.body, bytes) else "") or str(answer.status)
        message = f"{self.label} refuses {what}: {code} {answer.find('Message')}".rstrip()
        if answer.status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise RecoverError(
                EXIT_BUCKET,
                message,
                "Check MINIO_ACCESS_KEY and MINIO_SECRET_KEY, and the clock of this machine.",
            )
        raise ObjectRefusedError(EXIT_BUCKET, message)

    def check(self) -> bool:
        """Whether the bucket is there, empty; exit 2 when it holds something or cannot be listed."""
        answer = self.request("GET", query={"list-type": "2", "max-keys": "1"})
        if answer.status == http.HTTPStatus.NOT_FOUND and answer.find("Code") in {"NoSuchBucket", ""}:
            return False
        if b"<Contents>" in self.expect(answer, "to list the bucket").body:
            raise RecoverError(
                EXIT_BUCKET,
                f"{self.label} is not empty",
                "Restore into a new bucket: name one that does not exist yet.",
            )
        return True

    def make(self) -> None:
        """The bucket is there; it was made."""
        place = f"<CreateBucketConfiguration><LocationConstraint>{self._region}</LocationConstraint></CreateBucketConfiguration>"
        self.expect(
            self.request("PUT", body=b"" if self._region == "us-east-1" else place.encode()),
            "to make the bucket",
        )
        say(f"made      {self.label}")

    def put(self, entry: Entry, blocks: Iterator[bytes]) -> None:
        """The bucket holds the object with type, headers, metadata and tags; nothing of it, when `blocks` raises."""
        headers = {"Content-Type": entry.content_type or "application/octet-stream", **entry.headers}
        headers.update({f"x-amz-meta-{name}": value for name, value in entry.metadata.items()})
        if entry.tags:
            headers["x-amz-tagging"] = "&".join(
                f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in entry.tags.items()
            )
        what = f"object {entry.key!r}"
        if entry.size_bytes <= PART_BYTES:
            self.expect(self.request("PUT", entry.key, headers=headers, body=b"".join(blocks)), what)
            return
        upload = self.expect(self.request("POST", entry.key, {"uploads": ""}, headers), what).find("UploadId")
        try:
            self._put_parts(entry, blocks, upload, what)
        except BaseException:
            self.request("DELETE", entry.key, {"uploadId": upload})
            raise

    def find_difference(self, entry: Entry) -> str:
        """What is different about the object in the bucket, in a word, or an empty text."""
        answer = self.request("GET", entry.key, read=_digest_body)
        if answer.status != http.HTTPStatus.OK:
            return f"missing, {answer.status}"
        there = {name.lower(): value for name, value in answer.headers.items()}
        metadata = {
            name[len("x-amz-meta-") :]: value
            for name, value in there.items()
            if name.startswith("x-amz-meta-")
        }
        tags: dict[str, str] = {}
        if not entry.tags_note and (entry.tags or there.get("x-amz-tagging-count", "0") != "0"):
            text = self.expect(self.request("GET", entry.key, {"tagging": ""}), "to read tags").body.decode(
                "utf-8", "replace"
            )
            pairs = re.findall(r"<Tag>\s*<Key>(.*?)</Key>\s*<Value>(.*?)</Value>", text, re.DOTALL)
            tags = {html.unescape(name): html.unescape(value) for name, value in pairs}
        checks = {
            "bytes": answer.body == (entry.size_bytes, entry.sha256),
            "content type": there.get("content-type", "")
            == (entry.content_type or "application/octet-stream"),
            "headers": {name: there[name.lower()] for name in KEPT_HEADERS if name.lower() in there}
            == entry.headers,
            "metadata": metadata == {name.lower(): _to_wire(value) for name, value in entry.metadata.items()},
            "tags": tags == entry.tags,
        }
        return ", ".join(name for name, is_equal in checks.items() if not is_equal)

    def _put_parts(self, entry: Entry, blocks: Iterator[bytes], upload: str, what: str) -> None:
        part_bytes = max(PART_BYTES, -(-entry.size_bytes // MOST_PARTS))
        reader = BlockReader(blocks)
        parts = ""
        for number in itertools.count(1):
            part = reader.read(part_bytes)
            if not part:
                break
            answer = self.expect(
                self.request("PUT", entry.key, {"partNumber": str(number), "uploadId": upload}, body=part),
                what,
            )
            parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(answer.headers.get('ETag', ''))}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = self.expect(self.request("POST", entry.key, {"uploadId": upload}, body=body), what)
        if answer.find("Code"):
            raise ObjectRefusedError(EXIT_BUCKET, f"{self.label} refuses {what}: {answer.find('Code')}")

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            if self._is_secure:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=300, context=ssl.create_default_context()
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=300)
            self._local.connection = connection
        return connection

    def _sign(
        self, method: str, path: str, query: str, headers: dict[str, str], body: bytes
    ) -> dict[str, str]:
        """The headers with a signature of Version 4, as the AWS documentation `Authenticating Requests` builds it."""
        now = datetime.now(timezone.utc)
        digest = hashlib.sha256(body).hexdigest()
        sent = {"Host": self._netloc, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}", "x-amz-content-sha256": digest}
        sent.update({name: _to_wire(value) for name, value in headers.items()})
        canonical = {name.lower(): " ".join(value.split()) for name, value in sent.items()}
        names = ";".join(sorted(canonical))
        lines = "".join(f"{name}:{canonical[name]}\n" for name in sorted(canonical))
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}".encode("latin-1")
        scope = f"{now:%Y%m%d}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{sent['x-amz-date']}\n{scope}\n{hashlib.sha256(request).hexdigest()}"
        secret = f"AWS4{self._secret_key}".encode()
        for word in scope.split("/"):
            secret = hmac.new(secret, word.encode(), hashlib.sha256).digest()
        signature = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
        sent["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return sent


def _to_wire(value: str) -> str:
    """The value as HTTP headers carry it: one character per byte."""
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode().decode("latin-1")
    return value


def _digest_body(response: http.client.HTTPResponse) -> tuple[int, str]:
    digest = hashlib.sha256()
    size_bytes = 0
    for block in iter(functools.partial(response.read, PIECE_BYTES), b""):
        digest.update(block)
        size_bytes += len(block)
    return size_bytes, digest.hexdigest()


def write_bucket(archive: Archive, bucket: Bucket) -> None:
    """Every object is in the bucket, read back and equal; exit 2 names those that are not, once the others are there."""
    started = time.monotonic()

    def restore(entry: Entry) -> str:
        try:
            with open_file(archive.path) as file:
                bucket.put(entry, archive.read_object(file, entry))
            difference = bucket.find_difference(entry)
        except ObjectRefusedError as error:
            return str(error)
        return f"object {entry.key!r} is not as it was captured: {difference}" if difference else ""

    count = unknown = 0
    wrong: list[str] = []
    waiting: deque[Future[str]] = deque()
    pool = ThreadPoolExecutor(max_workers=THREADS)
    try:
        for entry in itertools.chain(archive.read_entries(), [None] * 4 * THREADS):
            if entry is not None:
                waiting.append(pool.submit(restore, entry))
                count += 1
                unknown += bool(entry.tags_note)
            if waiting and (entry is None or len(waiting) >= 4 * THREADS):
                problem = waiting.popleft().result()
                wrong += [problem] if problem else []
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for problem in wrong:
        say(f"WRONG     {problem}")
    if wrong:
        raise RecoverError(
            EXIT_BUCKET,
            f"{len(wrong)} of {count} objects are not in {bucket.label} as they were captured",
            "The others are.",
        )
    say(
        f"written   {count} objects to {bucket.label}, each read back and equal ({time.monotonic() - started:.1f} s)"
    )
    if unknown:
        say(
            f"unknown   the tags of {unknown} of these objects: they could not be read when they were captured"
        )


# --- the commands -------------------------------------------------------------------------------------------------------------------------------


def command_list(options: argparse.Namespace) -> None:
    """Points with age, sizes and state are on stdout, oldest first."""
    now = datetime.now(timezone.utc)
    for point in find_points(options.directory):
        taken_at = datetime.strptime(point.point_id, "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
        hours = (now - taken_at).total_seconds() / 3600
        sizes = ", ".join(f"{path.name} {measure_file(path)} bytes" for path in point.files.values())
        say(
            f"{point.point_id}  {f'{hours:.1f} h' if hours < 48 else f'{hours / 24:.0f} days':>8} old  {point.describe():<10}  {sizes or 'no files'}"  # noqa: PLR2004
        )


def command_verify(options: argparse.Namespace) -> None:
    """Everything that the files can tell of themselves was looked at; exit 3 when anything is wrong or lacking."""
    if options.directory.is_file():
        gaps = verify_file(options.directory, {}).find_gaps()
    else:
        point = choose_point(options.directory, options.id)
        named = {"db", "minio"} if point.is_committed or not point.files else set(point.files)
        _opened, gaps = verify_point(point, tuple(sorted(named)))
    refuse_gaps(gaps)
    say("whole")


def refuse_gaps(gaps: list[str], *, is_allowed: bool = False) -> None:
    """Nothing is lacking, or that was allowed; exit 3 otherwise."""
    for gap in gaps:
        say(f"LACKING   {gap}")
    if gaps and not is_allowed:
        raise RecoverError(
            EXIT_FILES,
            f"the files are not damaged, and they are incomplete: {gaps[0]}",
            "--incomplete restores what there is.",
        )


def command_restore(options: argparse.Namespace) -> None:
    """The targets that are named hold the recovery point. Files and targets are looked at before anything is written."""
    has_database = options.command in {"database", "restore"}
    has_objects = options.command in {"objects", "restore"}
    bucket = None
    if has_objects:
        if (options.folder is None) == (options.s3 is None) or (options.s3 is None) != (
            options.bucket is None
        ):
            raise RecoverError(
                EXIT_USAGE,
                "name one place for the objects: --folder PATH, or --s3 ENDPOINT with --bucket NAME",
            )
        if options.s3 is not None:
            bucket = Bucket(options.s3, options.bucket, options.region, is_insecure=options.insecure)
    point = choose_point(options.directory, options.id)
    kinds = (("db",) if has_database else ()) + (("minio",) if has_objects else ())
    opened, gaps = verify_point(point, kinds)
    refuse_gaps(gaps, is_allowed=options.incomplete)
    program, present = check_database(opened["db"]) if has_database else ("", set[str]())
    is_made = bucket.check() if bucket else True
    if has_objects and bucket is None:
        check_folder(opened["minio"], options.folder)
    if has_database:
        load_database(opened["db"], program, present)
    if bucket is not None:
        if not is_made:
            bucket.make()
        write_bucket(opened["minio"], bucket)
    elif has_objects:
        write_folder(opened["minio"], options.folder)
    say("restored")


class Parser(argparse.ArgumentParser):
    """A parser whose exit code for wrong use is not the one of a failed bucket."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with 4."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def parse(words: list[str]) -> argparse.Namespace:
    """What was asked for; ends the program with 4 when that cannot be understood."""
    parser = Parser(
        prog="recover.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="recover.py COMMAND --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="points with age, sizes, committed or not")
    verify = commands.add_parser("verify", help="read everything again: digests, tables, objects, references")
    database = commands.add_parser(
        "database",
        help="load the database into an empty one (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE)",
    )
    objects = commands.add_parser(
        "objects",
        help="write the objects into a folder or an empty bucket (MINIO_ACCESS_KEY, MINIO_SECRET_KEY)",
    )
    restore = commands.add_parser("restore", help="both, all verified before anything is written")
    for command in (listing, verify, database, objects, restore):
        what = "the folder of the files (BACKUP_DIR)" + (", or one file" if command is verify else "")
        command.add_argument("directory", type=Path, metavar="DIR", help=what)
        if command is not listing:
            command.add_argument(
                "id",
                nargs="?",
                metavar="ID",
                help="such as 20261122_020000; by default the newest committed point",
            )
    for command in (database, objects, restore):
        command.add_argument(
            "--incomplete", action="store_true", help="restore files that are known to lack something"
        )
    for command in (objects, restore):
        command.add_argument(
            "--folder",
            type=Path,
            metavar="PATH",
            help="write objects as files into this folder, which must be empty or new",
        )
        command.add_argument(
            "--s3", metavar="ENDPOINT", help="https://host:port; http only to this machine or with --insecure"
        )
        command.add_argument(
            "--bucket", metavar="NAME", help="the bucket; made if it is not there, refused if it is not empty"
        )
        command.add_argument(
            "--region",
            default=os.environ.get("MINIO_REGION") or "us-east-1",
            help="by default MINIO_REGION or us-east-1",
        )
        command.add_argument("--insecure", action="store_true", help="allow http to another machine")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """The exit code of what was asked for; problems are on stderr in words."""
    options = parse(words)
    run = {"list": command_list, "verify": command_verify}.get(options.command, command_restore)
    try:
        run(options)
    except RecoverError as error:
        problem, hint, code = str(error), error.hint, error.code
    except OSError as error:
        problem, hint, code = (
            f"{error.filename or 'a file'}: {error.strerror or error}",
            "Look at the disk and its permissions.",
            EXIT_BUCKET,
        )
    else:
        return 0
    text = f"FAILED    {problem}\n" + (f"          {hint}\n" if hint else "")
    sys.stderr.write(write_out(text))
    return code


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("Python 3.9 or newer is needed, this is " + sys.version.split()[0])
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        sys.stderr.flush()
        os._exit(EXIT_CANCELLED)
