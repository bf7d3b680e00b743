"""Record and index of a dump and of an archive as frozen values, and the errors of opening either file."""

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

from schedgen_backups.core.errors import StorageError, VerificationError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.packed_file import PackedFile, is_recipe_name, open_packed_file
from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, FrozenModel, LeftOut, ReferenceState
from schedgen_backups.core.system.files import FileIdentity, create_private, identify_file, open_regular
from schedgen_backups.core.units import count, format_bytes, name_some

_Opened = TypeVar("_Opened")
_COPY_BYTES = 1 << 20


class ArtifactFile:
    """One artifact, a file or in packs, opened at its first use; each of its readers has its own position.

    A context manager, after whose block no reader can be used. VerificationError (permanent) when the file is
    missing. The `keys` are those of encrypted packs.
    """

    def __init__(self, path: Path, keys: PackKeys = NO_KEYS) -> None:
        self.path = path
        self._keys = keys
        self._file: BinaryIO | None = None
        self._packed: PackedFile | None = None
        self._lock = Lock()

    def open_reader(self) -> BinaryIO:
        """Return a new reader at the beginning of the artifact, for one thread."""
        if self.is_packed:
            return self.open_packed().open_reader()
        with self._lock:
            if self._file is None:
                try:
                    self._file = open_regular(self.path)
                except OSError as error:
                    message = f"{self.path} cannot be read: {error.strerror}"
                    raise VerificationError(
                        message, hint="Is the file at the location stated in the manifest?"
                    ) from error
            return io.BufferedReader(DescriptorReader(self._file.fileno()))

    @property
    def is_packed(self) -> bool:
        """Whether its bytes lie in packs, and the file is a recipe."""
        return is_recipe_name(self.path.name)

    def open_descriptor(self) -> int:
        """Return the descriptor of the artifact's file; only for one that is not in packs."""
        return self.open_reader().fileno()

    def write_to(self, path: Path, *, on_progress: Callable[[int], object]) -> None:
        """Write all bytes to a new file; `on_progress` gets sizes. Nothing of it stays after an error.

        StorageError if it cannot be written, VerificationError if the artifact cannot be read.
        """
        reader = self.open_reader()
        try:
            descriptor = create_private(path)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    while block := reader.read(_COPY_BYTES):
                        file.write(block)
                        on_progress(len(block))
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror}",
                hint="Use an empty directory with enough space.",
            ) from error

    def open_packed(self) -> PackedFile:
        """Return the artifact in packs of which this file is the recipe."""
        with self._lock:
            if self._packed is None:
                self._packed = open_packed_file(self.path, self._keys)
            return self._packed

    @property
    def identity(self) -> FileIdentity | None:
        """The present identity of the file at this path; None when it is missing."""
        try:
            return identify_file(self.path.stat())
        except OSError:
            return None

    @contextmanager
    def read_as(self, kind: Callable[[BinaryIO], _Opened]) -> Generator[_Opened, None, None]:
        """Yield `kind` of a new reader within the block, whose VerificationErrors name the file."""
        with self.name_errors():
            yield kind(self.open_reader())

    @contextmanager
    def name_errors(self) -> Generator[None, None, None]:
        """Prefix VerificationErrors of the block with the file's name."""
        try:
            yield
        except VerificationError as error:
            is_named = error.message.startswith((f"{self.path.name}: ", f"{self.path} "))
            raise (
                error
                if is_named
                else VerificationError(f"{self.path.name}: {error.message}", hint=error.hint)
            ) from error

    def close(self) -> None:
        """Close the file, after which no reader can be used. Safe to call twice."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> ArtifactFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class DescriptorReader(io.RawIOBase):
    """Reads an open file from its own position; disk errors are raised as VerificationError."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._position = descriptor, 0

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into the buffer; return the number of bytes."""
        try:
            count = os.preadv(self._descriptor, [buffer], self._position)
        except OSError as error:
            raise VerificationError(
                f"the disk cannot read it: {error.strerror}",
                hint="Check the disk and restore the file from a copy.",
            ) from error
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move this reader only; return its position."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        self._position = offset
        return self._position

    def fileno(self) -> int:
        """Return the descriptor that all readers share."""
        return self._descriptor

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


@contextmanager
def open_artifact(
    path: Path, kind: Callable[[BinaryIO], _Opened], keys: PackKeys = NO_KEYS
) -> Generator[_Opened, None, None]:
    """Yield `kind` of the open file within the block.

    VerificationError (permanent) names the file, also when it is missing.
    """
    with ArtifactFile(path, keys) as file, file.read_as(kind) as opened:
        yield opened


def make_format_error(reason: str) -> VerificationError:
    """Return the error for a file with a wrong format."""
    return VerificationError(reason, hint="Use another copy or another recovery point.")


_Size = Annotated[int, Field(ge=0, le=1 << 62)]
"""A count or a position in a file, within the limit of a seek."""


class TableEntry(FrozenModel):
    """One table of a dump: its rows in the snapshot and in the dump, and its position."""

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
    """Digest of the rows in COPY's text form, in the table's physical order."""
    root: str = ""
    """`schema.name` of the partitioned table through which the rows are loaded: on another server they may
    belong to other partitions."""
    offset: _Size
    """Offset of the table's first gzip member in the file."""
    length: _Size
    """Compressed size up to the end of the table's last member."""

    @property
    def qualified_name(self) -> str:
        """`schema.name` for messages."""
        return f"{self.schema_name}.{self.name}"


