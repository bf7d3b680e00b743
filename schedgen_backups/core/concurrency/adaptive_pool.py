"""Threads that make requests, no more of them at a time than the server is faster with.

The rule is `adaptive_limit`'s; here are the threads that keep to it. Work that asks no server belongs to an ordinary pool.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from schedgen_backups.core.concurrency.adaptive_limit import AdaptiveLimit

_Result = TypeVar("_Result")
_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class AdaptivePool:
    """Does calls on threads in the order given; a context manager.

    Threads above the limit wait before they take a call, so that none is held up that was taken, and nobody is woken for each request.
    """

    def __init__(self, most: int, name: str) -> None:
        self._adaptive = AdaptiveLimit(most, now=time.monotonic())
        self._changed = threading.Condition()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._work, args=(number,), name=f"{name}_{number}") for number in range(most)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """The call will be done after those before it have begun."""
        future: Future[_Result] = Future()
        self._calls.put((future, call, arguments))
        return future

    def note_answer(self, size_bytes: int) -> None:
        """The server answered a request with so many bytes."""
        with self._changed:
            before = self._adaptive.limit
            self._adaptive.note_answer(size_bytes, now=time.monotonic())
            if self._adaptive.limit > before:
                self._changed.notify_all()

    def note_refusal(self) -> None:
        """The server said that it is too much."""
        with self._changed:
            self._adaptive.note_refusal(now=time.monotonic())

    def close(self) -> None:
        """Calls that have not begun are cancelled, the others and the threads have ended. Safe to call twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        while not self._calls.empty():
            waiting = self._calls.get()
            if waiting is not None:
                waiting[0].cancel()
        for _thread in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> AdaptivePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self, number: int) -> None:
        while True:
            # Looked at without the lock first: nearly always it is this thread's turn.
            if number >= self._adaptive.limit:
                with self._changed:
                    self._changed.wait_for(lambda: number < self._adaptive.limit or self._is_closed)
            waiting = self._calls.get()
            if waiting is None:
                return
            future, call, arguments = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call(*arguments)
            except BaseException as error:  # noqa: BLE001 - it comes out where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)
            # A thread that waits must not keep the last object in memory.
            del waiting, future, arguments
