"""Point selection by label, by time or by `latest`, and the state of a directory as a whole.

Points are small real ones.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.missing_objects import accept_missing, settle_baseline
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.selection import (
    describe_freshness,
    find_newest_verified,
    look_over,
    resolve_point,
)
from schedgen_backups.core.catalog.small_files import BASELINE_NAME, SITE_NAME
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import (
    AcceptedObject,
    Adoption,
    ArtifactKind,
    MissingBaseline,
    RecoveryPointId,
)
from schedgen_backups_tests.support.artifacts import TAKEN_AT, make_result
from schedgen_backups_tests.support.histories import add_point, name_night

LATER = TAKEN_AT + timedelta(days=30)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Fill a catalog with points of five nights: two verified, one unverified, one failed, one partial."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    states = (
        PointState.VERIFIED,
        PointState.VERIFIED,
        PointState.UNVERIFIED,
        PointState.FAILED,
        PointState.PARTIAL,
    )
    for day, state in enumerate(states):
        add_point(catalog, name_night(day), state)
    return catalog


def rewrite_manifest(catalog: Catalog, night: int, **changes: object) -> None:
    manifest = catalog.read_manifest(name_night(night))
    assert manifest is not None
    catalog.write_description(
        catalog.manifest_path(name_night(night)).name, manifest.model_copy(update=changes)
    )


def label(catalog: Catalog, night: int, **labels: str) -> None:
    manifest = catalog.read_manifest(name_night(night))
    assert manifest is not None
    rewrite_manifest(catalog, night, origin=manifest.origin.model_copy(update={"labels": labels}))


def settle(catalog: Catalog) -> str:
    """Make the committed points belong to this directory; return its id."""
    site_id = catalog.settle_site().site_id
    for night in range(4):
        rewrite_manifest(catalog, night, site_id=site_id)
    return site_id


def damage(catalog: Catalog, night: int) -> None:
    catalog.get_point(name_night(night)).get_path(ArtifactKind.DATABASE).unlink()


@pytest.mark.parametrize(
    ("wanted", "night"),
    [
        ("", 1),
        ("release", 1),
        ("release=2.0", 1),
        ("release=1.0", 0),
        ("release=", None),
        ("release=3.0", None),
        ("stage", 0),
        ("other", None),
    ],
)
def test_a_label_selects_its_newest_verified_point(catalog: Catalog, wanted: str, night: int | None) -> None:
    label(catalog, 0, release="1.0", stage="a=b")
    label(catalog, 1, release="2.0")
    label(catalog, 2, release="3.0", other="x")
    found = find_newest_verified(catalog, label=wanted)
    assert (found.point_id if found is not None else None) == (
        name_night(night) if night is not None else None
    )


def test_a_label_value_may_hold_an_equals_sign(catalog: Catalog) -> None:
    label(catalog, 0, stage="a=b")
    found = find_newest_verified(catalog, label="stage=a=b")
    assert found is not None
    assert found.point_id == name_night(0)


def test_latest_is_the_newest_committed_point_whatever_its_state(catalog: Catalog) -> None:
    assert resolve_point(catalog, "latest").point_id == name_night(3)


def test_latest_skips_damaged_foreign_and_future_points(catalog: Catalog) -> None:
    site_id = settle(catalog)
    damage(catalog, 3)
    rewrite_manifest(catalog, 2, site_id="of another directory")
    ahead = RecoveryPointId.from_time(datetime.now(timezone.utc) + timedelta(days=1))
    add_point(catalog, ahead)
    manifest = catalog.read_manifest(ahead)
    assert manifest is not None
    catalog.write_description(
        catalog.manifest_path(ahead).name, manifest.model_copy(update={"site_id": site_id})
    )
    assert [point.state for point in catalog.list_points()][2:] == [
        PointState.FOREIGN,
        PointState.DAMAGED,
        PointState.PARTIAL,
        PointState.AHEAD,
    ]
    assert resolve_point(catalog, "latest").point_id == name_night(1)
    assert resolve_point(catalog, str(ahead)).point_id == ahead
    catalog.adopt(Adoption(point_id=name_night(2).text, reason="moved here", adopted_at=TAKEN_AT))
    assert resolve_point(catalog, "latest").point_id == name_night(2)


def test_latest_needs_a_committed_point(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    add_point(catalog, name_night(0), PointState.PARTIAL)
    with pytest.raises(ConfigurationError, match="no committed recovery point"):
        resolve_point(catalog, "latest")


@pytest.mark.parametrize(
    ("as_of", "night"),
    [
        ("2026-11-23T02:00:00+00:00", 1),
        ("2026-11-23T01:59:59+00:00", 0),
        ("2026-11-23 04:00:00", 1),
        ("2026-11-23 03:59:59", 0),
        ("2026-12-24", 1),
        ("2026-11-23T02:00:00+01:00", 0),
    ],
)
def test_as_of_a_time_is_the_newest_verified_snapshot_until_then(
    catalog: Catalog, as_of: str, night: int
) -> None:
    """A time without an offset is in the operators' time zone."""
    assert resolve_point(
        catalog, "latest", as_of=as_of, timezone=ZoneInfo("Africa/Johannesburg")
    ).point_id == name_night(night)


