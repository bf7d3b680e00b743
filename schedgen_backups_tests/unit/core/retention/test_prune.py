"""Pruning removes exactly the planned points' files, and a crash at any moment leaves a consistent directory.

Points are small real ones. What is planned is tested in `test_plan`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.pins import Pin, read_pin, remove_pin, write_pin
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.errors import DiskFullError, StorageError, VerificationError
from schedgen_backups.core.formats.recipe import Recipe, Segment, Segments, StatedPack, write_recipe
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_writer import Piece
from schedgen_backups.core.retention.plan import RetentionPlan, RetentionPolicy
from schedgen_backups.core.retention.prune import plan_pruning, remove_points, remove_unused_packs
from schedgen_backups_tests.support.artifacts import TAKEN_AT, list_files, make_result
from schedgen_backups_tests.support.histories import add_point, name_night, note_times
from schedgen_backups_tests.support.small_disk import mount_small_disk

POLICY = RetentionPolicy(keep_days=2, keep_last=2)
NOW = TAKEN_AT + timedelta(days=6, hours=1)
STATES = (
    PointState.VERIFIED,
    PointState.PARTIAL,
    PointState.FAILED,
    PointState.VERIFIED,
    PointState.VERIFIED,
    PointState.UNVERIFIED,
)
"""States of nights 0 to 5. With POLICY at NOW the first three are removed.

The fourth and fifth stay as the last two verified ones."""
DOOMED = 3


class CrashingCatalog(Catalog):
    """Removes this many files and then fails to remove another."""

    def __init__(self, directory: Path, removals: int) -> None:
        super().__init__(directory)
        self._left = removals

    def remove_file(self, path: Path) -> None:
        if self._left == 0:
            raise StorageError(f"{path.name} cannot be removed")
        self._left -= 1
        super().remove_file(path)


def fill(directory: Path, states: Iterable[PointState] = STATES) -> tuple[Catalog, list[tuple[str, ...]]]:
    """Fill a catalog with a point a night; return it and the names of each point's files."""
    catalog = Catalog(directory)
    catalog.prepare()
    return catalog, [add_point(catalog, name_night(day), state) for day, state in enumerate(states)]


def make_pin(day: int, *, expires_at: datetime | None = None) -> Pin:
    return Pin(
        point_id=name_night(day).text,
        reason="before 2.0",
        pinned_by="me",
        pinned_at=TAKEN_AT,
        expires_at=expires_at,
    )


def reader(
    now: datetime, outcomes: Iterable[CheckStatus] = ()
) -> Callable[[PointListing], tuple[CheckResult, ...]]:
    """Returns the result of reading a point's files: passed, or these outcomes in sequence."""
    coming = iter(outcomes)

    def read_again(point: PointListing) -> tuple[CheckResult, ...]:
        status = next(coming, CheckStatus.PASSED)
        digests = (
            {artifact.kind: artifact.sha256 for artifact in point.manifest.artifacts}
            if point.manifest
            else {}
        )
        checks = (Check.DUMP_IS_STORED, Check.ARCHIVE_IS_STORED)
        results = [make_result(check, status, checked_at=now, artifacts=digests) for check in checks]
        return tuple(note_times(point, results))

    return read_again


def list_removed(plan: RetentionPlan) -> list[RecoveryPointId]:
    return [decision.candidate.point_id for decision in plan.removed]


