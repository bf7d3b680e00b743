"""Keeps two runs from working on the same backup directory at once: an flock on a file in it, which a dead holder frees by dying.

Nothing else is locked, and nothing waits: who cannot have the lock is told who has it. Works on local file systems and on NFS version 4.
"""

from __future__ import annotations

import fcntl
import os
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.core.errors import LockHeldError

LOCK_NAME = ".lock"


class DirectoryLock:
    """The right to write in a backup directory; `acquire` and `release` in one process, `acquire` again does nothing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, holder: str) -> bool:
        """The lock is held; returns whether it was taken just now. LockHeldError (retryable) names the other holder."""
        if self._descriptor is not None:
            return False
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise LockHeldError(f"the backup directory is in use by {other}", hint="Wait until it ends. A process that died holds no lock.") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{holder}, process {os.getpid()}, since {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """The lock is free; does nothing when it was not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
