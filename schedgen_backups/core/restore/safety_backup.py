"""Safety backup: saves what a restore will overwrite (database dump, objects) in `safety/` of BACKUP_DIR.

The files have the format and names of every other capture, so they are restored in the same way
(BACKUP_DIR=…/safety). They are not recovery points: they are not committed, and retention ignores them. The
next safety backup removes those older than thirty days.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, RestoreError
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.retention.prune import remove_unused_packs
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    Exclusions,
    Layout,
    References,
)

SAFETY_NAME = "safety"
SAFETY_DAYS = 30
_HINT = "Fix this, or continue without a safety backup: --no-safety-backup."


@dataclass(frozen=True)
class SafetyBackup:
    """What was saved before a restore."""

    point_id: RecoveryPointId
    paths: tuple[Path, ...]


def take_safety_backup(
    directory: Path,
    capture: CaptureSettings,
    *,
    database: DatabaseSettings | None,
    bucket: BucketSettings | None,
    is_wanted: Callable[[str], bool] = lambda _key: True,
    keys: PackKeys = NO_KEYS,
) -> SafetyBackup:
    """Save the targets' current contents in `safety/`; of the bucket only the objects whose key `is_wanted`.

    `keys` open encrypted packs of the directory.

    RestoreError (permanent) with the reason if this fails; nothing is restored then. LockHeldError while
    another one is running.
    """
    # Defects of the target are the reason for the restore: empty or missing tables must not prevent the
    # backup.
    capture = replace(
        capture,
        is_empty_allowed=True,
        references=References(),
        exclusions=Exclusions(),
        # Whoever needs it has other troubles than putting it together. But what is encrypted in the backup
        # directory is not to lie beside it as a plain file.
        layout=Layout.PACKS if capture.pack_recipients else Layout.FILES,
    )
    catalog = Catalog(directory / SAFETY_NAME, keys)
    catalog.prepare()
    catalog.lock.acquire("a safety backup")
    try:
        point_id = _choose_id(catalog)
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


def _choose_id(catalog: Catalog) -> RecoveryPointId:
    """Return the id of this second, or of the next one if a safety backup was taken in this."""
    taken = {point.point_id for point in catalog.list_points()}
    while (point_id := RecoveryPointId.from_time(datetime.now(timezone.utc))) in taken:
        time.sleep(0.05)
    return point_id


def remove_old(catalog: Catalog) -> None:
    """Remove safety backups that are older than `SAFETY_DAYS`, and packs that no other one needs."""
    limit = datetime.now(timezone.utc) - timedelta(days=SAFETY_DAYS)
    for point in catalog.list_points():
        if point.point_id.taken_at < limit:
            for kind in ArtifactKind:
                artifact = point.artifact(kind)
                if artifact is not None:
                    catalog.remove_file(artifact.path)
    remove_unused_packs(catalog)
