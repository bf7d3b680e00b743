"""Parse cron strings: whether Dagster accepts one, and the time between its ticks.

Dagster bundles a copy of croniter, the library used here; so commands need not load Dagster. A test compares
the two. Only Dagster decides when something runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

from croniter import croniter

_TICKS_AHEAD = 12
_MEASURED, _MOST_MEASURED = timedelta(weeks=4), 1000
_FIELD_COUNT = 5
"""croniter also accepts seconds and years; Dagster's schedules have neither."""
_FEBRUARY, _DAYS_THAT_FEBRUARY_LACKS = [2], ([30], [31])


def parse_cron(text: str) -> str:
    """Return the cron string unchanged; raise ValueError if Dagster would refuse it."""
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
    """Return the longest time between two of the schedule's next dozen ticks."""
    this_hour = datetime.now(timezone).replace(minute=0, second=0, microsecond=0)
    return _find_max_gap_from(cron_schedule, timezone, this_hour)


def find_min_gap(cron_schedule: str, timezone: ZoneInfo) -> timedelta:
    """Return the shortest time between two of the schedule's next dozen ticks."""
    this_hour = datetime.now(timezone).replace(minute=0, second=0, microsecond=0)
    return min(_list_gaps(cron_schedule, timezone, this_hour))


# Asked at each scrape and tick, and 20 ms of work (2026-11-30).
@lru_cache(maxsize=16)
def _find_max_gap_from(cron_schedule: str, timezone: ZoneInfo, begin: datetime) -> timedelta:
    return max(_list_gaps(cron_schedule, timezone, begin))


def _list_gaps(cron_schedule: str, timezone: ZoneInfo, begin: datetime) -> list[timedelta]:
    # Local times first, converted afterwards: like Dagster's, a tick keeps its hour when the clocks change.
    clock = croniter(cron_schedule, begin.replace(tzinfo=None))
    ticks = [clock.get_next(datetime).replace(tzinfo=timezone).timestamp() for _ in range(_TICKS_AHEAD)]
    return [timedelta(seconds=later - previous) for previous, later in pairwise(ticks)]


def measure_ticks_per_day(cron_schedule: str, timezone: ZoneInfo) -> float:
    """Return how many ticks a day has, as a mean of the next four weeks, or of the next thousand ticks."""
    begin = datetime.now(timezone)
    end = begin + _MEASURED
    ticks = list(islice(list_ticks(cron_schedule, timezone, begin, end), _MOST_MEASURED))
    measured = _MEASURED if len(ticks) < _MOST_MEASURED else ticks[-1] - begin
    return len(ticks) / (measured / timedelta(days=1))


def list_ticks(cron_schedule: str, timezone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the aware times of the schedule from `begin` on and before `end`."""
    clock = croniter(cron_schedule, begin.astimezone(timezone).replace(tzinfo=None) - timedelta(seconds=1))
    while (tick := clock.get_next(datetime).replace(tzinfo=timezone)) < end:
        yield tick
