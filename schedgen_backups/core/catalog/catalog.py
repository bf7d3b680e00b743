"""The backup directory: what lies in it, how a file gets into it whole or not at all, and what state each
recovery point is in.

Every write is staged, synced and renamed; a manifest is written last and never again. Add here what is about
files and names, not about what is in them. Callers that write hold the `lock`. Deleting points is the
business of retention, not of this module.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from schedgen_backups.core.catalog.check_results import STORED_CHECKS, CheckResult, Verification
from schedgen_backups.core.catalog.resume import find_resumable
from schedgen_backups.core.errors import (
    BackupError,
    ConfigurationError,
    PointNotFoundError,
    StorageError,
    UnreadableFileError,
    VerificationError,
)
from schedgen_backups.core.formats.gzip_members import read_footer
from schedgen_backups.core.model import (
    FORMAT_VERSION,
    READABLE_FORMAT_VERSIONS,
    AcceptedObject,
    Adoption,
    ArtifactKind,
    ArtifactName,
    FrozenModel,
    Manifest,
    MissingBaseline,
    RecoveryPointId,
    Site,
)
from schedgen_backups.core.system.files import (
    TEMPORARY_SUFFIX,
    create_private,
    open_regular,
    read_small_file,
    sync_path,
    write_atomically,
)
from schedgen_backups.core.system.lock import DirectoryLock, FileLock

STAGING_NAME = ".staging"
SITE_NAME = "site.json"
BASELINE_NAME = "missing_objects.json"
CLOCK_TOLERANCE = timedelta(minutes=5)
"""A point from further ahead than this means that a clock is or was wrong: this machine's, or that of the
host that took it."""
_NO_FILE_ERRORS = frozenset({errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})
"""Of what is no file, or none of ours: no later look finds another (`open_regular`, `read_small_file`)."""
_MANIFEST_GLOB = "manifest_*.json"
_RECORDS_LOCK_NAME = ".records.lock"
_STALE_SECONDS = 3600
"""Writing a small file takes milliseconds: a temporary one of this age belongs to a process that was killed."""
_Model = TypeVar("_Model", bound=FrozenModel)


class PointState(str, Enum):
    """What a recovery point is worth."""

    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    FAILED = "failed"
    """Looked at, and found wrong."""
    PARTIAL = "partial"
    """Without a manifest: a half of the backup failed, or it was never committed."""
    FOREIGN = "foreign"
    """Of another site's backup directory. Restored by its id only, until somebody adopts it."""
    AHEAD = "ahead of the clock"
    """Taken later than it is now by this machine's clock: that clock, or the one it was taken by, is wrong."""
    DAMAGED = "damaged"
    """A file of it is missing, has another size, or cannot be read. It counts for nothing, hides nothing else
    and is never removed."""


@dataclass(frozen=True)
class FoundArtifact:
    """One file in the directory that belongs to a point."""

    name: ArtifactName
    path: Path
    size_bytes: int
    modified_ns: int = 0
    """Since 1970, as the file system says."""


@dataclass(frozen=True)
class PointListing:
    """One recovery point as the directory shows it."""

    point_id: RecoveryPointId
    artifacts: tuple[FoundArtifact, ...]
    manifest: Manifest | None
    verification: Verification
    problems: tuple[str, ...] = ()
    """What is wrong with its files at this moment, as far as names, sizes and the small files tell."""
    unread_files: tuple[str, ...] = ()
    """Names of committed files that nobody read since they were last modified: a copy, a move to another
    host, or other bytes.

    The point keeps its state until they were read again."""
    is_foreign: bool = False
    is_ahead: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all its artifacts together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)

    @property
    def state(self) -> PointState:
        """What the point is worth; what was never checked, or checked as other bytes, is unverified."""
        if self.is_foreign:
            return PointState.FOREIGN
        if self.problems:
            return PointState.DAMAGED
        if self.is_ahead:
            return PointState.AHEAD
        if self.verification.is_failed:
            return PointState.FAILED
        if self.manifest is None:
            return PointState.PARTIAL
        committed = {artifact.kind: artifact.sha256 for artifact in self.manifest.artifacts}
        is_bound = all(
            committed.get(kind) == sha256
            for result in self.verification.results
            for kind, sha256 in result.artifacts.items()
        )
        return PointState.VERIFIED if is_bound and self.verification.is_verified else PointState.UNVERIFIED

    def artifact(self, kind: ArtifactKind) -> FoundArtifact | None:
        """The file of this kind, or None when there is none."""
        return next((artifact for artifact in self.artifacts if artifact.name.kind is kind), None)

    def get_path(self, kind: ArtifactKind) -> Path:
        """The path of the file of this kind; VerificationError when the point has none."""
        artifact = self.artifact(kind)
        if artifact is None:
            raise VerificationError(
                f"recovery point {self.point_id} has no {kind.value} file",
                hint="It is a partial point, or the file was removed. `schedgen-backups list` shows the "
                "others.",
            )
        return artifact.path


