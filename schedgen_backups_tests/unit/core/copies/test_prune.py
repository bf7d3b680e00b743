"""Pruning a store: two passes, the store's own clock, locks, and writers that are slow or gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from schedgen_backups.core.copies.layout import COMMIT_NAME, PACK_LIST_NAME, list_copies
from schedgen_backups.core.copies.proof import prove_listing
from schedgen_backups.core.copies.prune import GRACE, UNFINISHED_AGE, Pruner, PruneReport, forget_writer
from schedgen_backups.core.errors import StoreError, VerificationError
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.protocol import StoredObject
from schedgen_backups_tests.support.copies import (
    FIRST_NIGHT,
    KEYS,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.memory_store import MemoryStore

NEWEST_ONLY = RetentionPolicy(keep_days=1, keep_last=1)
EVERYTHING = RetentionPolicy(keep_days=3650, keep_last=1)


class Clock:
    def __init__(self) -> None:
        self.time = FIRST_NIGHT + timedelta(days=20)

    def __call__(self) -> datetime:
        return self.time


class HookedStore(MemoryStore):
    """Calls `before_commit` before a copy is committed."""

    before_commit: Callable[[], object] = staticmethod(lambda: None)

    def put_new(self, key: str, data: bytes) -> None:
        if key.endswith(COMMIT_NAME):
            self.before_commit()
        super().put_new(key, data)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> CopiedSite:
    """Nights 0 and 2 have the same objects, night 1 has others."""
    site = CopiedSite(tmp_path / "backups", HookedStore(now=clock))
    objects = list_objects(40)
    others = {f"other/{key}": data[:200] for key, data in objects.items()}
    make_point(site.catalog, 0, objects)
    make_point(site.catalog, 1, others)
    make_point(site.catalog, 2, objects)
    make_point(site.catalog, 3, others)
    return site


def prune(site: CopiedSite, clock: Clock, policy: RetentionPolicy = NEWEST_ONLY) -> PruneReport:
    clock.time += timedelta(seconds=1)
    return Pruner(site.store, KEYS, policy).prune()


def copy(site: CopiedSite, clock: Clock, night: float) -> None:
    clock.time += timedelta(seconds=1)
    site.copy(night)


def list_packs(site: CopiedSite) -> set[str]:
    return {stored.key.removeprefix(KEYS.packs) for stored in site.store.list(KEYS.packs)}


def list_condemned(site: CopiedSite) -> set[str]:
    names = {stored.key.removeprefix(KEYS.condemned) for stored in site.store.list(KEYS.condemned)}
    return {name for name in names if "-" in name}


def test_packs_go_two_days_after_their_last_copy_and_after_the_next_commit(
    site: CopiedSite, clock: Clock, tmp_path: Path
) -> None:
    copy(site, clock, 0)
    first_packs = list_packs(site)
    copy(site, clock, 1)
    assert prune(site, clock).removed_points == (make_point_id(0),)
    assert first_packs < list_packs(site), "condemned only"
    condemned = list_condemned(site)
    assert len(condemned) > 5
    clock.time += GRACE
    report = prune(site, clock)
    assert report.removed_packs == 0
    assert report.waits_for, "the writer has not committed since"
    copy(site, clock, 3)
    report = prune(site, clock)
    assert report.removed_packs == len(condemned)
    assert not condemned & list_packs(site)
    assert report.freed_bytes > 1000
    site.assert_equal(3, tmp_path / "fetched")
    assert prove_listing(site.store, KEYS).problems == ()


def test_nothing_is_removed_before_two_days(site: CopiedSite, clock: Clock) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    prune(site, clock)
    packs = list_packs(site)
    copy(site, clock, 3)
    clock.time += GRACE - timedelta(minutes=1)
    assert prune(site, clock).removed_packs == 0
    assert packs <= list_packs(site)


def test_a_condemned_pack_is_not_used_again(site: CopiedSite, clock: Clock, tmp_path: Path) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    prune(site, clock)
    copy(site, clock, 2)
    assert list_condemned(site)
    assert not list_condemned(site) & {pack.name for pack in site.open_reader(2).pack_list.packs}
    clock.time += GRACE
    assert prune(site, clock).removed_packs > 0
    site.assert_equal(2, tmp_path / "fetched")


def test_a_writer_that_slept_before_its_commit_loses_nothing(
    site: CopiedSite, clock: Clock, tmp_path: Path
) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    # Without its commit mark, the packs of night 0 are needed by no copy, but not condemned yet.
    site.store.delete(next(each for each in site.store.list(KEYS.file(make_point_id(0), COMMIT_NAME))))

    def sleep() -> None:
        prune(site, clock, EVERYTHING)
        assert list(site.store.list(KEYS.condemned)), "the packs that the writer is about to commit"
        clock.time += 2 * GRACE
        prune(site, clock, EVERYTHING)

    site.store.before_commit = sleep  # type: ignore[attr-defined]
    copy(site, clock, 2)
    site.store.before_commit = lambda: None  # type: ignore[attr-defined]
    assert prove_listing(site.store, KEYS).problems == ()
    clock.time += 2 * GRACE
    prune(site, clock, EVERYTHING)
    assert prove_listing(site.store, KEYS).problems == ()
    site.assert_equal(2, tmp_path / "fetched")


def test_a_writer_that_is_gone_is_waited_for_until_it_is_forgotten(
    site: CopiedSite, clock: Clock, tmp_path: Path
) -> None:
    gone = CopiedSite(tmp_path / "gone", site.store, points=site.catalog.directory)
    copy(gone, clock, 0)
    copy(site, clock, 1)
    prune(site, clock)
    copy(site, clock, 3)
    clock.time += GRACE
    copy(site, clock, 2)
    report = prune(site, clock)
    writer_id = gone.folder.settle_writer_id()
    assert report.removed_packs == 0
    with pytest.raises(StoreError, match="knows no writer"):
        forget_writer(site.store, KEYS, "0" * 32)
    with pytest.raises(StoreError, match="knows no writer"):
        forget_writer(site.store, KEYS, writer_id[:4])
    forget_writer(site.store, KEYS, writer_id)
    prune(site, clock)
    clock.time += GRACE
    copy(site, clock, 3)
    make_point(site.catalog, 4, list_objects(3))
    copy(site, clock, 4)
    assert prune(site, clock).removed_packs > 0


@pytest.mark.parametrize("damage", ["missing", "altered", "unreadable"])
def test_nothing_is_removed_while_a_pack_list_is_not_as_committed(
    site: CopiedSite, clock: Clock, damage: str
) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    key = KEYS.file(make_point_id(1), PACK_LIST_NAME)
    data = site.store.get_range(key, 0, 1 << 20)
    site.store.delete(next(site.store.list(key)))
    if damage != "missing":
        site.store.put_new(key, data.replace(b".age", b".agf") if damage == "altered" else b"{")
    keys = [stored.key for stored in site.store.list("")]
    with pytest.raises(VerificationError, match="nothing is removed"):
        prune(site, clock)
    assert [stored.key for stored in site.store.list("")] == keys


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *product(
            ["packs/", "recipe", "manifest", PACK_LIST_NAME], ["hidden", "overwritten", "removed", "cut"]
        ),
        # A copy without its commit mark does not count.
        *product([COMMIT_NAME], ["hidden", "overwritten", "cut"]),
    ],
)
def test_nothing_is_removed_while_a_file_of_a_copy_is_not_as_sent(
    tmp_path: Path, clock: Clock, family: str, how: str
) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(now=clock, has_versions=True))
    for night in range(3):
        make_point(site.catalog, night, list_objects(3 + night))
        copy(site, clock, night)
    stored = next(each for each in site.store.list("") if family in each.key)
    data = site.store.get_range(stored.key, 0, 1 << 20)
    if how == "hidden":
        site.store.hide(stored.key)  # type: ignore[attr-defined]
    elif how == "overwritten":
        site.store.overwrite(stored.key, data)  # type: ignore[attr-defined]
    else:
        site.store.delete(stored)
        if how == "cut":
            site.store.put_new(stored.key, data[:-1])
    before = {stored.key for stored in site.store.list("")}
    for _pass in range(2):
        with pytest.raises(VerificationError, match="nothing is removed"):
            prune(site, clock)
        clock.time += GRACE
    assert {stored.key for stored in site.store.list("")} == before


def test_a_foreign_file_does_not_keep_old_copies(site: CopiedSite, clock: Clock) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    site.store.put_new(f"{KEYS.site_id}/Thumbs.db", b"x")
    assert prune(site, clock).removed_points == (make_point_id(0),)


def test_what_only_a_lock_keeps_is_said_with_its_date(tmp_path: Path, clock: Clock) -> None:
    locked_for = timedelta(days=30)
    site = CopiedSite(tmp_path / "backups", MemoryStore(now=clock, lock_duration=locked_for))
    for night in range(2):
        make_point(site.catalog, night, list_objects(3))
        copy(site, clock, night)
    report = prune(site, clock)
    assert report.removed_points == ()
    assert len(list_copies(site.store, KEYS)) == 2
    (until,) = report.locked_until.values()
    assert until is not None
    assert abs(until - clock() - locked_for) < timedelta(minutes=1)
    clock.time += locked_for
    assert prune(site, clock).removed_points == (make_point_id(0),)


def test_hourly_copies_are_thinned_out_to_one_a_day(tmp_path: Path, clock: Clock) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(now=clock))
    hours = [0, 1, 2, 24, 25, 30, 31]
    for hour in hours:
        make_point(site.catalog, hour / 24, list_objects(3))
        copy(site, clock, hour / 24)
    clock.time = make_point_id(31 / 24).taken_at
    policy = RetentionPolicy(keep_hours=7, keep_days=3, keep_last=1)
    removed = prune(site, clock, policy).removed_points
    # Of the first day only its last copy stays, of the last seven hours every copy.
    assert removed == tuple(make_point_id(hour / 24) for hour in (0, 1, 24))


def test_a_pinned_copy_is_kept(site: CopiedSite, clock: Clock) -> None:
    copy(site, clock, 0)
    copy(site, clock, 1)
    report = Pruner(site.store, KEYS, NEWEST_ONLY).prune(pinned={make_point_id(0): "before the move"})
    assert report.removed_points == ()


def test_pruning_leaves_nothing_that_raises_an_alarm(tmp_path: Path, clock: Clock) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(now=clock, has_versions=True))
    for night in range(3):
        make_point(site.catalog, night, list_objects(3 + night))
        copy(site, clock, night)
        prune(site, clock)
        clock.time += 2 * GRACE
    assert prove_listing(site.store, KEYS).problems == ()
    assert all(not stored.is_marker and stored.is_newest for stored in site.store.list(""))


class SweptMemoryStore(MemoryStore):
    """Remembers until when unfinished files were to be removed."""

    swept: tuple[str, datetime] | None = None

    def remove_unfinished(self, prefix: str, before: datetime) -> tuple[StoredObject, ...]:
        self.swept = (prefix, before)
        return (StoredObject(f"{prefix}packs/.x", 7, before),)


def test_unfinished_files_are_removed_by_the_clock_of_the_store(tmp_path: Path, clock: Clock) -> None:
    store = SweptMemoryStore(now=clock)
    site = CopiedSite(tmp_path / "backups", store)
    make_point(site.catalog, 0, list_objects(4))
    copy(site, clock, 0)
    assert store.swept is None, "copying deletes nothing"
    report = prune(site, clock)
    assert store.swept == (f"{KEYS.site_id}/", clock.time - UNFINISHED_AGE)
    assert (report.unfinished_count, report.freed_bytes) == (1, 7)


def test_pruning_a_folder_removes_what_a_killed_upload_left_a_day_ago(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "nas")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store)
    make_point(site.catalog, 0, list_objects(4))
    packs = tmp_path / "nas" / KEYS.packs
    packs.mkdir(parents=True)
    old, young = (packs / f".20261001_020000-0009.{letter * 16}.tmp" for letter in "ab")
    for path in (old, young):
        path.write_bytes(b"unfinished")
    seconds = old.stat().st_mtime - UNFINISHED_AGE.total_seconds() - 60
    os.utime(old, (seconds, seconds))
    site.copy(0)
    assert old.exists()
    assert prove_listing(store, KEYS).problems == ()
    assert Pruner(store, KEYS, EVERYTHING).prune().unfinished_count == 1
    assert (old.exists(), young.exists()) == (False, True)
    site.assert_equal(0, tmp_path / "fetched")
