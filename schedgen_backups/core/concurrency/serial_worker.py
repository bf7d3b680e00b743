"""One thread that does calls in the order given while the caller goes on: digests beside reading and
compressing.

For calls that release the interpreter's lock (hashing, compressing) and need their order. Parallel work
without an order belongs to a thread pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_LIMIT = 8
"""Calls that wait at a time, which bounds the memory that their arguments hold."""


class SerialWorker:
    """Does calls one after another on a thread of its own; the first error comes out of the next `submit` or
    `wait`.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """The call will be done after those before it; waits while too many are waiting."""
        self._waiting.append(self._pool.submit(call, *arguments))
        while len(self._waiting) > _LIMIT:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Every call is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """The thread has ended; calls that wait are dropped. Safe to call twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> SerialWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
