"""The folder that a restore drill works in: a lock that tells a living drill from a dead one, and a record of what it made elsewhere.

What is to be made is written down before it is made, so that a drill that is killed leaves nothing nobody knows of. Add a field to the record when a
drill makes another kind of thing. Making and removing databases and buckets is the business of `scratch_database` and `scratch_bucket`.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.drill import reaper as scratch_guard
from schedgen_backups.core.drill.reaper import end_processes_in
from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.servers.loopback import write_private_file

FOLDER_PREFIX = "schedgen-drill-"
_FOLDER_NAME = re.compile(re.escape(FOLDER_PREFIX) + r"(?P<id>[0-9a-f]{12})")
_LOCK_NAME = "lock"
_SWEEP_LOCK_NAME = ".schedgen-drill.lock"
"""In the folder of the folders, which may be a shared one such as /tmp."""
_RECORD_NAME = "scratch.json"
_GUARD_PATIENCE_SECONDS = 90
"""More than the guard takes at the most."""


class ServerDatabase(FrozenModel):
    """A scratch database, and the roles it needs, on a server that is not ours to end. Without a password: the settings have it."""

    host: str
    port: int
    name: str
    roles: tuple[str, ...] = ()
    """Quoted names of roles that were not there before."""


class ServerBucket(FrozenModel):
    """A scratch bucket on an S3 server that is not ours to end."""

    endpoint: str
    name: str


class ScratchRecord(FrozenModel):
    """What a drill makes, in its folder and outside of it."""

    scratch_id: str
    began_at: AwareDatetime
    database: ServerDatabase | None = None
    bucket: ServerBucket | None = None


class ScratchFolder:
    """One drill's folder, for as long as this process holds its lock."""

    def __init__(self, path: Path, descriptor: int, record: ScratchRecord) -> None:
        self.path = path
        self.descriptor = descriptor
        self.record = record

    @property
    def database_name(self) -> str:
        """The name of the drill's database, which nobody else has."""
        return f"{FOLDER_PREFIX}{self.record.scratch_id}".replace("-", "_")

    @property
    def bucket_name(self) -> str:
        """The name of the drill's bucket, which nobody else has."""
        return f"{FOLDER_PREFIX}{self.record.scratch_id}"

    def write_record(self, **changes: ServerDatabase | ServerBucket | None) -> None:
        """The record on the disk has these changes."""
        self.record = self.record.model_copy(update=changes)
        temporary = self.path / f"{_RECORD_NAME}.new"
        write_private_file(temporary, self.record.model_dump_json(indent=1))
        temporary.replace(self.path / _RECORD_NAME)

    def end_servers(self) -> None:
        """Nothing runs in the folder; StorageError otherwise."""
        if not end_processes_in(self.path):
            raise StorageError(f"processes in {self.path} do not end", hint="End them by hand; the next drill or backup removes the folder.")

    def remove(self) -> None:
        """The folder is gone and nothing runs in it; StorageError otherwise."""
        self.end_servers()
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            hint = "The next drill or backup tries again; otherwise remove it by hand."
            raise StorageError(f"{self.path} cannot be removed: {error.strerror}", hint=hint) from error


@contextmanager
def open_scratch_folder(directory: Path) -> Generator[ScratchFolder, None, None]:
    """A folder of our own is in `directory` within the block, and gone after it unless its record still names something outside of it.

    A guard ends what runs in the folder when this process dies. StorageError when the folder cannot be made.
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
        os.close(folder.descriptor)


@contextmanager
def open_orphaned_folders(directory: Path) -> Generator[tuple[ScratchFolder, ...], None, None]:
    """The folders whose drills are dead, each locked within the block; none when somebody else is sweeping."""
    if not directory.is_dir():
        yield ()
        return
    sweep = os.open(directory / _SWEEP_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    opened: list[ScratchFolder] = []
    try:
        if _lock(sweep):
            opened += [folder for path in sorted(directory.iterdir()) if (folder := _open_orphaned(path)) is not None]
        yield tuple(opened)
    finally:
        for descriptor in (*(folder.descriptor for folder in opened), sweep):
            os.close(descriptor)


def _make_folder(directory: Path) -> ScratchFolder:
    scratch_id = secrets.token_hex(6)
    path = directory / f"{FOLDER_PREFIX}{scratch_id}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep = os.open(directory / _SWEEP_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A sweep must not meet a folder that is not locked yet.
            fcntl.flock(sweep, fcntl.LOCK_EX)
            path.mkdir(mode=0o700)
            descriptor = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(descriptor)
            folder = ScratchFolder(path, descriptor, ScratchRecord(scratch_id=scratch_id, began_at=datetime.now(timezone.utc)))
            folder.write_record()
        finally:
            os.close(sweep)
    except OSError as error:
        raise StorageError(f"{directory} cannot be used for a drill: {error.strerror}", hint="Set DRILL_DIR to a folder with room.") from error
    return folder


@contextmanager
def _guarded(folder: ScratchFolder) -> Generator[None, None, None]:
    reading, writing = os.pipe()
    # With the lock: the folder counts as alive until the guard has ended, too.
    words = [sys.executable, "-I", "-S", scratch_guard.__file__, str(reading), str(folder.path)]
    process = subprocess.Popen(
        words,
        pass_fds=(reading, folder.descriptor),
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
    """The folder with its lock held, or None: not ours, alive, or without a readable record, which is our mark."""
    match = _FOLDER_NAME.fullmatch(path.name)
    if match is None or path.is_symlink() or not (path / _LOCK_NAME).is_file():
        return None
    descriptor = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _lock(descriptor):
            record = ScratchRecord.model_validate_json((path / _RECORD_NAME).read_bytes())
            if record.scratch_id == match["id"]:
                return ScratchFolder(path, descriptor, record)
    except (FileNotFoundError, ValidationError):
        pass
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