class ExcludedTable(FrozenModel):
    """A table whose rows are excluded from a dump."""

    schema_name: str
    name: str


class DumpRecord(FrozenModel):
    """The record of a dump, written after the dump as SQL comment lines."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    kind: ArtifactKind = ArtifactKind.DATABASE
    database: str
    source_name: str = ""
    """Its name in recovery points, if that is another one."""
    server_version: str
    server_major: int
    system_identifier: str = ""
    """Identifier of the PostgreSQL cluster, if the role may read it."""
    client_version: str
    snapshot_at: AwareDatetime
    """According to the database server's clock."""
    snapshot_opened_at: AwareDatetime | None = None
    """According to the clock of the capturing host, which is also the archive's; None in files from before
    it was recorded."""
    finished_at: AwareDatetime
    encoding: str
    collation: str = ""
    table_count: int
    row_count: int
    relation_count: int
    """Relations and large objects of the database, for which a restore in one transaction needs locks."""
    large_object_count: int
    size_bytes: _Size
    """Size of the plain text up to the end of pg_dump's own output."""
    text_sha256: str
    """Digest of everything but rows: schema, sequences, large objects; without the random restrict key and
    the version comments."""
    comparable_sha256: str = ""
    """Like `text_sha256`, without what differs between servers: comments on privileges, which name the owner
    of system objects, and tablespaces. Empty in files from before it was recorded."""
    content_length: _Size
    """Compressed size of the dump itself: the file up to here unpacks to pg_dump's output."""
    missing_tables: tuple[str, ...] = ()
    """Tables of the snapshot that pg_dump did not write."""
    excluded_patterns: tuple[str, ...] = ()
    """The operator's patterns of tables whose rows are excluded."""
    excluded_tables: tuple[ExcludedTable, ...] = ()
    """The tables of the snapshot that match these patterns."""
    left_out_settings: tuple[str, ...] = ()
    reference_state: ReferenceState
    reference_query: str
    reference_count: int
    reference_note: str = ""
    role_count: int
    roles_note: str = ""
    """Why the roles could not be read; empty when they were."""
    properties: DatabaseProperties | None = None
    """Owner, privileges, settings and collation of the database; None in files from before they were
    recorded."""

    @property
    def left_out(self) -> LeftOut:
        """What the operator excluded from the dump."""
        return LeftOut(
            table_patterns=self.excluded_patterns,
            tables=tuple(f"{table.schema_name}.{table.name}" for table in self.excluded_tables),
        )


