"""An empty database and an empty bucket for one restore drill, and the removal of what a killed drill left.

Removes only what carries the drill's mark: a directory with its name and record, and what that record names.
`scratch_database` and `scratch_bucket` create and remove them on a server.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.drill.scratch_bucket import open_scratch_bucket, remove_server_bucket
from schedgen_backups.core.drill.scratch_database import drop_server_database, open_scratch_database
from schedgen_backups.core.drill.scratch_folder import (
    ScratchFolder,
    open_orphaned_folders,
    open_scratch_folder,
)
from schedgen_backups.core.errors import BackupError, StorageError
from schedgen_backups.core.formats.records import ArchiveRecord
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillObjects, DrillSettings

_SERVER_BYTES = 300 * 1024 * 1024
"""Disk space of an empty PostgreSQL and an empty SeaweedFS together."""
_DATABASE_FACTOR = 4
"""Size of tables, indexes and write-ahead log relative to the dump's plain text; 2.8 and 3.1 were measured on
2026-11-25, with three indexes on the large table."""
_BUCKET_FACTOR = 1.1
_SAMPLE_FACTOR = 4
"""Allows for a sample whose objects are larger than the average."""


@dataclass(frozen=True)
class Scratch:
    """The targets of a drill."""

    folder: Path
    database: DatabaseSettings | None
    """None for a point without a database."""
    bucket: BucketSettings | None
    """None for a point without a bucket."""
    description: str
    notes: tuple[str, ...]
    load_roles: LoadRoles | None
    """The roles that load into `database` and compare it."""


@contextmanager
def open_scratch(
    point: PointListing, drill: DrillSettings, source: DatabaseSettings | None
) -> Generator[Scratch, None, None]:
    """Provide the empty targets for this point within the block and remove them afterwards.

    StorageError when there is not enough space; ConfigurationError, DatabaseError or BucketError when a
    target cannot be provided.
    """
    kinds = point.verification.kinds
    record, roles, object_bytes = None, "", 0
    if ArtifactKind.DATABASE in kinds:
        with point.open_dump() as dump:
            record, roles = dump.record, dump.roles
    if ArtifactKind.BUCKET in kinds:
        with point.open_archive() as archive:
            object_bytes = _estimate_object_bytes(archive.record, drill.objects)
    with ExitStack() as stack:
        folder = stack.enter_context(open_scratch_folder(drill.directory))
        database_bytes = record.size_bytes if record is not None else 0
        _check_space(folder, drill, database_bytes=database_bytes, object_bytes=object_bytes)
        database = (
            stack.enter_context(open_scratch_database(folder, record, roles, drill, source))
            if record is not None
            else None
        )
        bucket = (
            stack.enter_context(open_scratch_bucket(folder, drill)) if ArtifactKind.BUCKET in kinds else None
        )
        yield Scratch(
            folder.path,
            (database.roles.reader or database.roles.loader) if database is not None else None,
            bucket.settings if bucket is not None else None,
            " and ".join(target.description for target in (database, bucket) if target is not None),
            (database.note,) if database is not None and database.note else (),
            database.roles if database is not None else None,
        )


def sweep_scratch(drill: DrillSettings) -> tuple[str, ...]:
    """Remove what dead drills left; return one line for each of them.

    What cannot be removed is reported, too, and tried again by the next sweep.
    """
    with open_orphaned_folders(drill.directory) as folders:
        return tuple(_sweep(folder, drill) for folder in folders)


def _sweep(folder: ScratchFolder, drill: DrillSettings) -> str:
    named = f"the drill of {folder.record.began_at:%Y-%m-%d %H:%M:%S} UTC, which was killed"
    try:
        folder.end_servers()
        database = folder.record.database
        if database is not None:
            if drill.database is None or (drill.database.host, drill.database.port) != (
                database.host,
                database.port,
            ):
                return (
                    f"{named}, left the database {database.name} at {database.host}:{database.port}, "
                    "which DRILL_DATABASE_URL no longer names"
                )
            drop_server_database(drill.database, database)
            folder.write_record(database=None)
        bucket = folder.record.bucket
        if bucket is not None:
            if drill.bucket is None or drill.bucket.endpoint != bucket.endpoint:
                return (
                    f"{named}, left the bucket {bucket.name} at {bucket.endpoint}, which "
                    "DRILL_MINIO_ENDPOINT no longer names"
                )
            remove_server_bucket(drill.bucket, bucket)
            folder.write_record(bucket=None)
        folder.remove()
    except BackupError as error:
        return f"{named}, left something that cannot be removed now: {error.message}"
    return f"removed what was left by {named}"


def _estimate_object_bytes(record: ArchiveRecord, objects: DrillObjects) -> int:
    """Return about how many bytes of objects are restored; of a sample, sizes are known only roughly."""
    if objects.kind == "all" or not record.object_count:
        return record.size_bytes
    average_bytes = record.size_bytes / record.object_count
    return min(record.size_bytes, int(objects.sample_count * average_bytes * _SAMPLE_FACTOR))


def _check_space(
    folder: ScratchFolder, drill: DrillSettings, *, database_bytes: int, object_bytes: int
) -> None:
    needed_bytes = _SERVER_BYTES
    if drill.database is None:
        needed_bytes += database_bytes * _DATABASE_FACTOR
    if drill.bucket is None:
        needed_bytes += int(object_bytes * _BUCKET_FACTOR)
    free_bytes = shutil.disk_usage(folder.path).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"the drill needs about {needed_bytes / 1e9:.1f} GB in {folder.path.parent}, but only "
            f"{free_bytes / 1e9:.1f} GB are free",
            hint="Free some space, set DRILL_DIR to a larger disk, or use other servers: DRILL_DATABASE_URL, "
            "DRILL_MINIO_ENDPOINT.",
        )
