"""Sends a growing file's bytes to the disk while more are written, so that the sync at its end has little
left to do.

Linux itself begins only when a tenth of the memory waits to be written (vm.dirty_background_ratio). For files
that are synced at their end anyway; temporary ones are better off in memory.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_STEP_BYTES = 64 << 20


class WriteBack:
    """Syncs the file on a thread of its own whenever so much was written and the last sync has ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._unsynced_bytes = 0
        self._running: Future[None] | None = None

    def note(self, size_bytes: int) -> None:
        """So many bytes more were written. OSError when an earlier sync failed: the disk has lost something."""
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes < _STEP_BYTES or (self._running is not None and not self._running.done()):
            return
        if self._running is not None:
            self._running.result()
        self._file.flush()
        self._running = self._pool.submit(os.fsync, self._file.fileno())
        self._unsynced_bytes = 0

    def finish(self) -> None:
        """The last sync has ended well.

        OSError when it failed. Linux tells a failure once: the sync at the end may not see it.
        """
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """No sync is running; whether the last one failed is told by `finish`. Safe to call twice."""
        self._pool.shutdown(wait=True)
