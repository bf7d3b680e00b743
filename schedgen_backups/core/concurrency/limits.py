"""Limits that several threads share: a memory budget, a rate limit, and keys that lie in each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager


class MemoryBudget:
    """A limit on the bytes that all threads together may hold at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size_bytes: int) -> Generator[None, None, None]:
        """Reserve this many bytes within the block, which begins when they are free.

        A size above the limit reserves the whole limit.
        """
        wanted = min(size_bytes, self._limit_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes + wanted <= self._limit_bytes)
            self._held_bytes += wanted
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= wanted
                self._changed.notify_all()


class NestedKeys:
    """Keeps apart the writes of keys of which one lies in the other, such as `a` and `a/b`.

    SeaweedFS loses `a` in one of twenty such pairs that are written at the same time, whatever it answers;
    one after the other, in any order, it keeps both (4.48, 2026-12-01).
    """

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, key: str) -> Generator[None, None, None]:
        """Hold the key within the block, which begins when none is held that lies in it, or it in that."""
        with self._changed:
            self._changed.wait_for(lambda: not any(_are_nested(key, held) for held in self._held))
            self._held.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(key)
                self._changed.notify_all()


def _are_nested(key: str, other: str) -> bool:
    key, other = f"{key.rstrip('/')}/", f"{other.rstrip('/')}/"
    return key.startswith(other) or other.startswith(key)


_BURST_SECONDS = 1.0
"""Unused rate of this period may be used at once afterwards."""


class RateLimit:
    """A limit on the rate of bytes of all threads together; zero means unlimited."""

    def __init__(self, max_mb_per_second: int) -> None:
        self._bytes_per_second = max_mb_per_second * 1_000_000
        self._lock = threading.Lock()
        self._paid_until = time.monotonic() - _BURST_SECONDS

    def wait_for(self, size_bytes: int) -> None:
        """Wait until this many more bytes may pass."""
        if not self._bytes_per_second:
            return
        now = time.monotonic()
        with self._lock:
            self._paid_until = (
                max(self._paid_until, now - _BURST_SECONDS) + size_bytes / self._bytes_per_second
            )
            pause = self._paid_until - now
        if pause > 0:
            time.sleep(pause)
