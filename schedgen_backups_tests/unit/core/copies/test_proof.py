"""Proof without a key: what a listing and reading back show."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.copies.layout import COMMIT_NAME, PACK_LIST_NAME
from schedgen_backups.core.copies.proof import RereadProof, prove_listing, prove_new_packs, reread_packs
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.copies import KEYS, CopiedSite, list_objects, make_point, make_point_id
from schedgen_backups_tests.support.memory_store import MemoryStore

NOW = datetime(2026, 11, 30, 3, 0, tzinfo=timezone.utc)


@pytest.fixture
def site(tmp_path: Path) -> CopiedSite:
    site = CopiedSite(tmp_path / "backups", MemoryStore(has_versions=True))
    make_point(site.catalog, 0, list_objects(60))
    site.copy(0)
    return site


def reread(site: CopiedSite, day: int, *, reread_days: int = 5) -> RereadProof:
    with PieceIndex(site.folder.index_path) as index:
        return reread_packs(
            site.store,
            KEYS,
            prove_listing(site.store, KEYS),
            index,
            reread_days=reread_days,
            now=NOW + timedelta(days=day),
        )


def replace_data(site: CopiedSite, key: str, data: bytes) -> None:
    for stored in list(site.store.list(key)):
        site.store.delete(stored)
    site.store.put_new(key, data)


@pytest.mark.parametrize("family", ["packs/", "recipe", "manifest", "verification", PACK_LIST_NAME])
def test_a_missing_file_is_a_problem(site: CopiedSite, family: str) -> None:
    stored = next(each for each in site.store.list("") if family in each.key)
    site.store.delete(stored)
    assert stored.key.rpartition("/")[2] in " ".join(prove_listing(site.store, KEYS).problems)


@pytest.mark.parametrize("family", ["packs/", "recipe", "manifest", PACK_LIST_NAME, COMMIT_NAME])
def test_a_file_of_another_size_is_a_problem(site: CopiedSite, family: str) -> None:
    stored = next(each for each in site.store.list("") if family in each.key)
    replace_data(site, stored.key, site.store.get_range(stored.key, 0, stored.size_bytes)[:-3])
    assert prove_listing(site.store, KEYS).problems != ()


def test_a_hidden_file_is_a_problem(site: CopiedSite) -> None:
    stored = next(iter(site.store.list(KEYS.packs)))
    site.store.hide(stored.key)  # type: ignore[attr-defined]
    problems = " ".join(prove_listing(site.store, KEYS).problems)
    assert "was hidden by a deletion marker" in problems
    assert "lacks" in problems
    assert "wrote over" not in problems


def test_an_overwritten_file_is_a_problem(site: CopiedSite) -> None:
    stored = next(iter(site.store.list(KEYS.packs)))
    site.store.overwrite(stored.key, b"x" * stored.size_bytes)  # type: ignore[attr-defined]
    assert "somebody wrote over it" in " ".join(prove_listing(site.store, KEYS).problems)


@pytest.mark.parametrize(
    "name", ["packs/evil", "evil.txt", "points/x/committed.json", "packs/20261001_020000-00.age"]
)
def test_a_foreign_file_is_a_problem(site: CopiedSite, name: str) -> None:
    site.store.put_new(f"{KEYS.site_id}/{name}", b"x")
    assert prove_listing(site.store, KEYS).problems == (f"{name} was not written by this program",)


def test_what_was_just_sent_is_compared_with_the_digest_of_the_store(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(60))
    packs = site.copy(0).new_packs
    assert prove_new_packs(site.store, KEYS, packs) == ()
    key = KEYS.pack(packs[0].name)
    data = site.store.get_range(key, 0, 1 << 20)
    replace_data(site, key, damage(data, 8))
    assert prove_new_packs(site.store, KEYS, packs) == (f"{packs[0].name} is not what was sent",)


def test_every_pack_is_read_back_once_in_the_time_given(site: CopiedSite) -> None:
    count = len(list(site.store.list(KEYS.packs)))
    proofs = [reread(site, day) for day in range(5)]
    assert [proof.read_count for proof in proofs] == [-(-count // 5)] * 5
    assert proofs[0].unread_count > 0
    assert proofs[0].oldest_at is None, "unknown while some were never read"
    assert proofs[-1].unread_count == 0
    assert proofs[-1].oldest_at == NOW
    assert reread(site, 5).oldest_at == NOW + timedelta(days=1)


def test_after_a_pause_more_is_read_but_not_everything_at_once(site: CopiedSite) -> None:
    for day in range(5):
        reread(site, day)
    count = len(list(site.store.list(KEYS.packs)))
    assert reread(site, 100).read_count == 2 * -(-count // 5)


@pytest.mark.parametrize("how", ["altered", "shortened"])
def test_an_altered_pack_is_found_and_reported_every_night(site: CopiedSite, how: str) -> None:
    key = next(iter(site.store.list(KEYS.packs))).key
    data = site.store.get_range(key, 0, 1 << 20)
    replace_data(site, key, damage(data, 8 * 100) if how == "altered" else data[:-1])
    name = key.rpartition("/")[2]
    for day in range(7):
        assert reread(site, day).problems == (f"{name} was altered: its digest is another one",)


def test_a_later_copy_does_not_rely_on_a_pack_that_was_found_altered(
    site: CopiedSite, tmp_path: Path
) -> None:
    stored = next(iter(site.store.list(KEYS.packs)))
    replace_data(site, stored.key, damage(site.store.get_range(stored.key, 0, 1 << 20), 8 * 100))
    assert reread(site, 0).problems != ()
    make_point(site.catalog, 1, list_objects(60))
    site.copy(1)
    site.assert_equal(1, tmp_path / "fetched")


def test_without_the_local_index_everything_counts_as_unread(site: CopiedSite) -> None:
    for day in range(5):
        reread(site, day)
    site.folder.index_path.unlink()
    proof = reread(site, 6)
    assert proof.unread_count > 0
    assert proof.problems == ()
    assert make_point_id(0) in prove_listing(site.store, KEYS).copies


@pytest.mark.parametrize("family", ["recipe", "manifest", "verification"])
def test_an_altered_file_of_a_point_is_found_and_reported_every_night(site: CopiedSite, family: str) -> None:
    for day in range(6):
        assert reread(site, day).problems == ()
    stored = next(each for each in site.store.list(KEYS.points) if family in each.key)
    replace_data(site, stored.key, damage(site.store.get_range(stored.key, 0, 1 << 20), 8 * 50))
    assert prove_listing(site.store, KEYS).problems == ()
    name = stored.key.removeprefix(KEYS.points)
    # Of four files one is read each day.
    found = {problem for day in range(6, 11) for problem in reread(site, day).problems}
    assert found == {f"{name} was altered: its digest is another one"}
    assert reread(site, 11).problems == tuple(found)


def test_the_files_of_a_new_point_are_read_back_in_the_first_proof(site: CopiedSite) -> None:
    stored = next(each for each in site.store.list(KEYS.points) if "recipe" in each.key)
    replace_data(site, stored.key, damage(site.store.get_range(stored.key, 0, 1 << 20), 8 * 50))
    assert len(reread(site, 0).problems) == 1


def test_a_reading_in_the_future_does_not_count(site: CopiedSite) -> None:
    for day in range(3650, 3656):
        assert reread(site, day).problems == ()
    days = [reread(site, day) for day in range(6)]
    assert days[0].unread_count > 0
    assert days[0].oldest_at is None
    assert days[5].unread_count == 0
    assert days[5].oldest_at is not None
    assert days[5].oldest_at >= NOW
