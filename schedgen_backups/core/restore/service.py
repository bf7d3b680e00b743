"""Every restore that people ask for, from the command line and from the Dagster UI: safety backup, log entry, and core doing the work.

Here the order of these steps is decided, once for both. How a request is spelled belongs to `restore_commands` and `restore_jobs`, what a step does
to core. Add a restore of another kind here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.catalog.pins import pin_temporarily
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.formats.tar_member import digest_name
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.postgres.connection import count_user_relations
from schedgen_backups.core.restore.log import RestoreLogDraft, logged_restore
from schedgen_backups.core.restore.objects import (
    ObjectDifference,
    ObjectStanding,
    check_archive_belongs,
    compare_objects,
    extract_objects,
    restore_objects,
    select_keys,
    select_objects,
)
from schedgen_backups.core.restore.point import OnProgress, RestoreReport, RestoreRequest, describe_restore, restore_point
from schedgen_backups.core.restore.safety_backup import SafetyBackup, take_safety_backup
from schedgen_backups.core.restore.swap import finish_swap, open_swap
from schedgen_backups.core.restore.table_write import WriteMode, WrittenRows, write_rows
from schedgen_backups.core.restore.tables import RestoredTables, TableRequest, open_restored_tables, read_keys
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings
from schedgen_backups.core.units import name_some

_LONGEST = timedelta(days=1)
"""So long a restore that was killed keeps its point from retention."""


@dataclass(frozen=True)
class RestoreOptions:
    """What holds for every restore: who asks and why, and whether the target is kept first."""

    asked_by: str
    reason: str = ""
    is_safety_wanted: bool = True


@dataclass(frozen=True)
class Undelete:
    """Rows that the live table lacks and the objects that they refer to."""

    tables: RestoredTables
    differences: tuple[ObjectDifference, ...]
    lost_keys: tuple[str, ...]
    """Keys that the rows refer to and the archive lacks."""

    @property
    def missing_objects(self) -> tuple[ObjectDifference, ...]:
        """The objects that the bucket lacks; others of the same key are left alone."""
        return tuple(difference for difference in self.differences if difference.standing is ObjectStanding.MISSING)


class RestoreService:
    """Restores out of one backup directory, on the same terms."""

    def __init__(self, catalog: Catalog, capture: CaptureSettings, options: RestoreOptions, *, report: Callable[[str], object]) -> None:
        self.catalog = catalog
        self.transfer = capture.transfer
        self._capture = capture
        self.options = options
        self._report = report
        self._is_writable = os.access(catalog.directory, os.W_OK)

    def describe_whole(self, request: RestoreRequest, *, is_swap: bool) -> tuple[str, ...]:
        """What `restore_whole` would do, a line each; raises what it would raise before it writes."""
        database = request.database
        if is_swap and database is None:
            raise RestoreError("a swap needs a database, and none is named", hint="Name the live database, or leave the swap out.")
        if not is_swap or database is None:
            return describe_restore(request, self.transfer)
        lines = describe_restore(replace(request, database=None), self.transfer)
        exchange = (
            f"load the database into a new one beside {database.label}, compare it, then exchange the names; the old one stays under another name"
        )
        return (lines[0], exchange, *lines[1:])

    def restore_whole(self, request: RestoreRequest, *, is_swap: bool, on_progress: OnProgress = lambda _phase, _size_bytes: None) -> RestoreReport:
        """The targets hold the point, as `core.restore.restore_point` says. With `is_swap` under the live one's name, which is kept under another.

        RestoreError, with the live database as it was, when the restored one is not equal.
        """
        targets = [target.label for target in (request.database, request.bucket) if target is not None]
        halves = [name for name, target in (("database", request.database), ("bucket", request.bucket)) if target is not None]
        with self._log(request.point, ", ".join(halves), ", ".join(targets)) as draft:
            self.describe_whole(request, is_swap=is_swap)
            self._keep_whole(request, is_swap=is_swap)
            if is_swap and request.database is not None:
                report, old_name = self._restore_by_swap(request, request.database, on_progress)
                self._report(f"the database of before is called {old_name}; drop it when nobody needs it")
            else:
                report = restore_point(
                    request, self.transfer, catalog=self._find_catalog(), restored_by=self.options.asked_by, on_progress=on_progress
                )
            draft.result = "done: equal" if report.is_equal else f"done: {_describe_rest(report)}"
        return report

    @contextmanager
    def open_tables(self, request: TableRequest) -> Generator[RestoredTables, None, None]:
        """As `core.table_restore.open_restored_tables`, with an entry in the log."""
        with self._log(request.point, _name_tables(request), f"a database beside {request.live.label}") as draft:
            with open_restored_tables(request, self.transfer) as restored:
                yield restored
            kept = f"kept as {restored.scratch.settings.database}" if restored.scratch.is_kept else "compared only, dropped again"
            draft.result = f"done: {kept}"

    def write_back(self, request: TableRequest, restored: RestoredTables, mode: WriteMode) -> tuple[WrittenRows, ...]:
        """The live tables hold the rows again, as `core.table_write.write_rows` says; the live database was kept first."""
        with self._log(request.point, f"{mode.value} rows of {_name_tables(request)}", request.live.label) as draft:
            self._keep(database=request.live)
            written = write_rows(restored.tables, restored.scratch.settings, request.live, mode, where=request.where)
            draft.result = f"done: {sum(rows.count for rows in written)} rows"
        return written

    def find_objects(self, point: PointListing, patterns: tuple[str, ...]) -> tuple[ObjectEntry, ...]:
        """The entries that the patterns name, as `core.object_selection.select_objects` says."""
        with open_archive(point.get_path(ArtifactKind.BUCKET)) as archive:
            check_archive_belongs(archive, point.point_id)
            return select_objects(archive, patterns)

    def compare(self, entries: tuple[ObjectEntry, ...], target: BucketSettings) -> tuple[ObjectDifference, ...]:
        """How the entries stand in the bucket."""
        return compare_objects(entries, target, self.transfer)

    def restore_objects(
        self, point: PointListing, differences: tuple[ObjectDifference, ...], target: BucketSettings, *, overwrite: bool
    ) -> tuple[ObjectEntry, ...]:
        """The bucket holds the objects, as `core.object_restore.restore_objects` says; those that are overwritten were kept first."""
        with self._log(point, _name_objects([difference.entry for difference in differences]), target.label) as draft:
            doomed = {difference.entry.key for difference in differences if difference.standing is ObjectStanding.DIFFERENT}
            if doomed and overwrite:
                self._keep(bucket=target, is_wanted=doomed.__contains__)
            written = restore_objects(point.get_path(ArtifactKind.BUCKET), differences, target, self.transfer, overwrite=overwrite)
            draft.result = f"done: {len(written)} objects"
        return written

    def extract_objects(self, point: PointListing, entries: tuple[ObjectEntry, ...], folder: Path, *, overwrite: bool) -> tuple[Path, ...]:
        """The folder holds the objects as files."""
        with self._log(point, _name_objects(entries), str(folder)) as draft:
            paths = extract_objects(point.get_path(ArtifactKind.BUCKET), entries, folder, overwrite=overwrite)
            draft.result = f"done: {len(paths)} files"
        return paths

    @contextmanager
    def open_undelete(self, request: TableRequest, key_column: str, bucket: BucketSettings) -> Generator[Undelete, None, None]:
        """The rows are in a side database within the block, and it is known how their objects stand in the bucket. Nothing is written."""
        with open_restored_tables(request, self.transfer) as restored:
            keys = read_keys(restored.tables[0], key_column, restored.scratch.settings, where=request.where)
            with open_archive(request.point.get_path(ArtifactKind.BUCKET)) as archive:
                check_archive_belongs(archive, request.point.point_id)
                entries, lost_keys = select_keys(archive, keys)
            yield Undelete(restored, compare_objects(entries, bucket, self.transfer), lost_keys)

    def finish_undelete(self, request: TableRequest, undelete: Undelete, bucket: BucketSettings) -> tuple[tuple[ObjectEntry, ...], int]:
        """Bucket and table hold again what was missing, objects first; returns the objects and the number of rows."""
        with self._log(
            request.point, f"missing rows of {_name_tables(request)} with their objects", f"{request.live.label}, {bucket.label}"
        ) as draft:
            self._keep(database=request.live)
            path = request.point.get_path(ArtifactKind.BUCKET)
            objects = restore_objects(path, undelete.missing_objects, bucket, self.transfer, overwrite=False)
            restored = undelete.tables
            rows = write_rows(restored.tables, restored.scratch.settings, request.live, WriteMode.MISSING, where=request.where)
            count = sum(written.count for written in rows)
            draft.result = f"done: {count} rows, {len(objects)} objects"
        return objects, count

    def _restore_by_swap(self, request: RestoreRequest, live: DatabaseSettings, on_progress: OnProgress) -> tuple[RestoreReport, str]:
        with open_dump(request.point.get_path(ArtifactKind.DATABASE)) as dump:
            encoding = dump.record.encoding
        with open_swap(live, request.point.point_id, _make_now_id(), encoding=encoding) as swap:
            fresh = replace(request, database=swap.fresh)
            report = restore_point(fresh, self.transfer, catalog=self._find_catalog(), restored_by=self.options.asked_by, on_progress=on_progress)
            failed = [result for result in report.results if result.status is CheckStatus.FAILED]
            if failed:
                raise RestoreError(f"what was restored is not what was captured, {live.label} is as it was: {failed[0].summary}")
            finish_swap(swap)
            return report, swap.old_name

    def _keep_whole(self, request: RestoreRequest, *, is_swap: bool) -> None:
        """What the restore overwrites is kept; nothing where the targets are empty."""
        if not request.replace_contents:
            return
        database = request.database if not is_swap and request.database is not None and count_user_relations(request.database) else None
        if request.bucket is None or self._is_empty(request.bucket):
            if database is not None:
                self._keep(database=database)
            return
        with open_archive(request.point.get_path(ArtifactKind.BUCKET)) as archive:
            keys = {digest_name(entry.key) for entry in archive.read_entries()}
        self._keep(database=database, bucket=request.bucket, is_wanted=lambda key: digest_name(key) in keys)

    def _is_empty(self, bucket: BucketSettings) -> bool:
        with BucketClient(bucket, threads=1, stall_timeout_seconds=self.transfer.stall_timeout_seconds) as client:
            return client.is_empty()

    def _keep(
        self,
        *,
        database: DatabaseSettings | None = None,
        bucket: BucketSettings | None = None,
        is_wanted: Callable[[str], bool] = lambda _key: True,
    ) -> SafetyBackup | None:
        if not self.options.is_safety_wanted:
            return None
        kept = take_safety_backup(self.catalog.directory, self._capture, database=database, bucket=bucket, is_wanted=is_wanted)
        for path in kept.paths:
            self._report(f"what was there before is in {path}")
        return kept

    def _find_catalog(self) -> Catalog | None:
        """Where the levels that a restore reaches are kept."""
        return self.catalog if self._is_writable else None

    @contextmanager
    def _log(self, point: PointListing, subject: str, target: str) -> Generator[RestoreLogDraft, None, None]:
        """The restore has an entry in the log, and retention leaves its point alone; neither where the backups lie on something read-only."""
        directory = self.catalog.directory
        if not self._is_writable:
            self._report(f"{directory} cannot be written: this restore is in no log")
            yield RestoreLogDraft()
            return
        reason, asked_by = self.options.reason, self.options.asked_by
        with (
            logged_restore(directory, point_id=point.point_id.text, subject=subject, target=target, reason=reason) as draft,
            pin_temporarily(self.catalog, point.point_id, reason="a restore reads it", pinned_by=asked_by, longest=_LONGEST),
        ):
            yield draft


def _make_now_id() -> RecoveryPointId:
    return RecoveryPointId.from_time(datetime.now(timezone.utc))


def _describe_rest(report: RestoreReport) -> str:
    return "; ".join(f"{result.check.value} {result.status.value}" for result in report.results if result.status is not CheckStatus.PASSED)


def _name_tables(request: TableRequest) -> str:
    condition = f" where {request.where}" if request.where else ""
    return f"table {', '.join(request.names)}{condition}"


def _name_objects(entries: tuple[ObjectEntry, ...] | list[ObjectEntry]) -> str:
    return f"objects {name_some([entry.key for entry in entries], limit=3)}"
