"""Runs contestants in turn (A B A B …), so that the machine's mood falls on all alike, and sums up their times.

Only timing; what the contestants do is `speed`'s business.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What one contestant took, in seconds, round by round, and what it left behind."""

    name: str
    seconds: tuple[float, ...]
    result_bytes: int

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)

    def describe(self, baseline: Timing) -> str:
        """A line of a Markdown table: median, lowest and highest, times the baseline, size."""
        spread = f"{self.median:.2f} ({min(self.seconds):.2f} to {max(self.seconds):.2f})"
        return f"| {self.name} | {spread} | {baseline.median / self.median:.2f} | {self.result_bytes / 1e6:.1f} |"


def run_in_turn(contestants: Mapping[str, Callable[[], int]], *, rounds: int) -> tuple[Timing, ...]:
    """Each contestant ran `rounds` times, in turn; each returns the bytes that it left behind."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    sizes: dict[str, int] = {}
    for _round in range(rounds):
        for name, run in contestants.items():
            started = time.monotonic()
            sizes[name] = run()
            seconds[name].append(time.monotonic() - started)
    return tuple(Timing(name, tuple(times), sizes[name]) for name, times in seconds.items())
