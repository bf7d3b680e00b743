"""What a dump and an archive say about themselves: record and index, as frozen values, and the errors of
opening either file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Annotated, BinaryIO, TypeVar

from pydantic import AwareDatetime, Field
from typing_extensions import Buffer

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, FrozenModel, LeftOut, ReferenceState
from schedgen_backups.core.system.files import open_regular
from schedgen_backups.core.units import count, format_bytes, name_some

_Opened = TypeVar("_Opened")


class ArtifactFile:
    """One file of a recovery point: opened once, at its first use, and read by any number of readers, each at
    a position of its own.

    A context manager, after whose block no reader can be used. VerificationError (permanent) when the file is
    missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._lock = Lock()

    def open_reader(self) -> BinaryIO:
        """Return another reader at the file's beginning, for one thread."""
        with self._lock:
            if self._file is None:
                try:
                    self._file = open_regular(self.path)
                except OSError as error:
                    message = f"{self.path} cannot be read: {error.strerror}"
                    raise VerificationError(
                        message, hint="Is the file where the manifest says it is?"
                    ) from error
            return io.BufferedReader(_Reader(self._file.fileno()))

    @property
    def modified_ns(self) -> int | None:
        """When the file was last modified, in nanoseconds since 1970; None when it is missing."""
        status = self._find_status()
        return status.st_mtime_ns if status is not None else None

    @property
    def size_bytes(self) -> int | None:
        """The file's length; None when it is missing."""
        status = self._find_status()
        return status.st_size if status is not None else None

    @contextmanager
    def read_as(self, kind: Callable[[BinaryIO], _Opened]) -> Generator[_Opened, None, None]:
        """What `kind` makes of another reader is there within the block, whose VerificationErrors name the
        file.
        """
        with self.name_errors():
            yield kind(self.open_reader())

    @contextmanager
    def name_errors(self) -> Generator[None, None, None]:
        """Put the file's name before the message of a VerificationError of the block."""
        try:
            yield
        except VerificationError as error:
            is_named = error.message.startswith((f"{self.path.name}: ", f"{self.path} "))
            raise (
                error
                if is_named
                else VerificationError(f"{self.path.name}: {error.message}", hint=error.hint)
            ) from error

    def _find_status(self) -> os.stat_result | None:
        try:
            return self.path.stat()
        except OSError:
            return None

    def __enter__(self) -> ArtifactFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


class _Reader(io.RawIOBase):
    """Reads an open file from a position of its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._position = descriptor, 0

    def readinto(self, buffer: Buffer, /) -> int:
        try:
            count = os.preadv(self._descriptor, [buffer], self._position)
        except OSError as error:
            raise VerificationError(
                f"the disk cannot read it: {error.strerror}",
                hint="Look at the disk, and bring the file back from a copy.",
            ) from error
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: os.fstat(self._descriptor).st_size,
        }[whence]
        self._position = start + offset
        return self._position

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def open_artifact(path: Path, kind: Callable[[BinaryIO], _Opened]) -> Generator[_Opened, None, None]:
    """What `kind` makes of the open file is there within the block.

    VerificationError (permanent) names the file, or says that it is missing.
    """
    with ArtifactFile(path) as file, file.read_as(kind) as opened:
        yield opened


def make_format_error(reason: str) -> VerificationError:
    """The error that says why a file is not what it should be."""
    return VerificationError(reason, hint="Use another copy or another recovery point.")


_Size = Annotated[int, Field(ge=0, le=1 << 62)]
"""A count or a place in a file, within what a seek takes."""


class TableEntry(FrozenModel):
    """One table of a dump: how many rows the snapshot had, how many were captured, and where they lie."""

    schema_name: str
    name: str
    columns: str
    """The column list as pg_dump wrote it, parentheses included; empty for a table without columns."""
    expected_rows: int | None
    """Rows counted in the same snapshot; None for a table that an extension owns."""
    rows: _Size
    size_bytes: _Size
    """Bytes of the rows in COPY's text form."""
    sha256: str
    """Of the rows in COPY's text form, in the order in which they lie in the table."""
    root: str = ""
    """`schema.name` of the partitioned table through which the rows are loaded: on another server they may
    lie in other partitions of it."""
    offset: _Size
    """Where the table's first gzip member starts in the file."""
    length: _Size
    """Compressed bytes from there to the end of the table's last member."""

    @property
    def qualified_name(self) -> str:
        """`schema.name`, for messages."""
        return f"{self.schema_name}.{self.name}"


class ExcludedTable(FrozenModel):
    """A table whose rows are left out of a dump."""

    schema_name: str
    name: str


