"""Which new points are drilled, and when a drill takes too long for the schedule."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.drill.each_point import explain_no_drill, find_new_points
from schedgen_backups.core.history.events import DrillEnded
from schedgen_backups_tests.support.artifacts import make_result
from schedgen_backups_tests.support.histories import add_point, at, name_night

HOUR = timedelta(hours=1)


def drilled(duration: timedelta) -> DrillEnded:
    began_at = at("2026-03-10T10:00")
    return DrillEnded(
        at=began_at + duration,
        began_at=began_at,
        point_id="20260310_090000",
        is_passed=True,
        rto_seconds=1,
        rpo_seconds=1,
    )


def test_only_verified_points_of_after_the_start_that_nobody_restored_are_new(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "points")
    catalog.prepare()
    states = (
        PointState.VERIFIED,
        PointState.VERIFIED,
        PointState.FAILED,
        PointState.PARTIAL,
        *[PointState.VERIFIED] * 3,
    )
    for day, state in enumerate(states):
        add_point(catalog, name_night(day), state)
    restored = catalog.get_point(name_night(4))
    assert restored.manifest is not None
    digests = {artifact.kind: artifact.sha256 for artifact in restored.manifest.artifacts}
    catalog.record_results(
        restored.point_id, [make_result(Check.DATABASE_IS_RESTORED, CheckStatus.FAILED, artifacts=digests)]
    )
    found = find_new_points(catalog.list_points(), name_night(0).taken_at, [name_night(6).text])
    assert found == [name_night(1), name_night(5)]


def test_a_quarter_of_the_interval_is_the_limit() -> None:
    assert explain_no_drill(None, HOUR) == ""
    assert explain_no_drill(drilled(HOUR / 4), HOUR) == ""
    reason = explain_no_drill(drilled(HOUR / 4 + timedelta(seconds=1)), HOUR)
    assert reason.startswith(
        "the last drill took 15 min, more than a quarter of the time between two backups"
    )
