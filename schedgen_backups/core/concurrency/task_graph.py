"""Calls side by side on a few threads, of which each may name calls that can be made once it has ended: a
table's indexes behind its rows.

For work whose order is a tree. Calls in one order belong to `ordered_worker`, calls without any to a thread
pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


class Call:
    """Something to be done, and the calls that may be made when it is."""

    def __init__(self, act: Callable[[], object], following: Iterable[Call] = ()) -> None:
        self.act = act
        self.following = tuple(following)


class TaskGraph:
    """Makes calls on `threads` threads, in the order in which they may be made. For one thread."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name = threads, name
        self.unfinished_count = 0
        """Calls that wait for a thread or are being made. May be asked from any thread; a call counts itself."""

    def run(self, calls: Iterable[Call], on_error: Callable[[], object]) -> None:
        """Every call and what follows it was made; the first error is raised once those have ended that had
        begun, which `on_error` may tell to.
        """
        pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix=self._name)
        resumable: dict[Future[object], Call] = {}

        def submit(following: Iterable[Call]) -> None:
            for call in following:
                self.unfinished_count += 1
                resumable[pool.submit(call.act)] = call

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
