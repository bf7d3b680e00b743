"""Pins that a run sets on the recovery point it makes: how a person writes the span, and how it reaches the run that seals the point.

Add what a backup says about how long it must stay. The pin's file is core's (`pruning`); the commands `pin` and `unpin` are in `point_commands`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from schedgen_backups.core.errors import ConfigurationError

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
