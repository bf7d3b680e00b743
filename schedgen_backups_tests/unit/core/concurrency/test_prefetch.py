"""Prefetching a listing: every item once and in order, within the limit, and errors in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from schedgen_backups.core.concurrency.prefetch import prefetch
from schedgen_backups.core.errors import BucketError


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 99, 100])
def test_every_item_comes_once_and_in_order(count: int) -> None:
    batches = list(prefetch(range(count), batch_count=10, batches=3))
    assert [item for batch in batches for item in batch] == list(range(count))
    assert all(len(batch) == 10 for batch in batches[:-1])


def test_no_more_is_prefetched_than_requested_and_closing_ends_the_thread() -> None:
    before = set(threading.enumerate())
    seen: list[int] = []
    enough = threading.Event()

    def count_up() -> Iterator[int]:
        for number in range(1000):
            seen.append(number)
            if number >= 35:
                enough.set()
            yield number

    with closing(prefetch(count_up(), batch_count=10, batches=3)) as batches:
        assert next(batches) == list(range(10))
        # Three more are read in advance, and no further one before it is requested.
        assert enough.wait(60)
    assert set(threading.enumerate()) == before
    assert len(seen) <= 40


def test_an_error_comes_after_the_items_before_it() -> None:
    def break_off() -> Iterator[int]:
        yield from range(20)
        raise BucketError("the listing broke off", hint="")

    batches = prefetch(break_off(), batch_count=10, batches=3)
    assert [next(batches), next(batches)] == [list(range(10)), list(range(10, 20))]
    with pytest.raises(BucketError, match="broke off"):
        next(batches)
