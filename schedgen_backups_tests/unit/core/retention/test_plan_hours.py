"""Tables of decisions with BACKUP_RETENTION_HOURS: every point of some hours, then the last one of each day.

Laws that hold for every history are in `test_plan`.
"""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.plan import Candidate, RetentionPolicy, plan_retention
from schedgen_backups_tests.support.histories import at, at_times, check_decisions

BERLIN = ZoneInfo("Europe/Berlin")


def every_hour(first: str, count: int, state: PointState = PointState.VERIFIED) -> list[Candidate]:
    start = at(first)
    return [
        Candidate(RecoveryPointId.from_time(start + timedelta(hours=hour)), state) for hour in range(count)
    ]


def test_table_of_hours_with_a_point_exactly_on_the_border() -> None:
    check_decisions(
        at_times(
            "2026-03-08T23:00:00+00:00",
            "2026-03-09T09:59:59+00:00",
            "2026-03-09T10:00:00+00:00",
            "2026-03-09T10:00:01+00:00",
            "2026-03-10T09:00:00+00:00",
            "2026-03-10T09:30:00+00:00",
        ),
        RetentionPolicy(keep_hours=24, keep_days=2, keep_last=1),
        at("2026-03-10T10:00"),
        """
        20260308_230000 verified -> remove: older than 24 hours, and not the last of one of the last 2 days
        20260309_095959 verified -> remove: older than 24 hours, and not the last of one of the last 2 days
        20260309_100000 verified -> keep: of the last 24 hours
        20260309_100001 verified -> keep: of the last 24 hours, last of its day
        20260310_090000 verified -> keep: of the last 24 hours
        20260310_093000 verified -> keep: newest verified, of the last 24 hours, last of its day, \
verified number 1 of the last 1
        """,
    )


def test_table_of_days_without_a_verified_point() -> None:
    """The eighth has none: no older point takes its place, and its failures are removed."""
    check_decisions(
        [
            *at_times("2026-03-05T08:00+00:00", "2026-03-06T08:00+00:00", "2026-03-06T09:00+00:00"),
            *every_hour("2026-03-08T07:00", 2, PointState.FAILED),
            *at_times("2026-03-09T08:00+00:00", "2026-03-09T09:00+00:00", "2026-03-10T09:00+00:00"),
        ],
        RetentionPolicy(keep_hours=2, keep_days=3, keep_last=1),
        at("2026-03-10T10:00"),
        """
        20260305_080000 verified -> remove: older than 2 hours, and not the last of one of the last 3 days
        20260306_080000 verified -> remove: older than 2 hours, and not the last of one of the last 3 days
        20260306_090000 verified -> remove: older than 2 hours, and not the last of one of the last 3 days
        20260308_070000 failed -> remove: older than 2 hours, failed, and a newer point is verified
        20260308_080000 failed -> remove: older than 2 hours, failed, and a newer point is verified
        20260309_080000 verified -> remove: older than 2 hours, and not the last of one of the last 3 days
        20260309_090000 verified -> keep: last of its day
        20260310_090000 verified -> keep: newest verified, of the last 2 hours, last of its day, \
verified number 1 of the last 1
        """,
    )


def test_weeks_and_months_follow_the_days() -> None:
    history = at_times(
        "2026-01-31T08:00+00:00",
        "2026-02-27T08:00+00:00",
        "2026-02-28T08:00+00:00",
        "2026-03-05T08:00+00:00",
        "2026-03-08T08:00+00:00",
        "2026-03-10T08:00+00:00",
        "2026-03-10T09:00+00:00",
    )
    check_decisions(
        history,
        RetentionPolicy(keep_hours=1, keep_days=1, keep_last=1, keep_weeks=2, keep_months=3),
        at("2026-03-10T10:00"),
        """
        20260131_080000 verified -> keep: last of its month
        20260227_080000 verified -> remove: older than 1 hours, and not the last of one of the last 1 days
        20260228_080000 verified -> keep: last of its month
        20260305_080000 verified -> remove: older than 1 hours, and not the last of one of the last 1 days
        20260308_080000 verified -> keep: last of its week
        20260310_080000 verified -> remove: older than 1 hours, and not the last of one of the last 1 days
        20260310_090000 verified -> keep: newest verified, of the last 1 hours, last of its day, \
verified number 1 of the last 1, last of its week, last of its month
        """,
    )


@pytest.mark.parametrize(
    ("midnight", "hours_of_the_day"),
    [("2026-10-24T22:00", 25), ("2026-03-28T23:00", 23), ("2026-06-09T22:00", 24)],
    ids=["25 hours", "23 hours", "24 hours"],
)
def test_a_day_of_any_length_keeps_one_point_and_hours_are_elapsed_time(
    midnight: str, hours_of_the_day: int
) -> None:
    """The day begins at this time of UTC in Berlin; there is a point at every full hour of it."""
    history = every_hour(midnight, hours_of_the_day + 1)
    now = history[-1].point_id.taken_at
    policy = RetentionPolicy(keep_hours=1, keep_days=9, keep_last=1, timezone=BERLIN)
    kept = [decision.candidate for decision in plan_retention(history, policy, now).kept]
    # The last one of the long day, which is one hour old, and the one at midnight after it.
    assert kept == history[-2:]
    policy = RetentionPolicy(keep_hours=hours_of_the_day, keep_days=1, keep_last=1, timezone=BERLIN)
    assert plan_retention(history, policy, now).removed == ()
    policy = RetentionPolicy(keep_hours=hours_of_the_day - 1, keep_days=1, keep_last=1, timezone=BERLIN)
    removed = [decision.candidate for decision in plan_retention(history, policy, now).removed]
    assert removed == history[:1]


def test_a_damaged_point_is_neither_the_last_of_its_day_nor_removed() -> None:
    history = [
        *at_times("2026-03-08T08:00+00:00", "2026-03-10T09:00+00:00"),
        *every_hour("2026-03-08T09:00", 1, PointState.DAMAGED),
    ]
    plan = plan_retention(
        history, RetentionPolicy(keep_hours=1, keep_days=3, keep_last=1), at("2026-03-10T10:00")
    )
    assert plan.removed == ()
    assert "last of its day" in plan.decisions[0].reasons
    assert plan.decisions[1].reasons == ("damaged: the operator decides",)
