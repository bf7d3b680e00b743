"""A temporary pin prevents pruning while a point is read, and leaves the operators' own pins unchanged."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import Pin, pin_temporarily, read_pin, remove_pin, write_pin
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.retention.prune import plan_pruning
from schedgen_backups_tests.support.histories import add_point

NOW = datetime.now(timezone.utc)
OLD = RecoveryPointId.from_time(NOW - timedelta(days=30))
NEW = RecoveryPointId.from_time(NOW - timedelta(days=1))
POLICY = RetentionPolicy(keep_days=1, keep_last=1)
LONGEST = timedelta(hours=2)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    add_point(catalog, OLD)
    add_point(catalog, NEW)
    return catalog


def make_pin(expires_at: datetime | None) -> Pin:
    return Pin(
        point_id=OLD.text, reason="court case", pinned_by="somebody", pinned_at=NOW, expires_at=expires_at
    )


def list_removable(catalog: Catalog, now: datetime = NOW) -> list[RecoveryPointId]:
    return [decision.candidate.point_id for decision in plan_pruning(catalog, POLICY, now).removed]


def test_a_point_in_use_is_not_pruned_until_it_is_released(catalog: Catalog) -> None:
    assert list_removable(catalog) == [OLD]
    with pin_temporarily(catalog, OLD, reason="a drill", pinned_by="me", max_duration=LONGEST) as point:
        assert point.point_id == OLD
        assert list_removable(catalog) == []
        # A killed process holds the pin no longer than that.
        assert list_removable(catalog, datetime.now(timezone.utc) + LONGEST + timedelta(minutes=5)) == [OLD]
    assert list_removable(catalog) == [OLD]
    assert read_pin(catalog, OLD) is None


@pytest.mark.parametrize("hours", [None, 1, 100])
def test_an_operators_pin_is_restored_afterwards(catalog: Catalog, hours: int | None) -> None:
    pin = make_pin(None if hours is None else NOW + timedelta(hours=hours))
    write_pin(catalog, pin)
    with pin_temporarily(catalog, OLD, reason="a drill", pinned_by="me", max_duration=LONGEST):
        assert list_removable(catalog, NOW + timedelta(minutes=90)) == []
    assert read_pin(catalog, OLD) == pin


def test_changes_by_operators_meanwhile_stay(catalog: Catalog) -> None:
    with pin_temporarily(catalog, OLD, reason="a drill", pinned_by="me", max_duration=LONGEST):
        write_pin(catalog, make_pin(None))
    assert read_pin(catalog, OLD) == make_pin(None)
    remove_pin(catalog, OLD)
    with pin_temporarily(catalog, OLD, reason="a drill", pinned_by="me", max_duration=LONGEST):
        remove_pin(catalog, OLD)
    assert read_pin(catalog, OLD) is None


def test_an_unknown_point_is_refused_and_leaves_no_pin(catalog: Catalog) -> None:
    unknown = RecoveryPointId("20200101_000000")
    with (
        pytest.raises(ConfigurationError),
        pin_temporarily(catalog, unknown, reason="a drill", pinned_by="me", max_duration=LONGEST),
    ):
        raise AssertionError("unreachable")
    assert read_pin(catalog, unknown) is None
