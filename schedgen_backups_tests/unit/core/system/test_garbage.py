"""How often Python looks for cycles during a block."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from schedgen_backups.core.system.garbage import collect_garbage_rarely


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_garbage_is_collected_rarely_within_the_block_and_as_before_after_it() -> None:
    gc.set_threshold(700, 11, 12)
    with collect_garbage_rarely():
        assert gc.get_threshold()[0] > 100_000
    assert gc.get_threshold() == (700, 11, 12)


@pytest.mark.parametrize("first", [0, 10_000_000])
def test_a_collector_that_looks_more_rarely_already_stays_as_it_is(first: int) -> None:
    gc.set_threshold(first, 10, 10)
    with collect_garbage_rarely():
        assert gc.get_threshold()[0] == first