class Catalog:
    """One backup directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = DirectoryLock(directory)
        self._records_lock = FileLock(directory / _RECORDS_LOCK_NAME)

    def prepare(self) -> None:
        """The directory exists, for its owner only, and can be written.

        ConfigurationError (permanent) otherwise.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.directory / f".probe-{secrets.token_hex(8)}"
            os.close(create_private(probe))
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"BACKUP_DIR {self.directory} cannot be written: {error.strerror}",
                hint="Make the folder and give it to the user that runs the backup, or point BACKUP_DIR "
                "elsewhere.",
            ) from error

    def sweep_staging(self) -> tuple[str, ...]:
        """What dead runs left in the staging folder is gone, but `unfinished` archives; returns the names.

        Only with the lock held.
        """
        staging = self.directory / STAGING_NAME
        left = sorted(set(staging.glob("*")) - set(find_resumable(staging)))
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in self.directory.glob(f".*{TEMPORARY_SUFFIX}"):
            # A writer without the lock may be at work on it this moment.
            with suppress(FileNotFoundError):
                if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        return tuple(path.name for path in left)

    def manifest_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's manifest, whether it exists or not."""
        return self.directory / f"manifest_{point_id}.json"

    def verification_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's verification, whether it exists or not."""
        return self.directory / f"verification_{point_id}.json"

    def pin_path(self, point_id: RecoveryPointId) -> Path:
        """Return the path of the point's pin, whether it exists or not."""
        return self.directory / f"pin_{point_id}.json"

    @contextmanager
    def stage(self, name: str) -> Generator[Path, None, None]:
        """An empty folder on the same file system is there within the block, and gone after it.

        A full disk leaves it as StorageError.
        """
        folder = self.directory / STAGING_NAME / name
        with translate_storage_errors(self.directory):
            # Not `parents=True`: that makes the folders above as the umask likes.
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder)

    def publish(self, staged: Path) -> Path:
        """The staged file is in the directory under its name, on disk; StorageError when that name is taken."""
        target = self.directory / staged.name
        with translate_storage_errors(self.directory):
            if target.exists():
                raise StorageError(
                    f"{target} exists already and is never overwritten",
                    hint="Is another run using the same second?",
                )
            sync_path(staged)
            staged.rename(target)
            sync_path(self.directory)
        return target

    def read_site(self) -> Site | None:
        """Return whose directory this is.

        None before its first point. VerificationError when site.json cannot be read.
        """
        return self.read_description(SITE_NAME, Site)

    def settle_site(self) -> Site:
        """Return whose directory this is; make its id when it has none, or take the one that all its points
        carry.

        A damaged file is moved aside. Where the points carry several ids, all of them are then another site's
        until they are adopted. A file that cannot be read now stays: the id is that of all the points, and
        where they carry several, UnreadableFileError (retryable) is raised.
        """
        with self._records_lock.waited_for():
            ids = {manifest.site_id for manifest in self._read_manifests() if manifest.site_id}
            try:
                site = self.read_site()
            except UnreadableFileError:
                if len(ids) != 1:
                    raise
                return Site(site_id=ids.pop(), made_at=datetime.now(timezone.utc))
            except VerificationError:
                self._move_aside(SITE_NAME)
                site = None
            if site is None:
                site_id = ids.pop() if len(ids) == 1 else secrets.token_hex(16)
                older = tuple(
                    manifest.point_id for manifest in self._read_manifests() if not manifest.site_id
                )
                site = Site(site_id=site_id, made_at=datetime.now(timezone.utc), older_points=older)
                self.write_description(SITE_NAME, site)
        return site

    def _move_aside(self, name: str) -> None:
        with translate_storage_errors(self.directory):
            (self.directory / name).rename(self.directory / f"{name}.damaged-{secrets.token_hex(4)}")

    def adopt(self, adoption: Adoption) -> None:
        """Let a point of another site count from now on."""
        site = self.settle_site()
        with self._records_lock.waited_for():
            site = self.read_site() or site
            kept = tuple(each for each in site.adopted if each.point_id != adoption.point_id)
            self.write_description(SITE_NAME, site.model_copy(update={"adopted": (*kept, adoption)}))

    def settle_baseline(self, missing: Sequence[str]) -> frozenset[str]:
        """Return the keys whose absence is no news; the first call makes `missing` the baseline, each later
        one takes out of it what is there again.

        `missing` is all that the live system lacks. While the file cannot be read nothing is known, and all
        is news.
        """
        with self._records_lock.waited_for():
            try:
                baseline = self.read_description(BASELINE_NAME, MissingBaseline)
            except VerificationError:
                return frozenset()
            if baseline is None or baseline.first_missing is None:
                accepted = baseline.accepted if baseline is not None else ()
                baseline = MissingBaseline(first_missing=tuple(missing), accepted=accepted)
            still_missing = baseline.keep_only(frozenset(missing))
            if still_missing != self.read_description(BASELINE_NAME, MissingBaseline):
                self.write_description(BASELINE_NAME, still_missing)
        return still_missing.keys

    def accept_missing(self, accepted: Sequence[AcceptedObject]) -> None:
        """Let the absence of these objects be no news from now on, until they are there again.

        A damaged file of those before is moved aside.
        """
        with self._records_lock.waited_for():
            try:
                baseline = self.read_description(BASELINE_NAME, MissingBaseline) or MissingBaseline()
            except UnreadableFileError:
                raise
            except VerificationError:
                self._move_aside(BASELINE_NAME)
                baseline = MissingBaseline()
            keys = {each.key for each in accepted}
            kept = tuple(each for each in baseline.accepted if each.key not in keys)
            self.write_description(
                BASELINE_NAME, baseline.model_copy(update={"accepted": (*kept, *accepted)})
            )

    def write_manifest(self, manifest: Manifest) -> Path:
        """The point's manifest is on disk; StorageError when it has one already."""
        name = f"manifest_{manifest.point_id}.json"
        with self.stage(name) as folder:
            staged = folder / name
            with os.fdopen(create_private(staged), "wb") as file:
                file.write(_as_json(manifest))
            return self.publish(staged)

    def write_verification(self, verification: Verification) -> Path:
        """The point's verification is on disk, in place of an older one."""
        return self.write_description(f"verification_{verification.point_id}.json", verification)

    def write_description(self, name: str, value: FrozenModel) -> Path:
        """A small file of this name holds the value, in place of an older one."""
        with translate_storage_errors(self.directory):
            # Not in the staging folder: a run that takes the lock sweeps that, and this is written without
            # it, too.
            write_atomically(self.directory / name, _as_json(value), owner=self._find_owner(name))
        return self.directory / name

    def _find_owner(self, name: str) -> tuple[int, int] | None:
        """Return whose a file must be that root writes: that of the file before, otherwise of the directory.

        Everybody else owns what he writes.
        """
        if os.geteuid() != 0:
            return None
        try:
            status = (self.directory / name).stat()
        except OSError:
            status = self.directory.stat()
        return status.st_uid, status.st_gid

    def read_description(self, name: str, kind: type[_Model]) -> _Model | None:
        """The value that a small file of this name holds, or None when there is none.

        VerificationError when it is damaged.
        """
        return _read_model(self.directory / name, kind)

    def remove_file(self, path: Path) -> None:
        """This one file of the directory is gone, on disk.

        StorageError when it cannot be removed. Only with the lock held.
        """
        with translate_storage_errors(self.directory):
            path.unlink()
            sync_path(self.directory)

    def record_results(self, point_id: RecoveryPointId, results: tuple[CheckResult, ...]) -> Verification:
        """Add these results to the point's verification, in place of older ones of the same checks; return
        all results.

        A verification that cannot be read is replaced: what it said is lost, and only `results` is known.
        """
        with self._records_lock.waited_for():
            before = Verification(point_id=point_id.text)
            with suppress(VerificationError):
                before = self.read_verification(point_id)
            verification = before.with_results(results)
            self.write_verification(verification)
        return verification

    def read_verification(self, point_id: RecoveryPointId) -> Verification:
        """Return the results recorded for the point, none when it was never checked.

        VerificationError when the file is damaged.
        """
        found = self.read_description(self.verification_path(point_id).name, Verification)
        _require_id(
            point_id, found.point_id if found is not None else point_id.text, self.verification_path(point_id)
        )
        return found or Verification(point_id=point_id.text)

    def read_manifest(self, point_id: RecoveryPointId) -> Manifest | None:
        """Return the point's manifest, or None when it was never committed.

        VerificationError when the file is damaged.
        """
        found = self.read_description(self.manifest_path(point_id).name, Manifest)
        _require_id(
            point_id, found.point_id if found is not None else point_id.text, self.manifest_path(point_id)
        )
        return found

    def _read_manifests(self) -> Iterator[Manifest]:
        for point_id in self._find_committed():
            with suppress(VerificationError):
                if (manifest := self.read_manifest(point_id)) is not None:
                    yield manifest

    def list_points(self) -> tuple[PointListing, ...]:
        """Return every recovery point, oldest first, partial and damaged ones included.

        One bad file never hides another point.
        """
        artifacts: dict[RecoveryPointId, list[FoundArtifact]] = {}
        for artifact in self._find_artifacts():
            artifacts.setdefault(artifact.name.point_id, []).append(artifact)
        committed = self._find_committed()
        own = {
            point_id
            for point_id, found in artifacts.items()
            if point_id in committed or any(map(is_ours, found))
        }
        site = None
        with suppress(VerificationError):
            site = self.read_site()
        points = tuple(
            self._look_at(point_id, artifacts.get(point_id, []), site) for point_id in sorted(committed | own)
        )
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
            # Whose points these are is unknown: none is chosen, counted or removed, and each can be restored
            # by its id.
            points = tuple(replace(point, is_foreign=point.manifest is not None) for point in points)
        return points

    def list_unmanaged(self) -> tuple[Path, ...]:
        """Files with an artifact's name that are not ours, such as those of the shell script of before; they
        are never touched.
        """
        committed = self._find_committed()
        return tuple(
            artifact.path
            for artifact in self._find_artifacts()
            if artifact.name.point_id not in committed and not is_ours(artifact)
        )

    def get_point(self, point_id: RecoveryPointId) -> PointListing:
        """The recovery point with this id; PointNotFoundError (permanent) when there is none."""
        for point in self.list_points():
            if point.point_id == point_id:
                return point
        raise PointNotFoundError(
            f"there is no recovery point {point_id} in {self.directory}",
            hint="`schedgen-backups list` shows those there are.",
        )

    def _look_at(
        self, point_id: RecoveryPointId, artifacts: list[FoundArtifact], site: Site | None
    ) -> PointListing:
        ordered = tuple(sorted(artifacts, key=lambda artifact: artifact.name.kind.value, reverse=True))
        manifest, verification, problems, unread = (
            None,
            Verification(point_id=point_id.text),
            list[str](),
            list[str](),
        )
        try:
            manifest = self.read_manifest(point_id)
        except VerificationError as error:
            problems.append(error.message)
        try:
            verification = self.read_verification(point_id)
        except VerificationError as error:
            problems.append(error.message)
        found_files = {artifact.path.name: artifact for artifact in ordered}
        for artifact in manifest.artifacts if manifest is not None else ():
            found = found_files.get(artifact.file_name)
            reading = verification.result(STORED_CHECKS[artifact.kind])
            if found is None:
                problems.append(f"{artifact.file_name} is missing")
            elif found.size_bytes != artifact.size_bytes:
                problems.append(
                    f"{artifact.file_name} has {found.size_bytes} bytes, the manifest says "
                    f"{artifact.size_bytes}"
                )
            elif reading is None or reading.file_modified_ns != found.modified_ns:
                unread.append(artifact.file_name)
        is_foreign = manifest is not None and site is not None and not site.owns(manifest)
        is_ahead = point_id.taken_at > datetime.now(timezone.utc) + CLOCK_TOLERANCE
        return PointListing(
            point_id,
            ordered,
            manifest,
            verification,
            tuple(problems),
            tuple(unread),
            is_foreign=is_foreign,
            is_ahead=is_ahead,
        )

    def _find_committed(self) -> set[RecoveryPointId]:
        found: set[RecoveryPointId] = set()
        for path in self.directory.glob(_MANIFEST_GLOB):
            with suppress(ConfigurationError):  # somebody's copy under another name
                found.add(RecoveryPointId.parse(path.stem.removeprefix("manifest_")))
        return found

    def _find_artifacts(self) -> list[FoundArtifact]:
        found: list[FoundArtifact] = []
        for path in sorted(self.directory.glob("*.gz")):
            name = ArtifactName.from_file_name(path.name)
            if name is None:
                continue
            with suppress(FileNotFoundError):  # prune removed it just now, or it is a link to nothing
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                found.append(FoundArtifact(name, path, status.st_size, status.st_mtime_ns))
        return found