class DumpRecord(FrozenModel):
    """What a dump says of itself, written behind the dump as SQL comment lines."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    kind: ArtifactKind = ArtifactKind.DATABASE
    database: str
    server_version: str
    server_major: int
    system_identifier: str = ""
    """Of the PostgreSQL cluster, where the role may read it."""
    client_version: str
    snapshot_at: AwareDatetime
    """By the database server's clock."""
    snapshot_opened_at: AwareDatetime | None = None
    """By the clock of the host that captured it, which is the archive's, too; None in files of before it was
    kept."""
    finished_at: AwareDatetime
    encoding: str
    collation: str = ""
    table_count: int
    row_count: int
    relation_count: int
    """Relations and large objects of the database: what a restore in one transaction needs locks for."""
    large_object_count: int
    size_bytes: _Size
    """Of the plain text up to the end of pg_dump's own output."""
    text_sha256: str
    """Of everything but rows: schema, sequences, large objects; without the random restrict key and the
    version comments."""
    comparable_sha256: str = ""
    """The same without what differs from server to server: the comments on rights, which name the owner of
    objects of the system, and tablespaces. Empty in files of before it was kept."""
    content_length: _Size
    """Compressed bytes of the dump itself: the file up to here unpacks to what pg_dump wrote."""
    missing_tables: tuple[str, ...] = ()
    """Tables of the snapshot that pg_dump did not write."""
    excluded_patterns: tuple[str, ...] = ()
    """What the operator named of tables whose rows are left out."""
    excluded_tables: tuple[ExcludedTable, ...] = ()
    """The tables of the snapshot that these patterns meant."""
    left_out_settings: tuple[str, ...] = ()
    reference_state: ReferenceState
    reference_query: str
    reference_count: int
    reference_note: str = ""
    role_count: int
    roles_note: str = ""
    """Why the roles could not be read, where they could not."""
    properties: DatabaseProperties | None = None
    """Owner, privileges, settings and collation of the database; None in files of before they were kept."""

    @property
    def left_out(self) -> LeftOut:
        """What the operator left out of the dump."""
        return LeftOut(
            table_patterns=self.excluded_patterns,
            tables=tuple(f"{table.schema_name}.{table.name}" for table in self.excluded_tables),
        )


class ObjectEntry(FrozenModel):
    """One object of an archive: its S3 metadata, its digest and where it lies."""

    key: str
    size_bytes: _Size
    sha256: str
    etag: str
    is_etag_verified: Annotated[bool | None, Field(exclude=True)] = None
    """Of format 1 alone, which has no reason where it is false."""
    unproven: str = ""
    """Why the bytes could not be compared with a checksum that the server had; empty where they have the
    ETag's MD5."""
    version_id: str | None = None
    modified_at: AwareDatetime
    content_type: str = ""
    # With a factory: pydantic copies a mutable default for each entry, which takes longer than reading it.
    headers: dict[str, str] = Field(default_factory=dict)
    """Cache-Control, Content-Disposition, Content-Encoding, Content-Language, Expires, where the object has
    them."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """User metadata, names without `x-amz-meta-`."""
    tags: dict[str, str] = Field(default_factory=dict)
    tags_note: str = ""
    """Why the tags could not be read; nothing is known of them then."""
    read_at: AwareDatetime | None = None
    """When the bytes were last read from the bucket, by the S3 server's clock; earlier than the archive where
    it was copied from an older one."""
    member_name: str
    """Name in the tar file; differs from the key where the key cannot be a path."""
    is_changed: bool = False
    """Whether the object was replaced between the listing and the reading; the archive has the newer one."""
    offset: _Size
    """Where the object's first gzip member starts in the file."""
    length: _Size
    """Compressed bytes from there to the end of the object's last member."""


class MissedObject(FrozenModel):
    """One listed object that the archive does not hold, and why."""

    key: str
    reason: str


class ArchiveRecord(FrozenModel):
    """What an archive says of itself: the first line of its last entry."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    kind: ArtifactKind = ArtifactKind.BUCKET
    bucket: str
    endpoint: str
    listed_at: AwareDatetime
    """When the listing began."""
    finished_at: AwareDatetime
    listed_count: int
    object_count: int
    size_bytes: _Size
    """Of all archived objects together."""
    changed_count: int
    deleted_count: int
    """Objects that were listed and gone when they were to be read."""
    deleted: tuple[MissedObject, ...] = ()
    failed_count: int
    failed: tuple[MissedObject, ...] = ()
    unproven_count: int | None = None
    """Archived objects whose bytes could not be compared with a checksum; their entries give the reasons."""
    unread_tags_count: int = 0
    """Archived objects of whose tags nothing is known; their entries give the reasons. 0 in files of before
    such objects were archived."""
    is_versioned: bool | None = None
    """Whether the bucket keeps versions; None where the server does not tell."""
    reused_count: int = 0
    """Objects taken from an older archive instead of the bucket."""
    excluded_patterns: tuple[str, ...] = ()
    """What the operator named of objects that are left out. They are not among the listed ones."""
    excluded_count: int = 0
    excluded_bytes: _Size = 0

    @property
    def left_out(self) -> LeftOut:
        """What the operator left out of the archive."""
        return LeftOut(
            object_patterns=self.excluded_patterns,
            object_count=self.excluded_count,
            size_bytes=self.excluded_bytes,
        )


def describe_left_out(left_out: LeftOut) -> str:
    """Return what is left out in a few words, empty where nothing is."""
    parts: list[str] = []
    if left_out.tables:
        parts.append(f"the rows of {name_some(left_out.tables)}")
    if left_out.object_count:
        parts.append(
            f"{count(left_out.object_count, 'object')} ({format_bytes(left_out.size_bytes)}) by "
            f"{name_some(left_out.object_patterns)}"
        )
    return " and ".join(parts)
