"""Copying points: what is uploaded, what is used again, and what is read back."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from schedgen_backups.core.copies.layout import COMMIT_NAME, PACK_LIST_NAME, list_copies
from schedgen_backups.core.copies.local_folder import LocalFolder
from schedgen_backups.core.copies.proof import prove_listing
from schedgen_backups.core.errors import KeyExistsError, StoreError, StoreUnreachableError, VerificationError
from schedgen_backups.core.formats.packed_file import PACKS_NAME, open_packed_file
from schedgen_backups.core.formats.recipe import Recipe, Segment, Segments, read_recipe, write_recipe
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import (
    AgeEncryptor,
    Decryptor,
    Encryptor,
    PlainEncryptor,
    make_key_pair,
)
from schedgen_backups.core.settings import Layout
from schedgen_backups_tests.support.artifacts import TableText, damage
from schedgen_backups_tests.support.copies import (
    KEY_PAIR,
    KEYS,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.memory_store import MemoryStore

ROWS = (TableText("jobs", tuple(b"%d\tsome text of a row" % number for number in range(2000))),)


@pytest.fixture
def site(tmp_path: Path) -> CopiedSite:
    return CopiedSite(tmp_path / "backups", MemoryStore())


def test_a_copied_point_is_read_back_byte_for_byte(site: CopiedSite, tmp_path: Path) -> None:
    make_point(site.catalog, 0, list_objects(40), ROWS)
    report = site.copy(0)
    assert report.is_new
    assert list(list_copies(site.store, KEYS)) == [make_point_id(0)]
    assert prove_listing(site.store, KEYS).problems == ()
    site.assert_equal(0, tmp_path / "fetched")


def test_an_unencrypted_copy_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(), encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(40), ROWS)
    site.copy(0)
    site.assert_equal(0, tmp_path / "fetched")


def test_an_object_larger_than_a_pack_is_read_back(site: CopiedSite, tmp_path: Path) -> None:
    make_point(site.catalog, 0, {"large": list_objects(1, size_bytes=9 << 20)["pdf/0000.pdf"]})
    report = site.copy(0)
    assert len(report.new_packs) > 4, "at least three for the object"
    site.assert_equal(0, tmp_path / "fetched")


def test_a_second_night_uploads_what_changed(site: CopiedSite, tmp_path: Path, layout: Layout) -> None:
    site.pack_bytes = 100_000
    objects = list_objects(200, size_bytes=5000)
    make_point(site.catalog, 0, objects, ROWS)
    first = site.copy(0)
    make_point(site.catalog, 1, {**objects, "pdf/0007.pdf": b"new" * 1000}, ROWS)
    second = site.copy(1)
    assert first.uploaded_bytes > 1_000_000
    # In packs, two recipes and the list name some 200 small ones, with digests.
    assert second.uploaded_bytes < (50_000 if layout is Layout.FILES else 100_000)
    assert second.reused_bytes > 990_000
    site.assert_equal(0, tmp_path / "first")
    site.assert_equal(1, tmp_path / "second")


def test_a_point_is_copied_once(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(4))
    assert site.copy(0).is_new
    keys = [stored.key for stored in site.store.list("")]
    assert not site.copy(0).is_new
    assert [stored.key for stored in site.store.list("")] == keys


def test_a_point_that_is_not_verified_is_not_copied(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(4))
    site.catalog.verification_path(make_point_id(0)).unlink()
    with pytest.raises(VerificationError, match="it is unverified"):
        site.copy(0)
    assert list(site.store.list("")) == []


def test_a_file_that_changed_since_its_verification_is_not_committed(
    site: CopiedSite, layout: Layout
) -> None:
    point = make_point(site.catalog, 0, list_objects(4, size_bytes=5000))
    path = point.get_path(ArtifactKind.BUCKET)
    if layout is Layout.PACKS:
        path = site.catalog.directory / PACKS_NAME / open_packed_file(path).recipe.packs[0]
    path.write_bytes(damage(path.read_bytes(), 8 * 3000))
    with pytest.raises(VerificationError):
        site.copy(0)
    assert not list_copies(site.store, KEYS)


class KilledStore(MemoryStore):
    """Fails for good from the given put on, before or after the bytes have arrived."""

    def __init__(self, *, arrived: bool) -> None:
        super().__init__()
        self.puts_left = 10**9
        self._arrived = arrived
        self._count_lock = threading.Lock()

    def put_new(self, key: str, data: bytes) -> None:
        with self._count_lock:
            self.puts_left -= 1
            is_dead = self.puts_left < 0
            is_last = self.puts_left == -1
        if is_dead and not (is_last and self._arrived):
            raise StoreUnreachableError("the connection was cut")
        super().put_new(key, data)
        if is_dead:
            raise StoreUnreachableError("the connection was cut after the last byte")


@pytest.mark.parametrize("arrived", [False, True])
def test_a_copy_cut_at_any_put_goes_on_and_uploads_little_twice(tmp_path: Path, arrived: bool) -> None:
    whole = CopiedSite(tmp_path / "whole", MemoryStore())
    make_point(whole.catalog, 0, list_objects(30), ROWS)
    whole.copy(0)
    put_count = len(list(whole.store.list("")))
    assert put_count > 12
    for puts in range(put_count):
        store = KilledStore(arrived=arrived)
        site = CopiedSite(tmp_path / f"cut{puts}", store)
        make_point(site.catalog, 0, list_objects(30), ROWS)
        store.puts_left = puts
        with pytest.raises(StoreUnreachableError):
            site.copy(0)
        # Whatever is committed is whole, at every moment.
        assert prove_listing(store, KEYS).problems == ()
        store.puts_left = 10**9
        site.copy(0)
        assert list(list_copies(store, KEYS)) == [make_point_id(0)]
        assert prove_listing(store, KEYS).problems == ()
        assert len(list(store.list(""))) <= put_count + 4, "the packs that were on their way"
        site.assert_equal(0, tmp_path / f"fetched{puts}")


def test_without_the_local_index_it_is_made_again_from_the_recipes(site: CopiedSite, tmp_path: Path) -> None:
    objects = list_objects(100, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.folder.index_path.unlink()
    make_point(site.catalog, 1, objects, ROWS)
    assert site.copy(1).uploaded_bytes < 40_000
    site.assert_equal(1, tmp_path / "fetched")


def test_a_damaged_local_index_is_made_again(site: CopiedSite, tmp_path: Path) -> None:
    objects = list_objects(100, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.folder.index_path.write_bytes(b"SQLite format 3\0 but not really" * 100)
    make_point(site.catalog, 1, objects, ROWS)
    assert site.copy(1).uploaded_bytes < 40_000
    site.assert_equal(1, tmp_path / "fetched")


@pytest.mark.parametrize("name", ["packs.json", "recipe"])
def test_damaged_local_files_cost_an_upload_and_not_the_copy(
    site: CopiedSite, tmp_path: Path, name: str
) -> None:
    objects = list_objects(60, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.folder.index_path.unlink()
    for path in (site.folder.path / make_point_id(0).text).glob(f"*{name}*"):
        path.write_bytes(b"damaged")
    make_point(site.catalog, 1, objects, ROWS)
    assert site.copy(1).is_new
    site.assert_equal(1, tmp_path / "fetched")


def test_a_recipe_of_another_file_is_not_used(site: CopiedSite, tmp_path: Path, layout: Layout) -> None:
    objects = list_objects(60, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.folder.index_path.unlink()
    for name, data in site.folder.list_recipes(make_point_id(0)):
        segments = read_recipe(name, data).segments
        other = Recipe(segments, "0" * 64)
        if layout is Layout.PACKS:
            other = Recipe(Segments([*segments, Segment(segments.packs[0], 0, 1)]))
        site.folder.write_plain(make_point_id(0), name, write_recipe(other))
    make_point(site.catalog, 1, objects, ROWS)
    assert site.copy(1).uploaded_bytes > 120_000
    site.assert_equal(1, tmp_path / "fetched")


@pytest.mark.parametrize(
    "change", ["start = start + 1", "length = length - 1", "pack = (SELECT max(name) FROM packs)"]
)
def test_a_place_that_changed_in_the_index_costs_an_upload_and_not_the_copy(
    site: CopiedSite, tmp_path: Path, change: str
) -> None:
    objects = list_objects(60, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    with closing(sqlite3.connect(site.folder.index_path)) as index, index:
        index.execute(f"UPDATE pieces SET {change}")
    make_point(site.catalog, 1, {**objects, "new": b"new"}, ROWS)
    assert site.copy(1).is_new
    site.assert_equal(1, tmp_path / "fetched")


def test_with_everything_local_lost_it_is_uploaded_once_more(site: CopiedSite, tmp_path: Path) -> None:
    objects = list_objects(100, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    for path in sorted(site.folder.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    make_point(site.catalog, 1, objects, ROWS)
    assert site.copy(1).uploaded_bytes > 200_000
    site.assert_equal(0, tmp_path / "first")
    site.assert_equal(1, tmp_path / "second")


def test_a_pack_that_somebody_removed_is_uploaded_again(site: CopiedSite, tmp_path: Path) -> None:
    objects = list_objects(60)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.store.delete(next(site.store.list(KEYS.packs)))
    make_point(site.catalog, 1, objects, ROWS)
    assert prove_listing(site.store, KEYS).problems != ()
    site.copy(1)
    site.assert_equal(1, tmp_path / "fetched")


def test_a_pack_that_somebody_shortened_is_uploaded_again(site: CopiedSite, tmp_path: Path) -> None:
    make_point(site.catalog, 0, list_objects(60), ROWS)
    site.copy(0)
    stored = next(site.store.list(KEYS.packs))
    data = site.store.get_range(stored.key, 0, stored.size_bytes - 1)
    site.store.delete(stored)
    site.store.put_new(stored.key, data)
    make_point(site.catalog, 1, list_objects(60), ROWS)
    site.copy(1)
    site.assert_equal(1, tmp_path / "fetched")


def test_when_two_stores_change_places_no_copy_relies_on_the_packs_of_the_other(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    others = LocalFolder(tmp_path / "backups", "other")
    stores = [site.store, MemoryStore()]
    make_point(site.catalog, 0, list_objects(60), ROWS)
    make_point(site.catalog, 1, list_objects(60), ROWS)
    for folder, store in zip((site.folder, others), stores, strict=True):
        site.folder, site.store = folder, store
        site.copy(0)
    names = [[each.key for each in store.list(KEYS.packs)] for store in stores]
    assert names[0] == names[1]
    # The size of an age file is random: of many packs, some have the same one.
    sizes = {stored.key: stored.size_bytes for stored in stores[0].list(KEYS.packs)}
    with closing(sqlite3.connect(others.index_path)) as database, database:
        for key, size_bytes in sizes.items():
            name = key.removeprefix(KEYS.packs)
            database.execute("UPDATE packs SET size_bytes = ? WHERE name = ?", (size_bytes, name))
    site.store = stores[0]
    site.copy(1)
    site.assert_equal(1, tmp_path / "fetched")


def test_a_sparse_pack_is_left_behind(site: CopiedSite, layout: Layout) -> None:
    site.pack_bytes = 1 << 20
    objects = list_objects(60, size_bytes=3000)
    make_point(site.catalog, 0, objects)
    site.copy(0)
    rest = dict(list(objects.items())[:20])
    make_point(site.catalog, 1, rest)
    site.copy(1)
    make_point(site.catalog, 2, rest)
    report = site.copy(2)
    assert report.pack_list is not None
    old = {stored.name for stored in report.pack_list.packs if stored.name.startswith(make_point_id(0).text)}
    if layout is Layout.PACKS:
        # The packs of the backup directory are handed on as they are, and it left the sparse one behind.
        assert report.uploaded_bytes < 20 * 3000
        return
    used_by_first = {stored.name for stored in site.open_reader(0).pack_list.packs}
    assert len(old) < len(used_by_first)
    assert report.uploaded_bytes > 20 * 3000, "the third of the pack that is still needed"


@pytest.mark.parametrize("is_index_lost", [False, True])
@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (0, 1, 2)])
def test_a_pack_of_one_piece_is_not_taken_for_a_piece_of_another_pack(
    site: CopiedSite, tmp_path: Path, order: tuple[int, ...], is_index_lost: bool
) -> None:
    site.pack_bytes = 1_000_000
    objects = list_objects(5, size_bytes=3000)
    changed = {**objects, "pdf/0003.pdf": b"changed" * 100}
    make_point(site.catalog, 0, objects, layout=Layout.PACKS)
    make_point(site.catalog, 1, changed, layout=Layout.PACKS)
    make_point(site.catalog, 2, changed, layout=Layout.FILES)
    for night in order:
        if is_index_lost:
            site.folder.index_path.unlink(missing_ok=True)
        site.copy(night)
    for night in order:
        site.assert_equal(night, tmp_path / f"fetched-{night}")


def test_an_unfinished_copy_in_between_costs_no_upload(site: CopiedSite) -> None:
    site.pack_bytes = 100_000
    objects = list_objects(100, size_bytes=2000)
    make_point(site.catalog, 0, objects, ROWS)
    site.copy(0)
    site.folder.write_staged(make_point_id(1), "manifest.json", b"of a killed copy")
    make_point(site.catalog, 2, objects, ROWS)
    assert site.copy(2).uploaded_bytes < 40_000


def delete_file(site: CopiedSite, night: int, start: str) -> str:
    """Delete the file of a copy whose name starts like that; return its key."""
    # Of an artifact in packs, the recipe with the names of the store comes last.
    stored = [*site.store.list(KEYS.file(make_point_id(night), start))][-1]
    site.store.delete(stored)
    return stored.key


def snapshot(site: CopiedSite) -> dict[str, bytes]:
    assert isinstance(site.store, MemoryStore)
    return site.store.snapshot()


def test_a_copy_whose_commit_mark_was_deleted_is_committed_again(site: CopiedSite, tmp_path: Path) -> None:
    make_point(site.catalog, 0, list_objects(40), ROWS)
    site.copy(0)
    before = snapshot(site)
    mark = delete_file(site, 0, COMMIT_NAME)
    report = site.copy(0)
    assert (report.is_new, report.uploaded_bytes, report.new_packs) == (True, 0, ())
    assert report.pack_list == site.open_reader(0).pack_list
    after = snapshot(site)
    assert before.keys() == after.keys()
    assert {key for key in after if after[key] != before[key]} <= {mark}
    assert prove_listing(site.store, KEYS).problems == ()
    site.assert_equal(0, tmp_path / "fetched")
    assert not site.copy(0).is_new


def test_a_deleted_pack_list_is_put_back_with_the_commit_mark(site: CopiedSite, tmp_path: Path) -> None:
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    before = snapshot(site)
    delete_file(site, 0, COMMIT_NAME)
    key = delete_file(site, 0, PACK_LIST_NAME)
    site.copy(0)
    assert snapshot(site)[key] == before[key]
    site.assert_equal(0, tmp_path / "fetched")


@pytest.mark.parametrize("family", ["manifest", "db_", PACK_LIST_NAME])
def test_a_copy_with_another_file_is_not_committed_again_and_nothing_is_uploaded(
    site: CopiedSite, family: str
) -> None:
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    sent = snapshot(site)
    key = delete_file(site, 0, family)
    site.store.put_new(key, damage(sent[key], 8 * 100))
    delete_file(site, 0, COMMIT_NAME)
    before = snapshot(site)
    with pytest.raises(StoreError, match="unfinished copy") as refused:
        site.copy(0)
    assert "prune" in refused.value.hint
    assert snapshot(site) == before
    make_point(site.catalog, 1, list_objects(10))
    site.copy(1)
    assert list(list_copies(site.store, KEYS)) == [make_point_id(1)]


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_copy_without_all_its_packs_is_not_committed_again(site: CopiedSite, how: str) -> None:
    make_point(site.catalog, 0, list_objects(40), ROWS)
    site.copy(0)
    delete_file(site, 0, COMMIT_NAME)
    pack = next(site.store.list(KEYS.packs))
    site.store.delete(pack)
    if how == "truncated":
        site.store.put_new(pack.key, b"short")
    with pytest.raises(StoreError, match="unfinished copy"):
        site.copy(0)
    assert not list_copies(site.store, KEYS)


class CondemningStore(MemoryStore):
    """Condemns a pack when the manifest of a copy is read."""

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        if "manifest" in key:
            pack = next(self.list(KEYS.packs)).key.removeprefix(KEYS.packs)
            with suppress(KeyExistsError):
                self.put_new(f"{KEYS.condemned}{pack}", b"{}")
        return super().get_range(key, offset, length, version_id=version_id)


def test_a_copy_whose_pack_is_condemned_meanwhile_is_not_committed_again(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", CondemningStore())
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    delete_file(site, 0, COMMIT_NAME)
    with pytest.raises(StoreError, match="unfinished copy"):
        site.copy(0)
    assert not list_copies(site.store, KEYS)


def test_a_copy_that_is_being_pruned_is_not_committed_again(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    delete_file(site, 0, COMMIT_NAME)
    site.store.put_new(f"{KEYS.condemned}{make_point_id(0)}", b"{}")
    with pytest.raises(StoreError, match="is being pruned"):
        site.copy(0)
    assert not list_copies(site.store, KEYS)


def test_a_copy_without_its_local_part_is_not_committed_again_and_nothing_is_uploaded(
    site: CopiedSite,
) -> None:
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    delete_file(site, 0, COMMIT_NAME)
    site.folder.remove_point(make_point_id(0))
    site.folder.index_path.unlink()
    before = snapshot(site)
    with pytest.raises(StoreError, match="unfinished copy"):
        site.copy(0)
    assert snapshot(site) == before


def test_an_unencrypted_copy_is_committed_again_without_its_local_list(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(), encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(10))
    site.copy(0)
    delete_file(site, 0, COMMIT_NAME)
    site.folder.remove_point(make_point_id(0))
    assert site.copy(0).is_new
    site.assert_equal(0, tmp_path / "fetched")


def test_an_unfinished_copy_without_its_local_part_is_not_mixed_with_another(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(4))
    site.store.put_new(KEYS.file(make_point_id(0), "packs.json"), b"of somebody else")
    with pytest.raises(StoreError, match="unfinished copy"):
        site.copy(0)
    assert not list_copies(site.store, KEYS)


def test_the_store_shows_no_contents(site: CopiedSite) -> None:
    make_point(site.catalog, 0, {"secret/key.pdf": b"secret body"}, (TableText("jobs", (b"secret row",)),))
    site.copy(0)
    for stored in site.store.list(""):
        data = site.store.get_range(stored.key, 0, stored.size_bytes)
        assert b"secret" not in data
        assert "secret" not in stored.key


def test_stopping_leaves_no_commit(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(40))
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoreError, match="stopped"):
        site.copy(0, stop=stop)
    assert not list_copies(site.store, KEYS)


@pytest.mark.parametrize("is_index_lost", [False, True])
@pytest.mark.parametrize("before", [AgeEncryptor([make_key_pair().public]), PlainEncryptor()])
def test_new_recipients_can_read_every_pack_of_the_next_copy(
    tmp_path: Path, before: Encryptor, *, is_index_lost: bool
) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore(), encryptor=before)
    make_point(site.catalog, 0, list_objects(40), ROWS)
    site.copy(0)
    site.encryptor = AgeEncryptor([KEY_PAIR.public])
    make_point(site.catalog, 1, list_objects(40), ROWS)
    if is_index_lost:
        site.folder.index_path.unlink()
    site.copy(1)
    site.assert_equal(1, tmp_path / "fetched")
    assert all(pack.name.endswith(".age") for pack in site.open_reader(1).pack_list.packs)


def test_the_order_and_the_comments_of_recipients_cost_no_upload(site: CopiedSite, tmp_path: Path) -> None:
    other = make_key_pair()
    site.encryptor = AgeEncryptor([KEY_PAIR.public, other.public])
    make_point(site.catalog, 0, list_objects(40))
    site.copy(0)
    site.encryptor = AgeEncryptor([other.public, KEY_PAIR.public + " ", other.public])
    make_point(site.catalog, 1, list_objects(40))
    assert site.copy(1).reused_bytes > 0
    site.decryptor = Decryptor([other.private])
    site.assert_equal(1, tmp_path / "fetched")


def test_an_unfinished_copy_is_not_continued_for_other_recipients(site: CopiedSite) -> None:
    make_point(site.catalog, 0, list_objects(3))
    site.copy(0)
    for stored in list(site.store.list(f"{KEYS.points}{make_point_id(0)}/committed")):
        site.store.delete(stored)
    site.encryptor = AgeEncryptor([make_key_pair().public])
    with pytest.raises(StoreError, match="cannot be continued"):
        site.copy(0)
