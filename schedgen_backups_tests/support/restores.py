"""Restores and comparisons of one file without a recovery point, for tests of dumps, archives and loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

from schedgen_backups.core.catalog.check_results import CheckResult
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.restore import comparison
from schedgen_backups.core.restore.bucket import prepare_bucket, write_bucket
from schedgen_backups.core.restore.database import check_empty, prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, TransferSettings


def _ignore(_size_bytes: int) -> None:
    pass


def restore_database(
    path: Path,
    target: DatabaseSettings,
    transfer: TransferSettings,
    *,
    replace_contents: bool,
    stop: Event,
    jobs: int = 1,
    on_progress: Callable[[int], object] = _ignore,
) -> tuple[str, ...]:
    """Load the dump without verifying the file first; return the notes.

    The hint of an error says what the target holds.
    """
    with prepare_database(path, target, transfer) as prepared:
        if not replace_contents:
            check_empty(target, prepared.facts.relation_count)
        load = DatabaseLoad(
            prepared,
            replace_contents=replace_contents,
            jobs=jobs,
            roles=None,
            stop=stop,
            on_progress=on_progress,
        )
        try:
            load.run()
        except BackupError as error:
            raise type(error)(error.message, hint=f"{load.describe_target()} {error.hint}") from error
        return load.notes


def compare_database(
    path: Path, target: DatabaseSettings, transfer: TransferSettings
) -> tuple[CheckResult, ...]:
    with prepare_database(path, target, transfer) as prepared:
        return comparison.compare_database(prepared)


def restore_bucket(
    path: Path, target: BucketSettings, transfer: TransferSettings, *, overwrite: bool, stop: Event
) -> int:
    """Write the archive without verifying the file first; return the number of objects."""
    with prepare_bucket(path, target, transfer) as prepared:
        return write_bucket(prepared, overwrite=overwrite, stop=stop)


def compare_bucket(path: Path, target: BucketSettings, transfer: TransferSettings) -> tuple[CheckResult, ...]:
    with prepare_bucket(path, target, transfer) as prepared:
        return comparison.compare_bucket(prepared)
