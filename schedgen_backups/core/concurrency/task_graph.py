"""Run calls concurrently on a few threads, where a call can start others when it is done.

For work whose order is a tree, for example a table's indexes after its rows. Use `serial_worker` for calls in
one order, and a thread pool for calls without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event


class Call:
    """A call, and the calls that may start when it is done."""

    def __init__(self, act: Callable[[], object], following: Iterable[Call] = ()) -> None:
        self.act = act
        self.following = tuple(following)


class TaskGraph:
    """Runs calls on `threads` threads in their order. Not thread-safe."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name = threads, name
        self.unfinished_count = 0
        """Number of running and waiting calls. May be read from any thread; a running call counts itself."""

    def run(self, calls: Iterable[Call], on_error: Callable[[], object]) -> None:
        """Run all calls and those that follow them; on an error, call `on_error` and raise the error.

        Calls that have started end first; `on_error` can make them stop. No other is made after the error.
        """
        pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix=self._name)
        resumable: dict[Future[object], Call] = {}
        has_failed = Event()

        def make(call: Call) -> object:
            # The thread of the failed call takes the next one before this function hears of the error.
            if has_failed.is_set():
                return None
            try:
                return call.act()
            except BaseException:
                has_failed.set()
                raise

        def submit(following: Iterable[Call]) -> None:
            for call in following:
                self.unfinished_count += 1
                resumable[pool.submit(make, call)] = call

        try:
            submit(calls)
            while resumable:
                for future in wait(resumable, return_when=FIRST_COMPLETED).done:
                    future.result()
                    submit(resumable.pop(future).following)
                    self.unfinished_count -= 1
        except BaseException:
            on_error()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.unfinished_count = 0
