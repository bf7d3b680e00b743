"""File locks (flock): held by one process at a time, freed by the kernel when the holder dies.

They work on local file systems and on NFS version 4. A file system without flock raises StorageError instead
of reporting a held lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.core.errors import LockHeldError, StorageError
from schedgen_backups.core.system.files import read_small_file

LOCK_NAME = ".lock"


class FileLock:
    """A lock on one file; `acquire` and `release` in one process. The file remains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        """Open while the lock is held; a child process that inherits it also holds the lock."""

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether this object holds it.

        StorageError if the file cannot be opened or locked.
        """
        return self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait(self) -> None:
        """Take the lock; wait for its holder first. StorageError if the file cannot be opened or locked."""
        self._acquire(fcntl.LOCK_EX)

    @contextmanager
    def waited_for(self) -> Generator[None, None, None]:
        """Hold the lock within the block; wait for its holder first. StorageError like `wait`."""
        self.wait()
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Free the lock; do nothing if it is not held."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _acquire(self, operation: int) -> bool:
        if self.descriptor is not None:
            return True
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _explain(self.path, error) from error
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise _explain(self.path, error) from error
        self.descriptor = descriptor
        return True


class DirectoryLock:
    """The right to write in a backup directory. Never waits: the error names the holder."""

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / LOCK_NAME)

    def acquire(self, holder: str) -> bool:
        """Take the lock; return whether this call took it.

        LockHeldError (retryable) names the other holder; StorageError like `FileLock`.
        """
        if self._lock.descriptor is not None:
            return False
        if not self._lock.try_acquire():
            raise LockHeldError(
                f"the backup directory is in use by {self._read_holder()}",
                hint="Wait until it ends. Locks of dead processes are freed automatically.",
            )
        note = f"{holder}, process {os.getpid()}, since {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC\n"
        self._write_note(note.encode())
        return True

    @contextmanager
    def held(self, holder: str) -> Generator[None, None, None]:
        """Hold the lock within the block; errors like `acquire`."""
        is_new = self.acquire(holder)
        try:
            yield
        finally:
            if is_new:
                self.release()

    def release(self) -> None:
        """Free the lock; do nothing if it is not held."""
        self._write_note(b"")
        self._lock.release()

    def _write_note(self, note: bytes) -> None:
        # The note is informational. On a full disk the lock is held without it, and the operation that needs
        # space reports the error.
        if self._lock.descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._lock.descriptor, 0)
                os.pwrite(self._lock.descriptor, note, 0)

    def _read_holder(self) -> str:
        with suppress(OSError):
            return (
                read_small_file(self._lock.path)[:1000].decode("utf-8", "replace").strip()
                or "another process"
            )
        return "another process"


def _explain(path: Path, error: OSError) -> StorageError:
    if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}:
        return StorageError(
            f"the file system of {path.parent} does not support file locks: {error.strerror}",
            hint="Use a local file system or NFS version 4 for this directory.",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return StorageError(
            f"{path} cannot be opened: {error.strerror}",
            hint="It was created by a run as another user. Give the directory and its files to the user that "
            "runs the backups: chown -R USER DIRECTORY",
        )
    return StorageError(
        f"{path} cannot be locked: {error.strerror or error}",
        hint="Check the disk and the directory's permissions.",
    )
