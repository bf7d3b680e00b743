"""Points whose files were copied or modified: noticed at once, reread, and valid until then.

Points are small real ones.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckResult
from schedgen_backups.core.catalog.missing_objects import settle_baseline
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.catalog.selection import find_newest_verified, look_over
from schedgen_backups.core.catalog.small_files import BASELINE_NAME, SITE_NAME
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.retention.prune import remove_points
from schedgen_backups.core.verify.commit import check_point, verify_point
from schedgen_backups.core.verify.reread import RereadReport, find_unread, read_unread
from schedgen_backups_tests.support.histories import add_point, name_night

HOUR = 3600


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return a catalog with three verified points of three nights."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    for day in range(3):
        add_point(catalog, name_night(day))
    return catalog


def list_due(catalog: Catalog) -> list[RecoveryPointId]:
    return [point.point_id for point in find_unread(catalog)]


def list_states(catalog: Catalog) -> list[PointState]:
    return [point.state for point in catalog.list_points()]


def flip_byte(path: Path, place: int = 60) -> None:
    """Change one byte; size and modification time stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read(catalog: Catalog, budget_seconds: float = HOUR) -> RereadReport:
    return read_unread(catalog, checked_by="test", budget_seconds=budget_seconds)


def test_what_was_read_in_place_is_not_due(catalog: Catalog) -> None:
    assert list_due(catalog) == []
    assert read(catalog) == RereadReport((), 0)


@pytest.mark.parametrize("kind", list(ArtifactKind))
@pytest.mark.parametrize("seconds", [1, -1, 1e-6], ids=["later", "earlier", "a microsecond"])
def test_a_file_with_another_time_is_due_and_keeps_its_state(
    kind: ArtifactKind, seconds: float, catalog: Catalog
) -> None:
    path = catalog.get_point(name_night(1)).get_path(kind)
    modified_ns = path.stat().st_mtime_ns + round(seconds * 1e9)
    os.utime(path, ns=(modified_ns, modified_ns))
    assert list_due(catalog) == [name_night(1)]
    assert catalog.get_point(name_night(1)).unread_files == (path.name,)
    assert list_states(catalog) == [PointState.VERIFIED] * 3
    report = read(catalog)
    assert [(point.point_id, point.state) for point in report.points] == [
        (name_night(1), PointState.VERIFIED)
    ]
    assert (report.wrong, report.due_count, list_due(catalog)) == ((), 0, [])


def test_a_copied_directory_is_verified_at_once_and_read_newest_first(
    catalog: Catalog, tmp_path: Path
) -> None:
    """As `cp -r` makes it: with the times of the copying."""
    shutil.copytree(catalog.directory, tmp_path / "moved", copy_function=shutil.copyfile)
    moved = Catalog(tmp_path / "moved")
    assert list_states(moved) == [PointState.VERIFIED] * 3
    newest = find_newest_verified(moved)
    assert newest is not None
    assert newest.point_id == name_night(2)
    assert list_due(moved) == [name_night(2), name_night(1), name_night(0)]
    assert [point.point_id for point in read(moved).points] == [name_night(2), name_night(1), name_night(0)]
    assert (list_due(moved), list_states(moved)) == ([], [PointState.VERIFIED] * 3)


def test_other_bytes_of_the_same_size_fail_at_the_next_read(catalog: Catalog) -> None:
    path = catalog.get_point(name_night(1)).get_path(ArtifactKind.DATABASE)
    flip_byte(path)
    assert list_due(catalog) == []  # nothing that the file's directory entry shows
    os.utime(path)
    assert list_due(catalog) == [name_night(1)]
    report = read(catalog)
    assert [point.point_id for point in report.wrong] == [name_night(1)]
    assert list_states(catalog) == [PointState.VERIFIED, PointState.FAILED, PointState.VERIFIED]
    assert list_due(catalog) == []


def test_a_file_that_was_put_back_counts_again_after_it_was_read(catalog: Catalog, tmp_path: Path) -> None:
    path = catalog.get_point(name_night(1)).get_path(ArtifactKind.BUCKET)
    shutil.copyfile(path, tmp_path / "good")
    flip_byte(path)
    os.utime(path)
    read(catalog)
    shutil.copyfile(tmp_path / "good", path)
    assert list_due(catalog) == [name_night(1)]
    assert read(catalog).wrong == ()
    assert list_states(catalog) == [PointState.VERIFIED] * 3


def test_a_file_of_another_size_is_damaged_and_not_read(catalog: Catalog) -> None:
    path = catalog.get_point(name_night(1)).get_path(ArtifactKind.DATABASE)
    path.write_bytes(b"")
    assert list_states(catalog)[1] is PointState.DAMAGED
    assert list_due(catalog) == []


@pytest.mark.parametrize("content", [None, b"", b"{"], ids=["lost", "empty", "broken"])
def test_lost_results_are_found_again(content: bytes | None, catalog: Catalog) -> None:
    path = catalog.verification_path(name_night(1))
    path.unlink() if content is None else path.write_bytes(content)
    assert list_due(catalog) == [name_night(1)]
    assert read(catalog).wrong == ()
    assert list_states(catalog) == [PointState.VERIFIED] * 3


def test_a_partial_point_is_not_reread_automatically(catalog: Catalog) -> None:
    add_point(catalog, name_night(3), PointState.PARTIAL)
    assert list_due(catalog) == []


