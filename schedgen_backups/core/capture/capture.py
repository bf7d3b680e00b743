"""Take the two halves of a recovery point and put each into the backup directory.

A failure of one half does not affect the other. `verify.commit` decides whether the point is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from schedgen_backups.core.capture.bucket import ArchiveTarget, FileTarget, capture_bucket
from schedgen_backups.core.capture.database import OpenedDatabase, open_database
from schedgen_backups.core.capture.packed_archive import PackTarget
from schedgen_backups.core.capture.packed_dump import find_recipes_with, pack_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.resume import find_archive, find_resumable, restore_recipe, write_source
from schedgen_backups.core.catalog.small_files import translate_storage_errors
from schedgen_backups.core.errors import BackupError, ConfigurationError, StorageError, VerificationError
from schedgen_backups.core.formats.archive_writer import CapturedArchive
from schedgen_backups.core.formats.dump_file import CapturedDump
from schedgen_backups.core.formats.packed_file import is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import Recipe
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId
from schedgen_backups.core.packs.local_encryption import LocalEncryption, make_local_encryption
from schedgen_backups.core.packs.local_packs import PACK_BYTES, LocalPacks
from schedgen_backups.core.packs.pack_shelf import PackShelf
from schedgen_backups.core.retention.prune import remove_unused_packs
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    DatabaseSource,
    Layout,
)
from schedgen_backups.core.system.files import create_private
from schedgen_backups.core.units import name_some

_NEWEST_RECIPES = 2
"""Of each database and bucket: while one half fails, the other goes on."""


@dataclass(frozen=True)
class TakenDumps:
    """The dumps of a point, and why others could not be taken, by the names of their databases."""

    captured: Mapping[str, CapturedDump]
    errors: Mapping[str, BackupError]


def take_database_dump(
    catalog: Catalog, settings: DatabaseSettings, capture: CaptureSettings, point_id: RecoveryPointId
) -> CapturedDump:
    """Capture the dump of the only database into the backup directory.

    Raises the errors of `database.open_database` and `OpenedDatabase.write`, and StorageError; after an error
    nothing is published.
    """
    taken = take_database_dumps(catalog, [DatabaseSource(settings.database, settings, capture)], point_id)
    for error in taken.errors.values():
        raise error
    return taken.captured[settings.database]


def take_database_dumps(
    catalog: Catalog, sources: Sequence[DatabaseSource], point_id: RecoveryPointId
) -> TakenDumps:
    """Capture the point's dumps into the backup directory; the failure of one does not affect the others.

    The snapshots of all databases are opened before the first is dumped.
    """
    captured: dict[str, CapturedDump] = {}
    errors: dict[str, BackupError] = {}
    names = frozenset(source.name for source in sources)
    with ExitStack() as stack:
        opened: list[_WaitingDatabase] = []
        for source in sources:
            session = stack.enter_context(ExitStack())
            try:
                _check_source(catalog, ArtifactKind.DATABASE, names, source.capture)
                encryption = _prepare_encryption(catalog, source.capture)
                database = session.enter_context(open_database(source.settings, source.capture))
                end_waiting = session.enter_context(database.kept_alive())
            except BackupError as error:
                errors[source.name] = error
            else:
                opened.append(_WaitingDatabase(source.name, database, encryption, session, end_waiting))
        for waiting in opened:
            try:
                waiting.end_waiting()
                name = ArtifactName(ArtifactKind.DATABASE, waiting.name, point_id)
                captured[waiting.name] = _take_dump(catalog, name, waiting.database, waiting.encryption)
            except BackupError as error:
                errors[waiting.name] = error
            finally:
                waiting.session.close()
    return TakenDumps(captured, errors)


@dataclass(frozen=True)
class _WaitingDatabase:
    """A database with its snapshot, whose dump waits for those of others."""

    name: str
    database: OpenedDatabase
    encryption: LocalEncryption | None
    session: ExitStack
    end_waiting: Callable[[], None]


def _take_dump(
    catalog: Catalog, name: ArtifactName, database: OpenedDatabase, encryption: LocalEncryption | None
) -> CapturedDump:
    capture, point_id = database.capture, name.point_id
    restrict_key = _make_restrict_key(catalog.settle_site().site_id)
    if capture.layout is Layout.PACKS:
        _remove_unused_packs(catalog)
    with catalog.stage(f"{point_id}-{name.kind.value}") as folder:
        path = folder / name.to_file_name()
        with os.fdopen(create_private(path), "w+b") as file:
            captured = database.write(name, cast("BinaryIO", file), folder=folder, restrict_key=restrict_key)
        damage = _Damage()
        if capture.layout is Layout.PACKS:
            with _open_shelf(catalog, capture, encryption) as shelf:
                path = pack_dump(shelf, path, point_id)
                damage = _heal(shelf)
        catalog.publish(path)
    # The capture of the archive finds what is wrong with archives, and can heal it.
    sources = _list_touched(catalog, damage, {ArtifactKind.DATABASE})
    return replace(captured, damaged_sources=sources, healed_packs=damage.healed)


def _prepare_encryption(catalog: Catalog, capture: CaptureSettings) -> LocalEncryption | None:
    """Return how packs are encrypted, before anything is written; None for plain ones, and for files."""
    recipients = capture.pack_recipients if capture.layout is Layout.PACKS else ()
    return make_local_encryption(recipients, catalog.keys)


@dataclass(frozen=True)
class _Damage:
    """Packs that a capture found damaged, and those that it made whole again."""

    damaged: tuple[str, ...] = ()
    healed: tuple[str, ...] = ()


def _heal(shelf: PackShelf) -> _Damage:
    # On a full disk, the new point matters more. The next backup tries it again.
    with suppress(StorageError):
        shelf.heal()
    return _Damage(tuple(sorted(shelf.damaged)), tuple(sorted(shelf.healed)))


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
    name: str = "",
    others: Collection[str] = (),
    is_wanted: Callable[[str], bool] = lambda _key: True,
) -> CapturedArchive:
    """Capture an archive of the point, with all objects for which `is_wanted(key)` is true.

    `name` is that of the bucket in recovery points, by default its own; `others` are those of the site's
    other buckets. Raises the errors of `bucket.capture_bucket`, and StorageError; after an error nothing is
    published.
    """
    artifact = ArtifactName(ArtifactKind.BUCKET, name or settings.bucket, point_id)
    _check_source(catalog, ArtifactKind.BUCKET, frozenset((artifact.source_name, *others)), capture)
    encryption = _prepare_encryption(catalog, capture)
    resumable = find_resumable(catalog.staging)
    previous = [
        found.path
        for point in reversed(catalog.list_points())
        for found in point.list_sources(ArtifactKind.BUCKET)
        if found.name.source_name == artifact.source_name
    ]
    damage = _Damage()
    try:
        with catalog.stage(f"{point_id}-{artifact.kind.value}") as folder:
            with ExitStack() as stack:
                path = folder / artifact.to_file_name()
                threads = capture.transfer.compression_threads
                if capture.layout is Layout.PACKS:
                    path = folder / artifact.to_recipe_name()
                    write_source(folder, settings, path.name)
                    os.close(create_private(path))
                    unfinished = [(left, find_archive(left, settings)) for left in resumable]
                    shelf = stack.enter_context(_open_shelf(catalog, capture, encryption, unfinished))
                    target: ArchiveTarget = PackTarget(
                        shelf, path, folder, point_id, threads=threads, pack_bytes=PACK_BYTES
                    )
                else:
                    shelf = None
                    write_source(folder, settings, path.name)
                    file = stack.enter_context(os.fdopen(create_private(path), "w+b"))
                    target = FileTarget(cast("BinaryIO", file), folder, threads=threads)
                captured = capture_bucket(
                    settings,
                    capture,
                    artifact,
                    target,
                    folder=folder,
                    previous=previous,
                    resumable=resumable,
                    keys=catalog.keys,
                    is_wanted=is_wanted,
                )
                if shelf is not None:
                    damage = _heal(shelf)
            catalog.publish(path)
    except StorageError:
        # The resumable archives or the new packs may be what fills the disk.
        _remove_resumable(catalog, settings, resumable)
        _remove_unused_packs(catalog)
        raise
    _remove_resumable(catalog, settings, resumable)
    sources = dict.fromkeys((*captured.damaged_sources, *_list_touched(catalog, damage, {*ArtifactKind})))
    return replace(captured, damaged_sources=tuple(sources), healed_packs=damage.healed)


def _list_touched(catalog: Catalog, damage: _Damage, kinds: Collection[ArtifactKind]) -> tuple[Path, ...]:
    """Return the recipes to read again: that name a healed pack, or a damaged one of which nobody knows."""
    if not damage.damaged and not damage.healed:
        return ()
    known: list[Path] = []
    unknown: list[Path] = []
    for point in catalog.list_points():
        is_known = point.state in {PointState.FAILED, PointState.DAMAGED}
        paths = [
            artifact.path
            for artifact in point.artifacts
            if artifact.name.kind in kinds and is_recipe_name(artifact.path.name)
        ]
        (known if is_known else unknown).extend(paths)
    return (*find_recipes_with(unknown, damage.damaged), *find_recipes_with(known, damage.healed))


@contextmanager
def _open_shelf(
    catalog: Catalog,
    capture: CaptureSettings,
    encryption: LocalEncryption | None,
    unfinished: Iterable[tuple[Path, Path | None]] = (),
) -> Generator[PackShelf, None, None]:
    """Yield the packs that a new artifact may use: those of the newest points, and of killed captures.

    The latter are `unfinished`: staging directories with the paths of their recipes, which are written here.
    """
    packs = LocalPacks(catalog.directory, catalog.keys)
    packs.prepare()
    recipes = sorted(catalog.find_recipes(), key=_find_point, reverse=True)
    by_source: dict[tuple[ArtifactKind, str], list[Path]] = {}
    for path in recipes:
        if (name := ArtifactName.from_file_name(path.name)) is not None:
            by_source.setdefault((name.kind, name.source_name), []).append(path)
    newest = [path for paths in by_source.values() for path in paths[:_NEWEST_RECIPES]]
    with packs.open_index() as index:
        resumed = [
            recipe
            for folder, path in unfinished
            if path is not None
            and is_recipe_name(path.name)
            and (recipe := restore_recipe(folder, path, packs, index)) is not None
        ]
        yield PackShelf(
            packs,
            index,
            _read_recipes(newest),
            resumed=resumed,
            others=_read_recipes(path for path in recipes if path not in newest),
            suspects=_list_suspects(catalog),
            reread_days=capture.pack_reread_days,
            encryption=encryption,
        )


def _list_suspects(catalog: Catalog) -> list[tuple[Recipe, datetime]]:
    """Return the recipes of artifacts whose bytes were found damaged, and when."""
    found: list[tuple[Recipe, datetime]] = []
    for point in catalog.list_points():
        for artifact in point.artifacts:
            result = point.find_reading(artifact.name)
            if result is None or result.status is not CheckStatus.FAILED:
                continue
            if is_recipe_name(artifact.path.name):
                found += [(recipe, result.checked_at) for recipe in _read_recipes([artifact.path])]
    return found


def _read_recipes(paths: Iterable[Path]) -> list[Recipe]:
    """Return the recipes that can be read; the checks of their points report the others."""
    found: list[Recipe] = []
    for path in paths:
        with suppress(VerificationError):
            found.append(read_local_recipe(path))
    return found


def _find_point(path: Path) -> str:
    name = ArtifactName.from_file_name(path.name)
    return name.point_id.text if name is not None else ""


def _remove_resumable(catalog: Catalog, settings: BucketSettings, folders: tuple[Path, ...]) -> None:
    with translate_storage_errors(catalog.directory):
        for folder in folders:
            if find_archive(folder, settings) is not None:
                shutil.rmtree(folder)


def _remove_unused_packs(catalog: Catalog) -> None:
    """Remove the packs that killed and failed captures left, which may fill the disk."""
    with suppress(StorageError):  # retention reports it
        remove_unused_packs(catalog)


def _check_source(
    catalog: Catalog, kind: ArtifactKind, names: Collection[str], capture: CaptureSettings
) -> None:
    """Raise ConfigurationError when the newest point has none of these databases or buckets, but others.

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
    known = [each.source_name for each in newest.artifacts if each.kind is kind] if newest is not None else []
    if known and not set(known) & set(names) and not capture.is_new_source_allowed:
        raise ConfigurationError(
            f"the points in {catalog.directory} are from the {kind.value} {name_some(known)}, not from "
            f"{name_some(sorted(names))}",
            hint="Give each application its own BACKUP_DIR. If the name was changed, set "
            "BACKUP_ALLOW_NEW_SOURCE=true for one backup.",
        )
