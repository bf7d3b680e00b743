"""Laws of retention that hold for every history: random ones of two years in random zones.

Readable tables of decisions are in `test_plan_tables`. No files here: `test_prune` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from random import Random
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.plan import (
    CLOCK_TOLERANCE,
    Candidate,
    Decision,
    RetentionPolicy,
    plan_retention,
)

ZONES = (
    "UTC",
    "Africa/Johannesburg",
    "Europe/Berlin",
    "America/New_York",
    "Pacific/Kiritimati",
    "America/St_Johns",
)
EPOCH = datetime(2025, 1, 1, tzinfo=timezone.utc)
MINUTES_OF_TWO_YEARS = 2 * 365 * 24 * 60
STATES = tuple(PointState)


def candidates() -> st.SearchStrategy[Candidate]:
    """Half of the points are verified; otherwise few histories would have one to keep."""
    return st.builds(
        lambda minutes, state, pin: Candidate(
            RecoveryPointId.from_time(EPOCH + timedelta(minutes=minutes)), state, pin
        ),
        # Random days, or random minutes of the same few: several points a day are as likely as gaps of
        # months.
        st.one_of(
            st.integers(0, MINUTES_OF_TWO_YEARS),
            st.integers(0, 3 * 24 * 60),
            st.integers(0, 730).map(lambda day: day * 24 * 60),
        ),
        st.one_of(st.just(PointState.VERIFIED), st.sampled_from(STATES)),
        st.one_of(st.none(), st.none(), st.none(), st.sampled_from(["", "before the upgrade"])),
    )


HISTORIES = st.lists(candidates(), max_size=25, unique_by=lambda candidate: candidate.point_id)
POLICIES = st.builds(
    RetentionPolicy,
    keep_days=st.integers(1, 40),
    keep_last=st.integers(1, 6),
    keep_weeks=st.integers(0, 6),
    keep_months=st.integers(0, 15),
    keep_hours=st.one_of(st.just(0), st.integers(1, 100)),
    timezone=st.sampled_from(ZONES).map(ZoneInfo),
)
NOWS = st.integers(0, MINUTES_OF_TWO_YEARS + 60 * 24 * 60).map(
    lambda minutes: EPOCH + timedelta(minutes=minutes)
)


def is_ahead(candidate: Candidate, now: datetime) -> bool:
    return candidate.point_id.taken_at > now + CLOCK_TOLERANCE


@st.composite
def settled(draw: st.DrawFn) -> tuple[list[Candidate], RetentionPolicy, datetime]:
    """Draw a history with a verified point and no future one, so that something may be deleted."""
    history = draw(HISTORIES.filter(lambda found: any(candidate.is_verified for candidate in found)))
    newest = max(candidate.point_id.taken_at for candidate in history)
    return (
        history,
        draw(POLICIES),
        newest + draw(st.integers(0, 90 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))),
    )


def list_verified(decisions: Sequence[Decision]) -> list[RecoveryPointId]:
    return [decision.candidate.point_id for decision in decisions if decision.candidate.is_verified]


@given(HISTORIES, POLICIES, NOWS)
def test_every_point_gets_one_decision_with_a_reason_oldest_first(
    history: list[Candidate], policy: RetentionPolicy, now: datetime
) -> None:
    plan = plan_retention(history, policy, now)
    assert [decision.candidate for decision in plan.decisions] == sorted(
        history, key=lambda candidate: candidate.point_id
    )
    assert sorted((*plan.kept, *plan.removed), key=lambda decision: decision.candidate.point_id) == list(
        plan.decisions
    )
    assert all(decision.reasons and all(decision.reasons) for decision in plan.decisions)


@given(HISTORIES, POLICIES, NOWS)
def test_nothing_is_removed_while_no_present_point_is_verified(
    history: list[Candidate], policy: RetentionPolicy, now: datetime
) -> None:
    plan = plan_retention(history, policy, now)
    is_doubtful = not any(candidate.is_verified and not is_ahead(candidate, now) for candidate in history)
    assert bool(plan.refusal) == (is_doubtful and bool(history))
    if is_doubtful:
        assert plan.removed == ()


@given(HISTORIES, POLICIES, NOWS)
def test_a_point_ahead_of_the_clock_stays_and_protects_nothing(
    history: list[Candidate], policy: RetentionPolicy, now: datetime
) -> None:
    plan = plan_retention(history, policy, now)
    present = [candidate for candidate in history if not is_ahead(candidate, now)]
    without = plan_retention(present, policy, now)
    assert [decision.candidate for decision in plan.removed] == [
        decision.candidate for decision in without.removed
    ]


@given(HISTORIES, POLICIES, NOWS, st.timedeltas(timedelta(0), timedelta(days=800)))
def test_a_clock_that_went_back_removes_no_more_than_a_correct_one(
    history: list[Candidate], policy: RetentionPolicy, now: datetime, back: timedelta
) -> None:
    right = {decision.candidate for decision in plan_retention(history, policy, now).removed}
    assert {decision.candidate for decision in plan_retention(history, policy, now - back).removed} <= right


@given(HISTORIES, POLICIES, NOWS)
def test_the_newest_verified_point_and_every_pinned_one_stay(
    history: list[Candidate], policy: RetentionPolicy, now: datetime
) -> None:
    removed = {decision.candidate for decision in plan_retention(history, policy, now).removed}
    assert not any(candidate.pin_reason is not None for candidate in removed)
    verified = [candidate for candidate in history if candidate.is_verified]
    if verified:
        assert max(verified, key=lambda candidate: candidate.point_id) not in removed


@given(settled())
def test_what_is_not_verified_stays_until_a_newer_verified_one_exists(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    history, policy, now = case
    newest = max(candidate.point_id for candidate in history if candidate.is_verified)
    for decision in plan_retention(history, policy, now).removed:
        assert decision.candidate.point_id < newest


@given(settled())
def test_as_many_verified_points_stay_as_the_policy_requires(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    history, policy, now = case
    verified = list_verified(plan_retention(history, policy, now).decisions)
    kept = list_verified(plan_retention(history, policy, now).kept)
    assert len(kept) >= min(policy.keep_last, len(verified))
    assert kept[-policy.keep_last :] == verified[-policy.keep_last :]


@given(settled())
def test_points_of_the_last_days_stay_and_older_ones_need_another_reason(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    """Written with dates, unlike the code, so that only the same mistake in both could hide."""
    history, policy, now = case
    policy = replace(policy, keep_hours=0)
    first_day = now.astimezone(policy.timezone).date() - timedelta(days=policy.keep_days - 1)
    for decision in plan_retention(history, policy, now).decisions:
        is_recent = decision.candidate.point_id.taken_at.astimezone(policy.timezone).date() >= first_day
        assert (f"of the last {policy.keep_days} days" in decision.reasons) == is_recent


@given(settled())
def test_with_hours_every_point_of_them_stays_and_then_the_last_verified_one_of_each_day(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    """Written with dates and seconds, unlike the code."""
    history, policy, now = case
    policy = replace(policy, keep_hours=policy.keep_hours or 24)
    verified = sorted(candidate.point_id for candidate in history if candidate.is_verified)
    last_of = {str(point_id.taken_at.astimezone(policy.timezone).date()): point_id for point_id in verified}
    first_day = now.astimezone(policy.timezone).date() - timedelta(days=policy.keep_days - 1)
    last_ones = {point_id for day, point_id in last_of.items() if day >= str(first_day)}
    for decision in plan_retention(history, policy, now).decisions:
        age_seconds = now.timestamp() - decision.candidate.point_id.taken_at.timestamp()
        is_recent = age_seconds <= policy.keep_hours * 3600
        assert (f"of the last {policy.keep_hours} hours" in decision.reasons) == is_recent
        assert ("last of its day" in decision.reasons) == (decision.candidate.point_id in last_ones)


@given(settled())
def test_with_hours_no_other_verified_point_stays(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    history, drawn, now = case
    policy = RetentionPolicy(
        keep_days=drawn.keep_days, keep_last=1, keep_hours=drawn.keep_hours or 24, timezone=drawn.timezone
    )
    verified = sorted(
        (candidate for candidate in history if candidate.is_verified), key=lambda found: found.point_id
    )
    last_of = {each.point_id.taken_at.astimezone(policy.timezone).date(): each for each in verified}
    first_day = now.astimezone(policy.timezone).date() - timedelta(days=policy.keep_days - 1)
    wanted = {verified[-1], *(each for day, each in last_of.items() if day >= first_day)}
    wanted |= {each for each in verified if each.pin_reason is not None}
    wanted |= {
        each for each in verified if each.point_id.taken_at >= now - timedelta(hours=policy.keep_hours)
    }
    kept = [decision.candidate for decision in plan_retention(history, policy, now).kept]
    assert {candidate for candidate in kept if candidate.is_verified} == wanted


@given(settled())
def test_planning_again_over_what_was_kept_removes_nothing(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    history, policy, now = case
    plan = plan_retention(history, policy, now)
    kept = [decision.candidate for decision in plan.kept]
    again = plan_retention(kept, policy, now)
    assert again.removed == ()
    assert again.decisions == plan.kept


@given(settled(), candidates())
def test_one_more_bad_point_never_costs_a_verified_one(
    case: tuple[list[Candidate], RetentionPolicy, datetime], extra: Candidate
) -> None:
    """Ten nights of failures must not displace the last good backup (as the script did)."""
    history, policy, now = case
    bad = Candidate(extra.point_id, PointState.PARTIAL, extra.pin_reason)
    others = [candidate for candidate in history if candidate.point_id != bad.point_id]
    before = list_verified(plan_retention(others, policy, now).removed)
    after = list_verified(plan_retention([*others, bad], policy, now).removed)
    assert set(after) <= set(before)


@given(settled())
def test_the_last_point_of_each_week_and_month_stays(
    case: tuple[list[Candidate], RetentionPolicy, datetime],
) -> None:
    history, policy, now = case
    verified = sorted(candidate.point_id for candidate in history if candidate.is_verified)
    kept = set(list_verified(plan_retention(history, policy, now).kept))
    for count, form in ((policy.keep_weeks, "%G-%V"), (policy.keep_months, "%Y-%m")):
        last_of = {
            point_id.taken_at.astimezone(policy.timezone).strftime(form): point_id for point_id in verified
        }
        wanted = [last_of[period] for period in sorted(last_of, reverse=True)[:count]]
        assert set(wanted) <= kept


@given(HISTORIES, POLICIES, NOWS, st.randoms(use_true_random=False))
def test_the_order_of_the_given_points_does_not_matter(
    history: list[Candidate], policy: RetentionPolicy, now: datetime, random: Random
) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)
    assert plan_retention(shuffled, policy, now) == plan_retention(history, policy, now)


def test_a_point_without_objects_never_displaces_the_last_coherent_one() -> None:
    """After the bucket was emptied, later nights are verified but never replace the last coherent point."""
    nights = [RecoveryPointId.from_time(EPOCH + timedelta(days=day)) for day in range(100)]
    history = [
        Candidate(point_id, PointState.VERIFIED, is_coherent=day < 50) for day, point_id in enumerate(nights)
    ]
    kept = {
        decision.candidate.point_id
        for decision in plan_retention(history, RetentionPolicy(), EPOCH + timedelta(days=100)).kept
    }
    assert nights[49] in kept
    assert nights[48] not in kept
