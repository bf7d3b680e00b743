"""Restore deleted rows with their objects: only missing data is written, and rows are committed last."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.patterns import matches_any_key
from schedgen_backups.core.restore.bucket import prepare_bucket
from schedgen_backups.core.restore.objects import (
    PreparedObjects,
    check_archive_belongs,
    compare_objects,
    select_keys,
)
from schedgen_backups.core.restore.table_diff import TableDiff
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import PreparedTables, TableRequest, prepare_tables
from schedgen_backups.core.settings import BucketSettings, TransferSettings


@dataclass(frozen=True)
class UndeleteRequest:
    """The rows to restore, and the bucket of their objects."""

    rows: TableRequest
    key_column: str
    """The table's column that contains object keys."""
    bucket: BucketSettings

    @property
    def target_name(self) -> str:
        """The name that the operator types to confirm."""
        return self.rows.target_name


@dataclass(frozen=True)
class Undeleted:
    """What was restored."""

    row_count: int
    objects: tuple[ObjectEntry, ...]


@dataclass(frozen=True)
class PreparedUndelete:
    """Rows in a side database and their objects, compared with the live ones; nothing is written yet."""

    request: UndeleteRequest
    tables: PreparedTables
    objects: PreparedObjects
    lost_keys: tuple[str, ...]
    """Keys that the rows refer to and the archive lacks."""
    excluded_keys: frozenset[str]
    """Those of them that the operator excluded from the archive."""

    def execute(self) -> Undeleted:
        """Write the missing objects, read them back, then put the missing rows back.

        After an error the live table is unchanged, and the written objects are removed again; the error's
        hint lists those that remain.
        """
        try:
            objects = self.objects.write_missing()
            self.objects.compare(objects)
            rows = self.tables.execute(WriteMode.MISSING)
        except BackupError as error:
            raise error.restate(error.message, hint=f"{self.objects.undo()} {error.hint}".strip()) from error
        return Undeleted(sum(written.count for written in rows), objects)

    def compare(self) -> tuple[TableDiff, ...]:
        """Return how the rows differ now."""
        return self.tables.compare()


@contextmanager
def prepare_undelete(
    request: UndeleteRequest, transfer: TransferSettings
) -> Generator[PreparedUndelete, None, None]:
    """Load the rows into a side database for the block, and compare their objects with the bucket.

    Errors are those of `prepare_tables` and of S3.
    """
    point = request.rows.point
    with (
        prepare_bucket(
            point.get_path(ArtifactKind.BUCKET), request.bucket, transfer, keys=point.keys
        ) as bucket,
        prepare_tables(request.rows, transfer) as tables,
    ):
        keys = tables.read_keys(request.key_column)
        with bucket.artifact.read_as(ArchiveFile) as archive:
            check_archive_belongs(archive, point.point_id)
            entries, lost_keys = select_keys(archive, keys)
            excluded_keys = frozenset(
                key for key in lost_keys if matches_any_key(archive.record.excluded_patterns, key)
            )
        objects = PreparedObjects(point, bucket, compare_objects(bucket, entries))
        yield PreparedUndelete(request, tables, objects, lost_keys, excluded_keys)
