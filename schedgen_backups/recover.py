"""Restore a recovery point with this single file, Python 3.9 or newer, and psql.

It needs no package, no Dagster and no network access except to the targets. Use it if you have only the
backup files, or the downloaded folder of a site in a store, and a bare host. Encrypted packs and copies also
need the program age. Everything is in one file, so that you can keep a copy next to the backups. It
shares no code with the package and reads the format of docs/file-format.md independently. (If Python reports
`future feature annotations is not defined`, it is too old.)

Files are verified before anything is written. Exit codes: 0 done, 1 database, 2 bucket or directory, 3
damaged or incomplete files, 4 usage, 130 cancelled.
"""

from __future__ import annotations

import argparse
import bisect
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
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import quote, unquote

EXIT_DATABASE, EXIT_BUCKET, EXIT_FILES, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 3, 4, 130
OLDEST_PYTHON = (3, 9)
FOOTER = struct.Struct("<12s2sHBQ32sI10s")
FOOTER_START = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + struct.pack("<H", 49)
READ_BYTES = 1 << 18
PIECE_BYTES = 4 << 20
PART_BYTES = 16 << 20
"""Objects up to this size are uploaded in one request, larger ones in parts of this size or more; one part is
in memory per thread."""
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
POINT_ID = re.compile(r"[0-9]{8}_[0-9]{6}")
FILE_NAME = re.compile(
    r"(?P<kind>db|minio)_(?P<source>.+)_(?P<id>[0-9]{8}_[0-9]{6})\.(?:sql|tar)\.gz(?:\.recipe\.gz)?"
)
KIND_PREFIXES = {"database": "db", "bucket": "minio"}
KIND_SUFFIXES = {"db": ".sql.gz", "minio": ".tar.gz"}
ENCRYPTED_SUFFIX = ".age"
PACK_NAME = re.compile(r"[0-9]{8}_[0-9]{6}-[0-9]{4,9}(?:\.age)?")
RECIPE_LINE = re.compile(rb"([0-9A-Za-z_.-]{1,100}) ([0-9]{1,18}) ([0-9]{1,18})")
RECIPE_END = re.compile(rb"# sha256 ([0-9a-f]{64})")
RECIPE_SUFFIX = ".recipe.gz"
PACKED_VERSION = 2
"""Of a footer: its digest is that of the index."""
RECIPE_PACK = re.compile(
    rb"# pack ([0-9A-Za-z_.-]{1,100}) ([0-9]{1,18}) ([0-9a-f]{64})"
    rb"(?: ([0-9]{1,18}) ([0-9a-f]{64}) [0-9a-f]{64})?"
)
RECIPE_BYTES = re.compile(rb"# bytes ([0-9]{1,19})")
SHA256 = re.compile(r"[0-9a-f]{64}")
STORED_LIMIT_BYTES = RECIPE_LIMIT_BYTES = 256 << 20
"""Four times the largest pack, and the lines of about eight million pieces. A store can hold anything."""
LIST_LIMIT_BYTES = 64 << 20
PLACE_LENGTH = 4
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
    r"(?: (?:NO)?(?:SUPERUSER|INHERIT|CREATEROLE|CREATEDB|LOGIN|REPLICATION|BYPASSRLS)"
    r"| CONNECTION LIMIT -?[0-9]+| VALID UNTIL '[^'\\]*')*;"
)
ROLE_NAME = r'(?:"(?:[^"]|"")+"|[a-z_\u0080-\U0010ffff][a-z0-9_$\u0080-\U0010ffff]*)'
ROLE_STRING = r"(?:'(?:[^'\\]|'')*'|E'(?:[^'\\]|''|\\.)*')"
ATTRIBUTES = re.compile(rf"ALTER ROLE {ROLE_NAME} WITH{ROLE_WORDS.pattern}")
ROLE_SETTING = re.compile(
    rf"(?:ALTER ROLE (?P<name>{ROLE_NAME}) SET {ROLE_NAME}(?:\.{ROLE_NAME})*"
    rf" TO {ROLE_STRING}(?:, {ROLE_STRING})*"
    rf"|COMMENT ON ROLE (?P<described>{ROLE_NAME}) IS {ROLE_STRING});"
)
MEMBERSHIP = re.compile(
    rf"(?P<grant>GRANT (?P<role>{ROLE_NAME}) TO (?P<member>{ROLE_NAME})"
    r"(?: WITH (?:ADMIN|INHERIT|SET) (?:OPTION|TRUE|FALSE)"
    r"(?:, (?:ADMIN|INHERIT|SET) (?:OPTION|TRUE|FALSE))*)?)"
    rf"(?: GRANTED BY {ROLE_NAME})?;"
)
SESSION_OPTIONS = (
    "-c DateStyle=ISO,MDY -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=3"
    " -c bytea_output=hex -c standard_conforming_strings=on"
    " -c array_nulls=on -c transform_null_equals=off -c role=none -c default_transaction_read_only=off"
    " -c statement_timeout=0 -c lock_timeout=0"
    " -c idle_in_transaction_session_timeout=0 -c tcp_keepalives_idle=60"
)
"""Overrides settings of the database and the role. For a pooler that refuses options, set an empty PGOPTIONS
in the environment."""
LEADING_RESTRICT = re.compile(rb"\A((?:--[^\n]*\n|\s)*)\\restrict [A-Za-z0-9]+\n")
BEGIN_NAME = re.compile(rb"(?<![A-Za-z0-9_$\x80-\xff])begin(?![A-Za-z0-9_$\x80-\xff])")
ROW_SECURITY = re.compile(rb"^SET row_security = off;\n", re.MULTILINE)
"""It has no effect on a load, since policies come after the rows, but makes refreshing a materialized view
over such a table fail."""
TRAILING_UNRESTRICT = re.compile(rb"\n\\unrestrict [A-Za-z0-9]+\s*\Z")
FIRST_PSQL_WITH_RESTRICT = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
HINT_FILES = (
    "Nothing was written. Use another copy of this file, or another recovery point (`list` shows them)."
)
HINT_COPY = (
    "Nothing was written. Download the file again, or use another store or another recovery point (`list` "
    "shows them)."
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
    """An error message for the operator, with its exit code."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class ObjectRefusedError(RecoverError):
    """The S3 server refuses this object; others may succeed."""


def damaged(message: str) -> RecoverError:
    """Return the error for a file with unexpected contents."""
    return RecoverError(EXIT_FILES, message, HINT_FILES)


def say(text: str = "") -> None:
    """Print a line to stdout immediately."""
    sys.stdout.write(write_out(text) + "\n")
    sys.stdout.flush()


def write_out(text: str) -> str:
    """Return the text with control characters escaped: names and keys come from untrusted sources."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode()
        for sign in text
    )


# --- Files of a recovery point ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Footer:
    """The last 71 bytes of an artifact."""

    index_offset: int
    content_sha256: str
    """Digest of what precedes the footer; of an artifact in packs, digest of the index."""
    offset: int
    is_of_packs: bool = False


@dataclass(frozen=True)
class DumpRecord:
    """A dump's record of itself."""

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
    source_name: str = ""
    missing_tables: list[str] = field(default_factory=list[str])
    excluded_tables: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def describe_left_out(self) -> str:
        """Return what the operator excluded from the dump; empty if nothing."""
        names = [f"{table.get('schema_name')}.{table.get('name')}" for table in self.excluded_tables]
        return f"; excluded by BACKUP_EXCLUDE_TABLE_DATA: the rows of {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class Table:
    """A table of a dump."""

    schema_name: str
    name: str
    rows: int
    size_bytes: int
    sha256: str
    offset: int
    length: int
    expected_rows: int | None = None
    root: str = ""
    """The partitioned table through which the rows are loaded; empty if they are loaded directly."""

    @property
    def label(self) -> str:
        """`schema.name`, for messages."""
        return f"{self.schema_name}.{self.name}"


@dataclass(frozen=True)
class ArchiveRecord:
    """An archive's record of itself."""

    point_id: str
    bucket: str
    listed_at: str
    listed_count: int
    object_count: int
    size_bytes: int
    deleted_count: int
    failed_count: int
    source_name: str = ""
    excluded_patterns: list[str] = field(default_factory=list[str])
    excluded_count: int = 0

    def describe_left_out(self) -> str:
        """Return what the operator excluded from the archive; empty if nothing."""
        return (
            f"; excluded by BACKUP_EXCLUDE_OBJECTS: {self.excluded_count} objects"
            if self.excluded_count
            else ""
        )

    def is_excluded(self, key: str) -> bool:
        """Return whether the operator excluded this key: by key, by prefix ending in a slash, or by glob."""
        return any(
            key == pattern
            or (pattern.endswith("/") and key.startswith(pattern))
            or (set("*?[") & set(pattern) and fnmatch.fnmatchcase(key, pattern))
            for pattern in map(str, self.excluded_patterns)
        )


@dataclass(frozen=True)
class Entry:
    """An object of an archive."""

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
    """Return the value in this JSON text, ignoring unknown fields.

    Exit 3 if a field is missing or has another type.
    """
    try:
        value = json.loads(text)
        value = value[within] if within else value
        chosen = {}
        for known in fields(kind):  # pyright: ignore[reportArgumentType] - a class, called for its value
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
    """Open the file for reading.

    Exit 3 if it cannot be opened or is not a regular file: a FIFO may block indefinitely.
    """
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


@dataclass(frozen=True)
class StatedPack:
    """A pack as a recipe of the backup directory states it: its stored bytes, and what they hold."""

    stored: tuple[int, str]
    """Size and SHA-256."""
    plain: tuple[int, str]


