"""Tables of retention's decisions for histories with failed nights, ends of months, clocks and summer time.

A table has one line per point: id, state, decision, reason. Laws that hold for every history are in
`test_plan`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from schedgen_backups.core.catalog.points import CLOCK_TOLERANCE
from schedgen_backups.core.retention.plan import (
    Candidate,
    RetentionPlan,
    RetentionPolicy,
    make_retention_table,
    plan_retention,
)
from schedgen_backups_tests.support.histories import at, at_times, check_decisions, nights


def test_table_of_seven_days() -> None:
    """Requirement 9.1."""
    check_decisions(
        nights("2026-03-01", "vvvvvvvvvv"),
        RetentionPolicy(),
        at("2026-03-10T03:00"),
        """
        20260301_020000 verified -> remove: older than 7 days
        20260302_020000 verified -> remove: older than 7 days
        20260303_020000 verified -> remove: older than 7 days
        20260304_020000 verified -> keep: of the last 7 days
        20260305_020000 verified -> keep: of the last 7 days
        20260306_020000 verified -> keep: of the last 7 days
        20260307_020000 verified -> keep: of the last 7 days
        20260308_020000 verified -> keep: of the last 7 days, verified number 3 of the last 3
        20260309_020000 verified -> keep: of the last 7 days, verified number 2 of the last 3
        20260310_020000 verified -> keep: newest verified, of the last 7 days, verified number 1 of the last 3
        """,
    )


def test_table_of_ten_nights_of_failures() -> None:
    """The script removed the last good backup in such a week."""
    check_decisions(
        nights("2026-03-01", "fvvvvfppp-uffp"),
        RetentionPolicy(keep_days=3),
        at("2026-03-14T03:00"),
        """
        20260301_020000 failed -> remove: older than 3 days, failed, and a newer point is verified
        20260302_020000 verified -> remove: older than 3 days
        20260303_020000 verified -> keep: verified number 3 of the last 3
        20260304_020000 verified -> keep: verified number 2 of the last 3
        20260305_020000 verified -> keep: newest verified, verified number 1 of the last 3
        20260306_020000 failed -> keep: failed, and no newer point is verified
        20260307_020000 partial -> keep: partial, and no newer point is verified
        20260308_020000 partial -> keep: partial, and no newer point is verified
        20260309_020000 partial -> keep: partial, and no newer point is verified
        20260311_020000 unverified -> keep: unverified, and no newer point is verified
        20260312_020000 failed -> keep: failed, and no newer point is verified, of the last 3 days
        20260313_020000 failed -> keep: failed, and no newer point is verified, of the last 3 days
        20260314_020000 partial -> keep: partial, and no newer point is verified, of the last 3 days
        """,
    )


def test_table_of_a_history_without_a_verified_point() -> None:
    check_decisions(
        nights("2025-03-01", "fup"),
        RetentionPolicy(),
        at("2026-03-14T03:00"),
        """
        20250301_020000 failed -> keep: no point is verified
        20250302_020000 unverified -> keep: no point is verified
        20250303_020000 partial -> keep: no point is verified
        """,
    )


def test_table_of_four_weeks() -> None:
    """Sundays are the last day of their week; the first of March 2026 is one."""
    check_decisions(
        [
            *nights("2026-02-14", "v"),
            *nights("2026-02-20", "vvvv"),
            *nights("2026-03-07", "vvv"),
            *nights("2026-03-15", "vv"),
        ],
        RetentionPolicy(keep_days=1, keep_last=1, keep_weeks=4),
        at("2026-03-16T03:00"),
        """
        20260214_020000 verified -> remove: older than 1 days
        20260220_020000 verified -> remove: older than 1 days
        20260221_020000 verified -> remove: older than 1 days
        20260222_020000 verified -> remove: older than 1 days
        20260223_020000 verified -> keep: last of its week
        20260307_020000 verified -> remove: older than 1 days
        20260308_020000 verified -> keep: last of its week
        20260309_020000 verified -> remove: older than 1 days
        20260315_020000 verified -> keep: last of its week
        20260316_020000 verified -> keep: newest verified, of the last 1 days, \
