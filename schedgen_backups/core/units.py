"""Sizes and durations in words, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from schedgen_backups.core.errors import ConfigurationError

LOWEST_SHARE = 0.5
HIGHEST_SHARE = 3.0
_STEP = 1000


class SizeVerdict(str, Enum):
    """How a size compares with the one before."""

    PLAUSIBLE = "plausible"
    FIRST = "nothing to compare with"
    DROPPED = "dropped by more than half"
    GREW = "grew to more than three times"


@dataclass(frozen=True)
class SizeComparison:
    """One size beside the one before."""

    size_bytes: int
    previous_bytes: int | None

    @property
    def verdict(self) -> SizeVerdict:
        """What the operators would say of it."""
        if not self.previous_bytes:
            return SizeVerdict.FIRST
        share = self.size_bytes / self.previous_bytes
        if share < LOWEST_SHARE:
            return SizeVerdict.DROPPED
        return SizeVerdict.GREW if share > HIGHEST_SHARE else SizeVerdict.PLAUSIBLE

    @property
    def change_percent(self) -> float:
        """Change against the size before; 0 when there is none."""
        return round(100 * (self.size_bytes / self.previous_bytes - 1), 1) if self.previous_bytes else 0.0


def format_bytes(size_bytes: float) -> str:
    """The size in the largest decimal unit that leaves a digit before the point, such as `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < _STEP:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _STEP
    return f"{size_bytes:.1f} TB"


_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_MOST = timedelta(days=36500)


def parse_span(text: str) -> timedelta:
    """The time span of 12h, 30d or 4w; ConfigurationError for anything else, nothing and more than a century included."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([hdw])", text.strip())
    if found is None or (span := int(found[1]) * _UNITS[found[2]]) > _MOST:
        raise ConfigurationError(f"{text!r} is no time span", hint="Write it as 12h, 30d or 4w.")
    return span


def describe_labels(labels: Mapping[str, str]) -> str:
    """The labels as they are given on the command line, with commas."""
    return ", ".join(f"{name}={value}" for name, value in labels.items())