class PackedFile(io.RawIOBase):
    """An artifact whose bytes lie in the packs that its recipe names; reads like a file.

    An encrypted pack is read in its plain form, `NAME` beside or instead of `NAME.age`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._folder = path.parent / "packs"
        self.packs: dict[str, StatedPack] = {}
        """What is stated of each pack, by its name."""
        self._names: list[str] = []
        self._starts, self._offsets = array("Q", [0]), array("Q")
        self._position = 0
        self._open: tuple[str, BinaryIO] | None = None
        try:
            self._read_recipe(path)
        except RecoverError as error:
            raise damaged(f"the recipe cannot be used: {error}") from None

    def _read_recipe(self, path: Path) -> None:
        size_bytes = -1
        with open_file(path) as file:
            for line in read_lines(limit_bytes(read_members(file, 0, os.fstat(file.fileno()).st_size))):
                if size_bytes >= 0:
                    raise damaged("it goes on after its last line")
                if (place := RECIPE_LINE.fullmatch(line)) is not None:
                    name, offset, length = place[1].decode(), int(place[2]), int(place[3])
                    if name not in self.packs or offset + length > self.packs[name].plain[0]:
                        raise damaged(f"it does not state the pack {name}, or another size of it")
                    self._names.append(name)
                    self._offsets.append(offset)
                    self._starts.append(self._starts[-1] + length)
                elif (pack := RECIPE_PACK.fullmatch(line)) is not None:
                    stored = (int(pack[2]), pack[3].decode())
                    plain = (int(pack[4]), pack[5].decode()) if pack[4] else stored
                    self.packs[pack[1].decode()] = StatedPack(stored, plain)
                elif (end := RECIPE_BYTES.fullmatch(line)) is not None:
                    size_bytes = int(end[1])
                else:
                    raise damaged("it has a line of another form")
        if size_bytes != self._starts[-1] or any(not PACK_NAME.fullmatch(name) for name in self.packs):
            raise damaged("it is cut short")

    def list_places(self) -> Iterator[tuple[str, int, int]]:
        """Yield pack, offset and length of each part."""
        for number, name in enumerate(self._names):
            yield name, self._offsets[number], self._starts[number + 1] - self._starts[number]

    def check_packs(self) -> None:
        """Read every pack; exit 3 if one is missing or not the one that the recipe states."""
        for name in self.packs:
            self.read_pack(name)

    def find_path(self, name: str) -> Path:
        """Return where the pack lies: in its plain form, if there is one."""
        plain = self._folder / name.removesuffix(ENCRYPTED_SUFFIX)
        return plain if plain.exists() else self._folder / name

    def read_pack(self, name: str) -> bytes:
        """Return the bytes of the pack as it lies there; exit 3 if it is missing or altered."""
        path, stated = self.find_path(name), self.packs[name]
        try:
            return read_stored(path, *(stated.stored if path.name == name else stated.plain))
        except RecoverError:
            raise damaged(f"the pack {name} is missing or altered") from None

    def list_encrypted(self) -> list[str]:
        """Return the packs that lie there encrypted only."""
        return [name for name in self.packs if self.find_path(name).name.endswith(ENCRYPTED_SUFFIX)]

    def readinto(self, buffer: Any, /) -> int:
        """Read from one pack into the buffer; return the number of bytes."""
        number = bisect.bisect_right(self._starts, self._position) - 1
        if number >= len(self._names):
            return 0
        skipped = self._position - self._starts[number]
        length = self._starts[number + 1] - self._starts[number] - skipped
        view = memoryview(buffer)[:length]
        file = self._open_pack(self._names[number])
        file.seek(self._offsets[number] + skipped)
        data = read_file(file, len(view))
        if not data:
            raise damaged(f"the pack {self._names[number]} is too short")
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _open_pack(self, name: str) -> BinaryIO:
        if self._open is None or self._open[0] != name:
            if self._open is not None:
                self._open[1].close()
            path = self.find_path(name)
            if path.name.endswith(ENCRYPTED_SUFFIX):
                raise make_key_error("the packs are encrypted", "Give the directory, and --identity FILE.")
            self._open = (name, open_file(path))
        return self._open[1]

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to this position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = base + offset
        return self._position

    def close(self) -> None:
        """Close the open pack."""
        if self._open is not None:
            self._open[1].close()
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def remove_suffix(file_name: str) -> str:
    """Return the name of the artifact's file: without the ending of a recipe."""
    return file_name.removesuffix(RECIPE_SUFFIX)


def open_artifact(path: Path) -> BinaryIO:
    """Open a dump or an archive for reading, a file or one in packs; errors as in `open_file`."""
    if path.name.endswith(RECIPE_SUFFIX):
        return cast("BinaryIO", io.BufferedReader(PackedFile(path)))
    return open_file(path)


def measure_file(path: Path) -> int | None:
    """Return the file's size; None if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_file(file: BinaryIO, size: int) -> bytes:
    """Return the next bytes; a read error of the disk counts as damage."""
    try:
        return file.read(size)
    except OSError as error:
        raise damaged(f"the disk cannot read the file: {error.strerror}") from None


def read_footer(file: BinaryIO) -> Footer:
    """Return the footer's contents; exit 3 if the file does not end with one."""
    offset = file.seek(0, os.SEEK_END) - FOOTER.size
    if offset >= 0:
        file.seek(offset)
        start, mark, length, version, index_offset, digest, checksum, end = FOOTER.unpack(
            read_file(file, FOOTER.size)
        )
        expected = zlib.crc32(struct.pack("<BQ", version, index_offset) + digest)
        shape = (start, mark, length, checksum, end)
        is_whole = shape == (FOOTER_START, b"SB", 45, expected, b"\x03\x00" + bytes(8))
        if is_whole and version in {1, PACKED_VERSION} and index_offset < offset:
            return Footer(index_offset, digest.hex(), offset, is_of_packs=version == PACKED_VERSION)
    raise damaged(
        "the file does not end with a backup's footer: it is truncated, altered, or from another program"
    )