verified number 1 of the last 1, last of its week
        """,
    )


def test_table_of_twelve_months_with_weeks() -> None:
    """One point each month for 14 months; those of November are four weeks before the end."""
    months = [f"20{25 + (month - 1) // 12}-{(month - 1) % 12 + 1:02}-15" for month in range(1, 15)]
    check_decisions(
        [candidate for month in months for candidate in nights(month, "v")],
        RetentionPolicy(keep_days=7, keep_last=1, keep_weeks=4, keep_months=12),
        at("2026-02-16T03:00"),
        """
        20250115_020000 verified -> remove: older than 7 days
        20250215_020000 verified -> remove: older than 7 days
        20250315_020000 verified -> keep: last of its month
        20250415_020000 verified -> keep: last of its month
        20250515_020000 verified -> keep: last of its month
        20250615_020000 verified -> keep: last of its month
        20250715_020000 verified -> keep: last of its month
        20250815_020000 verified -> keep: last of its month
        20250915_020000 verified -> keep: last of its month
        20251015_020000 verified -> keep: last of its month
        20251115_020000 verified -> keep: last of its week, last of its month
        20251215_020000 verified -> keep: last of its week, last of its month
        20260115_020000 verified -> keep: last of its week, last of its month
        20260215_020000 verified -> keep: newest verified, of the last 7 days, \
verified number 1 of the last 1, last of its week, last of its month
        """,
    )


def test_table_of_the_ends_of_months() -> None:
    """Months of 31, 28 and 31 days: exactly one point of each month is kept (databasus removed on day 31)."""
    check_decisions(
        [*nights("2026-01-30", "vvv"), *nights("2026-02-27", "vvv"), *nights("2026-03-30", "vvv")],
        RetentionPolicy(keep_days=1, keep_last=1, keep_months=4),
        at("2026-04-01T03:00"),
        """
        20260130_020000 verified -> remove: older than 1 days
        20260131_020000 verified -> keep: last of its month
        20260201_020000 verified -> remove: older than 1 days
        20260227_020000 verified -> remove: older than 1 days
        20260228_020000 verified -> keep: last of its month
        20260301_020000 verified -> remove: older than 1 days
        20260330_020000 verified -> remove: older than 1 days
        20260331_020000 verified -> keep: last of its month
        20260401_020000 verified -> keep: newest verified, of the last 1 days, \
verified number 1 of the last 1, last of its month
        """,
    )


def test_table_of_a_month_whose_end_is_another_month_in_utc() -> None:
    """One in the morning of the first of February in Johannesburg is the last of January in UTC."""
    history = at_times("2026-01-31T23:30:00+02:00", "2026-02-01T01:00:00+02:00", "2026-02-02T01:00:00+02:00")
    check_decisions(
        history,
        RetentionPolicy(keep_days=1, keep_last=1, keep_months=2, timezone=ZoneInfo("Africa/Johannesburg")),
        at("2026-02-02T00:00"),
        """
        20260131_213000 verified -> keep: last of its month
        20260131_230000 verified -> remove: older than 1 days
        20260201_230000 verified -> keep: newest verified, of the last 1 days, \
