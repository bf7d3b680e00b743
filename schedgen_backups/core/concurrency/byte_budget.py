"""A budget of memory that several threads share: who wants bytes waits until they are free.

Used where many bodies are in memory at once. What the bytes are is the caller's business.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class ByteBudget:
    """So many bytes may be held at a time, by all threads together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size_bytes: int) -> Generator[None, None, None]:
        """So many bytes are the caller's within the block, which begins when they are free; more than there are count as all of them."""
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
