"""Restores from the command line and the Dagster UI: safety backup, log, execution, comparison.

The order of these steps is defined here, once for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.catalog.pins import pin_temporarily
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import BackupError, RestoreError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.formats.tar_member import digest_name
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.database import MAINTENANCE_DATABASE
from schedgen_backups.core.restore.log import RestoreLogDraft, logged_restore
from schedgen_backups.core.restore.objects import PreparedFiles, PreparedObjects
from schedgen_backups.core.restore.point import OnProgress, PreparedRestore, RestoreReport, ignore_progress
from schedgen_backups.core.restore.safety_backup import take_safety_backup
from schedgen_backups.core.restore.swap import finish_swap, list_way_back, open_swap
from schedgen_backups.core.restore.table_diff import TableDiff
from schedgen_backups.core.restore.table_write import WriteMode, WrittenRows
from schedgen_backups.core.restore.tables import PreparedTables, TableRequest, prepare_tables
from schedgen_backups.core.restore.undelete import PreparedUndelete, Undeleted
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings
from schedgen_backups.core.units import count, name_some

RESTORED_NAME = "restored"
"""Subdirectory of the backup directory in which Dagster runs may write files."""
_MAX_DURATION = timedelta(days=1)
"""How long a killed restore protects its point from retention."""


@dataclass(frozen=True)
class RestoreOptions:
    """Options of every restore: requester, reason, and whether to make a safety backup."""

    asked_by: str
    reason: str = ""
    is_safety_wanted: bool = True


class RestoreService:
    """Restores from one backup directory, with the same options.

    Each method takes the result of `prepare_restore`, `open_tables`, `prepare_objects`, `prepare_files` or
    `prepare_undelete`.
    """

    def __init__(
        self,
        catalog: Catalog,
        capture: CaptureSettings,
        options: RestoreOptions,
        *,
        report: Callable[[str], object],
    ) -> None:
        self.catalog = catalog
        self.transfer = capture.transfer
        self._capture = capture
        self.options = options
        self._report = report
        self._is_writable = os.access(catalog.directory, os.W_OK)

    def restore_whole(
        self, prepared: PreparedRestore, *, on_progress: OnProgress = ignore_progress
    ) -> RestoreReport:
        """Restore the point into the targets, as in `PreparedRestore.restore`.

        For a swap, the restored database takes the live one's name, and the live one is kept under another
        name. If the restored one is not equal, a swap raises RestoreError and leaves the live database
        unchanged.
        """
        request = prepared.request
        targets = [target.label for target in (request.database, request.bucket) if target is not None]
        halves = [
            name
            for name, target in (("database", request.database), ("bucket", request.bucket))
            if target is not None
        ]
        with self._log(request.point, ", ".join(halves), ", ".join(targets)) as draft:
            draft.versions = prepared.list_versions()
            self._keep_targets(prepared)
            if request.is_swap and request.database is not None:
                report = self._swap(prepared, request.database, on_progress)
            else:
                report = self._restore(prepared, on_progress)
            draft.result = "done: equal" if report.is_equal else f"done: {describe_rest(report)}"
        return report

    @contextmanager
    def open_tables(self, request: TableRequest) -> Generator[PreparedTables, None, None]:
        """Like `core.restore.tables.prepare_tables`, with a log entry; the side database may be kept."""
        with self._log(
            request.point, _name_tables(request), f"a database beside {request.live.label}"
        ) as draft:
            with prepare_tables(request, self.transfer) as prepared:
                yield prepared
            kept = (
                f"kept as {prepared.side.name}" if prepared.side.is_kept else "compared only, dropped again"
            )
            draft.result = f"done: {kept}"

    def write_rows(self, prepared: PreparedTables, mode: WriteMode) -> tuple[WrittenRows, ...]:
        """Put rows back, as in `PreparedTables.execute`, after a safety backup; return the counts per table.

        Rows that are still missing are reported.
        """
        request = prepared.request
        with self._log(
            request.point, f"{mode.value} rows of {_name_tables(request)}", request.live.label
        ) as draft:
            self._keep(database=request.live)
            written = prepared.execute(mode)
            draft.result = (
                f"done: {count(sum(rows.count for rows in written), 'row')}"
                f"{self._report_missing(prepared.compare)}"
            )
        return written

    def write_objects(self, prepared: PreparedObjects, *, overwrite: bool) -> tuple[ObjectEntry, ...]:
        """Write the objects and read them back, as in `PreparedObjects.execute`.

        Objects that are overwritten are saved first.
        """
        entries = [difference.entry for difference in prepared.differences]
        with self._log(prepared.point, _name_objects(entries), prepared.bucket.target.label) as draft:
            doomed = {entry.key for entry in prepared.different}
            if doomed and overwrite:
                self._keep(bucket=prepared.bucket.target, is_wanted=doomed.__contains__)
            written = prepared.execute(overwrite=overwrite)
            prepared.compare(written)
            draft.result = f"done: {count(len(written), 'object')}"
        return written

    def find_folder(self, text: str) -> Path:
        """Return the directory named by the text, relative to `restored` in the backup directory.

        RestoreError if it lies elsewhere.
        """
        root = (self.catalog.directory / RESTORED_NAME).resolve()
        folder = (root / text).resolve()
        if not folder.is_relative_to(root):
            raise RestoreError(
                f"{text!r} is not a directory below {root}; nothing was written",
                hint=f"Use a directory relative to {root}.",
            )
        return folder

    def write_files(self, prepared: PreparedFiles, *, overwrite: bool) -> tuple[Path, ...]:
        """Write the objects as files and read them back, as in `PreparedFiles.execute`."""
        with self._log(prepared.point, _name_objects(prepared.entries), str(prepared.folder)) as draft:
            paths = prepared.execute(overwrite=overwrite)
            prepared.compare()
            draft.result = f"done: {count(len(paths), 'file')}"
        return paths

    def undelete(self, prepared: PreparedUndelete) -> Undeleted:
        """Bring back rows and objects, as in `PreparedUndelete.execute`, after a safety backup.

        Only the database is saved. Rows that are still missing are reported.
        """
        rows = prepared.request.rows
        subject = f"missing rows of {_name_tables(rows)} with their objects"
        with self._log(rows.point, subject, f"{rows.live.label}, {prepared.request.bucket.label}") as draft:
            self._keep(database=rows.live)
            undeleted = prepared.execute()
            rest = self._report_missing(prepared.compare)
            draft.result = (
                f"done: {count(undeleted.row_count, 'row')}, {count(len(undeleted.objects), 'object')}{rest}"
            )
        return undeleted

    def _report_missing(self, compare: Callable[[], tuple[TableDiff, ...]]) -> str:
        """Compare the tables again and report those that still lack rows; return the same for the log."""
        try:
            differences = compare()
        except BackupError as error:
            # The rows are committed: a failed comparison must not hide that.
            rest = f"not compared: {error.message}"
            self._report(f"the rows were put back, but {rest}")
            return f"; {rest}"
        lacking = [
            f"{difference.only_captured} of {difference.table.qualified_name}"
            for difference in differences
            if difference.only_captured
        ]
        if not lacking:
            return ""
        rest = f"rows still missing: {', '.join(lacking)}"
        self._report(
            f"{rest}; triggers or rules of the table may drop them, and of equal rows without a primary "
            "key only one is put back"
        )
        return f"; {rest}"

    def _restore(self, prepared: PreparedRestore, on_progress: OnProgress) -> RestoreReport:
        is_recorded = self._is_writable and self._is_here(prepared.request.point)
        catalog = self.catalog if is_recorded else None
        return prepared.restore(catalog=catalog, restored_by=self.options.asked_by, on_progress=on_progress)

    def _swap(
        self, prepared: PreparedRestore, live: DatabaseSettings, on_progress: OnProgress
    ) -> RestoreReport:
        database = prepared.get_database()
        record, ids = database.record, (prepared.request.point.point_id, _make_now_id())
        with open_swap(
            database.session, live, *ids, encoding=record.encoding, captured=record.properties
        ) as swap:
            try:
                with prepared.aim_at(swap.fresh) as fresh:
                    report = self._restore(fresh, on_progress)
                failed = [result for result in report.results if result.status is CheckStatus.FAILED]
                if failed:
                    raise RestoreError(
                        f"the restored database differs from what was captured, {live.label} is unchanged: "
                        f"{failed[0].summary}"
                    )
                differences = finish_swap(swap)
            except BackupError as error:
                # The live database keeps its name and contents, so objects written into the bucket must be
                # removed.
                state = prepared.undo_bucket()
                raise (
                    error
                    if state in error.hint
                    else error.restate(error.message, hint=f"{state} {error.hint}".strip())
                ) from error
            except BaseException:
                prepared.undo_bucket()
                raise
        if differences:
            self._report(f"the database itself differs from what was captured: {', '.join(differences)}")
        if swap.has_live:
            self._report(
                f"the previous database is now called {swap.old_name}; drop it when it is no longer needed"
            )
            statements = " ".join(list_way_back(swap, ids[1]))
            self._report(
                f"to go back to it, stop the application and run in the database {MAINTENANCE_DATABASE}: "
                f"{statements}"
            )
        return report

    def _keep_targets(self, prepared: PreparedRestore) -> None:
        """Save what the restore overwrites; nothing if the targets are empty."""
        if not prepared.request.replace_contents:
            return
        database = (
            prepared.request.database
            if prepared.database is not None and prepared.database.facts.relation_count
            else None
        )
        if prepared.bucket is None or prepared.bucket.is_empty:
            if database is not None:
                self._keep(database=database)
            return
        with prepared.bucket.artifact.read_as(ArchiveFile) as archive:
            keys = {digest_name(key) for key in archive.read_keys()}
        self._keep(
            database=database, bucket=prepared.bucket.target, is_wanted=lambda key: digest_name(key) in keys
        )

    def _keep(
        self,
        *,
        database: DatabaseSettings | None = None,
        bucket: BucketSettings | None = None,
        is_wanted: Callable[[str], bool] = lambda _key: True,
    ) -> None:
        if not self.options.is_safety_wanted:
            return
        kept = take_safety_backup(
            self.catalog.directory,
            self._capture,
            database=database,
            bucket=bucket,
            is_wanted=is_wanted,
            keys=self.catalog.keys,
        )
        for path in kept.paths:
            self._report(f"the previous contents are saved in {path}")

    @contextmanager
    def _log(self, point: PointListing, subject: str, target: str) -> Generator[RestoreLogDraft, None, None]:
        """Log the restore and protect its point from retention; do neither if the directory is read-only."""
        directory = self.catalog.directory
        if not self._is_writable:
            self._report(f"{directory} is not writable: this restore is not logged")
            yield RestoreLogDraft()
            return
        reason, asked_by = self.options.reason, self.options.asked_by
        with (
            logged_restore(
                directory,
                point_id=point.point_id.text,
                subject=subject,
                target=target,
                reason=reason,
                points_folder=next((artifact.path.parent for artifact in point.artifacts), None),
            ) as draft,
            pin_temporarily(
                self.catalog,
                point.point_id,
                reason="a restore reads it",
                pinned_by=asked_by,
                max_duration=_MAX_DURATION,
            )
            if self._is_here(point)
            else nullcontext(),
        ):
            yield draft

    def _is_here(self, point: PointListing) -> bool:
        """Return whether the point is in the backup directory, and was not fetched from a store."""
        return all(artifact.path.parent == self.catalog.directory for artifact in point.artifacts)


def _make_now_id() -> RecoveryPointId:
    return RecoveryPointId.from_time(datetime.now(timezone.utc))


def describe_rest(report: RestoreReport) -> str:
    """Return the comparisons that did not pass, for the log."""
    return "; ".join(
        f"{result.check.value} {result.status.value}"
        for result in report.results
        if result.status is not CheckStatus.PASSED
    )


def _name_tables(request: TableRequest) -> str:
    condition = f" where {request.where}" if request.where else ""
    return f"table {', '.join(request.names)}{condition}"


def _name_objects(entries: tuple[ObjectEntry, ...] | list[ObjectEntry]) -> str:
    return f"objects {name_some([entry.key for entry in entries], limit=3)}"
