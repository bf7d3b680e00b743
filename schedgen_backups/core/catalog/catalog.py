"""The files of the backup directory: how they are found, written and removed.

Every write is staged, synced and renamed; a manifest is written last and never rewritten. Callers that write
hold the `lock`. Names and small files only: `verify` reads artifacts, and `retention` deletes points.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from schedgen_backups.core.catalog.check_results import CheckResult, Verification
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing, is_ours, judge_point
from schedgen_backups.core.catalog.resume import find_resumable
from schedgen_backups.core.catalog.small_files import (
    SITE_NAME,
    encode_model,
    move_aside,
    read_model,
    require_id,
    translate_storage_errors,
    write_model,
)
from schedgen_backups.core.errors import (
    ConfigurationError,
    PointNotFoundError,
    StorageError,
    UnreadableFileError,
    VerificationError,
)
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.packed_file import is_recipe_name
from schedgen_backups.core.history.events import Outcome, PointChecked
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import (
    Adoption,
    ArtifactName,
    FrozenModel,
    Manifest,
    PartName,
    RecoveryPointId,
    Site,
)
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.system.files import (
    TEMPORARY_SUFFIX,
    create_private,
    read_small_file,
    sync_path,
    write_new,
)
from schedgen_backups.core.system.lock import DirectoryLock, FileLock

STAGING_NAME = ".staging"
_RECORDS_LOCK_NAME = ".records.lock"
_STALE_SECONDS = 3600
"""Writing a small file takes milliseconds: an older temporary file belongs to a process that was killed."""
_MOST_LOCATED = 8192
_Model = TypeVar("_Model", bound=FrozenModel)


class Catalog:
    """One backup directory; `keys` open its packs, if they are encrypted.

    Unfinished files of a backup are in `staging`, by default a directory in it. With `part`, points are shown
    as if they had only this part; it is for readers.
    """

    def __init__(
        self,
        directory: Path,
        keys: PackKeys = NO_KEYS,
        staging: Path | None = None,
        *,
        part: PartName | None = None,
    ) -> None:
        self.directory = directory
        self.keys = keys
        self.staging = staging or directory / STAGING_NAME
        self.part = part
        self.lock = DirectoryLock(directory)
        self.records_lock = FileLock(directory / _RECORDS_LOCK_NAME)

    def prepare(self) -> None:
        """Create the directory, accessible to its owner only, and check that it is writable.

        ConfigurationError (permanent) on failure.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.directory / f".probe-{secrets.token_hex(8)}"
            os.close(create_private(probe))
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"BACKUP_DIR {self.directory} cannot be written: {error.strerror}",
                hint="Create the directory and give it to the user that runs the backup, or set "
                "BACKUP_DIR to another one.",
            ) from error

    def sweep_staging(self) -> tuple[str, ...]:
        """Remove what dead runs left in the staging directory, except resumable archives; return the names.

        Requires the lock.
        """
        left = sorted(set(self.staging.glob("*")) - set(find_resumable(self.staging)))
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in self.directory.glob(f".*{TEMPORARY_SUFFIX}"):
            # A writer without the lock may be using it right now.
            with suppress(FileNotFoundError):
                if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        return tuple(path.name for path in left)

    def manifest_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's manifest, whether it exists or not."""
        return _locate(self.directory, f"manifest_{point_id}.json")

    def verification_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's verification, whether it exists or not."""
        return _locate(self.directory, f"verification_{point_id}.json")

    def pin_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's pin, whether it exists or not."""
        return _locate(self.directory, f"pin_{point_id}.json")

    @contextmanager
    def stage(self, name: str) -> Generator[Path, None, None]:
        """Provide an empty directory within the block and remove it afterwards.

        StorageError when the disk is full, or when another user can change the directory above.
        """
        folder = self.staging / name
        with translate_storage_errors(self.staging.parent):
            # Not `parents=True`: that creates the parent directories with the umask's mode.
            self.staging.mkdir(mode=0o700, exist_ok=True)
            status = self.staging.lstat()
            if self.staging.parent != self.directory and (
                status.st_uid != os.geteuid() or status.st_mode & 0o77 or not stat.S_ISDIR(status.st_mode)
            ):
                raise StorageError(
                    f"{self.staging} can be used by others",
                    hint="Remove it, or set BACKUP_STAGING_DIR to a directory that only this user can write.",
                )
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder)

    def publish(self, staged: Path) -> Path:
        """Move the staged file into the directory, synced to disk; StorageError when its name is taken."""
        target = self.directory / staged.name
        with translate_storage_errors(self.directory):
            if target.exists():
                raise StorageError(
                    f"{target} already exists and is never overwritten",
                    hint="Does another run use the same second?",
                )
            sync_path(staged)
            if self.staging.parent == self.directory:
                staged.rename(target)
            else:  # A recipe, and perhaps another disk.
                temporary = self.directory / f".{target.name}{TEMPORARY_SUFFIX}"
                write_new(target, read_small_file(staged), temporary=temporary)
                staged.unlink()
            sync_path(self.directory)
        return target

    def read_site(self) -> Site | None:
        """Return the identity of this directory, or None before its first point.

        VerificationError when site.json cannot be read.
        """
        return self.read_description(SITE_NAME, Site)

    def settle_site(self) -> Site:
        """Return the identity of this directory, and create it when there is none.

        The id is the one that all points carry, otherwise a new one. A damaged file is moved aside. When the
        points carry several ids, all of them are then foreign until they are adopted. A file that cannot be
        read at the moment stays. In that case the points must carry exactly one id, otherwise
        UnreadableFileError (retryable) is raised.
        """
        with self.records_lock.waited_for():
            ids = {manifest.site_id for manifest in self._read_manifests() if manifest.site_id}
            try:
                site = self.read_site()
            except UnreadableFileError:
                if len(ids) != 1:
                    raise
                return Site(site_id=ids.pop(), made_at=datetime.now(timezone.utc))
            except VerificationError:
                move_aside(self.directory / SITE_NAME)
                site = None
            if site is None:
                site_id = ids.pop() if len(ids) == 1 else secrets.token_hex(16)
                older = tuple(
                    manifest.point_id for manifest in self._read_manifests() if not manifest.site_id
                )
                site = Site(site_id=site_id, made_at=datetime.now(timezone.utc), older_points=older)
                self.write_description(SITE_NAME, site)
        return site

    def adopt(self, adoption: Adoption) -> None:
        """Accept a point of another site as one of this site."""
        site = self.settle_site()
        with self.records_lock.waited_for():
            site = self.read_site() or site
            kept = tuple(each for each in site.adopted if each.point_id != adoption.point_id)
            self.write_description(SITE_NAME, site.model_copy(update={"adopted": (*kept, adoption)}))

    def write_manifest(self, manifest: Manifest) -> Path:
        """Write the point's manifest to disk; StorageError when it already has one."""
        name = f"manifest_{manifest.point_id}.json"
        with self.stage(name) as folder:
            staged = folder / name
            with os.fdopen(create_private(staged), "wb") as file:
                file.write(encode_model(manifest))
            return self.publish(staged)

    def write_verification(self, verification: Verification) -> Path:
        """Write the point's verification to disk; replace an older one."""
        return self.write_description(f"verification_{verification.point_id}.json", verification)

    def write_description(self, name: str, value: FrozenModel) -> Path:
        """Write the value to a small file of this name; replace an older one."""
        # Not in the staging directory: a run that takes the lock sweeps it, and this is also written
        # without the lock.
        write_model(self.directory / name, value)
        return self.directory / name

    def read_description(self, name: str, kind: type[_Model]) -> _Model | None:
        """Return the value stored in the small file of this name, or None when there is none.

        VerificationError when it is damaged.
        """
        return read_model(self.directory / name, kind)

    def remove_file(self, path: Path) -> None:
        """Remove this file of the directory and sync the removal to disk.

        StorageError when it cannot be removed. Requires the lock.
        """
        with translate_storage_errors(self.directory):
            path.unlink()
            sync_path(self.directory)

    def record_results(self, point_id: RecoveryPointId, results: tuple[CheckResult, ...]) -> Verification:
        """Add these results to the point's verification and return all results.

        They replace older results of the same checks. An unreadable verification is replaced; its results are
        lost.
        """
        with self.records_lock.waited_for():
            before = Verification(point_id=point_id.text)
            with suppress(VerificationError):
                before = self.read_verification(point_id)
            verification = before.with_results(results)
            self.write_verification(verification)
        History(self.directory).record(
            PointChecked(
                at=datetime.now(timezone.utc),
                point_id=point_id.text,
                checked_by=results[0].checked_by if results else "",
                outcomes=tuple(
                    Outcome(check=result.name, status=result.status.value, summary=result.summary)
                    for result in results
                ),
            )
        )
        return verification

    def read_verification(self, point_id: RecoveryPointId) -> Verification:
        """Return the results recorded for the point; empty when it was never checked.

        VerificationError when the file is damaged.
        """
        path = self.verification_path(point_id)
        found = read_model(path, Verification)
        require_id(point_id, found.point_id if found is not None else point_id.text, path)
        return found or Verification(point_id=point_id.text)

    def read_manifest(self, point_id: RecoveryPointId) -> Manifest | None:
        """Return the point's manifest, or None when it was never committed.

        VerificationError when the file is damaged.
        """
        path = self.manifest_path(point_id)
        found = read_model(path, Manifest)
        require_id(point_id, found.point_id if found is not None else point_id.text, path)
        return found

    def _read_manifests(self) -> Iterator[Manifest]:
        for point_id in self._find_committed(self._list_names()):
            with suppress(VerificationError):
                if (manifest := self.read_manifest(point_id)) is not None:
                    yield manifest

    def list_points(self) -> tuple[PointListing, ...]:
        """Return every recovery point, oldest first, including partial and damaged ones.

        A bad file never hides another point.
        """
        site = self._find_site()
        points = self._inspect_files(self._list_names(), site)
        if (
            site is None
            and len(
                {
                    point.manifest.site_id
                    for point in points
                    if point.manifest is not None and point.manifest.site_id
                }
            )
            > 1
        ):
            # The owner of these points is unknown: none is selected, counted or removed, and each can be
            # restored by its id.
            points = tuple(replace(point, is_foreign=point.manifest is not None) for point in points)
        return self._select_part(points)

    def list_unmanaged(self) -> tuple[Path, ...]:
        """Return files that are named like artifacts but were not written by this tool; never touched.

        For example those of the former shell script.
        """
        names = self._list_names()
        committed = self._find_committed(names)
        return tuple(
            artifact.path
            for artifact in self._find_artifacts(names)
            if artifact.name.point_id not in committed and not is_ours(artifact)
        )

    def find_artifact(self, name: ArtifactName) -> Path:
        """Return the path of this artifact: of its recipe if there is one, otherwise of its file."""
        recipe = _locate(self.directory, name.to_recipe_name())
        return recipe if recipe.exists() else _locate(self.directory, name.to_file_name())

    def find_recipes(self) -> tuple[Path, ...]:
        """Return every recipe in the directory, also of points that were not committed.

        StorageError when the directory cannot be listed: what no recipe names is removed.
        """
        with translate_storage_errors(self.directory):
            names = sorted(os.listdir(self.directory))  # noqa: PTH208 - as in `_list_names`
        return tuple(_locate(self.directory, name) for name in names if is_recipe_name(name))

    def get_point(self, point_id: RecoveryPointId) -> PointListing:
        """Return the recovery point with this id; PointNotFoundError (permanent) when there is none."""
        site = self._find_site()
        # Whose point it is can depend on the others, if the directory's own identity is unknown.
        points = (
            self.list_points()
            if site is None
            else self._select_part(
                self._inspect_files([name for name in self._list_names() if point_id.text in name], site)
            )
        )
        for point in points:
            if point.point_id == point_id:
                return point
        raise PointNotFoundError(
            f"no recovery point {point_id} in {self.directory}",
            hint="`schedgen-backups list` shows the existing ones.",
        )

    def _select_part(self, points: tuple[PointListing, ...]) -> tuple[PointListing, ...]:
        if self.part is None:
            return points
        return tuple(
            part for point in points for part in point.parts if part.part == self.part or self._is_part(part)
        )

    def _is_part(self, point: PointListing) -> bool:
        """Return whether the point, which has one part, is what this catalog shows."""
        return (
            self.part is not None
            and point.part is None
            and all(
                found.name.source_name == self.part.get_source(found.name.kind) for found in point.artifacts
            )
        )

    def _find_site(self) -> Site | None:
        """Return the identity of the directory; None if it has none, or if that cannot be read."""
        with suppress(VerificationError):
            return self.read_site()
        return None

    def _inspect_files(self, names: Sequence[str], site: Site | None) -> tuple[PointListing, ...]:
        """Return the recovery points of which files have these names, oldest first."""
        artifacts: dict[RecoveryPointId, list[FoundArtifact]] = {}
        for artifact in self._find_artifacts(names):
            artifacts.setdefault(artifact.name.point_id, []).append(artifact)
        committed = self._find_committed(names)
        own = {
            point_id
            for point_id, found in artifacts.items()
            if point_id in committed or any(map(is_ours, found))
        }
        packs = LocalPacks(self.directory).find_sizes()
        return tuple(
            self._inspect(point_id, artifacts.get(point_id, []), site, packs)
            for point_id in sorted(committed | own)
        )

    def _inspect(
        self,
        point_id: RecoveryPointId,
        artifacts: list[FoundArtifact],
        site: Site | None,
        pack_sizes: Mapping[str, int],
    ) -> PointListing:
        manifest, verification, unreadable = None, Verification(point_id=point_id.text), list[str]()
        try:
            manifest = self.read_manifest(point_id)
        except VerificationError as error:
            unreadable.append(error.message)
        try:
            verification = self.read_verification(point_id)
        except VerificationError as error:
            unreadable.append(error.message)
        return judge_point(
            point_id,
            artifacts,
            manifest,
            verification,
            site,
            unreadable=unreadable,
            pack_sizes=pack_sizes,
            keys=self.keys,
        )

    def list_pinned(self) -> set[RecoveryPointId]:
        """Return the points that have a pin, valid or not."""
        return _find_ids(self._list_names(), "pin_")

    @staticmethod
    def _find_committed(names: Sequence[str]) -> set[RecoveryPointId]:
        return _find_ids(names, "manifest_")

    def _list_names(self) -> list[str]:
        # A directory that is missing or hidden has no names, as with `glob`.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            return os.listdir(self.directory)  # noqa: PTH208 - paths of all files are what takes long
        return []

    def _find_artifacts(self, names: Sequence[str]) -> list[FoundArtifact]:
        found: list[FoundArtifact] = []
        for file_name in sorted(names):
            name = ArtifactName.from_file_name(file_name) if file_name.endswith(".gz") else None
            if name is None:
                continue
            path = _locate(self.directory, file_name)
            with suppress(FileNotFoundError):  # removed by prune meanwhile, or a dangling link
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                found.append(FoundArtifact(name, path, status.st_size, status.st_mtime_ns))
        return found


# The same value each time: parsing and hashing paths would take half of the time of a scrape of 400 points
# (2026-11-30).
@lru_cache(maxsize=_MOST_LOCATED)
def _locate(folder: Path, name: str) -> Path:
    return folder / name


def _find_ids(names: Sequence[str], prefix: str) -> set[RecoveryPointId]:
    """Return the IDs of the small files whose names begin like this."""
    found: set[RecoveryPointId] = set()
    for name in names:
        if name.startswith(prefix) and name.endswith(".json"):
            with suppress(ConfigurationError):  # a copy under another name
                found.add(RecoveryPointId.parse(name[len(prefix) : -len(".json")]))
    return found