verified number 1 of the last 1, last of its month
        """,
    )


def test_table_of_a_zone_without_summer_time() -> None:
    """Two in the morning in Johannesburg is midnight in UTC.

    One minute earlier is another day in UTC, but the same day in Johannesburg.
    """
    check_decisions(
        at_times(
            "2026-03-27T23:59:00+02:00",
            "2026-03-28T00:00:00+02:00",
            "2026-03-28T02:00:00+02:00",
            "2026-03-29T02:00:00+02:00",
        ),
        RetentionPolicy(keep_days=2, keep_last=1, timezone=ZoneInfo("Africa/Johannesburg")),
        at("2026-03-29T21:59"),
        """
        20260327_215900 verified -> remove: older than 2 days
        20260327_220000 verified -> keep: of the last 2 days
        20260328_000000 verified -> keep: of the last 2 days
        20260329_000000 verified -> keep: newest verified, of the last 2 days, verified number 1 of the last 1
        """,
    )


@pytest.mark.parametrize(
    ("zone", "moments", "now"),
    [
        # The night of 23 hours: 29 March 2026 in Berlin, 8 March in New York.
        (
            "Europe/Berlin",
            ("2026-03-27T23:59:00+01:00", "2026-03-28T00:00:00+01:00", "2026-03-29T03:00:00+02:00"),
            "2026-03-29T23:59:00+02:00",
        ),
        (
            "America/New_York",
            ("2026-03-06T23:59:00-05:00", "2026-03-07T00:00:00-05:00", "2026-03-08T03:00:00-04:00"),
            "2026-03-08T23:59:00-04:00",
        ),
        # The night of 25 hours: 25 October in Berlin, 1 November in New York.
        (
            "Europe/Berlin",
            ("2026-10-23T23:59:00+02:00", "2026-10-24T00:00:00+02:00", "2026-10-25T02:30:00+01:00"),
            "2026-10-25T23:59:00+01:00",
        ),
        (
            "America/New_York",
            ("2026-10-30T23:59:00-04:00", "2026-10-31T00:00:00-04:00", "2026-11-01T01:30:00-05:00"),
            "2026-11-01T23:59:00-05:00",
        ),
    ],
)
def test_a_night_of_23_or_25_hours_is_one_night(zone: str, moments: tuple[str, ...], now: str) -> None:
    """The first minute of yesterday stays, and the last one of the day before is deleted.

    This holds however long the night was.
    """
    policy = RetentionPolicy(keep_days=2, keep_last=1, timezone=ZoneInfo(zone))
    plan = plan_retention(at_times(*moments), policy, datetime.fromisoformat(now))
    assert [decision.is_kept for decision in plan.decisions] == [False, True, True]


def test_table_of_a_schedule_that_runs_twice_in_the_night_of_25_hours() -> None:
    """Half past two occurs twice in Berlin; both points are of that night and none is lost or doubled."""
    check_decisions(
        at_times(
            "2026-10-24T02:30:00+02:00",
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-26T02:30:00+01:00",
        ),
        RetentionPolicy(keep_days=2, keep_last=1, keep_weeks=2, timezone=ZoneInfo("Europe/Berlin")),
        at("2026-10-26T02:00"),
        """
        20261024_003000 verified -> remove: older than 2 days
        20261025_003000 verified -> keep: of the last 2 days
        20261025_013000 verified -> keep: of the last 2 days, last of its week
        20261026_013000 verified -> keep: newest verified, of the last 2 days, \
verified number 1 of the last 1, last of its week
        """,
    )


def test_table_of_a_newest_point_that_is_bad() -> None:
    """It does not count: the verified one before it is the newest one."""
    check_decisions(
        nights("2026-03-01", "vvufvf"),
        RetentionPolicy(keep_days=1, keep_last=1),
        at("2026-03-20T03:00"),
        """
        20260301_020000 verified -> remove: older than 1 days
        20260302_020000 verified -> remove: older than 1 days
        20260303_020000 unverified -> remove: older than 1 days, unverified, and a newer point is verified
        20260304_020000 failed -> remove: older than 1 days, failed, and a newer point is verified
        20260305_020000 verified -> keep: newest verified, verified number 1 of the last 1
        20260306_020000 failed -> keep: failed, and no newer point is verified
        """,
    )


def test_table_of_a_history_that_ended_a_year_ago() -> None:
    check_decisions(
        nights("2025-03-01", "vvvvv"),
        RetentionPolicy(),
        at("2026-03-20T03:00"),
        """
        20250301_020000 verified -> remove: older than 7 days
        20250302_020000 verified -> remove: older than 7 days
        20250303_020000 verified -> keep: verified number 3 of the last 3
        20250304_020000 verified -> keep: verified number 2 of the last 3
        20250305_020000 verified -> keep: newest verified, verified number 1 of the last 3
        """,
    )


def test_table_of_a_point_ahead_of_the_clock() -> None:
    """It stays and does not count; the others decide that what is a year old is deleted."""
    history = [*nights("2025-01-01", "v"), *nights("2026-03-09", "vv")]
    check_decisions(
        history,
        RetentionPolicy(keep_last=1),
        at("2026-03-10T01:54:59"),
        """
        20250101_020000 verified -> remove: older than 7 days
        20260309_020000 verified -> keep: newest verified, of the last 7 days, verified number 1 of the last 1
        20260310_020000 verified -> keep: ahead of the clock: the operator decides, of the last 7 days
        """,
    )
    assert len(plan_retention(history, RetentionPolicy(keep_last=1), at("2026-03-10T01:55")).removed) == 1


def test_table_of_several_points_a_day() -> None:
    """Before a deployment, after it, and at night: days count, not points."""
    day = at_times(
        "2026-03-09T02:00:00+00:00",
        "2026-03-09T10:00:00+00:00",
        "2026-03-09T23:59:59+00:00",
        "2026-03-10T00:00:00+00:00",
    )
    check_decisions(
        [*day, *at_times("2026-03-10T10:00:00+00:00")],
        RetentionPolicy(keep_days=1, keep_last=1, keep_weeks=1),
        at("2026-03-10T12:00"),
        """
        20260309_020000 verified -> remove: older than 1 days
        20260309_100000 verified -> remove: older than 1 days
        20260309_235959 verified -> remove: older than 1 days
        20260310_000000 verified -> keep: of the last 1 days
        20260310_100000 verified -> keep: newest verified, of the last 1 days, \
