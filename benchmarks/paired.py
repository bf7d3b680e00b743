"""Run contestants in turn (A B A B …), so that fluctuations of the machine affect all of them alike.

`database` and `bucket` define the contestants, `report` evaluates the results.
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
    """Seconds per round and size of the result of one contestant."""

    work: str
    name: str
    seconds: tuple[float, ...]
    result_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of the rounds."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "seconds": [round(second, 3) for second in self.seconds]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """Return the value that `to_json` wrote."""
        return cls(value["work"], value["name"], tuple(value["seconds"]), value["result_bytes"])


@dataclass(frozen=True)
class Contestant:
    """One way to do a piece of work: `run` is measured and returns the result's size, `prepare` is not."""

    run: Callable[[], int]
    prepare: Callable[[], object] = lambda: None


def run_in_turn(work: str, contestants: Mapping[str, Contestant], *, rounds: int) -> tuple[Timing, ...]:
    """Run each contestant `rounds` times, in turn; return their timings."""
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
