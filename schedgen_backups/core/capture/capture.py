"""Take the two halves of a recovery point and put each into the backup directory.

A failure of one half does not affect the other. `verify.commit` decides whether the point is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from schedgen_backups.core.capture.bucket import capture_bucket
from schedgen_backups.core.capture.database import capture_database
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.resume import find_archive, find_resumable, write_source
from schedgen_backups.core.catalog.small_files import translate_storage_errors
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.formats.archive_file import CapturedArchive
from schedgen_backups.core.formats.dump_file import CapturedDump
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings
from schedgen_backups.core.system.files import create_private

_Captured = TypeVar("_Captured")


def take_database_dump(
    catalog: Catalog, settings: DatabaseSettings, capture: CaptureSettings, point_id: RecoveryPointId
) -> CapturedDump:
    """Capture the point's dump into the backup directory.

    Raises the errors of `database.capture_database`, and StorageError; after an error nothing is published.
    """
    name = ArtifactName(ArtifactKind.DATABASE, settings.database, point_id)
    _check_source(catalog, name, capture)
    restrict_key = _make_restrict_key(catalog.settle_site().site_id)

    def capture_rows(file: BinaryIO, folder: Path) -> CapturedDump:
        return capture_database(settings, capture, point_id, file, folder=folder, restrict_key=restrict_key)

    return _take(catalog, name, capture_rows)


def _make_restrict_key(site_id: str) -> str:
    r"""Return the key of pg_dump's `\restrict`.

    It is the same for every dump of a site, so that equal databases give equal bytes, and unknown to users
    who can only write into the database.
    """
    return hashlib.sha256(f"restrict {site_id}".encode("ascii")).hexdigest()


def take_bucket_archive(
    catalog: Catalog,
    settings: BucketSettings,
    capture: CaptureSettings,
    point_id: RecoveryPointId,
    *,
    is_wanted: Callable[[str], bool] = lambda _key: True,
) -> CapturedArchive:
    """Capture the point's archive, with all objects for which `is_wanted(key)` is true.

    Raises the errors of `bucket.capture_bucket`, and StorageError; after an error nothing is published.
    """
    name = ArtifactName(ArtifactKind.BUCKET, settings.bucket, point_id)
    _check_source(catalog, name, capture)
    resumable = find_resumable(catalog.directory / STAGING_NAME)
    archives = (point.artifact(ArtifactKind.BUCKET) for point in reversed(catalog.list_points()))
    previous = [archive.path for archive in archives if archive is not None]

    def capture_objects(file: BinaryIO, folder: Path) -> CapturedArchive:
        write_source(folder, settings, name.to_file_name())
        return capture_bucket(
            settings,
            capture,
            point_id,
            file,
            folder=folder,
            previous=previous,
            resumable=resumable,
            is_wanted=is_wanted,
        )

    try:
        captured = _take(catalog, name, capture_objects)
    except StorageError:
        # The resumable archives may be what fills the disk.
        _remove_resumable(catalog, settings, resumable)
        raise
    _remove_resumable(catalog, settings, resumable)
    return captured


def _remove_resumable(catalog: Catalog, settings: BucketSettings, folders: tuple[Path, ...]) -> None:
    with translate_storage_errors(catalog.directory):
        for folder in folders:
            if find_archive(folder, settings) is not None:
                shutil.rmtree(folder)


def _take(catalog: Catalog, name: ArtifactName, capture: Callable[[BinaryIO, Path], _Captured]) -> _Captured:
    with catalog.stage(f"{name.point_id}-{name.kind.value}") as folder:
        path = folder / name.to_file_name()
        with os.fdopen(create_private(path), "w+b") as file:
            captured = capture(cast("BinaryIO", file), folder)
        catalog.publish(path)
        return captured


def _check_source(catalog: Catalog, name: ArtifactName, capture: CaptureSettings) -> None:
    """Raise ConfigurationError when the newest point is from another database or bucket.

    Two applications in one directory would prune each other's points.
    """
    newest = next(
        (
            point.manifest
            for point in reversed(catalog.list_points())
            if point.manifest is not None and not point.is_foreign
        ),
        None,
    )
    known = newest.artifact(name.kind) if newest is not None else None
    if known is not None and known.source_name != name.source_name and not capture.is_new_source_allowed:
        raise ConfigurationError(
            f"the points in {catalog.directory} are from the {name.kind.value} {known.source_name}, not from "
            f"{name.source_name}",
            hint="Give each application its own BACKUP_DIR. If the name was changed, set "
            "BACKUP_ALLOW_NEW_SOURCE=true for one backup.",
        )
