"""Which rules are announced before they remove anything, and when they are carried out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given

from schedgen_backups.core.retention.plan import RetentionPolicy, plan_retention
from schedgen_backups.core.retention.policy_change import GRACE, PolicyRecord, PolicyState
from schedgen_backups_tests.support.histories import at
from schedgen_backups_tests.unit.core.retention.test_plan import HISTORIES, NOWS, POLICIES

POLICY = RetentionPolicy(keep_days=7, keep_last=3, keep_weeks=4, keep_months=12)
NOW = at("2026-03-10T10:00")


def test_rules_without_hours_are_in_force_at_the_first_look() -> None:
    assert PolicyState().follow(POLICY).pending is None


def test_hours_wait_at_the_first_look() -> None:
    state = PolicyState().follow(replace(POLICY, keep_hours=48))
    assert state.is_announcement_due
    assert state.follow(POLICY).pending is None


@pytest.mark.parametrize(
    "change",
    [
        {"keep_days": 6},
        {"keep_last": 2},
        {"keep_weeks": 3},
        {"keep_months": 11},
        {"keep_hours": 24},
        {"timezone": ZoneInfo("Africa/Johannesburg")},
        {"keep_days": 6, "keep_weeks": 52},
    ],
    ids=str,
)
def test_rules_that_may_remove_more_wait(change: dict[str, Any]) -> None:
    state = PolicyState().follow(POLICY).follow(replace(POLICY, **change))
    assert state.is_announcement_due
    assert state.apply_when_due(NOW + timedelta(days=400)).pending is not None


def test_rules_that_keep_more_are_in_force_at_once_and_the_return_from_them_waits() -> None:
    state = PolicyState().follow(POLICY).follow(replace(POLICY, keep_days=30))
    assert state.pending is None
    assert state.follow(POLICY).is_announcement_due


def test_rules_are_in_force_a_day_after_their_announcement() -> None:
    stricter = replace(POLICY, keep_days=1)
    state = PolicyState().follow(POLICY).follow(stricter).announce(NOW)
    assert not state.is_announcement_due
    early = state.follow(stricter).apply_when_due(NOW + GRACE - timedelta(seconds=1))
    assert early == state
    assert state.apply_when_due(NOW - timedelta(days=9)) == state
    assert early.apply_when_due(NOW + GRACE) == PolicyState(applied=PolicyRecord.from_policy(stricter))


def test_a_second_change_is_announced_again() -> None:
    state = PolicyState().follow(POLICY).follow(replace(POLICY, keep_days=3)).announce(NOW)
    assert state.follow(replace(POLICY, keep_days=2)).is_announcement_due
    assert state.follow(POLICY) == PolicyState().follow(POLICY)


@given(HISTORIES, POLICIES, POLICIES, NOWS)
def test_rules_that_do_not_wait_remove_nothing_that_the_old_ones_kept(
    history: list[Any], old: RetentionPolicy, new: RetentionPolicy, now: Any
) -> None:
    if PolicyRecord.from_policy(new).may_remove_more_than(PolicyRecord.from_policy(old)):
        new = replace(
            old, keep_days=old.keep_days + new.keep_days, keep_weeks=old.keep_weeks + new.keep_weeks
        )
        assert not PolicyRecord.from_policy(new).may_remove_more_than(PolicyRecord.from_policy(old))
    removed = {decision.candidate for decision in plan_retention(history, new, now).removed}
    assert removed <= {decision.candidate for decision in plan_retention(history, old, now).removed}