def test_one_point_is_read_whatever_the_budget_and_the_others_later(catalog: Catalog, tmp_path: Path) -> None:
    shutil.copytree(catalog.directory, tmp_path / "moved", copy_function=shutil.copyfile)
    moved = Catalog(tmp_path / "moved")
    first = read(moved, budget_seconds=0)
    assert ([point.point_id for point in first.points], first.due_count) == ([name_night(2)], 2)
    assert [read(moved, budget_seconds=0).due_count for _ in range(3)] == [1, 0, 0]


def test_a_point_removed_while_it_is_read_leaves_nothing_behind(catalog: Catalog) -> None:
    point = catalog.get_point(name_night(1))
    for name in [artifact.path for artifact in point.artifacts] + [
        catalog.manifest_path(point.point_id),
        catalog.verification_path(point.point_id),
    ]:
        name.unlink()
    with pytest.raises(VerificationError, match="was removed while it was being read"):
        verify_point(catalog, point, checked_by="test")
    assert not list(catalog.directory.glob(f"*{point.point_id}*"))


def test_retention_rereads_a_copied_point_before_it_removes_others(catalog: Catalog) -> None:
    """It was read within the day, but not in its present place."""
    now = datetime.now(timezone.utc)
    newest = catalog.get_point(name_night(2))
    verify_point(catalog, newest, checked_by="test")
    for artifact in newest.artifacts:
        os.utime(artifact.path, (1, 1))
    asked: list[RecoveryPointId] = []

    def read_again(point: PointListing) -> tuple[CheckResult, ...]:
        asked.append(point.point_id)
        return check_point(catalog, point, checked_by="test")[0]

    policy = RetentionPolicy(keep_days=1, keep_last=1)
    remove_points(catalog, policy, read_again, now)
    assert asked == [name_night(2)]


def test_an_overview_names_broken_future_and_due_points(catalog: Catalog) -> None:
    now = datetime.now(timezone.utc)
    assert look_over(catalog, now).is_intact
    catalog.get_point(name_night(0)).get_path(ArtifactKind.DATABASE).write_bytes(b"")
    add_point(catalog, name_night(3), PointState.FAILED)
    add_point(catalog, name_night(4), PointState.PARTIAL)
    ahead = RecoveryPointId.from_time(now + timedelta(days=2))
    add_point(catalog, ahead)
    os.utime(catalog.get_point(name_night(1)).get_path(ArtifactKind.BUCKET))
    overview = look_over(catalog, now)
    assert [point.point_id for point in overview.broken] == [name_night(0), name_night(3)]
    assert [point.point_id for point in overview.ahead] == [ahead]
    assert (overview.is_intact, overview.due_count) == (False, 1)
    text = overview.describe_intactness()
    assert f"{name_night(0)} damaged: db_schedgen_{name_night(0)}.sql.gz has 0 bytes" in text
    assert f"{name_night(3)} failed: " in text
    assert f"ahead of the clock: {ahead}; this machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC" in text
    assert text.endswith("1 to be read again")


def test_an_unreadable_point_does_not_prevent_reading_others(catalog: Catalog, tmp_path: Path) -> None:
    """The newest one's results cannot be written: a folder is in their place."""
    shutil.copytree(catalog.directory, tmp_path / "moved", copy_function=shutil.copyfile)
    moved = Catalog(tmp_path / "moved")
    moved.verification_path(name_night(2)).unlink()
    moved.verification_path(name_night(2)).mkdir()
    report = read(moved)
    assert [point.point_id for point in report.points] == [name_night(1), name_night(0)]
    [problem] = report.problems
    assert problem.startswith(f"{name_night(2)}: ")
    # What is left when the budget is used up is due, and the problem is still reported.
    shutil.copytree(catalog.directory, tmp_path / "again", copy_function=shutil.copyfile)
    moved = Catalog(tmp_path / "again")
    moved.verification_path(name_night(2)).unlink()
    moved.verification_path(name_night(2)).mkdir()
    report = read(moved, budget_seconds=0)
    assert (report.points, report.due_count, len(report.problems)) == ((), 2, 1)


@pytest.mark.parametrize("place", ["verification", "manifest"])
def test_results_of_another_point_do_not_apply_to_this_one(catalog: Catalog, place: str) -> None:
    paths = [getattr(catalog, f"{place}_path")(name_night(day)) for day in range(2)]
    before = paths[0].read_bytes()
    paths[1].write_bytes(before)
    assert list_states(catalog)[1] is PointState.DAMAGED
    read(catalog)
    assert paths[0].read_bytes() == before
    assert list_states(catalog)[1] is (PointState.VERIFIED if place == "verification" else PointState.DAMAGED)


@pytest.mark.parametrize("content", [b"", b"{"], ids=["empty", "broken"])
def test_damaged_small_files_of_the_site_stop_nothing(catalog: Catalog, content: bytes) -> None:
    site = catalog.settle_site()
    settle_baseline(catalog, ["gone.pdf"])
    for name in (SITE_NAME, BASELINE_NAME):
        (catalog.directory / name).write_bytes(content)
    assert settle_baseline(catalog, ["gone.pdf"]) == frozenset()  # all is news
    assert catalog.settle_site().site_id != site.site_id  # no manifest of these names its site
    (catalog.directory / SITE_NAME).write_bytes(content)
    point = catalog.list_points()[0]
    assert point.manifest is not None
    path = catalog.manifest_path(point.point_id)
    path.write_bytes(point.manifest.model_copy(update={"site_id": site.site_id}).model_dump_json().encode())
    assert catalog.settle_site().site_id == site.site_id
