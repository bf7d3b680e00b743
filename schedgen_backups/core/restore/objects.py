"""Restore single objects: select them, compare them with the bucket, write them to a bucket or as files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.small_files import translate_storage_errors
from schedgen_backups.core.errors import BackupError, RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.gzip_members import BLOCK_BYTES
from schedgen_backups.core.formats.records import ArtifactFile, ObjectEntry
from schedgen_backups.core.formats.tar_member import RESERVED_FOLDER
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.patterns import matches_any_key, matches_key
from schedgen_backups.core.restore.bucket import PreparedBucket, find_difference, prepare_bucket
from schedgen_backups.core.settings import BucketSettings, TransferSettings
from schedgen_backups.core.units import count, name_some

INDEX_NAME = f"{RESERVED_FOLDER}/renamed.jsonl"
"""The same format as in `recover.py`: one line of JSON for each object whose key is not a valid file name."""


class ObjectStanding(str, Enum):
    """The state of an archived object in a bucket."""

    MISSING = "missing"
    SAME = "same"
    DIFFERENT = "different"


@dataclass(frozen=True)
class ObjectDifference:
    """A selected object and its state in the bucket."""

    entry: ObjectEntry
    standing: ObjectStanding
    what: str = ""
    """What differs in a different object (`size`, `bytes`, `content type` …)."""


def select_objects(archive: ArchiveFile, patterns: tuple[str, ...]) -> tuple[ObjectEntry, ...]:
    """Return the entries that match any pattern, in the order of the archive.

    A pattern is a key, a prefix ending in `/`, or a glob (`*` matches `/`). RestoreError (permanent) names
    the patterns without a match.
    """
    chosen: list[ObjectEntry] = []
    unused = set(patterns)
    for entry in archive.read_entries():
        matching = [pattern for pattern in patterns if matches_key(pattern, entry.key)]
        if matching:
            chosen.append(entry)
            unused.difference_update(matching)
    if unused:
        named = name_some([repr(pattern) for pattern in sorted(unused)])
        if any(matches_any_key(archive.record.excluded_patterns, pattern) for pattern in unused):
            raise RestoreError(
                f"the archive of {archive.record.bucket} contains no object for {named}: "
                "BACKUP_EXCLUDE_OBJECTS excluded such objects from the backup",
                hint="Look for an earlier recovery point: schedgen-backups list",
            )
        raise RestoreError(
            f"the archive of {archive.record.bucket} contains no object for {named}",
            hint="Give a key, a prefix that ends in /, or a glob; `schedgen-backups show ID --objects "
            "PREFIX` lists the objects.",
        )
    return tuple(chosen)


def select_keys(
    archive: ArchiveFile, keys: tuple[str, ...]
) -> tuple[tuple[ObjectEntry, ...], tuple[str, ...]]:
    """Return the entries with exactly these keys, in the order of the archive, and the missing keys."""
    chosen = tuple(archive.find_entries(frozenset(keys)))
    found = {entry.key for entry in chosen}
    return chosen, tuple(key for key in keys if key not in found)


def check_archive_belongs(archive: ArchiveFile, point_id: RecoveryPointId) -> None:
    """Check that the archive belongs to the point; VerificationError if it is another point's file."""
    if archive.record.point_id != point_id.text:
        raise VerificationError(
            f"the archive belongs to recovery point {archive.record.point_id}, not to {point_id}",
            hint="The files of two points were swapped or renamed: restore their names.",
        )