@contextmanager
def translate_storage_errors(directory: Path) -> Generator[None, None, None]:
    """Errors of the file system within the block leave it as StorageError with a hint."""
    try:
        yield
    except BackupError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = (
                "Make room, or move BACKUP_DIR to a larger disk. Nothing was published; older recovery "
                "points are untouched."
            )
            raise StorageError(f"the disk of {directory} is full", hint=hint) from error
        raise StorageError(
            f"{directory} cannot be used: {error.strerror or error}",
            hint="Look at the disk and at its permissions.",
        ) from error


def _as_json(value: FrozenModel) -> bytes:
    return value.model_dump_json(indent=1, exclude_none=True).encode()


def is_ours(artifact: FoundArtifact) -> bool:
    """Whether the file describes itself as ours do; the shell script's do not.

    A file that cannot be read is not known to be ours.
    """
    try:
        with open_regular(artifact.path) as file:
            read_footer(file)
    except (OSError, VerificationError):
        return False
    return True


def _require_id(point_id: RecoveryPointId, found: str, path: Path) -> None:
    """Raise VerificationError when the file was written for another point: it was exchanged or renamed."""
    if found != point_id.text:
        raise VerificationError(
            f"{path.name} is of recovery point {found}",
            hint="It was exchanged or renamed; `schedgen-backups verify ID` reads again.",
        )


