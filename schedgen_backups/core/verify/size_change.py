"""Judge whether a size is plausible compared with the previous one.

Thresholds of the requirements: a drop by more than half is HIGH, growth to more than three times is LOW.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LOWEST_SHARE = 0.5
HIGHEST_SHARE = 3.0


class SizeVerdict(str, Enum):
    """How a size compares with the previous one."""

    PLAUSIBLE = "plausible"
    FIRST = "nothing to compare with"
    DROPPED = "dropped by more than half"
    GREW = "grew to more than three times"


@dataclass(frozen=True)
class SizeComparison:
    """A size and the previous one."""

    size_bytes: int
    previous_bytes: int | None

    @property
    def verdict(self) -> SizeVerdict:
        """The verdict according to the thresholds."""
        if not self.previous_bytes:
            return SizeVerdict.FIRST
        share = self.size_bytes / self.previous_bytes
        if share < LOWEST_SHARE:
            return SizeVerdict.DROPPED
        return SizeVerdict.GREW if share > HIGHEST_SHARE else SizeVerdict.PLAUSIBLE

    @property
    def change_percent(self) -> float:
        """Change compared with the previous size; 0 when there is none."""
        return round(100 * (self.size_bytes / self.previous_bytes - 1), 1) if self.previous_bytes else 0.0
