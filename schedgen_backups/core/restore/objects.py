"""Restores single objects: which ones, how they differ from the bucket, and writing them to a directory or a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import NamedTemporaryFile

from schedgen_backups.core.catalog.catalog import translate_storage_errors
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.bucket import find_difference, write_object
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, TransferSettings
from schedgen_backups.core.units import name_some

_GLOB_CHARACTERS = frozenset("*?[")


class ObjectStanding(str, Enum):
    """How an object of the archive stands in a bucket."""

    MISSING = "missing"
    SAME = "same"
    DIFFERENT = "different"


@dataclass(frozen=True)
class ObjectDifference:
    """One chosen object and how it stands in the bucket."""

    entry: ObjectEntry
    standing: ObjectStanding
    what: str = ""
    """For a different one: what differs, in a word (`size`, `bytes`, `content type` …)."""


def select_objects(archive: ArchiveFile, patterns: tuple[str, ...]) -> tuple[ObjectEntry, ...]:
    """The entries that any pattern names, in the order of the archive: a key itself, a prefix ending in `/`, or a glob (`*` passes `/`).

    RestoreError (permanent) names the patterns that name nothing.
    """
    chosen: list[ObjectEntry] = []
    unused = set(patterns)
    for entry in archive.read_entries():
        matching = [pattern for pattern in patterns if _matches(entry.key, pattern)]
        if matching:
            chosen.append(entry)
            unused.difference_update(matching)
    if unused:
        named = name_some([repr(pattern) for pattern in sorted(unused)])
        raise RestoreError(
            f"the archive of {archive.record.bucket} holds no object for {named}",
            hint="Name a key, a prefix that ends in /, or a glob; `schedgen-backups show ID --objects PREFIX` lists what there is.",
        )
    return tuple(chosen)


def select_keys(archive: ArchiveFile, keys: tuple[str, ...]) -> tuple[tuple[ObjectEntry, ...], tuple[str, ...]]:
    """The entries of just these keys, in the order of the archive, and the keys that the archive lacks."""
    wanted = set(keys)
    chosen = tuple(entry for entry in archive.read_entries() if entry.key in wanted)
    found = {entry.key for entry in chosen}
    return chosen, tuple(key for key in keys if key not in found)


def compare_objects(entries: tuple[ObjectEntry, ...], target: BucketSettings, transfer: TransferSettings) -> tuple[ObjectDifference, ...]:
    """How each entry stands in the bucket, in the same order; objects of the same key are read and their bytes compared.

    Errors of the bucket are raised.
    """
    with (
        BucketClient(target, threads=transfer.download_threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client,
        ThreadPoolExecutor(max_workers=transfer.download_threads, thread_name_prefix="compare") as pool,
    ):
        client.check_exists()

        def compare(entry: ObjectEntry) -> ObjectDifference:
            difference = find_difference(client, entry)
            if not difference:
                return ObjectDifference(entry, ObjectStanding.SAME)
            if difference == ObjectStanding.MISSING.value:
                return ObjectDifference(entry, ObjectStanding.MISSING)
            return ObjectDifference(entry, ObjectStanding.DIFFERENT, difference)

        return tuple(pool.map(compare, entries))


def _matches(key: str, pattern: str) -> bool:
    if key == pattern or (pattern.endswith("/") and key.startswith(pattern)):
        return True
    return not _GLOB_CHARACTERS.isdisjoint(pattern) and fnmatchcase(key, pattern)


def check_archive_belongs(archive: ArchiveFile, point_id: RecoveryPointId) -> None:
    """The archive is the point's own; VerificationError when the file was exchanged with another point's."""
    if archive.record.point_id != point_id.text:
        raise VerificationError(
            f"the archive says that it is of recovery point {archive.record.point_id}, not of {point_id}",
            hint="The files of two points were exchanged or renamed: give them their own names.",
        )


def restore_objects(
    archive_path: Path,
    differences: tuple[ObjectDifference, ...],
    target: BucketSettings,
    transfer: TransferSettings,
    *,
    overwrite: bool,
) -> tuple[ObjectEntry, ...]:
    """The bucket holds every object that was missing, and with `overwrite` those that were different; returns what was written, read back.

    TargetNotEmptyError, with nothing written, when some are different and `overwrite` is not set. RestoreError, BucketError or
    VerificationError at the first error: objects before it are written.
    """
    different = [difference.entry.key for difference in differences if difference.standing is ObjectStanding.DIFFERENT]
    if different and not overwrite:
        raise TargetNotEmptyError(
            f"{target.label} holds other objects of the same keys: {name_some(different)}; nothing was written",
            hint="Look at the difference, then overwrite them with --overwrite, or restore into a folder or another bucket.",
        )
    wanted = [difference.entry for difference in differences if difference.standing is not ObjectStanding.SAME]
    with (
        BucketClient(target, threads=transfer.download_threads, stall_timeout_seconds=transfer.stall_timeout_seconds) as client,
        ThreadPoolExecutor(max_workers=transfer.download_threads, thread_name_prefix="objects") as pool,
    ):

        def write(entry: ObjectEntry) -> ObjectEntry:
            write_object(client, archive_path, entry)
            seen = find_difference(client, entry)
            if seen:
                raise RestoreError(f"object {entry.key!r} was written and is not what was captured: {seen}")
            return entry

        return tuple(pool.map(write, wanted))


def extract_objects(archive_path: Path, entries: tuple[ObjectEntry, ...], folder: Path, *, overwrite: bool) -> tuple[Path, ...]:
    """The folder holds each object as a file named as in the tar (the key, where that is a safe path); returns the files.

    TargetNotEmptyError, with nothing written, when a file is there already and `overwrite` is not set. VerificationError at the first damaged object;
    a file is there whole or not at all. StorageError when the folder cannot be written.
    """
    with translate_storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve()
        targets = [_resolve(root, entry) for entry in entries]
        taken = [str(path) for path in targets if path.exists() or path.is_symlink()]
        if taken and not overwrite:
            raise TargetNotEmptyError(f"{taken[0]} is there already; nothing was written", hint="Name another folder, or give --overwrite.")
        with open_archive(archive_path) as archive:
            for entry, path in zip(entries, targets, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_file(archive, entry, path)
    return tuple(targets)


def _resolve(root: Path, entry: ObjectEntry) -> Path:
    path = root / entry.member_name
    # The name comes from a file that somebody may have made up; a link below the folder may lead out of it too.
    if Path(os.path.normpath(path)) != path or not path.parent.resolve().is_relative_to(root):
        raise VerificationError(f"object {entry.key!r} has the unsafe name {entry.member_name!r}", hint="This archive was not written by us.")
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
