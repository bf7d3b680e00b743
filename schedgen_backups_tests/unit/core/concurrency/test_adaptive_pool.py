"""The adaptive number of requests: near the best fixed number, within bounds, lower after refusals."""

from __future__ import annotations

import heapq
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial

import pytest

from schedgen_backups.core.concurrency.adaptive_pool import AdaptiveLimit, AdaptivePool

SECONDS = 120.0


def serve(
    latency: float,
    capacity: int,
    get_limit: Callable[[], int],
    report: Callable[[float, int], object] = lambda _now, _flying: None,
) -> float:
    """Return the requests per second of a server with `capacity` concurrent ones; the others wait.

    The clock is simulated.
    """
    generator = random.Random(1)  # noqa: S311 - a simulation
    now, done = 0.0, 0
    flying: list[float] = []
    free = [0.0] * capacity
    while now < SECONDS:
        while len(flying) < get_limit():
            end = max(now, heapq.heappop(free)) + latency * generator.uniform(0.7, 1.3)
            heapq.heappush(free, end)
            heapq.heappush(flying, end)
        now = heapq.heappop(flying)
        done += 1
        report(now, len(flying) + 1)
    return done / SECONDS


def serve_adaptive(latency: float, capacity: int, most: int) -> tuple[float, set[int]]:
    """Return the rate under the adaptive limit, and the limits it used."""
    limit = AdaptiveLimit(most, now=0.0)
    seen: set[int] = set()

    def report(now: float, _flying: int) -> None:
        seen.add(limit.limit)
        limit.note_answer(100_000, now=now)

    return serve(latency, capacity, lambda: limit.limit, report), seen


@pytest.mark.parametrize(
    ("latency", "capacity"),
    [(0.002, 1), (0.004, 4), (0.02, 3), (0.02, 16), (0.05, 10), (0.1, 64), (0.3, 200)],
)
def test_it_is_nearly_as_fast_as_the_best_fixed_number_within_bounds(latency: float, capacity: int) -> None:
    bounds = (1, 3, 16, 64)
    fixed_speeds = {fixed: serve(latency, capacity, partial(int, fixed)) for fixed in bounds}
    for most in bounds:
        speed, seen = serve_adaptive(latency, capacity, most)
        assert speed >= 0.85 * max(fixed_speeds[fixed] for fixed in bounds if fixed <= most), most
        assert min(seen) >= 1
        assert max(seen) <= most


def test_a_server_that_gains_nothing_from_concurrency_gets_few_requests() -> None:
    limit = AdaptiveLimit(64, now=0.0)
    serve(0.004, 2, lambda: limit.limit, lambda now, _flying: limit.note_answer(100_000, now=now))
    assert limit.limit <= 10


def test_refusals_halve_it_once_per_moment_down_to_one() -> None:
    limit = AdaptiveLimit(64, now=0.0, start=64)
    for _ in range(50):
        limit.note_refusal(now=1.0)
    assert limit.limit == 32
    for second in range(2, 12):
        limit.note_refusal(now=float(second))
    assert limit.limit == 1


def test_it_stays_near_the_servers_limit_and_grows_when_that_grows() -> None:
    """The server refuses what exceeds its limit; after a minute it refuses nothing."""
    limit = AdaptiveLimit(64, now=0.0, start=64)
    refused: list[float] = []
    seen: list[int] = []

    def report(now: float, flying: int) -> None:
        if now < SECONDS / 2:
            seen.append(limit.limit)
        if now < SECONDS / 2 and flying > 10:
            refused.append(now)
            limit.note_refusal(now=now)
        else:
            limit.note_answer(100_000, now=now)

    serve(0.05, 64, lambda: limit.limit, report)
    assert len(refused) < 0.2 * len(seen)
    assert sum(seen) / len(seen) >= 4
    assert limit.limit > 24


def test_a_pool_makes_every_call_and_passes_errors_on() -> None:
    with AdaptivePool(16, "test") as pool:
        futures = [pool.submit(divmod, 100, number) for number in range(500)]
        assert [future.result() for future in futures[1:]] == [
            divmod(100, number) for number in range(1, 500)
        ]
        with pytest.raises(ZeroDivisionError):
            futures[0].result()


def test_a_pool_makes_no_more_concurrent_calls_than_its_limit() -> None:
    """It starts with eight of its 32 threads."""
    lock = threading.Lock()
    running: list[int] = [0]
    most: list[int] = []
    first_eight = threading.Barrier(8)

    def work(number: int) -> None:
        with lock:
            running[0] += 1
            most.append(running[0])
        if number < 8:
            first_eight.wait(60)
        with lock:
            running[0] -= 1

    with AdaptivePool(32, "test") as pool:
        for future in [pool.submit(work, number) for number in range(200)]:
            future.result()
    assert max(most) == 8


def test_a_closed_pool_has_no_threads_and_cancels_pending_calls() -> None:
    before = set(threading.enumerate())
    may_end = threading.Event()
    pool = AdaptivePool(1, "test")
    running, waiting = pool.submit(may_end.wait, 60), pool.submit(may_end.wait, 60)
    while not running.running():
        time.sleep(0.01)
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(60)
    may_end.set()
    closing.join()
    pool.close()
    assert running.result() is True
    assert set(threading.enumerate()) == before


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Make threads switch as often as possible, to provoke races."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.no_cover  # Python 3.11 cannot trace threads that start while others switch this often
@pytest.mark.usefixtures("frequent_switches")
def test_a_pool_closed_while_its_threads_take_calls_always_ends() -> None:
    def close_busy_pools() -> None:
        for _round in range(150):
            pool = AdaptivePool(8, "race")
            futures = [pool.submit(int) for _call in range(30)]
            pool.close()
            assert all(future.done() for future in futures)

    closing = threading.Thread(target=close_busy_pools, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_a_call_to_a_closed_pool_is_cancelled() -> None:
    pool = AdaptivePool(2, "test")
    pool.close()
    assert pool.submit(int).cancelled()
