"""Takes the two halves of a recovery point and puts them into the backup directory, each on its own.

One half's failure leaves the other alone. What is in the files is the business of `dump` and `archive`; that
a point is whole is said by `committing`, never here.
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
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog, translate_storage_errors
from schedgen_backups.core.catalog.resume import find_archive, find_resumable, write_source
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
    """The directory holds the point's dump.

    Errors as of `dump.capture_database`, and StorageError; then nothing was published.
    """
    name = ArtifactName(ArtifactKind.DATABASE, settings.database, point_id)
    _check_source(catalog, name, capture)
    restrict_key = _make_restrict_key(catalog.settle_site().site_id)

    def capture_rows(file: BinaryIO, folder: Path) -> CapturedDump:
        return capture_database(settings, capture, point_id, file, folder=folder, restrict_key=restrict_key)

    return _take(catalog, name, capture_rows)


def _make_restrict_key(site_id: str) -> str:
    r"""Return the key of pg_dump's `\restrict`: the same for every dump of a site, so that equal databases give
    equal bytes, and unknown to whoever can only write into the database.
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
    """The directory holds the point's archive, of all objects whose key `is_wanted`.

    Errors as of `archive.capture_bucket`, and StorageError; then nothing was published.
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
        # They may be what fills the disk.
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
    """Raise ConfigurationError where the newest point is of another database or bucket: two applications in
    one directory prune each other.
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
            f"the points in {catalog.directory} are of the {name.kind.value} {known.source_name}, not of "
            f"{name.source_name}",
            hint="Give each application a BACKUP_DIR of its own. If the name was changed, set "
            "BACKUP_ALLOW_NEW_SOURCE=true for one backup.",
        )
