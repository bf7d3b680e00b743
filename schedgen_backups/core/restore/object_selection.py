"""Chooses objects of an archive by key, prefix or glob, and tells how each stands in a bucket before anything is written.

Add a way of naming objects, or a difference that people must see, here. Writing is the business of `object_restore`; whole archives go through
`bucket_restore`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.restore.bucket import find_difference
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BackupSettings, BucketSettings

_GLOB_CHARACTERS = frozenset("*?[")
_NAMED = 10


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
        named = ", ".join(repr(pattern) for pattern in sorted(unused)[:_NAMED])
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


def compare_objects(entries: tuple[ObjectEntry, ...], target: BucketSettings, backup: BackupSettings) -> tuple[ObjectDifference, ...]:
    """How each entry stands in the bucket, in the same order; objects of the same key are read and their bytes compared.

    Errors of the bucket are raised.
    """
    with (
        BucketClient(target, threads=backup.download_threads, stall_timeout_seconds=backup.stall_timeout_seconds) as client,
        ThreadPoolExecutor(max_workers=backup.download_threads, thread_name_prefix="compare") as pool,
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
