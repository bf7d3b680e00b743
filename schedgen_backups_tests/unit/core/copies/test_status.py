"""What the recorded state of a store says: checks that are green only for what was seen, problems, places."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.copies.status import (
    CopyCheck,
    CopyCheckResult,
    StoreStatus,
    Trouble,
    measure_spread,
)
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.protocol import Capabilities

NOW = datetime(2026, 11, 30, 3, 0, tzinfo=timezone.utc)
LOCKING = Capabilities(has_conditional_put=True, has_checksums=True, has_versions=True, has_lock=True)


def name_point(hours: float) -> RecoveryPointId:
    """Return the id of a point of this age."""
    return RecoveryPointId.from_time(NOW - timedelta(hours=hours))


def make_status(
    *hours: float,
    name: str = "nas",
    url: str = "s3://bucket",
    lock_days: int = 0,
    endpoint: str = "",
    **state: object,
) -> StoreStatus:
    """Return a store that holds points of these ages, listed and read back an hour ago."""
    values: dict[str, object] = {
        "points": tuple(
            CopiedPoint(point_id=name_point(age).text, copied_at=NOW - timedelta(hours=age)) for age in hours
        ),
        "listed_at": NOW - timedelta(hours=1),
        "reread_at": NOW - timedelta(hours=1),
        "pack_count": 3,
        "oldest_reread_at": NOW - timedelta(days=10),
        **state,
    }
    settings = StoreSettings(name, StoreLocation(url, endpoint=endpoint), lock_days=lock_days)
    return StoreStatus(name, CopyState.model_validate(values), settings)


def judge(status: StoreStatus, check: CopyCheck, due: tuple[RecoveryPointId, ...] = ()) -> CopyCheckResult:
    [result] = [result for result in status.judge(due, NOW) if result.check is check]
    return result


def test_every_check_passes_for_a_store_that_was_proven() -> None:
    status = make_status(1, lock_days=4, locked_until=NOW + timedelta(days=3))
    assert [(result.check, result.is_passed) for result in status.judge((), NOW)] == [
        (check, True) for check in CopyCheck
    ]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"listing_problems": ("packs/1 is missing",)}, "packs/1 is missing"),
        ({"listed_at": NOW - timedelta(hours=49), "problem": "no answer"}, "last attempt: no answer"),
    ],
    ids=["missing", "not listed lately"],
)
def test_a_copy_is_not_complete_unless_the_last_listing_says_so(state: dict[str, object], text: str) -> None:
    result = judge(make_status(1, **state), CopyCheck.IS_COMPLETE)
    assert (result.is_passed, result.is_warning) == (False, False)
    assert text in result.description


def test_a_store_that_lacks_a_point_is_not_complete() -> None:
    result = judge(make_status(25), CopyCheck.IS_COMPLETE, (name_point(1),))
    assert (result.is_passed, result.is_warning) == (False, False)
    assert name_point(1).text in result.description


def test_what_was_never_proven_is_unknown_and_not_green() -> None:
    status = StoreStatus("nas", CopyState(capabilities=LOCKING), make_status().settings)
    results = status.judge((), NOW)
    assert len(results) == len(CopyCheck)
    assert [(result.is_passed, result.is_warning) for result in results] == [(False, True)] * len(CopyCheck)


@pytest.mark.parametrize(
    ("unread_days", "is_warning"), [(0.5, True), (31.9, True), (32.1, False), (None, False)]
)
def test_unread_packs_are_a_warning_until_their_time_has_passed(
    unread_days: float | None, is_warning: bool
) -> None:
    sent_at = NOW - timedelta(days=unread_days) if unread_days is not None else None
    status = make_status(1, unread_count=1, oldest_reread_at=None, oldest_unread_at=sent_at)
    result = judge(status, CopyCheck.READS_BACK)
    assert (result.is_passed, result.is_warning) == (False, is_warning)
    assert "1 of 3 packs never read back" in result.description


@pytest.mark.parametrize(("days", "is_passed"), [(31.9, True), (32.1, False)])
def test_packs_that_were_read_long_ago_are_not_green(days: float, is_passed: bool) -> None:
    result = judge(make_status(1, oldest_reread_at=NOW - timedelta(days=days)), CopyCheck.READS_BACK)
    assert (result.is_passed, result.is_warning) == (is_passed, False)


def test_an_altered_pack_fails_the_check_although_all_others_were_read() -> None:
    result = judge(make_status(1, reread_problems=("x was altered",)), CopyCheck.READS_BACK)
    assert (result.is_passed, result.is_warning, result.description) == (False, False, "x was altered")


@pytest.mark.parametrize(
    ("lock_days", "left_days", "is_passed", "is_warning"),
    [
        (4, 1.1, True, False),
        (4, 0.9, False, False),
        (4, None, False, False),
        (0, 0.1, True, False),
        (0, None, False, True),
    ],
)
def test_a_lock_that_runs_out_is_reported_before_it_does(
    lock_days: int, left_days: float | None, is_passed: bool, is_warning: bool
) -> None:
    locked_until = NOW + timedelta(days=left_days) if left_days is not None else None
    status = make_status(1, lock_days=lock_days, locked_until=locked_until, capabilities=LOCKING)
    result = judge(status, CopyCheck.IS_LOCKED)
    assert (result.is_passed, result.is_warning) == (is_passed, is_warning)
    is_trouble = Trouble.UNLOCKED in status.find_troubles([], NOW)
    assert is_trouble == (not is_passed and lock_days > 0)


def test_a_store_without_locks_has_no_check_of_them() -> None:
    assert [result.check for result in make_status(1).judge((), NOW)] == [
        CopyCheck.IS_COMPLETE,
        CopyCheck.READS_BACK,
    ]


@pytest.mark.parametrize(
    ("copied", "local", "is_stale"),
    [
        ((25,), (25, 1), False),
        ((27,), (27, 1), True),
        ((200,), (200,), False),
        ((200,), (), False),
    ],
    ids=["within the limit", "over the limit", "nothing is lacking", "no point here"],
)
def test_a_copy_is_stale_if_it_is_old_and_the_store_lacks_a_newer_point(
    copied: tuple[int, ...], local: tuple[int, ...], is_stale: bool
) -> None:
    troubles = make_status(*copied).find_troubles([name_point(hours) for hours in local], NOW)
    assert (Trouble.STALE in troubles) == is_stale
    if is_stale:
        assert name_point(1).text in troubles[Trouble.STALE]


@pytest.mark.parametrize(("hours", "is_stale"), [(25, False), (27, True)])
def test_a_new_store_has_until_its_limit_for_its_first_copy(hours: float, is_stale: bool) -> None:
    troubles = make_status().find_troubles([name_point(100)], NOW, watched_since=NOW - timedelta(hours=hours))
    assert (Trouble.STALE in troubles) == is_stale


def test_places_are_counted_by_kind_and_by_whether_they_are_elsewhere() -> None:
    point_id = name_point(1)
    stores = [
        make_status(1, url="file:///mnt/nas"),
        make_status(1, endpoint="https://s3.example.com"),
        make_status(1, endpoint="http://127.0.0.1:9000"),
        make_status(2),
    ]
    assert str(measure_spread(point_id, stores, NOW)) == "4 copies, 3 kinds of place, 1 elsewhere"
    assert str(measure_spread(point_id, stores[:1], NOW)) == "2 copies, 2 kinds of place, 0 elsewhere"


def test_a_damaged_copy_is_not_counted() -> None:
    damaged = make_status(1, reread_problems=("x was altered",))
    assert str(measure_spread(name_point(1), [damaged], NOW)) == "the only copy is on this host"


@pytest.mark.parametrize("days", [3, -3])
def test_a_copy_that_was_not_seen_lately_is_not_counted(days: int) -> None:
    seen = NOW - timedelta(days=days)
    point_id = name_point(24 * 5)
    copied = CopiedPoint(point_id=point_id.text, copied_at=seen)
    status = make_status(points=(copied,), listed_at=seen)
    assert str(measure_spread(point_id, [status], NOW)) == "the only copy is on this host"


def test_a_copy_that_was_just_sent_is_counted() -> None:
    status = make_status(1, listed_at=NOW - timedelta(days=30))
    assert measure_spread(name_point(1), [status], NOW).copy_count == 2


def test_two_descriptions_of_one_place_count_once() -> None:
    stores = [make_status(1, url="s3://bucket/prefix"), make_status(1, url="s3://bucket/prefix/")]
    assert measure_spread(name_point(1), stores, NOW).copy_count == 2


@pytest.mark.parametrize(
    ("check", "field"),
    [(CopyCheck.IS_COMPLETE, "listed_at"), (CopyCheck.READS_BACK, "oldest_reread_at")],
)
def test_a_proof_ahead_of_the_clock_is_not_green(check: CopyCheck, field: str) -> None:
    result = judge(make_status(1, **{field: NOW + timedelta(days=300)}), check)
    assert not result.is_passed
    assert not result.is_warning
    assert "ahead of this host's clock" in result.description


def test_a_copy_ahead_of_the_clock_does_not_hide_that_no_other_one_follows() -> None:
    status = make_status(-24 * 300, 100)
    assert Trouble.STALE in status.find_troubles([name_point(1)], NOW)


def test_a_store_to_which_no_attempt_has_brought_a_copy_is_in_trouble() -> None:
    due = [name_point(1)]
    assert make_status().find_troubles(due, NOW) == {}
    tried = make_status(attempted_at=NOW, problem="no space")
    assert "no copy exists" in tried.find_troubles(due, NOW)[Trouble.STALE]
    assert tried.find_troubles(due, NOW, watched_since=NOW) == {}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, ""),
        ({"listed_at": NOW - timedelta(days=2)}, ""),
        ({"listed_at": NOW - timedelta(days=2, minutes=1)}, "the store was last listed 2 d 0 h ago"),
        ({"listed_at": None}, "the store was never listed"),
        ({"oldest_reread_at": NOW - timedelta(days=32)}, ""),
        ({"oldest_reread_at": NOW - timedelta(days=33)}, "although reread_days is 30"),
        (
            {"oldest_reread_at": None, "oldest_unread_at": NOW - timedelta(days=33)},
            "although reread_days is 30",
        ),
        ({"oldest_reread_at": None, "oldest_unread_at": NOW - timedelta(days=3)}, ""),
    ],
)
def test_copies_that_nobody_checks_are_a_trouble(state: dict[str, object], text: str) -> None:
    found = make_status(100, **state).find_troubles([], NOW)
    assert (Trouble.UNPROVED in found) == bool(text)
    assert text in found.get(Trouble.UNPROVED, "")
    assert Trouble.UNPROVED not in make_status(**state).find_troubles([], NOW)
