"""Holds a stream of bytes to a rate, so that a backup leaves the network and the disks to the application.

Add here only what is about the rate; what the bytes are is the caller's business. How a process yields the processor is in `priority`.
"""

from __future__ import annotations

import threading
import time

_BURST_SECONDS = 1.0
"""What was not used in this time may be used at once afterwards."""


class Throttle:
    """Bytes that pass, from any thread, are together no faster than the rate; without a rate they pass at once."""

    def __init__(self, max_mb_per_second: int) -> None:
        self._bytes_per_second = max_mb_per_second * 1_000_000
        self._lock = threading.Lock()
        self._paid_until = time.monotonic() - _BURST_SECONDS

    def wait_for(self, size_bytes: int) -> None:
        """So many bytes may have passed by now."""
        if not self._bytes_per_second:
            return
        now = time.monotonic()
        with self._lock:
            self._paid_until = max(self._paid_until, now - _BURST_SECONDS) + size_bytes / self._bytes_per_second
            pause = self._paid_until - now
        if pause > 0:
            time.sleep(pause)
