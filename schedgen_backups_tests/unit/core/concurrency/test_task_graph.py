"""Calls that depend on others: their order, the count of unfinished ones, and the effect of an error."""

from __future__ import annotations

import threading

import pytest

from schedgen_backups.core.concurrency.task_graph import Call, TaskGraph

_PATIENCE_SECONDS = 30


def _ignore() -> None:
    """Ignore an error, as most of these tests do."""


def test_a_call_is_made_after_the_one_it_depends_on() -> None:
    made: list[str] = []
    first = Call(
        lambda: made.append("rows"),
        [Call(lambda: made.append("index"), [Call(lambda: made.append("cluster"))])],
    )
    TaskGraph(3, "test").run([first], on_error=_ignore)
    assert made == ["rows", "index", "cluster"]


def test_a_dependent_call_does_not_wait_for_other_calls() -> None:
    """The first call ends only when the one that depends on the second was made."""
    index_is_built = threading.Event()
    seen: list[bool] = []
    large = Call(lambda: seen.append(index_is_built.wait(_PATIENCE_SECONDS)))
    small = Call(lambda: None, [Call(index_is_built.set)])
    TaskGraph(2, "test").run([large, small], on_error=_ignore)
    assert seen == [True]


def test_ready_calls_are_made_in_order() -> None:
    made: list[int] = []
    TaskGraph(1, "test").run(
        [Call(lambda number=number: made.append(number)) for number in range(5)], on_error=_ignore
    )
    assert made == [0, 1, 2, 3, 4]


def test_unfinished_calls_are_counted_without_those_not_ready() -> None:
    calls = TaskGraph(1, "test")
    counts: list[int] = []

    def count() -> None:
        counts.append(calls.unfinished_count)

    all_are_given = threading.Event()
    first = Call(lambda: all_are_given.wait(_PATIENCE_SECONDS), [Call(count)])
    chained = threading.Thread(target=calls.run, args=([first, Call(lambda: None)], _ignore))
    chained.start()
    while calls.unfinished_count < 2:
        all_are_given.wait(0.01)
    all_are_given.set()
    chained.join(_PATIENCE_SECONDS)
    assert counts == [1]
    assert calls.unfinished_count == 0


def test_an_error_reaches_running_calls_and_dependent_ones_are_not_made() -> None:
    reported = threading.Event()
    ended: list[bool] = []
    made: list[str] = []

    def fail() -> None:
        raise ValueError("the disk is full")

    running = Call(lambda: ended.append(reported.wait(_PATIENCE_SECONDS)))
    failing = Call(fail, [Call(lambda: made.append("index"))])
    with pytest.raises(ValueError, match="the disk is full"):
        TaskGraph(2, "test").run(
            [running, failing, Call(lambda: made.append("waiting"))], on_error=reported.set
        )
    assert ended == [True]
    assert made == []