def _require_format(path: Path, content: bytes) -> None:
    """Raise VerificationError when the file says that it was written in another format, older or newer."""
    try:
        stated = json.loads(content).get("format_version", FORMAT_VERSION)
    except (ValueError, AttributeError, RecursionError):
        return
    if not isinstance(stated, int) or stated not in READABLE_FORMAT_VERSIONS:
        raise VerificationError(
            f"{path.name} is in another format than this version's, which is {FORMAT_VERSION}",
            hint="It was written by another version of schedgen-backups, which reads it; `schedgen-backups "
            "restore ID` restores the artifacts.",
        )


def _read_model(path: Path, kind: type[_Model]) -> _Model | None:
    try:
        content = read_small_file(path)
        _require_format(path, content)
        return kind.model_validate_json(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        kind_of_error = VerificationError if error.errno in _NO_FILE_ERRORS else UnreadableFileError
        raise kind_of_error(
            f"{path.name} cannot be read: {error.strerror}", hint=_find_hint(path.name)
        ) from error
    except ValidationError as error:
        raise VerificationError(
            f"{path.name} cannot be read: it is damaged", hint=_find_hint(path.name)
        ) from error


def _find_hint(name: str) -> str:
    if name == SITE_NAME:
        return (
            "`schedgen-backups list` shows which points are foreign for want of it, and "
            "`schedgen-backups adopt ID` takes one back."
        )
    if name == BASELINE_NAME:
        return (
            "Until it is mended each missing object is news; `schedgen-backups accept-missing` begins a "
            "new one."
        )
    if name.startswith("pin_"):
        return "The point stays. `schedgen-backups unpin ID` and `schedgen-backups pin ID` make the pin anew."
    return (
        "The artifacts describe themselves: `schedgen-backups verify ID` reads them again, "
        "`schedgen-backups restore ID` restores them."
    )
