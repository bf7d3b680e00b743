"""Flush a growing file to disk while it is written, so that the final sync is short.

Linux itself starts writing only when a tenth of the memory is dirty (vm.dirty_background_ratio). Use it for
files that are synced at the end; temporary files are better kept in memory.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_STEP_BYTES = 64 << 20


class WriteBack:
    """Syncs the file in its own thread whenever enough was written and the last sync has ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._unsynced_bytes = 0
        self._running: Future[None] | None = None

    def note(self, size_bytes: int) -> None:
        """Account for bytes written; OSError if an earlier sync failed, which means lost data."""
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes < _STEP_BYTES or (self._running is not None and not self._running.done()):
            return
        if self._running is not None:
            self._running.result()
        self._file.flush()
        self._running = self._pool.submit(os.fsync, self._file.fileno())
        self._unsynced_bytes = 0

    def finish(self) -> None:
        """Wait for the last sync.

        OSError if it failed. Linux reports a failure only once, so the final sync may not see it.
        """
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Wait until no sync runs. `finish` reports errors. May be called twice."""
        self._pool.shutdown(wait=True)
