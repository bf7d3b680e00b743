"""Takes the two halves of a recovery point and puts them into the backup directory, each on its own.

One half's failure leaves the other alone. What is in the files is the business of `dump` and `archive`; that a point is whole is said by
`sealing`, never here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO, TypeVar, cast

from schedgen_backups.core.archive import capture_bucket
from schedgen_backups.core.archive_file import CapturedArchive
from schedgen_backups.core.catalog import Catalog, open_private
from schedgen_backups.core.dump import capture_database
from schedgen_backups.core.dump_file import CapturedDump
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId
from schedgen_backups.core.settings import BackupSettings, BucketSettings, DatabaseSettings

_Captured = TypeVar("_Captured")


def take_database_dump(catalog: Catalog, settings: DatabaseSettings, backup: BackupSettings, point_id: RecoveryPointId) -> CapturedDump:
    """The directory holds the point's dump. Errors as of `dump.capture_database`, and StorageError; then nothing was published."""
    name = ArtifactName(ArtifactKind.DATABASE, settings.database, point_id)
    return _take(catalog, name, lambda file: capture_database(settings, backup, point_id, file))


def take_bucket_archive(
    catalog: Catalog,
    settings: BucketSettings,
    backup: BackupSettings,
    point_id: RecoveryPointId,
    *,
    is_wanted: Callable[[str], bool] = lambda _key: True,
) -> CapturedArchive:
    """The directory holds the point's archive, of all objects whose key `is_wanted`.

    Errors as of `archive.capture_bucket`, and StorageError; then nothing was published.
    """
    name = ArtifactName(ArtifactKind.BUCKET, settings.bucket, point_id)
    folder = catalog.directory
    return _take(catalog, name, lambda file: capture_bucket(settings, backup, point_id, file, folder=folder, is_wanted=is_wanted))


def _take(catalog: Catalog, name: ArtifactName, capture: Callable[[BinaryIO], _Captured]) -> _Captured:
    with catalog.stage(f"{name.point_id}-{name.kind.value}") as folder:
        path = folder / name.to_file_name()
        with os.fdopen(open_private(path), "w+b") as file:
            captured = capture(cast("BinaryIO", file))
        catalog.publish(path)
        return captured
