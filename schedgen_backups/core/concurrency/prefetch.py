"""Iterate on a separate thread, some batches ahead of the consumer.

For one slow source that is read in order, for example the next page of a listing while objects are read. Use
a thread pool for parallel work and `serial_worker` for calls that need an order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")


def prefetch(items: Iterable[_Item], *, batch_count: int, batches: int) -> Generator[list[_Item], None, None]:
    """Yield the items in lists of at most `batch_count`, at most `batches` lists ahead of the consumer.

    An exception of `items` is raised after the items before it. Close the generator when it is not exhausted:
    this ends its thread.
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
