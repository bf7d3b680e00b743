"""When points in packs are advised, and that the estimate of kept points agrees with retention itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.layout_advice import Situation, advise_on_layout, estimate_kept
from schedgen_backups.core.retention.plan import Candidate, RetentionPolicy, plan_retention
from schedgen_backups.core.settings import Layout

GB, TB = 10**9, 10**12
NOW = datetime(2026, 11, 30, 12, 30, tzinfo=timezone.utc)
WEEK = RetentionPolicy(keep_days=7)
THINNED = RetentionPolicy(keep_hours=48, keep_days=14, keep_weeks=4)
NIGHTLY, HOURLY = 1, 24

SITUATION = Situation(
    Layout.FILES,
    shares_blocks=False,
    points_per_day=HOURLY,
    policy=THINNED,
    point_bytes=300 * GB,
    room_bytes=2 * TB,
)
CASES: dict[str, tuple[Situation, str]] = {
    "hourly, a large bucket": (
        SITUATION,
        "about 24 backups a day, about 62 points kept x 300.0 GB = 18.6 TB needed, 2.0 TB available",
    ),
    "hourly, and it just fits": (
        replace(SITUATION, room_bytes=20 * TB),
        "about 24 backups a day, about 62 points kept x 300.0 GB = 18.6 TB needed, 20.0 TB available",
    ),
    "hourly, a tenth of the room": (replace(SITUATION, room_bytes=186 * TB), ""),
    "hourly without hours": (
        replace(SITUATION, policy=WEEK),
        "about 168 points kept x 300.0 GB = 50.4 TB needed",
    ),
    "hourly, a small site": (replace(SITUATION, point_bytes=GB // 1000, room_bytes=GB), ""),
    "hourly, shared blocks": (replace(SITUATION, shares_blocks=True), ""),
    "hourly, in packs": (replace(SITUATION, layout=Layout.PACKS), ""),
    "in packs that are not needed": (
        replace(SITUATION, layout=Layout.PACKS, points_per_day=NIGHTLY, point_bytes=1),
        "",
    ),
    "nightly, no room": (
        replace(SITUATION, points_per_day=NIGHTLY, policy=WEEK),
        "BACKUP_LAYOUT=files: about 7 points kept x 300.0 GB = 2.1 TB needed, 2.0 TB available",
    ),
    "nightly, hardly any room": (
        replace(SITUATION, points_per_day=NIGHTLY, policy=WEEK, room_bytes=26 * TB // 10),
        "= 2.1 TB needed, 2.6 TB available",
    ),
    "nightly, enough room": (
        replace(SITUATION, points_per_day=NIGHTLY, policy=WEEK, room_bytes=27 * TB // 10),
        "",
    ),
    "four times a day": (
        replace(SITUATION, points_per_day=4, policy=WEEK, room_bytes=80 * TB),
        "about 4 backups a day, about 28 points kept x 300.0 GB = 8.4 TB needed, 80.0 TB available",
    ),
    "three times a day": (replace(SITUATION, points_per_day=3, policy=WEEK, room_bytes=80 * TB), ""),
    "by hand only": (
        replace(SITUATION, points_per_day=0, room_bytes=TB),
        "about 3 points kept x 300.0 GB = 900.0 GB needed, 1.0 TB available",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_packs_are_advised_where_whole_files_do_not_fit(case: str) -> None:
    situation, expected = CASES[case]
    advice = advise_on_layout(situation)
    if not expected:
        assert advice is None
        return
    assert advice is not None
    assert expected in advice.detail
    assert advice.needed_bytes == advice.kept_count * situation.point_bytes
    assert "BACKUP_LAYOUT=packs" in advice.fix


@pytest.mark.parametrize(
    ("policy", "points_per_day", "kept"),
    [
        (WEEK, NIGHTLY, 7),
        (WEEK, HOURLY, 168),
        # docs/retention.md: 48 or 49 points, and 11 or 12 older ones.
        (RetentionPolicy(keep_hours=48, keep_days=14), HOURLY, 60),
        (RetentionPolicy(keep_days=7, keep_weeks=4), NIGHTLY, 10),
        (RetentionPolicy(keep_days=7, keep_weeks=4, keep_months=12, keep_years=7), NIGHTLY, 28),
        # Rare backups: what counts is their number.
        (RetentionPolicy(keep_days=1, keep_last=5), 1 / 7, 5),
        (RetentionPolicy(keep_days=1, keep_weeks=8), 1 / 30, 8),
        (WEEK, 0, 3),
    ],
)
def test_the_estimate_of_kept_points(policy: RetentionPolicy, points_per_day: float, kept: int) -> None:
    assert estimate_kept(policy, points_per_day) == kept


@lru_cache
def list_candidates(gap_hours: int) -> tuple[Candidate, ...]:
    """Return the points of two years and a few days."""
    times = (NOW - timedelta(hours=hours) for hours in range(0, 740 * 24, gap_hours))
    return tuple(Candidate(RecoveryPointId.from_time(time), PointState.VERIFIED) for time in times)


@settings(deadline=None)
@given(
    st.builds(
        RetentionPolicy,
        keep_hours=st.one_of(st.just(0), st.integers(1, 100)),
        keep_days=st.integers(1, 40),
        keep_last=st.integers(1, 50),
        keep_weeks=st.integers(0, 20),
        keep_months=st.integers(0, 12),
        keep_years=st.integers(0, 2),
    ),
    st.sampled_from([4, 8, 12, 24, 36, 48, 24 * 7, 24 * 10]),
)
def test_the_estimate_agrees_with_retention(policy: RetentionPolicy, gap_hours: int) -> None:
    """Each rule may be off by one period at either end."""
    kept = len(plan_retention(list_candidates(gap_hours), policy, NOW).kept)
    assert abs(estimate_kept(policy, 24 / gap_hours) - kept) <= 4 + 24 / gap_hours
