"""Cron strings are parsed without Dagster and mean the same as with it."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator
from hypothesis import given, settings
from hypothesis import strategies as st

from schedgen_backups.config.cron import find_max_gap, measure_ticks_per_day, parse_cron

pytestmark = [pytest.mark.edge]

PLAIN = ("*", "0", "1", "*/2", "3-7")
ODD = (
    *(
        "5",
        "07",
        "23",
        "29",
        "30",
        "31",
        "59",
        "60",
        "-1",
        "*/0",
        "*/70",
        "5-1",
        "22-3",
        "1-5/2",
        "0-59/5",
        "1,3",
        "*,1",
        "0/15",
        "1-",
        ",",
        "?",
    ),
    *(
        "L",
        "l",
        "L5",
        "5L",
        "15W",
        "w3",
        "LW",
        "H",
        "R",
        "1#1",
        "fri#5",
        "mon",
        "MON-FRI",
        "sat-mon",
        "jan",
        "feb",
        "00",
        "nonsense",
    ),
)
WORDS = (
    "@hourly",
    "@daily",
    "@midnight",
    "@weekly",
    "@monthly",
    "@yearly",
    "@annually",
    "@reboot",
    "",
    " 0  2 * * * ",
    "0 2 * * *\n",
    "TZ=UTC 0 2 * * *",
)
IMPOSSIBLE = ("0 0 30 2 *", "0 0 31 feb *", "0 0 30,31 2 *", "0 0 29 2 *", "0 0 31 4 *")
FIELDS = st.one_of(st.sampled_from(PLAIN), st.sampled_from((*PLAIN, *ODD)))
CRON_STRINGS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(IMPOSSIBLE),
    st.sampled_from((5, 5, 5, 4, 6, 7))
    .flatmap(lambda count: st.lists(FIELDS, min_size=count, max_size=count))
    .map(" ".join),
)


def is_taken_by_dagster(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # accepted with a warning: an interval beyond its field's range
            dg.ScheduleDefinition(name="probe", cron_schedule=text, job_name="probe")
    except dg.DagsterInvalidDefinitionError:
        return False
    return True


def is_taken_by_us(text: str) -> bool:
    try:
        return parse_cron(text) == text
    except ValueError:
        return False


# Derandomized, so that a new library version cannot break a build with an unforeseen string. 6,000 other
# strings agreed on 2026-11-25.
@settings(derandomize=True)
@given(CRON_STRINGS)
def test_cron_strings_are_accepted_exactly_when_dagster_accepts_them(text: str) -> None:
    assert is_taken_by_us(text) == is_taken_by_dagster(text)


@pytest.mark.parametrize(
    "text", [*WORDS, *IMPOSSIBLE, "0 0 15W * *", "0 0 * * L5", "0 0 2 * * *", "0 2 * * * 2027"]
)
def test_rare_cron_syntax_is_accepted_exactly_when_dagster_accepts_it(text: str) -> None:
    assert is_taken_by_us(text) == is_taken_by_dagster(text)


@pytest.mark.parametrize(
    "zone", ["UTC", "Africa/Johannesburg", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]
)
@pytest.mark.parametrize(
    "text",
    [
        "0 2 * * *",
        "@daily",
        "30 2 * * *",
        "0 6,18 * * *",
        "0 4 * * 0",
        "0 2 * * mon-fri",
        "0 0 1 * *",
        "0 0 29 2 *",
    ],
)
def test_the_longest_gap_matches_dagsters_ticks(text: str, zone: str) -> None:
    """The hour of a clock change is excluded: a tick within it has no correct place."""
    ticks = islice(cron_string_iterator(datetime.now(ZoneInfo(zone)).timestamp(), text, zone), 12)
    longest = max(later - previous for previous, later in pairwise(ticks))
    assert abs(find_max_gap(text, ZoneInfo(zone)) - longest) <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("cron", "per_day"),
    [
        ("0 2 * * *", 1),
        ("0 * * * *", 24),
        ("* * * * *", 1440),
        ("0 8-18 * * 1-5", 11 * 5 / 7),
        ("0 2 * * 0", 1 / 7),
        ("0 0 29 2 *", 0),
    ],
)
def test_the_number_of_ticks_a_day(cron: str, per_day: float) -> None:
    assert measure_ticks_per_day(cron, ZoneInfo("Africa/Johannesburg")) == pytest.approx(per_day, rel=0.01)
