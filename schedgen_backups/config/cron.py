"""What a cron string means: whether Dagster takes it, and how far its ticks lie apart.

Read with the library that Dagster carries a copy of, so that commands which need no Dagster need not load it;
a test compares the two. Nothing here decides when something runs: that is Dagster's business.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from croniter import croniter

_TICKS_AHEAD = 12
_FIELD_COUNT = 5
"""croniter reads seconds and years as well; Dagster's schedules have neither."""
_FEBRUARY, _DAYS_THAT_FEBRUARY_LACKS = [2], ([30], [31])


def parse_cron(text: str) -> str:
    """The cron string as it is; ValueError when Dagster would refuse it."""
    if not croniter.is_valid(text):
        raise ValueError(text)
    read = croniter(text)
    # Dagster's copy is older than croniter 6.1 and does not know 15W, the weekday nearest to the 15th.
    if len(read.expanded) != _FIELD_COUNT or read.nearest_weekday:
        raise ValueError(text)
    _minute, _hour, days, months, _weekday = read.expanded
    if months == _FEBRUARY and days in _DAYS_THAT_FEBRUARY_LACKS:
        raise ValueError(text)
    return text


def find_max_gap(cron_schedule: str, timezone: ZoneInfo) -> timedelta:
    """The longest time between two of the schedule's next ticks, looking a dozen ticks ahead."""
    # On the zone's own clock, and only then as moments: a tick keeps its hour when the clocks are changed, as
    # Dagster's do.
    clock = croniter(cron_schedule, datetime.now(timezone).replace(tzinfo=None))
    ticks = [clock.get_next(datetime).replace(tzinfo=timezone).timestamp() for _ in range(_TICKS_AHEAD)]
    return timedelta(seconds=max(later - previous for previous, later in pairwise(ticks)))
