"""Parse and format sizes, durations, counts and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta

from schedgen_backups.core.errors import ConfigurationError

_STEP = 1000


NAMED_LIMIT = 10


def name_some(names: Sequence[str], *, limit: int = NAMED_LIMIT) -> str:
    """Return the first names separated by commas, and the number of the others."""
    named = ", ".join(names[:limit])
    return f"{named} and {len(names) - limit} more" if len(names) > limit else named


def count(number: int, noun: str, plural: str = "") -> str:
    """Return the number with the noun in singular or plural, for example `1 object` or `12 objects`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def be(number: int) -> str:
    """Return the form of "be" that agrees with the number: `is` or `are`."""
    return "is" if number == 1 else "are"


def format_bytes(size_bytes: float) -> str:
    """Return the size in the largest suitable decimal unit, for example `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < _STEP:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _STEP
    return f"{size_bytes:.1f} TB"


def format_age(age: timedelta) -> str:
    """Return a duration in its largest one or two units, for example `3 d 4 h`."""
    minutes = int(age.total_seconds() // 60)
    days, hours = minutes // (24 * 60), minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_MOST = timedelta(days=36500)


def parse_span(text: str) -> timedelta:
    """Return the duration that a text such as 12h, 30d or 4w means.

    ConfigurationError for any other text, and for more than 36500 days.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,6})([hdw])", text.strip())
    if found is None or (span := int(found[1]) * _UNITS[found[2]]) > _MOST:
        raise ConfigurationError(f"invalid duration {text!r}", hint="Write it as 12h, 30d or 4w.")
    return span


def describe_labels(labels: Mapping[str, str]) -> str:
    """Return the labels as written on the command line, separated by commas."""
    return ", ".join(f"{name}={value}" for name, value in labels.items())
