"""Limits on a backup's use of the machine: bytes per second, memory, processor."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from schedgen_backups.core.concurrency import limits
from schedgen_backups.core.concurrency.limits import MemoryBudget, NestedKeys, RateLimit

LOWER = (
    "import os; from schedgen_backups.core.system.priority import lower_priority; "
    "print(lower_priority({0}), os.getpriority(os.PRIO_PROCESS, 0))"
)


def test_all_threads_together_stay_within_the_rate() -> None:
    """Eight threads pass 13 MB at 10 MB/s; one second's worth may pass at once."""
    rate_limit = RateLimit(10)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rate_limit.wait_for, [406_250] * 32))
    assert time.monotonic() - started > 0.27


@pytest.mark.parametrize(("rate", "pauses"), [(0, 0), (1, 1)])
def test_without_a_rate_nothing_waits(monkeypatch: pytest.MonkeyPatch, rate: int, pauses: int) -> None:
    slept: list[float] = []
    monkeypatch.setattr(limits.time, "sleep", slept.append)
    RateLimit(rate).wait_for(1 << 40)
    assert len(slept) == pauses


def test_no_more_bytes_are_held_than_the_budget() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    held: list[int] = [0]
    most: list[int] = []

    def work(size_bytes: int) -> None:
        with budget.hold(size_bytes):
            with lock:
                held[0] += min(size_bytes, 100)
                most.append(held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= min(size_bytes, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [10, 60, 30, 100, 500, 1] * 8))
    assert max(most) == 100
    assert held == [0]


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ("a", "a/b", True),
        ("a/b/c", "a", True),
        ("a/", "a/b", True),
        ("a", "a/", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("a/b", "a/c", False),
    ],
)
def test_only_keys_that_lie_in_each_other_wait_for_each_other(
    first: str, second: str, *, waits: bool
) -> None:
    keys = NestedKeys()
    has_begun = threading.Event()

    def hold_second() -> None:
        with keys.hold(second):
            has_begun.set()

    with ThreadPoolExecutor(1) as pool:
        with keys.hold(first):
            holding = pool.submit(hold_second)
            assert has_begun.wait(0.05 if waits else 5) is not waits
        holding.result(timeout=5)
    assert has_begun.is_set()


def test_a_run_lowers_its_priority_and_never_raises_it() -> None:
    """This runs in separate processes: a lowered priority stays."""
    assert run_python(LOWER.format(19)) == " 19"
    assert run_python("import os; os.nice(15); " + LOWER.format(10)).endswith(" 15")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.rstrip("\n")