def test_exactly_the_files_of_the_planned_points_are_removed(tmp_path: Path) -> None:
    catalog, files = fill(tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    report = remove_points(catalog, POLICY, reader(NOW), NOW)
    doomed = {name for names in files[:DOOMED] for name in names}
    assert list_files(tmp_path) == sorted(name for names in files[DOOMED:] for name in names)
    assert set(report.removed_files) == doomed
    assert report.freed_bytes == sum(sizes[name] for name in doomed)
    assert list_removed(report.plan) == [name_night(day) for day in range(DOOMED)]


def test_a_dry_run_changes_nothing_and_matches_what_is_done(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    before = list_files(tmp_path)
    plan = plan_pruning(catalog, POLICY, NOW)
    assert list_files(tmp_path) == before
    assert remove_points(catalog, POLICY, reader(NOW), NOW).plan == plan


def test_pruning_twice_removes_nothing_more(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    remove_points(catalog, POLICY, reader(NOW), NOW)
    assert remove_points(catalog, POLICY, reader(NOW), NOW).removed_files == ()


def test_files_of_the_old_script_and_unknown_ones_stay(tmp_path: Path) -> None:
    """One of the script's files has the second of a deleted point: it also ran at two o'clock."""
    catalog, files = fill(tmp_path)
    foreign = {
        f"db_other_{name_night(0)}.sql.gz": b"\x1f\x8b of the script",
        f"db_other_{name_night(1)}.sql.gz": b"\x1f\x8b of the script",
        "db_schedgen_20200101_020000.sql.gz": b"\x1f\x8b of the script",
        "minio_schedgen-pdfs_20200101_020000.tar.gz": b"",
        "notes.txt": b"mine",
        f"manifest_{name_night(0)} (copy).json": b"{}",
        f"db_schedgen_{name_night(0)}.sql.gz.bak": b"mine",
        f"pin_{name_night(0)}.json~": b"mine",
    }
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
    remove_points(catalog, POLICY, reader(NOW), NOW)
    assert list_files(tmp_path) == sorted([*foreign, *(name for names in files[DOOMED:] for name in names)])
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign


@pytest.mark.takes_seconds
def test_a_crash_between_any_two_removals_is_finished_by_the_next_prune(tmp_path: Path) -> None:
    doomed = sum(len(names) for names in fill(tmp_path / "count")[1][:DOOMED])
    assert doomed == 10
    for removals in range(doomed):
        directory = tmp_path / f"crash-{removals}"
        _catalog, files = fill(directory)
        with pytest.raises(StorageError, match="cannot be removed"):
            remove_points(CrashingCatalog(directory, removals), POLICY, reader(NOW), NOW)
        assert sum(len(names) for names in files) - len(list_files(directory)) == removals
        catalog = Catalog(directory)
        for point in catalog.list_points():
            day = (point.point_id.taken_at - TAKEN_AT).days
            present = [name for name in files[day] if (directory / name).exists()]
            assert point.state is not PointState.VERIFIED or present == list(files[day])
            if day >= DOOMED:
                assert (point.state, present) == (STATES[day], list(files[day]))
        remove_points(catalog, POLICY, reader(NOW), NOW)
        assert list_files(directory) == sorted(name for names in files[DOOMED:] for name in names)


def test_a_half_removed_point_is_only_a_partial_point(tmp_path: Path) -> None:
    """The manifest is the first file to be removed, so that the rest is a partial point."""
    catalog, _files = fill(tmp_path, [PointState.VERIFIED] * 5)
    with pytest.raises(StorageError):
        remove_points(CrashingCatalog(tmp_path, 1), POLICY, reader(NOW), NOW)
    assert [point.state for point in catalog.list_points()] == [
        PointState.PARTIAL,
        *[PointState.VERIFIED] * 4,
    ]


def test_a_directory_without_a_verified_point_loses_nothing(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path, [PointState.UNVERIFIED, PointState.PARTIAL, PointState.FAILED])
    before = list_files(tmp_path)
    report = remove_points(catalog, POLICY, reader(NOW + timedelta(days=1000)), NOW + timedelta(days=1000))
    assert report.plan.refusal == "no point is verified"
    assert (report.removed_files, report.freed_bytes, list_files(tmp_path)) == ((), 0, before)


def test_a_clock_that_was_set_back_behind_all_points_loses_nothing(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    before = list_files(tmp_path)
    report = remove_points(
        catalog, POLICY, reader(TAKEN_AT - timedelta(days=3)), TAKEN_AT - timedelta(days=3)
    )
    assert report.plan.refusal == "no point is verified"
    assert list_files(tmp_path) == before


def test_a_clock_that_was_set_back_removes_no_more_than_a_correct_one(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    right = set(list_removed(plan_pruning(catalog, POLICY, NOW)))
    for hours in range(0, 24 * 12, 7):
        assert set(list_removed(plan_pruning(catalog, POLICY, NOW - timedelta(hours=hours)))) <= right


def test_a_pin_is_kept_and_read_back(tmp_path: Path) -> None:
    catalog, files = fill(tmp_path)
    pin = make_pin(0)
    write_pin(catalog, pin)
    assert read_pin(catalog, name_night(0)) == pin
    assert read_pin(catalog, name_night(1)) is None
    path = tmp_path / f"pin_{name_night(0)}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    remove_points(catalog, POLICY, reader(NOW), NOW)
    assert list_files(tmp_path) == sorted(
        [path.name, *files[0], *(name for names in files[DOOMED:] for name in names)]
    )
    assert catalog.get_point(name_night(0)).state is PointState.VERIFIED


def test_a_rewritten_pin_has_its_newest_values(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    write_pin(catalog, make_pin(0))
    longer = make_pin(0, expires_at=NOW)
    write_pin(catalog, longer)
    assert read_pin(catalog, name_night(0)) == longer


def test_a_removed_pin_protects_no_longer(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    write_pin(catalog, make_pin(0))
    assert name_night(0) not in list_removed(plan_pruning(catalog, POLICY, NOW))
    assert remove_pin(catalog, name_night(0)) is True
    assert remove_pin(catalog, name_night(0)) is False
    assert name_night(0) in list_removed(plan_pruning(catalog, POLICY, NOW))


def test_an_expired_pin_does_not_protect_and_is_removed_with_its_point(tmp_path: Path) -> None:
    catalog, files = fill(tmp_path)
    write_pin(catalog, make_pin(0, expires_at=NOW))
    write_pin(catalog, make_pin(2, expires_at=NOW + timedelta(seconds=1)))
    report = remove_points(catalog, POLICY, reader(NOW), NOW)
    assert list_removed(report.plan) == [name_night(0), name_night(1)]
    assert f"pin_{name_night(0)}.json" in report.removed_files
    left = [*files[2], f"pin_{name_night(2)}.json", *(name for names in files[DOOMED:] for name in names)]
    assert list_files(tmp_path) == sorted(left)


@pytest.mark.parametrize("damaged", [b"", b'{"point_id": ', b"\xff\xfe", b'{"reason": "x"}'])
def test_a_point_with_an_unreadable_pin_stays_and_stops_nothing_else(tmp_path: Path, damaged: bytes) -> None:
    """The pin may protect it; the operator decides."""
    catalog, files = fill(tmp_path)
    pin = tmp_path / f"pin_{name_night(0)}.json"
    pin.write_bytes(damaged)
    report = remove_points(catalog, POLICY, reader(NOW), NOW)
    assert list_removed(report.plan) == [name_night(day) for day in range(1, DOOMED)]
    assert list_files(tmp_path) == sorted(
        [pin.name, *files[0], *(name for names in files[DOOMED:] for name in names)]
    )


@pytest.mark.parametrize("kind", ["manifest", "verification", "directory", "artifact"])
def test_a_damaged_point_is_neither_counted_nor_removed_and_stops_nothing_else(
    tmp_path: Path, kind: str
) -> None:
    catalog, files = fill(tmp_path)
    damage_point(tmp_path, files[0], kind)
    report = remove_points(catalog, POLICY, reader(NOW), NOW)
    assert list_removed(report.plan) == [name_night(day) for day in range(1, DOOMED)]
    assert catalog.get_point(name_night(0)).state is PointState.DAMAGED
    assert set(files[0]) <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("kind", ["manifest", "verification", "directory", "artifact"])
def test_a_damaged_newest_point_never_costs_the_verified_one_before(tmp_path: Path, kind: str) -> None:
    catalog, files = fill(tmp_path, [PointState.VERIFIED] * 3)
    damage_point(tmp_path, files[2], kind)
    policy = replace(POLICY, keep_days=1, keep_last=1)
    report = remove_points(catalog, policy, reader(NOW + timedelta(days=100)), NOW + timedelta(days=100))
    assert list_removed(report.plan) == [name_night(0)]


def damage_point(directory: Path, names: tuple[str, ...], kind: str) -> None:
    def find(prefix: str) -> Path:
        return directory / next(name for name in names if name.startswith(prefix))

    if kind == "artifact":
        find("minio_").write_bytes(b"")
    elif kind == "directory":
        find("manifest_").unlink()
        find("manifest_").mkdir()
    else:
        find(f"{kind}_").write_bytes(b"{")


def test_the_newest_verified_point_is_reread_before_others_are_removed(tmp_path: Path) -> None:
    """If it is damaged, it no longer counts, and the previous one is read.

    Retention does not rely on records.
    """
    catalog, files = fill(tmp_path, [PointState.VERIFIED] * 6)
    policy = replace(POLICY, keep_days=1, keep_last=1)
    later = NOW + timedelta(days=100)
    report = remove_points(catalog, policy, reader(later, [CheckStatus.FAILED]), later)
    assert [point.state for point in catalog.list_points()] == [PointState.VERIFIED, PointState.FAILED]
    assert {decision.candidate.point_id for decision in report.plan.kept} == {name_night(4), name_night(5)}
    assert set(files[4]) | set(files[5]) <= {path.name for path in tmp_path.iterdir()}


def test_nothing_is_read_if_nothing_is_removed(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path, [PointState.VERIFIED] * 2)
    read: list[PointListing] = []

    def read_again(point: PointListing) -> tuple[CheckResult, ...]:
        read.append(point)
        return ()

    assert remove_points(catalog, POLICY, read_again, NOW).plan.removed == ()
    assert read == []


def test_a_read_without_a_result_removes_nothing(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    before = list_files(tmp_path)
    with pytest.raises(VerificationError, match="no result was recorded"):
        remove_points(catalog, POLICY, lambda _point: (), NOW)
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(
    ("age", "is_read"), [(timedelta(hours=24), True), (timedelta(hours=24, seconds=-1), False)]
)
def test_a_point_is_reread_a_day_after_the_last_time(tmp_path: Path, age: timedelta, is_read: bool) -> None:
    catalog, _files = fill(tmp_path)
    newest = catalog.get_point(name_night(4))
    catalog.record_results(newest.point_id, reader(NOW)(newest))
    read: list[RecoveryPointId] = []

    def read_again(point: PointListing) -> tuple[CheckResult, ...]:
        read.append(point.point_id)
        return reader(NOW + age)(point)

    assert remove_points(catalog, POLICY, read_again, NOW + age).removed_files
    assert read == ([name_night(4)] if is_read else [])


def test_without_a_given_time_it_is_now(tmp_path: Path) -> None:
    """The points are of 2026, so only being the last verified ones protects them today."""
    catalog, _files = fill(tmp_path)
    report = remove_points(catalog, POLICY, reader(datetime.now(timezone.utc)))
    assert {decision.candidate.point_id for decision in report.plan.kept} >= {name_night(3), name_night(4)}


def test_a_committed_file_that_can_no_longer_be_parsed_is_removed_with_its_point(tmp_path: Path) -> None:
    """Its manifest names it; left behind, it would belong to no point."""
    catalog, files = fill(tmp_path)
    dump = tmp_path / files[2][0]
    dump.write_bytes(bytes(dump.stat().st_size))
    assert catalog.get_point(name_night(2)).state is PointState.FAILED
    remove_points(catalog, POLICY, reader(NOW), NOW)
    assert not dump.exists()


def test_the_last_coherent_point_stays_beside_newer_ones_that_lack_objects(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path, [PointState.VERIFIED] * 4)
    for night in (2, 3):
        catalog.record_results(
            name_night(night), (make_result(Check.REFERENCES_RESOLVE, CheckStatus.INCOMPLETE),)
        )
    plan = plan_pruning(catalog, replace(POLICY, keep_last=1, keep_days=0), NOW)
    assert [decision.candidate.point_id for decision in plan.kept] == [name_night(1), name_night(3)]


def test_a_point_with_an_unreadable_pin_is_planned_with_its_state(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path)
    for night in range(len(STATES)):
        catalog.pin_path(name_night(night)).write_bytes(b"{")
    assert [decision.candidate.state for decision in plan_pruning(catalog, POLICY, NOW).decisions] == list(
        STATES
    )


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a disk of a megabyte; `fill_up` fills it."""
    with mount_small_disk(disk := tmp_path / "disk", "1m"):
        yield disk


def fill_up(disk: Path) -> None:
    with (disk / "unmanaged").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(1))


def test_a_full_disk_is_freed_although_the_result_cannot_be_recorded_first(full_disk: Path) -> None:
    catalog, files = fill(full_disk)
    fill_up(full_disk)
    report = remove_points(catalog, POLICY, reader(NOW), NOW)
    assert set(report.removed_files) >= set(files[0])
    recorded = catalog.read_verification(name_night(4)).result(Check.DUMP_IS_STORED)
    assert recorded is not None
    assert recorded.checked_at == NOW


def test_a_full_disk_loses_no_point_to_a_newest_one_that_is_damaged(full_disk: Path) -> None:
    catalog, _files = fill(full_disk)
    fill_up(full_disk)
    before = list_files(full_disk)
    with pytest.raises(DiskFullError):
        remove_points(catalog, POLICY, reader(NOW, [CheckStatus.FAILED]), NOW)
    assert list_files(full_disk) == before


def test_a_full_disk_is_freed_of_packs_although_their_index_cannot_be_written(full_disk: Path) -> None:
    catalog, _files = fill(full_disk)
    packs = LocalPacks(full_disk)
    packs.prepare()
    point_id = name_night(0)
    with packs.open_index() as index, packs.open_writer(index, point_id, pack_bytes=9000) as writer:
        writer.place(Piece(bytes(8000)))
        writer.finish_artifact()
    [name] = packs.find_sizes()
    fill_up(full_disk)
    removed = remove_unused_packs(catalog)
    assert (removed.names, removed.freed_bytes, packs.find_sizes()) == ((f"packs/{name}",), 8000, {})
    (full_disk / "other").write_bytes(bytes(1))


def test_packs_that_cannot_be_listed_harm_only_the_points_that_need_them(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path / "points")
    states = [point.state for point in catalog.list_points()]
    (catalog.directory / "packs").write_bytes(b"a file")
    assert [point.state for point in catalog.list_points()] == states
    assert remove_unused_packs(catalog).names == ()


def test_no_pack_is_removed_while_the_directory_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, _files = fill(tmp_path / "points")
    LocalPacks(catalog.directory).prepare()
    pack = catalog.directory / "packs" / "20200101_020000-0000"
    pack.write_bytes(b"needed")

    def refuse(_path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as context:
        context.setattr(os, "listdir", refuse)
        with pytest.raises(StorageError):
            remove_unused_packs(catalog)
    assert pack.exists()


def test_the_recipe_of_an_unfinished_point_is_ours_although_its_packs_are_gone(tmp_path: Path) -> None:
    catalog, _files = fill(tmp_path / "points")
    segments = Segments([Segment("20200101_020000-0000", 0, 5)])
    stated = (StatedPack("20200101_020000-0000", 5, "ab" * 32),)
    name = "db_schedgen_20200101_020000.sql.gz.recipe.gz"
    (catalog.directory / name).write_bytes(write_recipe(Recipe(segments, stated_packs=stated)))
    assert [path.name for path in catalog.list_unmanaged()] == []
    assert catalog.list_points()[0].state is PointState.PARTIAL
