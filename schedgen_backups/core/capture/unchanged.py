"""Unchanged objects: found in an earlier archive and copied as compressed bytes instead of downloaded."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import ValidationError

from schedgen_backups.core.catalog.resume import find_archive, read_journal, read_packed_journal
from schedgen_backups.core.errors import PackKeyError, StorageError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.archive_writer import COPY_BYTES
from schedgen_backups.core.formats.index_lines import read_object_key
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.packed_file import is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.records import ArtifactFile, ObjectEntry
from schedgen_backups.core.formats.tar_member import digest_name
from schedgen_backups.core.s3.listing_page import ListedObject
from schedgen_backups.core.settings import BucketSettings


@dataclass(frozen=True)
class UnchangedRun:
    """Consecutive objects of an older archive that the listing shows unchanged; their bytes are unchecked."""

    objects: tuple[PreviousObject, ...]

    @property
    def file(self) -> ArtifactFile:
        """The archive in which all of them lie."""
        return self.objects[0].file

    def split(self) -> Iterator[UnchangedRun]:
        """Yield each object as a run of its own."""
        for previous in self.objects:
            yield UnchangedRun((previous,))


def split_into_runs(found: Iterable[PreviousObject | None]) -> Iterator[int]:
    """Yield the number of objects in each run of neighbours in one file; each None is a run of its own.

    A run of several is at most `COPY_BYTES` long.
    """
    count = size_bytes = 0
    last: PreviousObject | None = None
    for previous in found:
        is_next = (
            last is not None
            and previous is not None
            and last.file is previous.file
            and last.entry.offset + last.entry.length == previous.entry.offset
            and size_bytes + previous.entry.length <= COPY_BYTES
        )
        if count and not is_next:
            yield count
            count = size_bytes = 0
        count += 1
        size_bytes += previous.entry.length if previous is not None else 0
        last = previous
    if count:
        yield count


LOOKUP_COUNT = 100
"""SQLite releases the interpreter lock in every query and gets it back late while other threads work."""
_DATABASE_NAME = "previous.sqlite"
_SETTLED = timedelta(seconds=2)
"""Last-Modified has whole seconds: an object read this soon after it was written may have been overwritten in
the same second."""
_CLOCK_ERROR = timedelta(days=1)
_OVERHEAD_BYTES = 1 << 20
"""More than a header and the frames of the members can add to an object's bytes."""


@dataclass(frozen=True)
class PreviousObject:
    """An object of an older archive that is unchanged according to the listing; its bytes are unchecked."""

    entry: ObjectEntry
    file: ArtifactFile
    line: bytes = b""
    """What the entry was read from, to be written again; empty if it would not do."""


