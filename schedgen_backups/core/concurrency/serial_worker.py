"""One thread that runs calls in the order given while the caller continues.

For calls that release the interpreter lock (hashing, compressing) and need an order. Use a thread pool for
parallel work without an order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_LIMIT = 8
"""Maximum number of waiting calls, which limits the memory for their arguments."""


class SerialWorker:
    """Runs calls one after another on a separate thread; `submit` and `wait` raise the first error."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """Queue the call behind earlier ones; block while too many are waiting."""
        self._waiting.append(self._pool.submit(call, *arguments))
        while len(self._waiting) > _LIMIT:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Wait until every call is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Drop waiting calls and end the thread. Safe to call twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> SerialWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