def test_a_time_without_an_offset_is_utc_if_no_zone_is_given(catalog: Catalog) -> None:
    assert resolve_point(catalog, "latest", as_of="2026-11-23 02:00:00").point_id == name_night(1)


def test_a_time_before_the_first_point_and_a_time_with_an_id_are_refused(catalog: Catalog) -> None:
    with pytest.raises(ConfigurationError, match="no verified recovery point was taken at or before"):
        resolve_point(catalog, "latest", as_of="2026-11-22T01:59:59+00:00")
    with pytest.raises(ConfigurationError, match="and a time are given"):
        resolve_point(catalog, str(name_night(0)), as_of="2026-11-23")
    with pytest.raises(ConfigurationError, match="invalid time"):
        resolve_point(catalog, "latest", as_of="yesterday")


def test_an_overview_names_broken_and_future_points(catalog: Catalog) -> None:
    damage(catalog, 1)
    ahead = RecoveryPointId.from_time(datetime.now(timezone.utc) + timedelta(days=1))
    add_point(catalog, ahead)
    overview = look_over(catalog, LATER)
    assert [point.point_id for point in overview.broken] == [name_night(1), name_night(3)]
    assert [point.point_id for point in overview.ahead] == [ahead]
    assert not overview.is_intact
    assert overview.freshness.newest is not None
    assert overview.freshness.newest.point_id == name_night(0)
    dump = f"db_schedgen_{name_night(1)}.sql.gz"
    broken = f"{name_night(1)} damaged: {dump} is missing; {name_night(3)} failed: seen"
    assert overview.describe_broken() == broken
    assert overview.describe_ahead() == f"{ahead}; this machine's clock says 2026-12-22 02:00:00 UTC"
    assert (
        overview.describe_intactness()
        == f"{broken}; ahead of the clock: {overview.describe_ahead()}; 1 to be read again"
    )
    assert (
        overview.describe_freshness(timedelta(hours=26))
        == f"newest verified recovery point {name_night(0)} is 720.0 h old (limit 26 h)"
    )


def test_a_failed_point_that_was_never_committed_is_not_broken(catalog: Catalog) -> None:
    catalog.record_results(name_night(4), (make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED),))
    assert catalog.get_point(name_night(4)).state is PointState.FAILED
    assert name_night(4) not in {point.point_id for point in look_over(catalog, LATER).broken}


def test_a_foreign_point_is_not_due_and_a_copied_one_is(catalog: Catalog) -> None:
    settle(catalog)
    before = look_over(catalog, LATER).due_count
    rewrite_manifest(catalog, 2, site_id="of another directory")
    assert look_over(catalog, LATER).due_count == before - 1


@pytest.mark.parametrize("is_there", [False, True])
def test_an_intact_directory_and_a_missing_one_are_reported(tmp_path: Path, *, is_there: bool) -> None:
    catalog = Catalog(tmp_path / "backups")
    if is_there:
        catalog.prepare()
        add_point(catalog, name_night(0))
    overview = look_over(catalog, LATER)
    assert overview.is_intact
    assert (
        overview.describe_intactness()
        == "no committed recovery point is damaged, failed or ahead of the clock"
    )
    assert (overview.due_count, describe_freshness(catalog, LATER)) == (0, overview.freshness.describe())


def test_only_the_last_ten_broken_points_are_named(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    for day in range(12):
        add_point(catalog, name_night(day - 20), PointState.FAILED)
    named = look_over(catalog, LATER).describe_broken().split("; ")
    assert [words.split()[0] for words in named] == [str(name_night(day - 20)) for day in range(2, 12)]


def test_one_broken_or_future_point_makes_the_directory_not_intact(tmp_path: Path) -> None:
    broken, early = Catalog(tmp_path / "broken"), Catalog(tmp_path / "early")
    for catalog in (broken, early):
        catalog.prepare()
    add_point(broken, name_night(0), PointState.FAILED)
    broken.record_results(
        name_night(0), (make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED, summary="it was exchanged"),)
    )
    assert not look_over(broken, LATER).is_intact
    assert look_over(broken, LATER).describe_broken() == f"{name_night(0)} failed: it was exchanged"
    ahead = RecoveryPointId.from_time(datetime.now(timezone.utc) + timedelta(days=1))
    add_point(early, ahead)
    overview = look_over(early, LATER)
    assert not overview.is_intact
    assert overview.describe_intactness() == f"ahead of the clock: {overview.describe_ahead()}"


