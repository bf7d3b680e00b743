"""Iterates on a thread of its own, some batches ahead of whoever uses them: the next page of a listing comes
while objects are read.

For one slow source that one thread reads in order. Parallel work belongs to a thread pool, calls that need an
order to `ordered_worker`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")


def prefetch(items: Iterable[_Item], *, batch_count: int, batches: int) -> Generator[list[_Item], None, None]:
    """Yields the items in lists of at most `batch_count`, at most so many `batches` ahead; what `items`
    raises comes out behind what came before it.

    Close it when it is not read to its end: then its thread has ended.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        waiting = deque(pool.submit(_take, iterator, batch_count) for _ in range(batches))
        while batch := waiting.popleft().result():
            waiting.append(pool.submit(_take, iterator, batch_count))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _take(iterator: Iterator[_Item], count: int) -> list[_Item]:
    return list(islice(iterator, count))