class PreviousObjects:
    """Lookup of objects in older archives by key; a context manager, for one thread at a time."""

    def __init__(
        self,
        folder: Path,
        settings: BucketSettings,
        *,
        reread_days: int,
        distrusted: AbstractSet[str] = frozenset(),
        keys: PackKeys = NO_KEYS,
    ) -> None:
        """Objects whose keys are `distrusted` are not found; `keys` open encrypted packs."""
        self._keys = keys
        self._settings = settings
        self._distrusted = distrusted
        self._limit = timedelta(days=reread_days)
        self._now = datetime.now(timezone.utc)
        self._files: list[ArtifactFile] = []
        self._path = folder / _DATABASE_NAME
        with self._explain_database():
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            # Ordered by key, so that a listing in key order reads sequentially. A crash may lose the table.
            self._database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                "CREATE TABLE objects (key BLOB PRIMARY KEY, file INTEGER NOT NULL, entry BLOB NOT NULL) "
                "WITHOUT ROWID;"
            )

    def add_archive(self, path: Path) -> bool:
        """Add the objects of the archive that are not known yet; return whether its whole index was read."""
        if not self._limit:
            return True
        try:
            archive = ArchiveFile(self._open(path).open_reader())
            record = archive.record
            if (record.endpoint, record.bucket) != (self._settings.endpoint, self._settings.bucket):
                return False
            self._add(archive.read_entry_lines())
        except (
            VerificationError,
            PackKeyError,
            OSError,
        ):  # the bucket has the objects; the archive's checks report this
            return False
        return True

    def add_resumable(self, folder: Path) -> None:
        """Add the objects of the unfinished archive in this staging directory that are not known yet."""
        path = find_archive(folder, self._settings)
        if path is None or not self._limit:
            return
        try:
            if is_recipe_name(path.name):
                entries = read_packed_journal(folder, read_local_recipe(path).size_bytes)
            else:
                entries = read_journal(folder)
            self._open(path)
            self._add(entry.model_dump_json(exclude_defaults=True).encode() for entry in entries)
        except (VerificationError, PackKeyError, OSError):  # the bucket has the objects
            return

    def find(self, listed: Sequence[tuple[ListedObject, str]]) -> list[PreviousObject | None]:
        """Return for each listed object, given with its name in the tar, its copy in an older archive.

        None where the listing shows that the object has changed. At most `LOOKUP_COUNT` objects per call.
        """
        if not self._files:
            return [None] * len(listed)
        marks = ",".join("?" * len(listed))
        with self._explain_database():
            rows: list[tuple[bytes, int, bytes]] = self._database.execute(
                f"SELECT key, file, entry FROM objects WHERE key IN ({marks})",  # noqa: S608 - question marks only
                [_to_key(one.key) for one, _name in listed],
            ).fetchall()
        found = {key: (self._files[number], entry) for key, number, entry in rows}
        return [self._compare(one, name, found.get(_to_key(one.key))) for one, name in listed]

    def find_sources(self, keys: Iterable[str]) -> tuple[Path, ...]:
        """Return the older archives that hold these objects, each once."""
        found: dict[Path, None] = {}
        with self._explain_database():
            for key in keys:
                rows: list[tuple[int]] = self._database.execute(
                    "SELECT file FROM objects WHERE key = ?", [_to_key(key)]
                ).fetchall()
                found |= {self._files[number].path: None for (number,) in rows}
        return tuple(found)

    def close(self) -> None:
        """Close the older archives and remove the lookup. Safe to call twice."""
        self._database.close()
        self._path.unlink(missing_ok=True)
        for file in self._files:
            file.close()

    def __enter__(self) -> PreviousObjects:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _compare(
        self, listed: ListedObject, member_name: str, row: tuple[ArtifactFile, bytes] | None
    ) -> PreviousObject | None:
        if row is None or listed.modified_at is None or not listed.etag or listed.key in self._distrusted:
            return None
        try:
            entry = ObjectEntry.model_validate_json(row[1])
        except ValidationError:  # the bucket has the object; the checks of that archive report the damage
            return None
        there = (entry.key, entry.size_bytes, entry.etag, entry.member_name, entry.modified_at)
        expected = (
            listed.key,
            listed.size_bytes,
            listed.etag,
            member_name,
            listed.modified_at.replace(microsecond=0),
        )
        # Copied from an archive of format 1, an object without a checksum would count as proven.
        if (
            there != expected
            or (listed.version_id and listed.version_id != entry.version_id)
            or entry.is_etag_verified is False
        ):
            return None
        if (
            entry.read_at is None
            or entry.read_at - entry.modified_at < _SETTLED
            or not self._is_fresh(entry.key, self._now - entry.read_at)
        ):
            return None
        if entry.length > entry.size_bytes + entry.size_bytes // 1000 + _OVERHEAD_BYTES:
            return None
        # A line of format 1 has another field.
        is_as_written = not entry.is_changed and entry.is_etag_verified is None
        return PreviousObject(
            entry.model_copy(update={"is_changed": False}) if entry.is_changed else entry,
            row[0],
            row[1] if is_as_written else b"",
        )

    def _is_fresh(self, key: str, age: timedelta) -> bool:
        # Each key has its own day in the second half of the period, so that not all objects are read in one
        # night.
        share = digest_name(key)[0] / 512
        return -_CLOCK_ERROR < age < self._limit * (0.5 + share)

    def _open(self, path: Path) -> ArtifactFile:
        file = ArtifactFile(path, self._keys)
        self._files.append(file)
        return file

    def _add(self, lines: Iterable[bytes]) -> None:
        number = len(self._files) - 1
        rows = ((_to_key(read_object_key(line)), number, line) for line in lines)
        with self._explain_database():
            self._database.execute("BEGIN")
            try:
                self._database.executemany("INSERT OR IGNORE INTO objects VALUES (?, ?, ?)", rows)
            finally:
                self._database.execute("COMMIT")

    @contextmanager
    def _explain_database(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"{self._path} cannot be written: {error}",
                hint="Is the disk of BACKUP_DIR full? Nothing was published.",
            ) from error


def _to_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