@dataclass(frozen=True)
class PreparedObjects:
    """Selected objects and their state in the bucket at preparation; nothing is written yet."""

    point: PointListing
    bucket: PreparedBucket
    differences: tuple[ObjectDifference, ...]

    @property
    def target_name(self) -> str:
        """The name that the operator types to confirm."""
        return self.bucket.target.bucket

    @property
    def needs_confirmation(self) -> bool:
        """Whether the bucket is not empty."""
        return not self.bucket.is_empty

    @property
    def missing(self) -> tuple[ObjectEntry, ...]:
        """Objects that the bucket lacks."""
        return self._list(ObjectStanding.MISSING)

    @property
    def different(self) -> tuple[ObjectEntry, ...]:
        """Objects for whose key the bucket contains another object."""
        return self._list(ObjectStanding.DIFFERENT)

    def describe(self) -> tuple[ObjectDifference, ...]:
        """Return the state of each object in the bucket."""
        return self.differences

    def execute(self, *, overwrite: bool) -> tuple[ObjectEntry, ...]:
        """Write every missing object, and with `overwrite` also the different ones; return what was written.

        TargetNotEmptyError, with nothing written, if some are different and `overwrite` is not set.
        RestoreError, BucketError or VerificationError at the first error; its hint says how many objects were
        written before, which remain.
        """
        if self.different and not overwrite:
            raise TargetNotEmptyError(
                f"{self.bucket.target.label} contains other objects with the same keys: "
                f"{name_some([entry.key for entry in self.different])}; "
                "nothing was written",
                hint="Review the differences, then overwrite the objects with --overwrite, or restore into a "
                "directory or another bucket.",
            )
        replaced = {entry.key for entry in self.different}
        wanted = [
            difference.entry
            for difference in self.differences
            if difference.standing is not ObjectStanding.SAME
        ]
        return self._write(wanted, replaced)

    def write_missing(self) -> tuple[ObjectEntry, ...]:
        """Write the missing objects, leave different ones unchanged; return what was written."""
        return self._write(self.missing, frozenset())

    def compare(self, written: Sequence[ObjectEntry]) -> None:
        """Read the objects back; RestoreError if one differs from what was captured."""
        for difference in compare_objects(self.bucket, written):
            if difference.standing is not ObjectStanding.SAME:
                what = difference.what or difference.standing.value
                raise RestoreError(
                    f"object {difference.entry.key!r} was written but differs from what was captured: {what}"
                )

    def undo(self) -> str:
        """Remove what was written; return a sentence on what the bucket contains now."""
        return self.bucket.writer.undo().describe(self.bucket.target.label)

    def _list(self, standing: ObjectStanding) -> tuple[ObjectEntry, ...]:
        return tuple(difference.entry for difference in self.differences if difference.standing is standing)

    def _write(self, wanted: Sequence[ObjectEntry], replaced: Collection[str]) -> tuple[ObjectEntry, ...]:
        done: list[str] = []

        def write(entry: ObjectEntry) -> ObjectEntry:
            self.bucket.writer.write(entry, is_replacing=entry.key in replaced)
            done.append(entry.key)
            return entry

        pool = ThreadPoolExecutor(
            max_workers=self.bucket.transfer.download_threads, thread_name_prefix="objects"
        )
        try:
            return tuple(pool.map(write, wanted))
        except BackupError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            # Each object is useful by itself; a restore of rows with their objects calls `undo`.
            state = f"{len(done)} of {count(len(wanted), 'object')} were written."
            raise error.restate(error.message, hint=f"{state} {error.hint}".strip()) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def prepare_objects(
    point: PointListing, patterns: tuple[str, ...], target: BucketSettings, transfer: TransferSettings
) -> Generator[PreparedObjects, None, None]:
    """Compare the matching objects with the bucket; keep archive and S3 client open within the block.

    RestoreError names patterns without a match, VerificationError a file of another point. Raises errors of
    the bucket.
    """
    with prepare_bucket(point.get_path(ArtifactKind.BUCKET), target, transfer, keys=point.keys) as bucket:
        with bucket.artifact.read_as(ArchiveFile) as archive:
            check_archive_belongs(archive, point.point_id)
            entries = select_objects(archive, patterns)
        yield PreparedObjects(point, bucket, compare_objects(bucket, entries))


def compare_objects(bucket: PreparedBucket, entries: Sequence[ObjectEntry]) -> tuple[ObjectDifference, ...]:
    """Return the state of each entry in the bucket, in order; the bytes of existing objects are compared."""

    def compare(entry: ObjectEntry) -> ObjectDifference:
        difference = find_difference(bucket.client, entry)
        if not difference:
            return ObjectDifference(entry, ObjectStanding.SAME)
        if difference == ObjectStanding.MISSING.value:
            return ObjectDifference(entry, ObjectStanding.MISSING)
        return ObjectDifference(entry, ObjectStanding.DIFFERENT, difference)

    with ThreadPoolExecutor(
        max_workers=bucket.transfer.download_threads, thread_name_prefix="compare"
    ) as pool:
        return tuple(pool.map(compare, entries))