class ObjectEntry(FrozenModel):
    """One object of an archive: its S3 metadata, its digest and its position."""

    key: str
    size_bytes: _Size
    sha256: str
    etag: str
    is_etag_verified: Annotated[bool | None, Field(exclude=True)] = None
    """Only in format 1, which gives no reason when it is false."""
    unproven: str = ""
    """Why the bytes could not be compared with a checksum of the server; empty when they match the ETag's
    MD5."""
    version_id: str | None = None
    modified_at: AwareDatetime
    content_type: str = ""
    # With a factory: pydantic copies a mutable default for each entry, which takes longer than reading it.
    headers: dict[str, str] = Field(default_factory=dict)
    """Cache-Control, Content-Disposition, Content-Encoding, Content-Language and Expires, if the object has
    them."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """User metadata, names without `x-amz-meta-`."""
    tags: dict[str, str] = Field(default_factory=dict)
    tags_note: str = ""
    """Why the tags could not be read; they are unknown then."""
    read_at: AwareDatetime | None = None
    """When the bytes were last read from the bucket, according to the S3 server's clock; earlier than the
    archive when they were copied from an older one."""
    member_name: str
    """Name in the tar file; differs from the key where the key cannot be a path."""
    is_changed: bool = False
    """Whether the object was replaced between listing and reading; the archive contains the newer version."""
    offset: _Size
    """Offset of the object's first gzip member in the file."""
    length: _Size
    """Compressed size up to the end of the object's last member."""


class MissedObject(FrozenModel):
    """One listed object that is not in the archive, and why."""

    key: str
    reason: str


class ArchiveRecord(FrozenModel):
    """The record of an archive: the first line of its last entry."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    kind: ArtifactKind = ArtifactKind.BUCKET
    bucket: str
    source_name: str = ""
    """Its name in recovery points, if that is another one."""
    endpoint: str
    listed_at: AwareDatetime
    """When the listing began."""
    finished_at: AwareDatetime
    listed_count: int
    object_count: int
    size_bytes: _Size
    """Total size of all archived objects."""
    changed_count: int
    deleted_count: int
    """Objects that were listed but no longer existed when they were read."""
    deleted: tuple[MissedObject, ...] = ()
    failed_count: int
    failed: tuple[MissedObject, ...] = ()
    unproven_count: int | None = None
    """Archived objects whose bytes could not be compared with a checksum; their entries give the reasons."""
    unread_tags_count: int = 0
    """Archived objects whose tags are unknown; their entries contain the reasons. 0 in files from before
    such objects were archived."""
    is_versioned: bool | None = None
    """Whether the bucket keeps versions; None when the server does not report it."""
    reused_count: int = 0
    """Objects taken from an older archive instead of the bucket."""
    excluded_patterns: tuple[str, ...] = ()
    """The operator's patterns of excluded objects. These objects are not counted as listed."""
    excluded_count: int = 0
    excluded_bytes: _Size = 0

    @property
    def left_out(self) -> LeftOut:
        """What the operator excluded from the archive."""
        return LeftOut(
            object_patterns=self.excluded_patterns,
            object_count=self.excluded_count,
            size_bytes=self.excluded_bytes,
        )


def describe_left_out(left_out: LeftOut) -> str:
    """Return a short description of what is excluded; empty when nothing is."""
    parts: list[str] = []
    if left_out.tables:
        parts.append(f"the rows of {name_some(left_out.tables)}")
    if left_out.object_count:
        parts.append(
            f"{count(left_out.object_count, 'object')} ({format_bytes(left_out.size_bytes)}) by "
            f"{name_some(left_out.object_patterns)}"
        )
    return " and ".join(parts)
