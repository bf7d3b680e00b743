"""Runs contestants in turn (A B A B …), so that the machine's mood falls on all alike, and keeps what each
took.

Only timing; what the contestants do is the business of `database` and `bucket`, what is made of the figures
that of `report`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """What one contestant took, in seconds, round by round, and what it left behind."""

    work: str
    name: str
    seconds: tuple[float, ...]
    result_bytes: int

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """The same for a file."""
        return {**asdict(self), "seconds": [round(second, 3) for second in self.seconds]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """What `to_json` made."""
        return cls(value["work"], value["name"], tuple(value["seconds"]), value["result_bytes"])


@dataclass(frozen=True)
class Contestant:
    """One way to do a piece of work: `prepare` is not measured, `run` is, and returns the bytes that it left
    behind.
    """

    run: Callable[[], int]
    prepare: Callable[[], object] = lambda: None


def run_in_turn(work: str, contestants: Mapping[str, Contestant], *, rounds: int) -> tuple[Timing, ...]:
    """Each contestant ran `rounds` times, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        for name, contestant in contestants.items():
            contestant.prepare()
            started = time.monotonic()
            sizes[name] = contestant.run()
            seconds[name].append(time.monotonic() - started)
            print(
                f"{work}, round {number + 1}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True
            )
    return tuple(Timing(work, name, tuple(times), sizes[name]) for name, times in seconds.items())