verified number 1 of the last 1, last of its week
        """,
    )


def test_table_of_pins() -> None:
    """A pin keeps its point in any state; a pin without a reason is valid."""
    history = nights("2026-01-01", "vfvv")
    pinned = [
        Candidate(candidate.point_id, candidate.state, pin)
        for candidate, pin in zip(history, ("before 2.0", "", None, None), strict=True)
    ]
    check_decisions(
        pinned,
        RetentionPolicy(keep_last=1),
        at("2026-03-20T03:00"),
        """
        20260101_020000 verified -> keep: pinned: before 2.0
        20260102_020000 failed -> keep: pinned
        20260103_020000 verified -> remove: older than 7 days
        20260104_020000 verified -> keep: newest verified, verified number 1 of the last 1
        """,
    )


def test_an_empty_directory_is_an_empty_plan_without_a_refusal() -> None:
    assert plan_retention([], RetentionPolicy(), at("2026-03-20T03:00")) == RetentionPlan(())


def test_the_table_of_a_run_has_a_line_per_point_and_escapes_cell_ends() -> None:
    history = nights("2026-01-01", "vv")
    history[1] = Candidate(history[1].point_id, history[1].state, "before 2.0 | 2.1 | 2.2")
    plan = plan_retention(
        [*history, *nights("2026-01-03", "v")], RetentionPolicy(keep_last=1), at("2026-03-20T03:00")
    )
    assert make_retention_table(plan).split("\n") == [
        "| recovery point | state | decision | because |",
        "| --- | --- | --- | --- |",
        "| 20260101_020000 | verified | remove | older than 7 days |",
        "| 20260102_020000 | verified | keep | pinned: before 2.0 \\| 2.1 \\| 2.2 |",
        "| 20260103_020000 | verified | keep | newest verified; verified number 1 of the last 1 |",
    ]


def list_kept(history: list[Candidate], policy: RetentionPolicy, now: datetime) -> list[str]:
    return [str(decision.candidate.point_id) for decision in plan_retention(history, policy, now).kept]


@pytest.mark.parametrize(
    ("policy", "history"),
    [
        (
            RetentionPolicy(keep_weeks=2),
            at_times("2026-03-08T12:00+00:00", "2026-03-08T23:00+00:00", "2026-03-09T10:00+00:00"),
        ),
        (
            RetentionPolicy(keep_months=2),
            at_times("2026-03-31T12:00+00:00", "2026-03-31T23:00+00:00", "2026-04-01T10:00+00:00"),
        ),
    ],
    ids=["weeks", "months"],
)
def test_weeks_and_months_are_those_of_the_operators_calendar(
    policy: RetentionPolicy, history: list[Candidate]
) -> None:
    """The second point is of the next week and month in Johannesburg, and of the last one in UTC."""
    policy = replace(policy, keep_days=0, keep_last=1, timezone=ZoneInfo("Africa/Johannesburg"))
    assert list_kept(history, policy, at("2026-06-01T00:00")) == [
        str(history[0].point_id),
        str(history[2].point_id),
    ]


def test_keeping_no_last_points_keeps_only_the_newest_verified() -> None:
    history = nights("2026-03-01", "vvv")
    assert list_kept(history, RetentionPolicy(keep_days=0, keep_last=0), at("2026-06-01T00:00")) == [
        str(history[2].point_id)
    ]


@pytest.mark.parametrize(("seconds", "count"), [(0, 1), (1, 2)])
def test_a_point_counts_up_to_the_tolerance_ahead_of_the_clock(seconds: int, count: int) -> None:
    """A point that does not count protects the previous one and stays."""
    history = at_times("2026-03-01T02:00:00+00:00", "2026-03-02T02:00:00+00:00")
    now = history[1].point_id.taken_at - CLOCK_TOLERANCE - timedelta(seconds=seconds)
    assert len(list_kept(history, RetentionPolicy(keep_days=0, keep_last=1), now)) == count
