"""The working directory of a restore drill: a lock that shows whether the drill is alive, and a record.

The record lists what the drill creates elsewhere. It is written before anything is created, so that a killed
drill leaves nothing unknown. Add a field to the record when a drill creates another kind of thing.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.drill import reaper
from schedgen_backups.core.drill.reaper import end_processes_in
from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.system.lock import FileLock

FOLDER_PREFIX = "schedgen-drill-"
_FOLDER_NAME = re.compile(re.escape(FOLDER_PREFIX) + r"(?P<id>[0-9a-f]{12})")
_LOCK_NAME = "lock"
_SWEEP_LOCK_NAME = ".schedgen-drill.lock"
"""In the parent directory, which may be a shared one such as /tmp."""
_RECORD_NAME = "scratch.json"
_GUARD_PATIENCE_SECONDS = 90
"""Longer than the guard takes at most."""


class ServerDatabase(FrozenModel):
    """A scratch database and its roles on a server that the drill did not start.

    Without a password, which is in the settings.
    """

    host: str
    port: int
    name: str
    roles: tuple[str, ...] = ()
    """Names of roles that did not exist before. The drill owns only those of them that have its comment."""


class ServerBucket(FrozenModel):
    """A scratch bucket on an S3 server that the drill did not start."""

    endpoint: str
    name: str


class ScratchRecord(FrozenModel):
    """What a drill creates, in its directory and elsewhere."""

    scratch_id: str
    began_at: AwareDatetime
    database: ServerDatabase | None = None
    bucket: ServerBucket | None = None


class ScratchFolder:
    """One drill's directory, while this process holds its lock."""

    def __init__(self, path: Path, lock: FileLock, record: ScratchRecord) -> None:
        self.path = path
        self.lock = lock
        self.record = record

    @property
    def database_name(self) -> str:
        """The unique name of the drill's database."""
        return f"{FOLDER_PREFIX}{self.record.scratch_id}".replace("-", "_")

    @property
    def bucket_name(self) -> str:
        """The unique name of the drill's bucket."""
        return f"{FOLDER_PREFIX}{self.record.scratch_id}"

    def has_own_names(self) -> bool:
        """Return whether the record names only a database and a bucket of this drill."""
        return (self.record.database is None or self.record.database.name == self.database_name) and (
            self.record.bucket is None or self.record.bucket.name == self.bucket_name
        )

    def write_record(self, **changes: ServerDatabase | ServerBucket | None) -> None:
        """Change the record and write it to disk."""
        self.record = self.record.model_copy(update=changes)
        write_atomically(self.path / _RECORD_NAME, self.record.model_dump_json(indent=1).encode())

    def end_servers(self) -> None:
        """End all processes in the directory; StorageError when that fails."""
        if not end_processes_in(self.path):
            raise StorageError(
                f"processes in {self.path} do not end",
                hint="End them manually; the next drill or backup removes the directory.",
            )

    def remove(self) -> None:
        """End all processes in the directory and remove it; StorageError when that fails."""
        self.end_servers()
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            hint = "The next drill or backup tries again; otherwise remove it manually."
            raise StorageError(f"{self.path} cannot be removed: {error.strerror}", hint=hint) from error


@contextmanager
def open_scratch_folder(directory: Path) -> Generator[ScratchFolder, None, None]:
    """Provide a new directory in `directory` within the block and remove it afterwards.

    It stays when its record still names something elsewhere. A guard ends its processes when this process
    dies. StorageError when the directory cannot be created.
    """
    folder = _make_folder(directory)
    try:
        try:
            with _guarded(folder):
                yield folder
        finally:
            if folder.record.database is None and folder.record.bucket is None:
                folder.remove()
    finally:
        folder.lock.release()


@contextmanager
def open_orphaned_folders(directory: Path) -> Generator[tuple[ScratchFolder, ...], None, None]:
    """Yield the directories of dead drills, locked within the block; none while another sweep is running."""
    if not directory.is_dir():
        yield ()
        return
    sweep = FileLock(directory / _SWEEP_LOCK_NAME)
    opened: list[ScratchFolder] = []
    try:
        if sweep.try_acquire():
            opened += [
                folder for path in sorted(directory.iterdir()) if (folder := _open_orphaned(path)) is not None
            ]
        yield tuple(opened)
    finally:
        for lock in (*(folder.lock for folder in opened), sweep):
            lock.release()


def _make_folder(directory: Path) -> ScratchFolder:
    scratch_id = secrets.token_hex(6)
    path = directory / f"{FOLDER_PREFIX}{scratch_id}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A sweep must not find a directory that is not locked yet.
        with FileLock(directory / _SWEEP_LOCK_NAME).waited_for():
            path.mkdir(mode=0o700)
            lock = FileLock(path / _LOCK_NAME)
            lock.wait()
            folder = ScratchFolder(
                path, lock, ScratchRecord(scratch_id=scratch_id, began_at=datetime.now(timezone.utc))
            )
            folder.write_record()
    except OSError as error:
        raise StorageError(
            f"{directory} cannot be used for a drill: {error.strerror}",
            hint="Set DRILL_DIR to a directory with enough space.",
        ) from error
    return folder


@contextmanager
def _guarded(folder: ScratchFolder) -> Generator[None, None, None]:
    reading, writing = os.pipe()
    # The guard inherits the lock: the directory counts as alive until the guard has ended, too.
    words = [sys.executable, "-I", "-S", reaper.__file__, str(reading), str(folder.path)]
    descriptor = folder.lock.descriptor
    process = subprocess.Popen(
        words,
        pass_fds=(reading,) if descriptor is None else (reading, descriptor),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        try:
            process.wait(_GUARD_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _open_orphaned(path: Path) -> ScratchFolder | None:
    """Return the directory with its lock held; None for a foreign, living or unrecorded one."""
    match = _FOLDER_NAME.fullmatch(path.name)
    # DRILL_DIR may be shared, such as /tmp: another user who could create a directory here could have any
    # database dropped.
    if match is None or not all(_is_private(each) for each in (path, path / _LOCK_NAME, path / _RECORD_NAME)):
        return None
    lock = FileLock(path / _LOCK_NAME)
    if not lock.try_acquire():
        return None
    with suppress(OSError, ValidationError):
        folder = ScratchFolder(
            path, lock, ScratchRecord.model_validate_json(read_small_file(path / _RECORD_NAME))
        )
        if folder.record.scratch_id == match["id"] and folder.has_own_names():
            return folder
    lock.release()
    return None


def _is_private(path: Path) -> bool:
    """Return whether only this user can change the file or directory; false for a link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return (
        not stat.S_ISLNK(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
