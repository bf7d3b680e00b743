"""What a cron string means: whether Dagster takes it, and how far its ticks lie apart.

The only module that uses Dagster's own iterator over ticks, which has no public name.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._utils.schedules import cron_string_iterator

_TICKS_AHEAD = 12


def parse_cron(text: str) -> str:
    """The cron string as it is; ValueError when Dagster would refuse it."""
    try:
        dg.ScheduleDefinition(name="probe", cron_schedule=text, job_name="probe")
    except dg.DagsterInvalidDefinitionError as error:
        raise ValueError(text) from error
    return text


def find_longest_gap(cron_schedule: str, timezone: ZoneInfo) -> timedelta:
    """The longest time between two of the schedule's next ticks, looking a dozen ticks ahead."""
    start = datetime.now(timezone).timestamp()
    ticks = list(islice(cron_string_iterator(start, cron_schedule, str(timezone)), _TICKS_AHEAD))
    return max(later - earlier for earlier, later in pairwise(ticks))
