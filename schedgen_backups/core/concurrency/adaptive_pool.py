"""A thread pool for requests that adapts its concurrency to what the server handles best."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

START = 8
_LEAST_TRIED = 4
"""Fewer are never faster for a server that accepts more than one at a time; only refusals go below this."""
_ROUND_REQUESTS = 4
"""A measurement needs this many answers per request in flight, and at least the time below."""
_ROUND_SECONDS = 0.3
_REQUEST_BYTES = 100_000
"""Transferring this many bytes costs a server as much as a request (SeaweedFS, 2026-11-25)."""
_MORE = 1.05
"""Speed factor that more requests in flight must reach; otherwise they only wait longer."""
_LESS = 0.97
"""Speed factor that fewer requests in flight must reach."""
_FORGET = 0.99
"""Share of the best speed that the next trial is compared with; otherwise small losses could add up step by
step."""
_REST_ROUNDS = 4
_REFUSAL_SECONDS = 1.0
"""Refusals within this time count as one."""


class AdaptiveLimit:
    """The number of requests that may be in flight, between 1 and `most`; not thread-safe.

    It is a hill climber. Each number is tried for a round and kept when the server was faster, or hardly
    slower with fewer requests; otherwise the previous number is used again.
    """

    def __init__(self, most: int, *, now: float, start: int = START) -> None:
        self.limit: int = min(most, start)
        self._most = most
        self._kept_limit: int = self.limit
        self._kept_speed = 0.0
        self._is_growing = True
        self._rest: int = 0
        self._refused_at = now - _REFUSAL_SECONDS
        self._begin_round(now)

    def note_answer(self, size_bytes: int, *, now: float) -> None:
        """Count an answer of this size in bytes."""
        self._count += 1
        self._work += 1 + size_bytes / _REQUEST_BYTES
        elapsed = now - self._started
        if elapsed >= _ROUND_SECONDS and self._count >= _ROUND_REQUESTS * self.limit:
            self._judge(self._work / elapsed)
            self._begin_round(now)

    def note_refusal(self, *, now: float) -> None:
        """Reduce the limit: the server reported overload (503 SlowDown, 429)."""
        if now - self._refused_at < _REFUSAL_SECONDS:
            return
        self._refused_at = now
        self.limit = max(1, self.limit // 2)
        self._kept_limit = self.limit
        self._kept_speed = 0.0
        self._is_growing = True
        self._rest = _REST_ROUNDS
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._started = now
        self._count = 0
        self._work = 0.0

    def _judge(self, speed: float) -> None:
        if self.limit == self._kept_limit:
            # What is kept is measured again while it rests: servers change.
            self._kept_speed = speed if not self._kept_speed else (self._kept_speed + speed) / 2
            self._rest -= 1
            if self._rest <= 0:
                self._try_next()
            return
        if speed >= self._kept_speed * (_MORE if self._is_growing else _LESS):
            self._kept_speed = max(speed, self._kept_speed * _FORGET)
            self._kept_limit = self.limit
            self._try_next()
        else:
            self.limit = self._kept_limit
            self._is_growing = not self._is_growing
            self._rest = _REST_ROUNDS

    def _try_next(self) -> None:
        step = max(1, self._kept_limit // 4)
        wanted = (
            self._kept_limit + step
            if self._is_growing
            else max(self._kept_limit - step, min(_LEAST_TRIED, self._kept_limit))
        )
        self.limit = min(wanted, self._most)
        if self.limit == self._kept_limit:
            self._is_growing = not self._is_growing
            self._rest = _REST_ROUNDS


_Result = TypeVar("_Result")
_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class AdaptivePool:
    """Runs calls on threads in the order given; a context manager.

    Threads above the limit wait before they take a call. A call that was taken is therefore never delayed,
    and no thread is woken for each request.
    """

    def __init__(self, most: int, name: str) -> None:
        self._adaptive = AdaptiveLimit(most, now=time.monotonic())
        self._changed = threading.Condition()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"{name}_{number}")
            for number in range(most)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """Queue the call behind earlier ones; it is cancelled when the pool is closed."""
        future: Future[_Result] = Future()
        # With the lock: a call behind the end marks of `close` would wait forever.
        with self._changed:
            if self._is_closed:
                future.cancel()
            else:
                self._calls.put((future, call, arguments))
        return future

    def note_answer(self, size_bytes: int) -> None:
        """Count a server's answer of this size in bytes."""
        with self._changed:
            before = self._adaptive.limit
            self._adaptive.note_answer(size_bytes, now=time.monotonic())
            if self._adaptive.limit > before:
                self._changed.notify_all()

    def note_refusal(self) -> None:
        """Reduce the limit: the server reported overload."""
        with self._changed:
            self._adaptive.note_refusal(now=time.monotonic())

    def close(self) -> None:
        """Cancel calls that have not started, and wait for the others. Safe to call twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        # Threads take calls at the same time, so the queue may become empty.
        with suppress(queue.Empty):
            while True:
                waiting = self._calls.get_nowait()
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
            # Checked without the lock first: nearly always this thread may go on.
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
            except BaseException as error:  # noqa: BLE001 - raised where the result is requested
                future.set_exception(error)
            else:
                future.set_result(result)
            # A waiting thread must not keep the last object in memory.
            del waiting, future, arguments