def test_a_point_to_be_reread_is_counted(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    add_point(catalog, name_night(0), PointState.UNVERIFIED)
    assert look_over(catalog, LATER).describe_intactness() == "1 to be read again"


def test_files_of_partial_and_committed_points_are_not_unmanaged(catalog: Catalog) -> None:
    """Nor are those of a committed point that can no longer be parsed."""
    dump = catalog.get_point(name_night(0)).get_path(ArtifactKind.DATABASE)
    dump.write_bytes(bytes(dump.stat().st_size))
    assert catalog.list_unmanaged() == ()


def test_a_point_is_as_large_as_both_files(catalog: Catalog) -> None:
    point = catalog.get_point(name_night(0))
    assert point.size_bytes == sum(point.get_path(kind).stat().st_size for kind in ArtifactKind)


def test_the_dump_is_listed_before_the_archive(catalog: Catalog) -> None:
    assert [artifact.name.kind for artifact in catalog.get_point(name_night(0)).artifacts] == [
        ArtifactKind.DATABASE,
        ArtifactKind.BUCKET,
    ]


def test_a_lost_site_is_known_by_its_points_despite_a_damaged_manifest(catalog: Catalog) -> None:
    site_id = settle(catalog)
    (catalog.directory / SITE_NAME).unlink()
    catalog.manifest_path(name_night(2)).write_bytes(b"{")
    assert catalog.settle_site().site_id == site_id


@pytest.mark.parametrize(("minutes", "is_ahead"), [(-1, False), (4, False), (6, True)])
def test_a_point_is_ahead_beyond_the_clocks_tolerance(tmp_path: Path, minutes: int, is_ahead: bool) -> None:
    catalog = Catalog(tmp_path)
    point_id = RecoveryPointId.from_time(datetime.now(timezone.utc) + timedelta(minutes=minutes))
    add_point(catalog, point_id)
    assert catalog.get_point(point_id).is_ahead is is_ahead


def test_a_damaged_site_file_hides_no_point_and_makes_none_foreign(catalog: Catalog) -> None:
    settle(catalog)
    before = [point.state for point in catalog.list_points()]
    (catalog.directory / SITE_NAME).write_bytes(b"{")
    assert [point.state for point in catalog.list_points()] == before


def test_a_point_that_lost_both_files_is_listed_as_damaged(catalog: Catalog) -> None:
    for kind in ArtifactKind:
        catalog.get_point(name_night(0)).get_path(kind).unlink()
    point = catalog.get_point(name_night(0))
    assert (point.state, point.artifacts, len(point.problems)) == (PointState.DAMAGED, (), 2)


def test_other_files_and_directories_are_not_artifacts(catalog: Catalog) -> None:
    before = catalog.list_points()
    (catalog.directory / "notes.gz").write_bytes(b"1")
    (catalog.directory / "db_schedgen_20261101_020000.sql.gz").mkdir()
    assert (catalog.list_points(), catalog.list_unmanaged()) == (before, ())


def test_the_first_missing_objects_and_accepted_ones_form_the_baseline(catalog: Catalog) -> None:
    assert settle_baseline(catalog, ["a", "b"]) == {"a", "b"}
    assert settle_baseline(Catalog(catalog.directory), ["a", "b", "c"]) == {"a", "b"}
    for reason in ("lost", "lost for good"):
        accept_missing(catalog, [AcceptedObject(key="c", reason=reason, accepted_at=TAKEN_AT)])
    baseline = catalog.read_description(BASELINE_NAME, MissingBaseline)
    assert baseline is not None
    assert (baseline.first_missing, [each.reason for each in baseline.accepted]) == (
        ("a", "b"),
        ["lost for good"],
    )
    assert settle_baseline(catalog, ["a", "b", "c"]) == {"a", "b", "c"}


def test_an_object_that_returned_is_news_when_it_is_lost_again(catalog: Catalog) -> None:
    """This holds whether it was missing at the first point or accepted later."""
    settle_baseline(catalog, ["first"])
    accept_missing(catalog, [AcceptedObject(key="accepted", reason="lost", accepted_at=TAKEN_AT)])
    assert settle_baseline(catalog, ["accepted", "first"]) == {"accepted", "first"}
    assert settle_baseline(catalog, []) == frozenset()
    assert settle_baseline(catalog, ["accepted", "first"]) == frozenset()


def test_an_object_can_be_accepted_before_the_first_point_and_before_its_loss(catalog: Catalog) -> None:
    accept_missing(catalog, [AcceptedObject(key="c", reason="lost", accepted_at=TAKEN_AT)])
    for missing in (["a"], ["a"], ["a", "c"]):
        assert "c" in settle_baseline(catalog, missing)


def test_a_damaged_baseline_makes_all_news_until_an_operator_resets_it(catalog: Catalog) -> None:
    settle_baseline(catalog, ["a", "b"])
    (catalog.directory / BASELINE_NAME).write_bytes(b"{")
    assert settle_baseline(catalog, ["a", "b"]) == frozenset()
    accept_missing(catalog, [AcceptedObject(key="a", reason="lost", accepted_at=TAKEN_AT)])
    assert len(list(catalog.directory.glob(f"{BASELINE_NAME}.damaged-*"))) == 1
    assert "a" in settle_baseline(catalog, ["a", "b"])