def read_members(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Yield the decompressed gzip members in exactly this range, in pieces of at most 4 MiB.

    Exit 3 if they are incomplete or damaged.
    """
    if not (0 <= offset <= LENGTH_LIMIT and 0 <= length <= LENGTH_LIMIT):
        raise damaged("the index contains an invalid position")
    file.seek(offset)
    member = zlib.decompressobj(wbits=31)
    is_inside = False
    while length > 0:
        chunk = read_file(file, min(length, READ_BYTES))
        if not chunk:
            raise damaged("the file ends too early")
        length -= len(chunk)
        plain = b""
        while chunk or len(plain) == PIECE_BYTES:
            try:
                plain = member.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise damaged(f"the compressed data is damaged ({error})") from None
            is_inside = True
            if plain:
                yield plain
            chunk = member.unconsumed_tail
            if member.eof:
                chunk, plain, is_inside = member.unused_data, b"", False
                member = zlib.decompressobj(wbits=31)
    if length < 0 or is_inside:
        raise damaged("the data ends inside a gzip member, or the index contains an invalid position")


def read_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines; exit 3 if the last one is incomplete."""
    unfinished: list[bytes] = []
    size = 0
    for block in blocks:
        first, *lines = block.split(b"\n")
        unfinished.append(first)
        size += len(first)
        if size > LINE_LIMIT_BYTES:
            raise damaged("a line of the index is too long")
        if lines:
            yield b"".join(unfinished)
            yield from lines[:-1]
            unfinished, size = [lines[-1]], len(lines[-1])
    if size:
        raise damaged("the index ends inside a line")


class Dump:
    """A dump file with its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: list[Table] = []
        self.roles: list[str] = []
        record: DumpRecord | None = None
        with open_artifact(path) as file:
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
            raise damaged("the file contains no record of a database dump")
        self.record = record

    def read_contents(self) -> Iterator[bytes]:
        """Yield pg_dump's output; if this ends without an error, all of it is as captured."""
        record = self.record
        text = _SchemaText()
        position = rows_and_marks = 0
        with open_artifact(self.path) as file:
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
            raise damaged("the tables do not match the counts in the record")

    def read_references(self) -> Iterator[str]:
        """Yield the object keys that the database refers to, in byte order."""
        start = self.record.content_length
        with open_artifact(self.path) as file:
            for line in read_lines(read_members(file, start, self.footer.index_offset - start)):
                try:
                    yield from json.loads(line[len("-- schedgen-backups: ") :].decode("utf-8", "replace"))[
                        "references"
                    ]
                except (ValueError, KeyError, TypeError):
                    raise damaged("the list of references is damaged") from None

    def find_gaps(self) -> list[str]:
        """Return what the dump lacks compared with its snapshot."""
        gaps = [f"the dump lacks the table {name}" for name in self.record.missing_tables]
        counted = [table for table in self.tables if table.expected_rows is not None]
        return gaps + [
            f"{table.label}: {table.rows} of {table.expected_rows} rows"
            for table in counted
            if table.rows != table.expected_rows
        ]


class Quotes:
    """Tracks whether a line starts outside of strings, names, bodies and comments.

    Text inside of them comes from users.
    """

    def __init__(self) -> None:
        self._closing = b""
        self._is_escaped = False

    def begins_outside(self, line: bytes) -> bool:
        """Return whether the next line, given with its newline, starts outside."""
        is_outside = not self._closing
        self.find_outside(line)
        return is_outside

    def find_outside(self, line: bytes) -> list[tuple[int, int]]:
        """Return start and end of the next line's parts that are outside, in order."""
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
    """Yield the text changed so that psql reads it like the server.

    psql would replace `:"HOST"`, which ends an array's slice, by a variable. It takes the bare name `begin`
    in CREATE FUNCTION for the start of a body, and waits for its END.
    """
    unfinished = b""
    quotes = Quotes()
    for block in blocks:
        *lines, unfinished = (unfinished + block).split(b"\n")
        yield b"".join(quote_line(line + b"\n", quotes) for line in lines)
    yield quote_line(unfinished, quotes)


def quote_line(line: bytes, quotes: Quotes) -> bytes:
    """Return the next line as `quote_for_psql` yields it."""
    quoted = b""
    done = 0
    for start, end in quotes.find_outside(line):
        part = BEGIN_NAME.sub(b'"begin"', line[start:end])
        is_variable = part.endswith(b":") and not part.endswith(b"::") and line[end : end + 1] in {b'"', b"'"}
        quoted += line[done:start] + part + (b" " if is_variable else b"")
        done = end
    return quoted + line[done:]


def leave_out_commits(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text after the last table without pg_dump's BEGIN and COMMIT around large objects.

    These would end our transaction.
    """
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
    """Computes the digest of a dump without its rows and without the lines that differ between dumps."""

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
    """Yield a table's COPY statement, rows and end line; return their size in bytes.

    Exit 3 if the rows do not match the index.
    """
    blocks = read_members(file, table.offset, table.length)
    head = next(blocks, b"")
    statement = COPY.match(head)
    named = f"{_unquote(statement['schema'])}.{_unquote(statement['name'])}" if statement is not None else ""
    if statement is None or named != (table.root or table.label):
        raise damaged(f"table {table.label} is not where the index says")
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
        raise damaged(f"the rows of table {table.label} differ from what was captured")
    yield held
    return len(statement[0]) + size_bytes + len(held)


def _unquote(identifier: bytes) -> str:
    plain = identifier[1:-1].replace(b'""', b'"') if identifier.startswith(b'"') else identifier
    return plain.decode("utf-8", "replace")


class BlockReader(io.RawIOBase):
    """A forward-only file over a stream of blocks, for tarfile."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._buffer = b""

    def read(self, size: int = 512) -> bytes:
        """Return this many bytes; fewer only at the end."""
        while len(self._buffer) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._buffer += block
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def is_rest_empty(self) -> bool:
        """Return whether only zeros remain."""
        return not any(block.strip(b"\0") for block in itertools.chain([self._buffer], self._blocks))

    def read_exactly(self, size: int) -> Iterator[bytes]:
        """Yield this many bytes; exit 3 if there are fewer."""
        while size > 0:
            data = self._buffer or next(self._blocks, b"")
            if not data:
                raise damaged("an entry of the file ends too early")
            self._buffer = data[size:]
            yield data[:size]
            size -= len(data[:size])


class HeaderReader(io.RawIOBase):
    """A stream for tarfile that limits the size of headers, whose length the file itself states."""

    def __init__(self, reader: BlockReader) -> None:
        super().__init__()
        self._reader = reader
        self._left = LINE_LIMIT_BYTES

    def read(self, size: int = 512) -> bytes:
        """Return this many bytes; exit 3 if the header is longer than any valid one."""
        self._left -= size
        if self._left < 0:
            raise damaged("the header of an object is too long")
        return self._reader.read(size)


class Archive:
    """An archive file with its record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_artifact(path) as file:
            self.footer = read_footer(file)
        self.record = pick(ArchiveRecord, next(self._read_index(), b""))

    def read_entries(self) -> Iterator[Entry]:
        """Yield the index, in the order of the file."""
        position = 0
        for line in itertools.islice(self._read_index(), 1, None):
            text = line.decode("utf-8", "surrogateescape")
            if self.footer.is_of_packs:
                # Each object begins where the one before ends, so that equal objects have equal lines.
                text = f'{text[:-1]},"offset":{position}}}'
            entry = pick(Entry, text)
            position += entry.length
            yield entry

    def read_object(self, file: BinaryIO, entry: Entry) -> Iterator[bytes]:
        """Yield an object's bytes; without an error at the end, they are as captured."""
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
            raise damaged(f"the position of object {entry.key!r} contains something else")
        digest = hashlib.sha256()
        for block in reader.read_exactly(entry.size_bytes):
            digest.update(block)
            yield block
        rest = reader.read(1024)
        if digest.hexdigest() != entry.sha256 or rest != bytes(-entry.size_bytes % 512):
            raise damaged(f"the bytes of object {entry.key!r} differ from what was captured")

    def check(self) -> None:
        """Check that every object is as captured and the file contains nothing else; exit 3 otherwise."""
        count = size_bytes = position = 0
        with open_artifact(self.path) as file:
            for entry in self.read_entries():
                if entry.offset != position:
                    raise damaged(f"there is data before object {entry.key!r} that is not in the index")
                if not is_path_inside(entry.member_name):
                    raise damaged(f"the archive's name for object {entry.key!r} is not a safe path")
                size_bytes += sum(len(block) for block in self.read_object(file, entry))
                position += entry.length
                count += 1
        if (position, count, size_bytes) != (
            self.footer.index_offset,
            self.record.object_count,
            self.record.size_bytes,
        ):
            raise damaged("the objects do not match the counts in the record")

    def find_gaps(self) -> list[str]:
        """Return what the archive lacks compared with the bucket's listing."""
        record = self.record
        lacking = record.listed_count - record.object_count - record.deleted_count
        return (
            [f"{record.listed_count} objects were listed, {record.failed_count or lacking} could not be read"]
            if record.failed_count or lacking
            else []
        )

    def _read_index(self) -> Iterator[bytes]:
        with open_artifact(self.path) as file:
            reader = BlockReader(
                read_members(file, self.footer.index_offset, self.footer.offset - self.footer.index_offset)
            )
            try:
                info = tarfile.TarInfo.frombuf(reader.read(512), "utf-8", "surrogateescape")
            except tarfile.TarError:
                raise damaged("the file contains no index of an archive") from None
            if info.name != f"{RESERVED}/index.jsonl":
                raise damaged("the file contains no index of an archive")
            yield from read_lines(reader.read_exactly(info.size))
            if not reader.is_rest_empty():
                raise damaged("there is unexpected data after the index")


def is_path_inside(name: str) -> bool:
    """Return whether this relative path stays inside its directory."""
    return all(
        part not in {"", ".", ".."} and "\0" not in part and "\\" not in part for part in name.split("/")
    )


@dataclass(frozen=True)
class Point:
    """A recovery point: the files with one id."""

    point_id: str
    directory: Path
    files: dict[str, Path]
    """`db` and `minio` → the file, if there is one."""
    part: str = ""
    """Which part of a point of several databases or buckets this is; empty for a whole point."""
    kinds: tuple[str, ...] = ("db", "minio")
    """What it has to have, if it is committed."""

    @property
    def label(self) -> str:
        """What the operator calls it: ID, or ID/PART."""
        return f"{self.point_id}/{self.part}" if self.part else self.point_id

    @property
    def manifest_path(self) -> Path:
        """The path of the manifest, which exists if the point is committed."""
        return self.directory / f"manifest_{self.point_id}.json"

    @property
    def is_committed(self) -> bool:
        """Whether the backup was finished, which means that it has a manifest."""
        return self.manifest_path.exists()

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest; empty if there is none. Exit 3 if it is damaged."""
        if not self.is_committed:
            return {}
        try:
            with open_file(self.manifest_path) as file:
                manifest = json.loads(file.read())
            named = {
                entry["file_name"]: (entry["size_bytes"], entry["sha256"]) for entry in manifest["artifacts"]
            }
            references = manifest["references"]
            if self.part:
                # Only what concerns this part.
                names = {path.name for path in self.files.values()}
                named = {name: stated for name, stated in named.items() if name in names}
                references = next(
                    part["references"]
                    for part in manifest["parts"]
                    if self.part == (part["database"] or part["bucket"])
                )
            if not named or not all(isinstance(digest, str) for _size, digest in named.values()):
                raise ValueError
            return {
                "files": named,
                "missing": references.get("missing_sha256", ""),
                "verdicts": references.get("verdict_counts", {}),
            }
        except (
            RecoverError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            StopIteration,
        ):
            hint = (
                "The other files can be verified without it: `verify FILE`. To restore without the manifest, "
                "move it away and give the id."
            )
            raise RecoverError(EXIT_FILES, f"{self.manifest_path.name} is damaged", hint) from None

    def get(self, kind: str) -> Path:
        """Return the file of this kind; exit 3 if there is none."""
        if kind not in self.files:
            raise damaged(f"recovery point {self.label} has no {kind}_… file")
        return self.files[kind]

    def describe(self) -> str:
        """Return `committed`, or the reason why not."""
        try:
            named = self.read_manifest().get("files", {})
        except RecoverError:
            return "MANIFEST DAMAGED"
        sizes = {path.name: measure_file(path) for path in self.files.values()}
        if any(sizes.get(name) != size for name, (size, _digest) in named.items()):
            return "FILE MISSING OR TRUNCATED"
        return "committed" if named else "not committed"


def find_points(directory: Path) -> list[Point]:
    """Return the directory's recovery points, oldest first, without files of other programs.

    Exit 4 if it is not a directory.
    """
    if not directory.is_dir():
        raise RecoverError(
            EXIT_USAGE, f"{directory} is not a directory", "Give the directory of the files, BACKUP_DIR."
        )
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.glob("manifest_*.json")):
        if POINT_ID.fullmatch(path.stem[len("manifest_") :]):
            found[path.stem[len("manifest_") :]] = {}
    named = [
        (name, path)
        for path in sorted(directory.glob("*.gz"))
        if (name := FILE_NAME.fullmatch(path.name)) and path.is_file()
    ]
    known = found.keys() | {name["id"] for name, path in named if has_footer(path)}
    divided = {point_id: parts for point_id in known if (parts := read_parts(directory, point_id))}
    several: dict[str, dict[tuple[str, str], Path]] = {}
    for name, path in named:
        if name["id"] in divided:
            several.setdefault(name["id"], {})[name["kind"], unquote(name["source"])] = path
        elif name["id"] in known:
            files = found.setdefault(name["id"], {})
            if name["kind"] in files:
                raise RecoverError(
                    EXIT_USAGE,
                    f"{files[name['kind']].name} and {path.name} have the same id",
                    "Move one of the two to another directory.",
                )
            files[name["kind"]] = path
    whole = [
        Point(point_id, directory, found.get(point_id, {}))
        for point_id in known | found.keys()
        if point_id not in divided
    ]
    parts = [
        make_part(point_id, directory, names, several.get(point_id, {}))
        for point_id, listed in divided.items()
        for names in listed
    ]
    return sorted((*whole, *parts), key=lambda point: point.point_id)


def make_part(
    point_id: str, directory: Path, names: tuple[str, str], files: dict[tuple[str, str], Path]
) -> Point:
    """Return a part of a point, with what it has of the point's files."""
    wanted = {kind: name for kind, name in zip(("db", "minio"), names, strict=True) if name}
    own = {kind: path for kind, name in wanted.items() if (path := files.get((kind, name))) is not None}
    return Point(point_id, directory, own, names[0] or names[1], tuple(sorted(wanted)))


def read_parts(directory: Path, point_id: str) -> list[tuple[str, str]]:
    """Return database and bucket of each part of a committed point; none for a point of one part.

    A manifest that cannot be read is reported when its point is used.
    """
    try:
        with open_file(directory / f"manifest_{point_id}.json") as file:
            parts = json.loads(file.read()).get("parts", [])
        return [(str(part["database"]), str(part["bucket"])) for part in parts]
    except (RecoverError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def has_footer(path: Path) -> bool:
    """Return whether the file ends with our footer; files of the old script do not."""
    try:
        with open_artifact(path) as file:
            read_footer(file)
    except RecoverError:
        return False
    return True


def choose_point(directory: Path, point_id: str | None) -> Point:
    """Return the point with this id, or the newest committed one; exit 4 if there is none."""
    wanted, _slash, part = (point_id or "latest").partition("/")
    is_newest = wanted == "latest"
    points = [
        point
        for point in find_points(directory)
        if (point.is_committed if is_newest else point.point_id == wanted) and part in {"", point.part}
    ]
    newest = [point.label for point in points if point.point_id == points[-1].point_id]
    if len(newest) > 1:
        raise RecoverError(
            EXIT_USAGE,
            f"recovery point {points[-1].point_id} has several parts",
            f"Give one of them: {', '.join(newest)}.",
        )
    if not points:
        what = "committed recovery point" if is_newest and not part else f"recovery point {point_id}"
        raise RecoverError(
            EXIT_USAGE,
            f"no {what} in {directory}",
            "`list` shows the points; give the id to use one that is not committed.",
        )
    return points[-1]


# --- A downloaded store -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A copy of a recovery point in the downloaded folder of a site, as its two plain files say."""

    point_id: str
    site: Path
    problem: str = ""
    """Why it cannot be used; empty if `packs.json` is the one that was committed."""
    is_committed: bool = True
    packs: dict[str, tuple[int, str]] = field(default_factory=dict[str, "tuple[int, str]"])
    """Size and SHA-256 of each pack's stored bytes, by its name."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict[str, "tuple[int, str]"])
    """The same of the files in the folder of the point."""
    part: str = ""
    """The wanted part of a point of several databases or buckets."""

    def find_missing(self, names: Iterable[str]) -> list[str]:
        """Return which of these packs are missing or have another size than they had in the store."""
        return [name for name in names if measure_file(self.site / "packs" / name) != self.packs[name][0]]

    def read_pack(self, name: str, identity: Path | None) -> bytes:
        """Return the plain bytes of a pack; exit 3 if it is missing or altered."""
        return decrypt(name, read_stored(self.site / "packs" / name, *self.packs[name]), identity)

    def read_file(self, name: str, identity: Path | None) -> bytes:
        """Return the plain bytes of a file in the folder of the point; exit 3 if it is missing or altered."""
        for stored in (name, f"{name}{ENCRYPTED_SUFFIX}"):
            if stored in self.files:
                path = self.site / "points" / self.point_id / stored
                return decrypt(stored, read_stored(path, *self.files[stored]), identity)
        raise damaged_copy(f"the copy of {self.point_id} has no {name}")

    def describe(self) -> str:
        """Return `committed` with number and size of the packs, or the reason why it cannot be used."""
        if self.problem:
            return self.problem
        missing = self.find_missing(self.packs)
        size_bytes = sum(size for size, _digest in self.packs.values())
        what = f"{len(self.packs)} packs, {size_bytes} bytes"
        return f"{f'{len(missing)} PACKS MISSING OR TRUNCATED' if missing else 'committed'}  {what}"


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a recovery point, as the manifest in a copy names it."""

    kind: str
    file_name: str
    size_bytes: int
    sha256: str


def damaged_copy(message: str) -> RecoverError:
    """Return the error for a file of a copy that is missing or altered."""
    return RecoverError(EXIT_FILES, message, HINT_COPY)


def is_site(directory: Path) -> bool:
    """Return whether this is the downloaded folder of a site, not a directory of plain files."""
    return (directory / "points").is_dir()


def refuse_whole_store(directory: Path) -> None:
    """Exit 4 if the directory is the whole store, which has a folder for each site."""
    sites = sorted(path.parent.name for path in directory.glob("*/points") if path.is_dir())
    if sites and not list(directory.glob("manifest_*.json")):
        raise RecoverError(
            EXIT_USAGE,
            f"{directory} is a store, with the copies of {len(sites)} sites in folders of their own",
            f"Give the folder of a site: {', '.join(str(directory / site) for site in sites[:3])}.",
        )


def find_copies(site: Path) -> list[Copy]:
    """Return the copies in the folder of a site, oldest first, also those that cannot be used."""
    names = sorted(path.name for path in (site / "points").iterdir() if path.is_dir())
    return [read_copy(site, name) for name in names if POINT_ID.fullmatch(name)]


def read_copy(site: Path, point_id: str) -> Copy:
    """Return the copy as its commit mark and its pack list say."""
    folder = site / "points" / point_id
    if measure_file(folder / "committed.json") is None:
        problem = "NOT COMMITTED: committed.json is missing"
        return Copy(point_id, site, problem, is_committed=False)
    if measure_file(folder / "packs.json") is None:
        return Copy(point_id, site, "DAMAGED: packs.json is missing")
    try:
        commit = json.loads(read_limited(folder / "committed.json", LIST_LIMIT_BYTES))
        data = read_limited(folder / "packs.json", LIST_LIMIT_BYTES)
        if commit["packs_sha256"] != hashlib.sha256(data).hexdigest():
            return Copy(point_id, site, "DAMAGED: packs.json is not the one that was committed")
        listed = json.loads(data)
        if (commit["point_id"], listed["point_id"]) != (point_id, point_id) or (
            commit["site_id"] != listed["site_id"]
        ):
            return Copy(point_id, site, "DAMAGED: committed.json or packs.json is of another point")
        packs = dict(map(read_stored_file, listed["packs"]))
        files = dict(map(read_stored_file, listed["files"]))
        if not all(PACK_NAME.fullmatch(name) for name in packs):
            raise ValueError
    except (RecoverError, ValueError, KeyError, TypeError, RecursionError):
        return Copy(point_id, site, "DAMAGED: committed.json or packs.json cannot be read")
    return Copy(point_id, site, packs=packs, files=files)


def read_stored_file(entry: dict[str, Any]) -> tuple[str, tuple[int, str]]:
    """Return name, size and digest in an entry of `packs.json`; ValueError if it is not one."""
    name, size_bytes, digest = entry["name"], entry["size_bytes"], entry["sha256"]
    # The name becomes a part of a path.
    if not isinstance(name, str) or not is_path_inside(name) or "/" in name or not SHA256.fullmatch(digest):
        raise ValueError
    if type(size_bytes) is not int or not 0 <= size_bytes <= STORED_LIMIT_BYTES:
        raise ValueError
    return name, (size_bytes, digest)


def choose_copy(site: Path, point_id: str | None) -> Copy:
    """Return the copy of this point, or the newest committed one.

    Exit 4 if there is none, exit 3 if it cannot be used: an older one is never taken instead.
    """
    wanted, _slash, part = (point_id or "latest").partition("/")
    is_newest = wanted == "latest"
    copies = [
        copy for copy in find_copies(site) if (copy.is_committed if is_newest else copy.point_id == wanted)
    ]
    if not copies:
        what = "committed copy" if is_newest else f"copy of recovery point {wanted}"
        raise RecoverError(EXIT_USAGE, f"no {what} in {site}", "`list` shows the copies.")
    if copies[-1].problem:
        raise damaged_copy(f"the copy of {copies[-1].point_id} cannot be used: {copies[-1].problem}")
    return replace(copies[-1], part=part)


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """Return all bytes of the file; exit 3 if it is larger."""
    with open_file(path) as file:
        data = read_file(file, limit_bytes + 1)
    if len(data) > limit_bytes:
        raise damaged_copy(f"{path} is larger than expected")
    return data


def read_stored(path: Path, size_bytes: int, digest: str) -> bytes:
    """Return the stored bytes of a file; exit 3 if they are not the ones that `packs.json` lists."""
    if measure_file(path) is None:
        raise damaged_copy(f"{path} is missing")
    with open_file(path) as file:
        data = read_file(file, size_bytes + 1)
    if (len(data), hashlib.sha256(data).hexdigest()) != (size_bytes, digest):
        raise damaged_copy(f"{path} was altered: its size or digest is not the one in packs.json")
    return data


def make_key_error(message: str, hint: str) -> RecoverError:
    """Return the error for packs or copies that cannot be decrypted with what was given."""
    return RecoverError(EXIT_USAGE, message, hint)


def decrypt(name: str, data: bytes, identity: Path | None) -> bytes:
    """Return the plain bytes of a stored file, by the program age.

    Exit 4 without that program, without a private key, or with a wrong one; exit 3 for what age refuses.
    """
    if not name.endswith(ENCRYPTED_SUFFIX):
        return data
    if identity is None:
        raise make_key_error(
            "the copies are encrypted, and no private key was given",
            "Add --identity FILE, with the private key of one of the recipients.",
        )
    program = shutil.which("age")
    if program is None:
        raise RecoverError(
            EXIT_USAGE,
            "the copies are encrypted, and the program age is not installed on this machine",
            "Install the package age. It is a single program without dependencies: its binary can be copied.",
        )
    if measure_file(identity) is None:
        raise RecoverError(EXIT_USAGE, f"{identity} does not exist", "Give the file of the private key.")
    words = [program, "-d", "-i", str(identity.absolute())]
    done = subprocess.run(words, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        complaint = " ".join(
            (done.stderr.decode("utf-8", "replace").splitlines() or ["no message"])[0].split()
        )
        if "no identity matched" in complaint:
            raise make_key_error(
                f"{identity} is a wrong key: it does not decrypt {name}",
                "Use the private key of one of the recipients.",
            )
        if str(identity.absolute()) in complaint:
            raise RecoverError(
                EXIT_USAGE,
                f"{identity} is not a private key that age can read: {complaint}",
                "Give the file that age-keygen or ssh-keygen wrote.",
            )
        raise damaged_copy(f"{name} cannot be decrypted: {complaint}")
    return done.stdout


def read_stored_manifest(copy: Copy, data: bytes) -> dict[str, StoredArtifact]:
    """Return the artifacts that the manifest of the copy names, by `db` and `minio`.

    Whoever can write to the store and knows a public key can have made it: each name must be one of a file of
    that point, and exit 3 otherwise.
    """
    found: dict[str, StoredArtifact] = {}
    try:
        manifest = json.loads(data)
        for entry in choose_entries(copy, manifest):
            name = FILE_NAME.fullmatch(entry["file_name"])
            is_ours = (
                name is not None
                and is_path_inside(entry["file_name"])
                and "/" not in entry["file_name"]
                and (name["kind"], name["id"]) == (KIND_PREFIXES[entry["kind"]], copy.point_id)
                and remove_suffix(entry["file_name"]).endswith(KIND_SUFFIXES[name["kind"]])
            )
            if name is None or not is_ours or name["kind"] in found or manifest["point_id"] != copy.point_id:
                raise damaged_copy(
                    f"the manifest of the copy of {copy.point_id} names {entry['file_name']!r}, which is not "
                    "a file of that point: somebody else wrote to the store"
                )
            size_bytes, digest = entry["size_bytes"], entry["sha256"]
            if (
                type(size_bytes) is not int
                or not 0 <= size_bytes <= LENGTH_LIMIT
                or not SHA256.fullmatch(digest)
            ):
                raise ValueError
            found[name["kind"]] = StoredArtifact(name["kind"], entry["file_name"], size_bytes, digest)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged_copy(f"the manifest of the copy of {copy.point_id} is damaged") from None
    return found


def choose_entries(copy: Copy, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the artifacts of the wanted part; exit 4 that names the parts if none of several is wanted."""
    entries: list[dict[str, Any]] = manifest["artifacts"]
    parts = {part["database"] or part["bucket"]: part for part in manifest.get("parts", [])}
    if not parts:
        return entries
    if copy.part not in parts:
        raise RecoverError(
            EXIT_USAGE,
            f"recovery point {copy.point_id} has several parts",
            f"Give one of them: {', '.join(f'{copy.point_id}/{name}' for name in parts)}.",
        )
    part = parts[copy.part]
    names = {"database": part["database"], "bucket": part["bucket"]}
    return [entry for entry in entries if names[entry["kind"]] == entry["source_name"]]


class Plan:
    """Where the bytes of artifacts lie in packs: by pack, so that each pack is decrypted once."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self.places: dict[str, array[int]] = {}
        """By pack: number of the artifact, offset there, offset in the pack, length; and so on."""

    def add(self, number: int, artifact: StoredArtifact, recipe: bytes) -> None:
        """Add an artifact whose recipe is this; exit 3 if it is damaged or belongs to another file."""
        position = 0
        digest = ""
        try:
            for line in read_lines(limit_bytes(read_members(io.BytesIO(recipe), 0, len(recipe)))):
                end = RECIPE_END.fullmatch(line)
                place = RECIPE_LINE.fullmatch(line)
                if digest or (end is None and place is None):
                    raise damaged("it has a line of another form")
                if place is not None:
                    pack, offset, length = place[1].decode(), int(place[2]), int(place[3])
                    if pack not in self._copy.packs:
                        raise damaged(f"it names {pack}, which packs.json does not list")
                    if position + length > artifact.size_bytes:
                        raise damaged("it belongs to another file")
                    self.places.setdefault(pack, array("Q")).extend((number, position, offset, length))
                    position += length
                elif end is not None:
                    digest = end[1].decode()
            if (position, digest) != (artifact.size_bytes, artifact.sha256):
                raise damaged("it is cut short or belongs to another file")
        except RecoverError as error:
            raise damaged_copy(f"{artifact.file_name}.recipe.gz: {error}") from None


def limit_bytes(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks; exit 3 if they are larger than any recipe."""
    left = RECIPE_LIMIT_BYTES
    for block in blocks:
        left -= len(block)
        if left < 0:
            raise damaged("it is larger than expected")
        yield block


def open_packed_copy(
    copy: Copy, artifact: StoredArtifact, identity: Path | None, directory: Path
) -> dict[str, str]:
    """Write the recipe that the manifest names; return the name in the store of each of its packs.

    Exit 3 if it is another one, or if the store's recipe does not have the same places.
    """
    name = remove_suffix(artifact.file_name)
    data = copy.read_file(f"{name}.local-recipe.gz", identity)
    if (len(data), hashlib.sha256(data).hexdigest()) != (artifact.size_bytes, artifact.sha256):
        raise damaged_copy(f"{name}.local-recipe.gz is not the recipe that the manifest names")
    path = directory / artifact.file_name
    with make_file(path) as file:
        file.write(data)
    stored = io.BytesIO(copy.read_file(f"{name}.recipe.gz", identity))
    lines = read_lines(limit_bytes(read_members(stored, 0, len(stored.getvalue()))))
    places = (place for line in lines if (place := RECIPE_LINE.fullmatch(line)) is not None)
    names: dict[str, str] = {}
    with PackedFile(path) as packed:
        for (pack, offset, length), place in itertools.zip_longest(packed.list_places(), places):
            theirs = place[1].decode() if place is not None else ""
            if (
                place is None
                or (int(place[2]), int(place[3])) != (offset, length)
                or names.setdefault(pack, theirs) != theirs
                or theirs not in copy.packs
            ):
                raise damaged_copy(f"{name}.recipe.gz belongs to another file or names other packs")
    return names


def write_packs(copy: Copy, path: Path, names: dict[str, str], identity: Path | None) -> int:
    """Write the packs of this recipe beside it, each compared with what it states; return their size.

    Exit 3 if one is missing or altered.
    """
    (path.parent / "packs").mkdir(mode=0o700, exist_ok=True)
    with PackedFile(path) as packed:
        for pack, stated in packed.packs.items():
            data = copy.read_pack(names[pack], identity)
            if (len(data), hashlib.sha256(data).hexdigest()) != stated.plain:
                raise damaged_copy(f"packs/{names[pack]} does not hold the pack {pack}")
            write_plain_pack(path, pack, data)
        return sum(stated.plain[0] for stated in packed.packs.values())


def write_plain_pack(path: Path, pack: str, data: bytes) -> None:
    """Write the plain form of a pack beside this recipe, unless it is there: two recipes can need it."""
    plain = path.parent / "packs" / pack.removesuffix(ENCRYPTED_SUFFIX)
    if not plain.exists():
        with make_file(plain) as file:
            file.write(data)


def check_free(directory: Path, size_bytes: int) -> None:
    """Exit with the code for a full disk if the directory lacks space for these bytes."""
    if shutil.disk_usage(directory).free < size_bytes:
        raise RecoverError(
            EXIT_BUCKET,
            f"{directory} does not have {size_bytes} bytes of free space for the files of the copy",
            "Name a directory on a larger disk: --work PATH.",
        )


def put_together(copy: Copy, kinds: tuple[str, ...], identity: Path | None, directory: Path) -> None:
    """Write the artifacts of these kinds and what describes them into the directory, the manifest last.

    Each pack is read and decrypted once, one at a time. The digests of files are not checked here. An
    artifact that was in packs is so again: its recipe, and the packs in the folder `packs`.
    """
    started = time.monotonic()
    manifest = copy.read_file("manifest.json", identity)
    verification = copy.read_file("verification.json", identity)
    named = read_stored_manifest(copy, manifest)
    artifacts = [named[kind] for kind in kinds if kind in named]
    files = [artifact for artifact in artifacts if not artifact.file_name.endswith(RECIPE_SUFFIX)]
    packed = {
        artifact.file_name: open_packed_copy(copy, artifact, identity, directory)
        for artifact in artifacts
        if artifact not in files
    }
    size_bytes = sum(artifact.size_bytes for artifact in artifacts)
    # Stored packs are a little larger than what they hold.
    in_packs = [name for names in packed.values() for name in names.values()]
    check_free(directory, size_bytes + sum(copy.packs[name][0] for name in in_packs))
    plan = Plan(copy)
    for number, artifact in enumerate(files):
        plan.add(number, artifact, copy.read_file(f"{artifact.file_name}.recipe.gz", identity))
    needed = [*plan.places, *in_packs]
    missing = copy.find_missing(needed)
    if missing:
        raise damaged_copy(
            f"{len(missing)} of {len(needed)} packs are missing or truncated, such as packs/{missing[0]}"
        )
    write_files(plan, copy, files, identity, directory)
    for file_name, names in packed.items():
        size_bytes += write_packs(copy, directory / file_name, names, identity)
    for name, data in (("verification", verification), ("manifest", manifest)):
        with make_file(directory / f"{name}_{copy.point_id}.json") as file:
            file.write(data)
    say(
        f"copied    {len(artifacts)} files, {size_bytes} bytes, out of {len(needed)} packs "
        f"({time.monotonic() - started:.1f} s)"
    )


def write_files(
    plan: Plan, copy: Copy, artifacts: list[StoredArtifact], identity: Path | None, directory: Path
) -> None:
    """Write the artifacts as the plan says; exit 3 if a pack is altered or too short."""
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []
        for artifact in artifacts:
            files.append(stack.enter_context(make_file(directory / artifact.file_name)))
            files[-1].truncate(artifact.size_bytes)
        for pack, places in plan.places.items():
            data = memoryview(copy.read_pack(pack, identity))
            for index in range(0, len(places), PLACE_LENGTH):
                number, position, offset, length = places[index : index + PLACE_LENGTH]
                if offset + length > len(data):
                    raise damaged_copy(f"packs/{pack} is shorter than a recipe says")
                files[number].seek(position)
                files[number].write(data[offset : offset + length])


def find_recipes(point: Point, kinds: tuple[str, ...]) -> list[Path]:
    """Return the recipes of these kinds if packs of one are encrypted; otherwise nothing."""
    recipes = [
        path for kind, path in point.files.items() if kind in kinds and path.name.endswith(RECIPE_SUFFIX)
    ]
    for path in recipes:
        # Verification says what is wrong with it.
        with contextlib.suppress(RecoverError), PackedFile(path) as packed:
            if packed.list_encrypted():
                return recipes
    return []


def decrypt_point(point: Point, recipes: list[Path], identity: Path | None, directory: Path) -> None:
    """Make a directory of the point with its packs in their plain form; what is not encrypted is linked.

    Exit 3 if a pack is missing or altered, exit 4 without a private key that opens it.
    """
    (directory / "packs").mkdir(mode=0o700)
    for path in (point.manifest_path, *point.files.values()):
        if path.exists():
            (directory / path.name).symlink_to(path.absolute())
    for path in recipes:
        with PackedFile(path) as packed:
            # Without a key, this is what can be said.
            packed.check_packs()
            say(f"stored    {path.name}: {len(packed.packs)} packs are as they were written")
    for path in recipes:
        with PackedFile(path) as packed:
            decrypt_packs(packed, identity, directory / path.name)


def decrypt_packs(packed: PackedFile, identity: Path | None, recipe: Path) -> None:
    """Write the packs in their plain form beside this recipe; plain ones are linked."""
    check_free(recipe.parent, sum(stated.plain[0] for stated in packed.packs.values()))
    encrypted = packed.list_encrypted()
    for name, stated in packed.packs.items():
        if name not in encrypted:
            link_pack(packed.find_path(name), recipe.parent)
            continue
        data = decrypt(name, packed.read_pack(name), identity)
        if (len(data), hashlib.sha256(data).hexdigest()) != stated.plain:
            raise damaged(f"the pack {name} does not hold what its recipe states")
        write_plain_pack(recipe, name, data)


def link_pack(path: Path, directory: Path) -> None:
    """Link a plain pack into the directory; two recipes can need it."""
    link = directory / "packs" / path.name
    if not link.is_symlink():
        link.symlink_to(path.absolute())


@contextlib.contextmanager
def open_directory(options: argparse.Namespace, kinds: tuple[str, ...]) -> Generator[Path, None, None]:
    """Provide the directory of the point's files within the block.

    Of a downloaded store, and of encrypted packs, it is a temporary one.
    """
    if not is_site(options.directory):
        refuse_whole_store(options.directory)
        point = choose_point(options.directory, options.id)
        recipes = find_recipes(point, kinds)
        if not recipes:
            yield options.directory
            return
        with tempfile.TemporaryDirectory(prefix="recover-", dir=options.work) as folder:
            decrypt_point(point, recipes, options.identity, Path(folder))
            yield Path(folder)
        return
    copy = choose_copy(options.directory, options.id)
    with tempfile.TemporaryDirectory(prefix="recover-", dir=options.work) as folder:
        put_together(copy, kinds, options.identity, Path(folder))
        yield Path(folder)


# --- Verification -----------------------------------------------------------------------------------------


def check_stored(path: Path, named: dict[str, tuple[int, str]]) -> None:
    """Check the file's bytes against its footer, and against the manifest's entry if there is one.

    Of an artifact in packs, the file is its recipe, and every pack is read. Exit 3 otherwise.
    """
    is_recipe = path.name.endswith(RECIPE_SUFFIX)
    if is_recipe:
        with PackedFile(path) as packed:
            packed.check_packs()
    whole = hashlib.sha256()
    with open_artifact(path) as file:
        footer = read_footer(file)
        # What lies in packs is not digested as a whole, only its index; verify_file unpacks the rest.
        start = footer.index_offset if footer.is_of_packs else 0
        if digest_range(file, start, footer.offset) != footer.content_sha256:
            raise damaged("the file's bytes differ from what was written")
    with open_file(path) as file:
        for block in iter(functools.partial(read_file, file, PIECE_BYTES), b""):
            whole.update(block)
    # The manifest of a point in packs names the recipe, not a file that was put together from it.
    is_named = bool(named) and (path.name in named or f"{path.name}{RECIPE_SUFFIX}" not in named)
    if is_named and named.get(path.name) != (measure_file(path), whole.hexdigest()):
        raise damaged("the file does not match the manifest: one of the two was swapped or altered")


def digest_range(file: BinaryIO, start: int, end: int) -> str:
    """Return the SHA-256 of these bytes."""
    digest = hashlib.sha256()
    file.seek(start)
    while start < end and (block := read_file(file, min(end - start, PIECE_BYTES))):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def verify_file(path: Path, named: dict[str, tuple[int, str]]) -> Dump | Archive:
    """Check that the file is as captured, in bytes and contents, and print a summary.

    Exit 3, with the file's name, otherwise.
    """
    started = time.monotonic()
    name = FILE_NAME.fullmatch(path.name)
    suffix = path.name.removesuffix(RECIPE_SUFFIX)
    is_dump = suffix.endswith(".sql.gz") if name is None else name["kind"] == "db"
    try:
        check_stored(path, named)
        opened = Dump(path) if is_dump else Archive(path)
        record = opened.record
        source = record.source_name or (record.database if isinstance(record, DumpRecord) else record.bucket)
        if name is not None and (name["id"], unquote(name["source"])) != (opened.record.point_id, source):
            raise damaged(
                f"it contains {source} of point {opened.record.point_id}: the file was swapped or renamed"
            )
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
    """Return references of the database without an object in the archive.

    References whose objects were already missing everywhere at the time of the backup are not included.
    """
    if dump.record.point_id != archive.record.point_id:
        raise damaged(
            f"the dump belongs to point {dump.record.point_id}, the archive to {archive.record.point_id}"
        )
    if _to_time(archive.record.listed_at) < _to_time(
        dump.record.snapshot_opened_at or dump.record.snapshot_at
    ):
        raise damaged("the bucket was listed before the database's snapshot: uploads in between are missing")
    if dump.record.reference_state != "read":
        say("references  not configured: the database's rows were not compared with the objects")
        return []
    have = {_fingerprint(entry.key) for entry in archive.read_entries()}
    absent = [key for key in dump.read_references() if _fingerprint(key) not in have]
    missing = [key for key in absent if not archive.record.is_excluded(key)]
    excluded = f"; {len(absent) - len(missing)} were excluded" if len(absent) > len(missing) else ""
    say(
        f"verified  {dump.record.reference_count - len(absent)} of {dump.record.reference_count} "
        f"references are in the archive{excluded}"
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
            "          the others were already missing when the backup was taken: "
            f"{', '.join(f'{count} {word}' for word, count in verdicts.items())}"
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
        raise damaged(f"the record contains an invalid time: {text!r}") from None


def verify_point(point: Point, kinds: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Verify all files; return them opened, by kind, and what they are known to lack.

    Every file is checked before the function ends; exit 3 if one is damaged.
    """
    taken_at = datetime.strptime(point.point_id, "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
    say(
        f"recovery point {point.label}, taken {taken_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"{'committed' if point.is_committed else 'NOT committed'}"
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


# --- Database ---------------------------------------------------------------------------------------------


def find_psql() -> str:
    """Return the path of psql.

    Exit 1 if it is not installed or too old for the dump, exit 4 if no database is given.
    """
    if not os.environ.get("PGDATABASE") and not os.environ.get("PGSERVICE"):
        hint = "Set PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE in the environment."
        raise RecoverError(EXIT_USAGE, "no database given: PGDATABASE is not set", hint)
    program = shutil.which("psql")
    if program is None:
        raise RecoverError(
            EXIT_DATABASE,
            "psql is not installed on this machine",
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
            f"{spoken} does not support \\restrict, without which an altered dump could run programs here",
            hint,
        )
    return program


def psql_environment() -> dict[str, str]:
    """Return our environment with a connect timeout and the settings of a session."""
    return {"PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "recover", "PGOPTIONS": SESSION_OPTIONS, **os.environ}


def ask_psql(program: str, script: str, *, stop_at_error: bool = True) -> tuple[str, str]:
    """Return psql's stdout and stderr; exit 1 if it fails."""
    words = [program, "-X", "-q", "-A", "-t", "-w", "-v", f"ON_ERROR_STOP={int(stop_at_error)}"]
    environment = {**psql_environment(), "PGCLIENTENCODING": "UTF8"}
    done = subprocess.run(words, input=script.encode(), capture_output=True, check=False, env=environment)
    complaint = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        hint = "Nothing was written. Check PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE."
        raise RecoverError(EXIT_DATABASE, f"psql failed: {' '.join(complaint.split())}", hint)
    return done.stdout.decode("utf-8", "replace"), complaint


def check_database(dump: Dump) -> tuple[str, set[str]]:
    """Return psql's path and the target's roles; exit 1 if it is not empty or cannot take the dump."""
    program = find_psql()
    major, encoding, locks, relations, *roles = ask_psql(program, TARGET_FACTS)[0].splitlines()
    record = dump.record
    if int(major) < record.server_major:
        message = (
            f"the dump is from PostgreSQL {record.server_major} and the target is {major}: a dump does not "
            "load into an older version"
        )
        raise RecoverError(
            EXIT_DATABASE, message, f"Restore into a server of version {record.server_major} or newer."
        )
    if encoding != record.encoding:
        hint = (
            f"Create the database again: CREATE DATABASE name ENCODING '{record.encoding}' "
            "TEMPLATE template0;"
        )
        raise RecoverError(
            EXIT_DATABASE, f"the dump's encoding is {record.encoding}, the target's is {encoding}", hint
        )
    if int(relations):
        hint = "Restore into a new database: createdb -T template0 NAME, then PGDATABASE=NAME."
        raise RecoverError(
            EXIT_DATABASE,
            f"the target database is not empty: it contains {relations} tables, functions, types or "
            "other objects",
            hint,
        )
    if record.relation_count + record.large_object_count >= int(locks) // 2:
        lock_count = max(256, record.relation_count + record.large_object_count)
        hint = f"Set max_locks_per_transaction to {lock_count} on the target and restart it."
        raise RecoverError(
            EXIT_DATABASE, "the target's lock table is too small to load this dump in one transaction", hint
        )
    return program, set(roles)


def is_role_statement(line: str) -> bool:
    """Return whether the line is one complete statement of a known form.

    After any other line, text may come from a user's value with line breaks.
    """
    words = ATTRIBUTES.fullmatch(line)
    return bool(
        CREATE_ROLE.fullmatch(line) or words or ROLE_SETTING.fullmatch(line) or MEMBERSHIP.fullmatch(line)
    )


def make_roles(program: str, dump: Dump, present: set[str]) -> None:
    """Create the source's roles that the target lacks, without passwords.

    Refusals are printed, since the load may not need the role.
    """
    wanted: list[str] = []
    made: set[str] = set()
    lines = list(itertools.takewhile(is_role_statement, dump.roles))
    if len(lines) < len(dump.roles):
        say(
            f"note      {len(dump.roles) - len(lines)} lines about roles were not run: the first one has no "
            "known form"
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
            say(f"role      {role['name']} is created without a password")
    for statement in lines:
        setting = ROLE_SETTING.fullmatch(statement)
        if setting and (setting["name"] or setting["described"]) in made:
            wanted.append(statement)
        membership = MEMBERSHIP.fullmatch(statement)
        # An existing role is never added to an existing role.
        if membership and made & {membership["role"], membership["member"]}:
            wanted.append(f"{membership['grant']};")
        elif membership:
            say(
                f"note      check whether {membership['member']} is a member of {membership['role']}: both "
                "exist already, and nothing was changed"
            )
    if wanted:
        script = f"\\restrict {secrets.token_hex(16)}\n" + "".join(f"{line}\n" for line in wanted)
        complaint = ask_psql(program, script, stop_at_error=False)[1]
        if complaint:
            say(f"note      {' '.join(complaint.split())}")


def load_database(dump: Dump, program: str, present: set[str]) -> None:
    """Load the whole dump into the target database, then compare the row counts with the record.

    Exit 1 if the load fails or a table has another count.
    """
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
        f"loaded    {dump.record.table_count} tables, {dump.record.row_count} rows "
        f"({time.monotonic() - started:.1f} s)"
    )
    compare_rows(program, dump)


def explain_psql(error: str) -> str:
    """Return what to do about the first error of a load.

    Only PostgreSQL's English messages are recognized; others get the general hint.
    """
    hint = "The message says what the server refused: fix that, then restore again."
    if re.search(r"permission denied|must be (?:owner|superuser|able|member)", error):
        hint = "Restore as a superuser, or as the role that owned the database."
    elif re.search(r'extension ".*" (?:is not available|does not exist)|extension control file', error):
        hint = "Install the extension's package on the server, then restore again."
    elif re.search(r'role ".*" does not exist', error):
        hint = "Create the role on the server, then restore again."
    elif "default_tablespace" in error:
        hint = (
            "Create the tablespace on the server, in any empty directory, then restore again: "
            "CREATE TABLESPACE name LOCATION '/directory';"
        )
    elif re.search(r"No space left|could not extend|could not write", error):
        hint = "Free disk space on the server, then restore again."
    elif re.search(r"server closed the connection|connection to server|terminating connection", error):
        hint = "Check the server's log for why the connection was lost, then restore again."
    return f"The database is unchanged. {hint}"


def feed(psql: subprocess.Popen[bytes], dump: Dump) -> None:
    """Send the dump to psql, then the COMMIT; psql stops earlier if the server refuses something."""
    stdin = psql.stdin
    if stdin is None:
        raise ValueError("psql was started without a pipe")
    try:
        # Not psql's --single-transaction: that commits at the end of its input, even if we are killed midway.
        # The dump's \restrict key is replaced by ours: a psql command in an altered dump would run programs
        # on this machine.
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
    """Compare each table's row count with the record; exit 1 names those that differ.

    Tables of extensions are not counted, since they have rows of their own.
    """
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
            f"{len(wrong)} tables have row counts that differ from the record, such as {wrong[0]}",
            "Do not use this database.",
        )
    left_out = len(dump.tables) - len(tables)
    say(
        f"compared  {len(tables)} tables have the row counts of the record"
        + (f"; {left_out} extension tables were not counted" if left_out else "")
    )


# --- Objects: into a directory ----------------------------------------------------------------------------


def check_folder(archive: Archive, folder: Path) -> None:
    """Check that the directory is empty or does not exist, and has room; exit 2 otherwise."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise RecoverError(
            EXIT_BUCKET, f"{folder} is not an empty directory", "Give a directory that does not exist yet."
        )
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if shutil.disk_usage(parent).free < archive.record.size_bytes:
        raise RecoverError(
            EXIT_BUCKET,
            f"{folder} does not have {archive.record.size_bytes} bytes of free space",
            "Give a directory on a larger disk.",
        )


def write_folder(archive: Archive, folder: Path) -> None:
    """Write every object as a file and read it back; exit 2 at the first that differs.

    Keys that cannot be paths get the archive's name. `.schedgen-backups/renamed.jsonl` lists these;
    `index.jsonl` next to it has types, metadata and tags.
    """
    renamed = count = 0
    make_folder(folder / RESERVED, folder)
    listing = folder / RESERVED
    with (
        open_artifact(archive.path) as file,
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
            f"note      {renamed} keys cannot be paths here; {RESERVED}/renamed.jsonl in that directory maps "
            "files to keys"
        )


def write_object(archive: Archive, file: BinaryIO, entry: Entry, folder: Path) -> str:
    """Write the object as a file; return its name in the directory.

    If the name is taken on this file system, a generated one is used.
    """
    name = entry.member_name
    try:
        make_folder((folder / name).parent, folder)
        target = make_file(folder / name)
    except (FileExistsError, NotADirectoryError):
        # Names that differ only in case, on a case-insensitive file system.
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
            EXIT_BUCKET, f"{folder / name} does not contain what was written to it", "Use another disk."
        )
    return name


def make_folder(path: Path, root: Path) -> None:
    """Create the directory and its parents below `root`; exit 2 if one is a symbolic link."""
    if path != root:
        make_folder(path.parent, root)
        if path.is_symlink():
            raise RecoverError(
                EXIT_BUCKET,
                f"{path} is a symbolic link that did not exist before",
                "Check which other program writes there. Symbolic links are not followed.",
            )
        path.mkdir(mode=0o700, exist_ok=True)
    else:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_file(path: Path) -> BinaryIO:
    """Create a file for its owner only, open for writing; FileExistsError if the name is taken."""
    return os.fdopen(
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600), "wb"
    )


# --- Objects: into a bucket -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The S3 server's answer."""

    status: int
    headers: http.client.HTTPMessage
    body: Any

    def find(self, name: str) -> str:
        """Return the text of the first XML element of this name, or an empty one."""
        found = re.search(rf"<{name}>(.*?)</{name}>", self.body.decode("utf-8", "replace"), re.DOTALL)
        return html.unescape(found[1]) if found else ""


class Bucket:
    """A bucket on an S3 server, accessed by signed requests (AWS Signature Version 4).

    Thread-safe.
    """

    def __init__(self, endpoint: str, name: str, region: str, *, is_insecure: bool) -> None:
        found = ENDPOINT.fullmatch(endpoint)
        port = int(found["port"]) if found and found["port"] else None
        if not found or (port is not None and not 1 <= port <= LAST_PORT):
            raise RecoverError(
                EXIT_USAGE, "--s3 is not a server address", "Use https://host:port, or host:port."
            )
        scheme = (found["scheme"] or "").lower()
        self._host = found["host"].strip("[]").lower()
        is_local = self._host in LOOPBACK
        if scheme == "http" and not is_local and not is_insecure:
            raise RecoverError(
                EXIT_USAGE,
                f"{endpoint} would send everything unencrypted",
                "Use https, or add --insecure if the network is trusted.",
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
        """Return the server's answer, whatever its status; `read` processes the body of a 200.

        Retried while the server is unavailable; exit 2 if it remains so.
        """
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
            problem = f"it answered {answer.status} {answer.find('Code')}"
        raise RecoverError(
            EXIT_BUCKET,
            f"the S3 server at {self._netloc} failed {ATTEMPTS} times: {problem}",
            "Check that the server is up and that --s3 is right, including http or https.",
        )

    def expect(self, answer: Answer, what: str) -> Answer:
        """Return the answer if it is a success; exit 2 otherwise."""
        if answer.status in {http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT}:
            return answer
        code = (answer.find("Code") if isinstance(answer.body, bytes) else "") or str(answer.status)
        message = f"{self.label} refused {what}: {code} {answer.find('Message')}".rstrip()
        if answer.status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise RecoverError(
                EXIT_BUCKET,
                message,
                "Check MINIO_ACCESS_KEY and MINIO_SECRET_KEY, and the clock of this machine.",
            )
        raise ObjectRefusedError(EXIT_BUCKET, message)

    def check(self) -> bool:
        """Return whether the bucket exists and is empty; exit 2 if it has objects or cannot be listed."""
        answer = self.request("GET", query={"list-type": "2", "max-keys": "1"})
        if answer.status == http.HTTPStatus.NOT_FOUND and answer.find("Code") in {"NoSuchBucket", ""}:
            return False
        if b"<Contents>" in self.expect(answer, "to list the bucket").body:
            raise RecoverError(
                EXIT_BUCKET,
                f"{self.label} is not empty",
                "Restore into a new bucket: give the name of one that does not exist yet.",
            )
        return True

    def make(self) -> None:
        """Create the bucket."""
        place = (
            f"<CreateBucketConfiguration><LocationConstraint>{self._region}</LocationConstraint>"
            "</CreateBucketConfiguration>"
        )
        self.expect(
            self.request("PUT", body=b"" if self._region == "us-east-1" else place.encode()),
            "to create the bucket",
        )
        say(f"created   {self.label}")

    def put(self, entry: Entry, blocks: Iterator[bytes]) -> None:
        """Write the object with type, headers, metadata and tags; nothing of it if `blocks` raises."""
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
        """Return what differs in the bucket's object, or an empty text."""
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
            etag = html.escape(answer.headers.get("ETag", ""))
            parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = self.expect(self.request("POST", entry.key, {"uploadId": upload}, body=body), what)
        if answer.find("Code"):
            raise ObjectRefusedError(EXIT_BUCKET, f"{self.label} refused {what}: {answer.find('Code')}")

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
        """Return the headers with a signature (AWS documentation, `Authenticating Requests`, Version 4)."""
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
            f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        return sent


def _to_wire(value: str) -> str:
    """Return the value as in HTTP headers: one character per byte."""
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
    """Write every object to the bucket and read it back; exit 2 lists failures after writing the others."""
    started = time.monotonic()

    def restore(entry: Entry) -> str:
        try:
            with open_artifact(archive.path) as file:
                bucket.put(entry, archive.read_object(file, entry))
            difference = bucket.find_difference(entry)
        except ObjectRefusedError as error:
            return str(error)
        return f"object {entry.key!r} differs from what was captured: {difference}" if difference else ""

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
            f"{len(wrong)} of {count} objects in {bucket.label} are missing or differ from what was captured",
            "The other objects are complete.",
        )
    say(
        f"written   {count} objects to {bucket.label}, each read back and equal "
        f"({time.monotonic() - started:.1f} s)"
    )
    if unknown:
        say(f"unknown   the tags of {unknown} of these objects: they could not be read during the backup")


# --- Commands ---------------------------------------------------------------------------------------------


def command_list(options: argparse.Namespace) -> None:
    """Print the points with age, sizes and state, oldest first."""
    if is_site(options.directory):
        for copy in find_copies(options.directory):
            say(f"{copy.point_id}  {describe_age(copy.point_id):>8} old  {copy.describe()}")
        return
    refuse_whole_store(options.directory)
    for point in find_points(options.directory):
        sizes = ", ".join(f"{path.name} {measure_file(path)} bytes" for path in point.files.values())
        say(
            f"{point.label}  {describe_age(point.point_id):>8} old  "
            f"{point.describe():<10}  {sizes or 'no files'}"
        )


def describe_age(point_id: str) -> str:
    """Return the time since the point was taken."""
    try:
        taken_at = datetime.strptime(point_id, "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return "?"
    hours = (datetime.now(timezone.utc) - taken_at).total_seconds() / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"  # noqa: PLR2004


def command_verify(options: argparse.Namespace) -> None:
    """Verify everything that the files allow; exit 3 if anything is damaged or missing."""
    if options.directory.is_file():
        gaps = verify_file(options.directory, {}).find_gaps()
    else:
        with open_directory(options, ("db", "minio")) as directory:
            gaps = verify_directory(directory, options.id)
    refuse_gaps(gaps)
    say("complete and undamaged")


def verify_directory(directory: Path, point_id: str | None) -> list[str]:
    """Verify the files of a point in a directory; return what they are known to lack."""
    point = choose_point(directory, point_id)
    named = set(point.kinds) if point.is_committed or not point.files else set(point.files)
    return verify_point(point, tuple(sorted(named)))[1]


def command_fetch(options: argparse.Namespace) -> None:
    """Write the files of a copy into a directory, then verify them; they stay only if nothing is damaged."""
    if not is_site(options.directory):
        refuse_whole_store(options.directory)
        raise RecoverError(
            EXIT_USAGE,
            f"{options.directory} is not the downloaded folder of a site",
            "Give the folder with packs/ and points/. The files of a plain directory need no fetching.",
        )
    target: Path = options.to
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise RecoverError(
            EXIT_BUCKET, f"{target} is not an empty directory", "Give a directory that does not exist yet."
        )
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    options.work = target
    with open_directory(options, ("db", "minio")) as directory:
        gaps = verify_directory(directory, options.id)
        # The manifest last: with it, the point is committed.
        for path in sorted(directory.iterdir(), key=lambda path: path.name.startswith("manifest_")):
            path.rename(target / path.name)
    refuse_gaps(gaps, is_allowed=True)
    say(f"fetched   into {target}")


def refuse_gaps(gaps: list[str], *, is_allowed: bool = False) -> None:
    """Print what is missing; exit 3 unless nothing is, or it is allowed."""
    for gap in gaps:
        say(f"MISSING   {gap}")
    if gaps and not is_allowed:
        raise RecoverError(
            EXIT_FILES,
            f"the files are not damaged, but they are incomplete: {gaps[0]}",
            "Use --incomplete to restore what they contain.",
        )


def command_restore(options: argparse.Namespace) -> None:
    """Restore the recovery point into the given targets, after checking files and targets."""
    has_database = options.command in {"database", "restore"}
    has_objects = options.command in {"objects", "restore"}
    bucket = None
    if has_objects:
        if (options.folder is None) == (options.s3 is None) or (options.s3 is None) != (
            options.bucket is None
        ):
            raise RecoverError(
                EXIT_USAGE,
                "give exactly one target for the objects: --folder PATH, or --s3 ENDPOINT with --bucket NAME",
            )
        if options.s3 is not None:
            bucket = Bucket(options.s3, options.bucket, options.region, is_insecure=options.insecure)
    kinds = (("db",) if has_database else ()) + (("minio",) if has_objects else ())
    with open_directory(options, kinds) as directory:
        restore_point(choose_point(directory, options.id), kinds, bucket, options)


def restore_point(
    point: Point, kinds: tuple[str, ...], bucket: Bucket | None, options: argparse.Namespace
) -> None:
    """Restore these kinds of files into the bucket or directory, and the database."""
    has_database, has_objects = "db" in kinds, "minio" in kinds
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
    """A parser whose exit code for wrong usage differs from that of a failed bucket."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and exit with 4."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments; exit with 4 if they are invalid."""
    parser = Parser(
        prog="recover.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="recover.py COMMAND --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the points with age, sizes and state")
    verify = commands.add_parser("verify", help="read everything again: digests, tables, objects, references")
    database = commands.add_parser(
        "database",
        help="load the dump into an empty database (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE)",
    )
    objects = commands.add_parser(
        "objects",
        help="write the objects into a directory or an empty bucket (MINIO_ACCESS_KEY, MINIO_SECRET_KEY)",
    )
    restore = commands.add_parser(
        "restore", help="restore both; everything is verified before anything is written"
    )
    fetch = commands.add_parser(
        "fetch", help="write the files of a copy in a downloaded store into a directory, and verify them"
    )
    for command in (listing, verify, database, objects, restore, fetch):
        what = "the downloaded folder of a site in a store: the one with packs/ and points/"
        if command is not fetch:
            what = f"the directory of the files (BACKUP_DIR), or {what}"
        what += ", or one file" if command is verify else ""
        command.add_argument("directory", type=Path, metavar="DIR", help=what)
        if command is not listing:
            command.add_argument(
                "id",
                nargs="?",
                metavar="ID",
                help="such as 20261122_020000 (default: the newest committed point)",
            )
    for command in (verify, database, objects, restore, fetch):
        command.add_argument(
            "--identity",
            type=Path,
            metavar="FILE",
            help="the private key that decrypts encrypted packs, or a downloaded store",
        )
    for command in (verify, database, objects, restore):
        command.add_argument(
            "--work",
            type=Path,
            metavar="PATH",
            help="directory for decrypted or downloaded files while they are used (default: TMPDIR)",
        )
    fetch.add_argument("--to", type=Path, metavar="PATH", required=True, help="an empty or new directory")
    for command in (database, objects, restore):
        command.add_argument(
            "--incomplete", action="store_true", help="restore even if the files are known to be incomplete"
        )
    for command in (objects, restore):
        command.add_argument(
            "--folder",
            type=Path,
            metavar="PATH",
            help="write objects as files into this directory, which must be empty or new",
        )
        command.add_argument(
            "--s3",
            metavar="ENDPOINT",
            help="https://host:port; http only for this machine or with --insecure",
        )
        command.add_argument(
            "--bucket", metavar="NAME", help="the bucket; created if missing, refused if not empty"
        )
        command.add_argument(
            "--region",
            default=os.environ.get("MINIO_REGION") or "us-east-1",
            help="default: MINIO_REGION or us-east-1",
        )
        command.add_argument("--insecure", action="store_true", help="allow http to other machines")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the command and return its exit code; errors are printed to stderr."""
    options = parse(words)
    run = {"list": command_list, "verify": command_verify, "fetch": command_fetch}.get(
        options.command, command_restore
    )
    try:
        run(options)
    except RecoverError as error:
        problem, hint, code = str(error), error.hint, error.code
    except OSError as error:
        problem, hint, code = (
            f"{error.filename or 'a file'}: {error.strerror or error}",
            "Check the disk and its permissions.",
            EXIT_BUCKET,
        )
    else:
        return 0
    text = f"FAILED    {problem}\n" + (f"          {hint}\n" if hint else "")
    sys.stderr.write(write_out(text))
    return code


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("Python 3.9 or newer is required, this is " + sys.version.split()[0])
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        sys.stderr.flush()
        os._exit(EXIT_CANCELLED)