@dataclass(frozen=True)
class PreparedFiles:
    """Selected objects and their future files; nothing is written yet."""

    point: PointListing
    artifact: ArtifactFile
    entries: tuple[ObjectEntry, ...]
    folder: Path
    """Resolved, without symbolic links."""

    def find_paths(self) -> tuple[Path, ...]:
        """Return the file of each entry, in order.

        VerificationError if a name leads out of the directory.
        """
        with translate_storage_errors(self.folder):
            return tuple(resolve_file(self.folder, entry) for entry in self.entries)

    def describe(self) -> tuple[str, ...]:
        """Return what would be written, one line each."""
        return tuple(f"{'overwrite' if _is_taken(path) else 'write'} {path}" for path in self.find_paths())

    def execute(self, *, overwrite: bool) -> tuple[Path, ...]:
        """Write each object as a file; return the files.

        TargetNotEmptyError, with nothing written, if a file exists and `overwrite` is not set.
        VerificationError at the first damaged object; files are written completely or not at all.
        StorageError if the directory cannot be written.
        """
        paths = self.find_paths()
        taken = [str(path) for path in paths if _is_taken(path)]
        if taken and not overwrite:
            raise TargetNotEmptyError(
                f"{taken[0]} exists already; nothing was written",
                hint="Use another directory, or --overwrite.",
            )
        with translate_storage_errors(self.folder), self.artifact.read_as(ArchiveFile) as archive:
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry, path in zip(self.entries, paths, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_file(archive, entry, path)
            self._add_to_index()
        return paths

    @property
    def index_path(self) -> Path | None:
        """The file that maps files to keys, for keys that are not valid file names; None if not needed."""
        is_needed = any(entry.member_name != entry.key for entry in self.entries)
        return self.folder / INDEX_NAME if is_needed else None

    def _add_to_index(self) -> None:
        if self.index_path is None:
            return
        with self.index_path.open("a", encoding="utf-8") as index:
            for entry in self.entries:
                if entry.member_name != entry.key:
                    index.write(json.dumps({"file": entry.member_name, "key": entry.key}) + "\n")

    def compare(self) -> None:
        """Read the files back; RestoreError if one differs from what was captured."""
        with translate_storage_errors(self.folder):
            for entry, path in zip(self.entries, self.find_paths(), strict=True):
                with path.open("rb") as file:
                    digest = hashlib.sha256()
                    for block in iter(partial(file.read, BLOCK_BYTES), b""):
                        digest.update(block)
                if digest.hexdigest() != entry.sha256:
                    raise RestoreError(f"{path} was written but differs from what was captured")


@contextmanager
def prepare_files(
    point: PointListing, patterns: tuple[str, ...], folder: Path
) -> Generator[PreparedFiles, None, None]:
    """Prepare the matching objects for writing as files.

    File names are those in the tar, which equal the key if that is a safe path. RestoreError names patterns
    without a match. VerificationError if the file belongs to another point, or a name leads out of the
    directory.
    """
    with point.open_file(ArtifactKind.BUCKET) as artifact:
        with artifact.read_as(ArchiveFile) as archive:
            check_archive_belongs(archive, point.point_id)
            entries = select_objects(archive, patterns)
        with translate_storage_errors(folder):
            files = PreparedFiles(point, artifact, entries, folder.resolve())
        files.find_paths()
        yield files


def _is_taken(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def resolve_file(root: Path, entry: ObjectEntry) -> Path:
    """Return the object's file below `root`.

    VerificationError if its name leads out of there.
    """
    path = root / entry.member_name
    # The name comes from a file that may be forged; a link below the directory may also lead out of it.
    if Path(os.path.normpath(path)) != path or not path.parent.resolve().is_relative_to(root):
        raise VerificationError(
            f"object {entry.key!r} has an unsafe file name: {entry.member_name!r}",
            hint="This archive was not written by schedgen-backups.",
        )
    return path


def _write_file(archive: ArchiveFile, entry: ObjectEntry, path: Path) -> None:
    with NamedTemporaryFile(dir=path.parent, prefix=".restoring-", delete=False) as file:
        try:
            for block in archive.read_object(entry):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.utime(file.name, (entry.modified_at.timestamp(), entry.modified_at.timestamp()))
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def objects_to_json(differences: Iterable[ObjectDifference]) -> list[dict[str, object]]:
    """Return the differences as values for JSON."""
    return [
        {
            "key": difference.entry.key,
            "size_bytes": difference.entry.size_bytes,
            "standing": difference.standing.value,
            "difference": difference.what,
        }
        for difference in differences
    ]
