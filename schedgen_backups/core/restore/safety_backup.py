"""Keeps what a restore is about to overwrite: a dump of the target database, an archive of the target's
objects, in `safety/` of BACKUP_DIR.

The files have the format and the names of every other capture, so that they are restored in the same way
(BACKUP_DIR=…/safety). They are no recovery points: nothing commits them, retention does not count them, and
the next safety backup removes those that are older than thirty days.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, RestoreError
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    Exclusions,
    References,
)

SAFETY_NAME = "safety"
SAFETY_DAYS = 30
_HINT = "Mend that, or go on without a way back: --no-safety-backup."


@dataclass(frozen=True)
class SafetyBackup:
    """What was kept before a restore wrote."""

    point_id: RecoveryPointId
    paths: tuple[Path, ...]


def take_safety_backup(
    directory: Path,
    capture: CaptureSettings,
    *,
    database: DatabaseSettings | None,
    bucket: BucketSettings | None,
    is_wanted: Callable[[str], bool] = lambda _key: True,
) -> SafetyBackup:
    """The targets' present contents are files in `safety/`; of the bucket only the objects whose key
    `is_wanted`.

    RestoreError (permanent) with the reason when that cannot be done: nothing was restored then.
    LockHeldError while another one is taken.
    """
    # What is wrong with the target is why it is restored: emptied tables or a missing one must not keep it
    # from being kept.
    capture = replace(capture, is_empty_allowed=True, references=References(), exclusions=Exclusions())
    catalog = Catalog(directory / SAFETY_NAME)
    point_id = RecoveryPointId.from_time(datetime.now(timezone.utc))
    catalog.prepare()
    catalog.lock.acquire("a safety backup")
    try:
        catalog.sweep_staging()
        remove_old(catalog)
        if database is not None:
            take_database_dump(catalog, database, capture, point_id)
        if bucket is not None:
            take_bucket_archive(catalog, bucket, capture, point_id, is_wanted=is_wanted)
    except BackupError as error:
        raise RestoreError(
            f"the safety backup of the target failed, nothing was restored: {error.message}", hint=_HINT
        ) from error
    finally:
        catalog.lock.release()
    return SafetyBackup(point_id, tuple(artifact.path for artifact in catalog.get_point(point_id).artifacts))


def remove_old(catalog: Catalog) -> None:
    """Remove safety backups that are older than `SAFETY_DAYS`."""
    limit = datetime.now(timezone.utc) - timedelta(days=SAFETY_DAYS)
    for point in catalog.list_points():
        if point.point_id.taken_at < limit:
            for kind in ArtifactKind:
                artifact = point.artifact(kind)
                if artifact is not None:
                    catalog.remove_file(artifact.path)
