"""The age of the newest verified point: only verified points count, and limits are exact to the second.

Points are small real ones.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.selection import (
    Freshness,
    describe_freshness,
    find_newest_verified,
    measure_freshness,
)
from schedgen_backups_tests.support.artifacts import TAKEN_AT
from schedgen_backups_tests.support.histories import add_point, name_night

LIMIT = timedelta(hours=26)
SECOND = timedelta(seconds=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def test_the_newest_verified_point_counts_and_bad_newer_ones_do_not(catalog: Catalog) -> None:
    states = (
        PointState.VERIFIED,
        PointState.VERIFIED,
        PointState.UNVERIFIED,
        PointState.FAILED,
        PointState.PARTIAL,
    )
    for day, state in enumerate(states):
        add_point(catalog, name_night(day), state)
    freshness = measure_freshness(catalog, TAKEN_AT + timedelta(days=5))
    assert freshness.newest is not None
    assert freshness.newest.point_id == name_night(1)
    assert freshness.age == timedelta(days=4)
    assert freshness.describe() == f"{name_night(1)}, 96.0 h old"


@pytest.mark.parametrize(
    ("age", "is_too_old"), [(LIMIT - SECOND, False), (LIMIT, False), (LIMIT + SECOND, True)]
)
def test_a_point_is_too_old_after_the_limit(catalog: Catalog, age: timedelta, is_too_old: bool) -> None:
    add_point(catalog, name_night(0))
    assert measure_freshness(catalog, TAKEN_AT + age).is_too_old(LIMIT) is is_too_old


def test_the_time_of_watching_does_not_matter_once_there_is_a_point(catalog: Catalog) -> None:
    add_point(catalog, name_night(0))
    now = TAKEN_AT + LIMIT + SECOND
    assert measure_freshness(catalog, now).is_too_old(LIMIT, watched_since=now)


@pytest.mark.parametrize(
    ("watched", "is_too_old"), [(timedelta(0), False), (LIMIT, False), (LIMIT + SECOND, True)]
)
def test_the_first_point_has_the_same_limit(catalog: Catalog, watched: timedelta, is_too_old: bool) -> None:
    add_point(catalog, name_night(0), PointState.UNVERIFIED)
    freshness = measure_freshness(catalog, TAKEN_AT)
    assert freshness.age is None
    assert freshness.is_too_old(LIMIT, watched_since=TAKEN_AT - watched) is is_too_old


def test_without_a_verified_point_or_a_start_time_the_age_is_too_old(catalog: Catalog) -> None:
    assert measure_freshness(catalog, TAKEN_AT).is_too_old(LIMIT)


def test_a_missing_directory_has_no_newest_point(tmp_path: Path) -> None:
    """The disk may not be mounted: that is a failure, and the folder must not be created."""
    missing = Catalog(tmp_path / "missing")
    assert measure_freshness(missing, TAKEN_AT) == Freshness(None, TAKEN_AT)
    assert describe_freshness(missing, TAKEN_AT) == "none"
    assert not missing.directory.exists()


def test_a_point_with_a_missing_file_is_not_the_newest_verified_one(catalog: Catalog) -> None:
    add_point(catalog, name_night(0))
    (catalog.directory / add_point(catalog, name_night(1))[0]).unlink()
    assert describe_freshness(catalog, TAKEN_AT + timedelta(days=1)) == f"{name_night(0)}, 24.0 h old"


def test_a_damaged_point_does_not_count_and_hides_no_other(catalog: Catalog) -> None:
    add_point(catalog, name_night(0))
    add_point(catalog, name_night(1))
    (catalog.directory / f"manifest_{name_night(1)}.json").write_bytes(b"{")
    assert measure_freshness(catalog, TAKEN_AT + timedelta(days=1)).age == timedelta(days=1)
    newest = find_newest_verified(catalog)
    assert newest is not None
    assert newest.point_id == name_night(0)
