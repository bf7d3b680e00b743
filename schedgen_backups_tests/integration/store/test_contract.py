"""The contract of a store, on every kind and server."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise

import pytest

from schedgen_backups.core.errors import KeyExistsError, KeyMissingError, LockedError, StoreError
from schedgen_backups.core.store.as_of import StoreAsOf
from schedgen_backups.core.store.open import probe_store, try_delete_probe
from schedgen_backups.core.store.protocol import ProbedStore, StoredObject
from schedgen_backups_tests.support.store_sites import StoreSite, for_sites

BIG_BYTES = 20 << 20
ODD_KEYS = (
    "a b/c d",
    "ü/日本.age",
    "plus+plus",
    "100%",
    "%20",
    "a%2Fb",
    "q?x=1&y=2",
    "h#a",
    "(brackets)[of]{kinds}",
    "~tilde,comma;'quote'",
    'double"quote',
    ".hidden",
    "a.b..c",
    "x" * 200,
)
REFUSED_KEYS = (
    "",
    "/absolute",
    "a//b",
    "../up",
    "a/../b",
    "a/./b",
    "a/",
    ".",
    "line\nbreak",
    "back\\slash",
    "\x00",
    "x" * 1025,
)


def get_all(store: ProbedStore, key: str) -> bytes:
    return store.get_range(key, 0, BIG_BYTES * 2)


def find(store: ProbedStore, key: str) -> StoredObject:
    stored = store.head(key)
    assert stored is not None
    return stored


def list_keys(store: ProbedStore, prefix: str = "") -> list[str]:
    return [stored.key for stored in store.list(prefix)]


@pytest.mark.parametrize("size", [0, 1, 70_000, BIG_BYTES])
def test_bytes_return_as_they_were_put(store: ProbedStore, size: int) -> None:
    data = os.urandom(size)
    store.put_new("packs/one", data)
    assert get_all(store, "packs/one") == data


def test_odd_keys_are_put_listed_read_and_deleted(store: ProbedStore) -> None:
    for key in ODD_KEYS:
        store.put_new(key, key.encode())
    assert list_keys(store) == sorted(ODD_KEYS)
    for key in ODD_KEYS:
        assert get_all(store, key) == key.encode()
        assert find(store, key).key == key


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_other_keys_are_refused(store: ProbedStore, key: str) -> None:
    with pytest.raises(StoreError, match="is not a key"):
        store.put_new(key, b"x")
    with pytest.raises(StoreError, match="is not a key"):
        store.get_range(key, 0, 1)
    with pytest.raises(StoreError, match="is not a key"):
        store.head(key)
    assert list_keys(store) == []


def test_an_existing_key_is_never_overwritten(store: ProbedStore) -> None:
    store.put_new("points/1/committed.json", b"first")
    for data in (b"second", b"first", b""):
        with pytest.raises(KeyExistsError, match=r"points/1/committed\.json"):
            store.put_new("points/1/committed.json", data)
    assert get_all(store, "points/1/committed.json") == b"first"
    assert list_keys(store) == ["points/1/committed.json"]


def test_a_large_object_does_not_overwrite_either(store: ProbedStore) -> None:
    # Servers refuse it before they have read it, and may end the connection.
    store.put_new("packs/one", b"first")
    with pytest.raises(KeyExistsError):
        store.put_new("packs/one", bytes(BIG_BYTES // 2))
    assert get_all(store, "packs/one") == b"first"


@for_sites(lambda kind: kind.capabilities.has_conditional_put)
def test_of_two_writers_at_once_one_wins(site: StoreSite) -> None:
    stores = [site.open() for _ in range(4)]

    def put(key: str, number: int) -> bool:
        try:
            stores[number].put_new(key, b"%d" % number * 100_000)
        except KeyExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(stores)) as pool:
        for turn in range(4):
            key = f"packs/{turn}"
            won = list(pool.map(lambda number, key=key: put(key, number), range(len(stores))))
            assert sum(won) == 1
            assert get_all(stores[0], key) == b"%d" % won.index(True) * 100_000


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, 1000), (500, 10), (990, 10), (990, 11), (999, 1000), (0, 0)]
)
def test_a_range_is_read(store: ProbedStore, offset: int, length: int) -> None:
    data = bytes(number % 251 for number in range(1000))
    store.put_new("packs/one", data)
    assert store.get_range("packs/one", offset, length) == data[offset : offset + length]


@pytest.mark.parametrize("size", [0, 10])
def test_a_range_behind_the_end_is_empty(store: ProbedStore, size: int) -> None:
    store.put_new("packs/one", b"x" * size)
    assert store.get_range("packs/one", size, 5) == b""
    assert store.get_range("packs/one", size + 1, 5) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 5), (3, 5), (0, 0)])
def test_a_missing_object_is_not_read(store: ProbedStore, offset: int, length: int) -> None:
    store.put_new("packs/one", b"x")
    with pytest.raises(KeyMissingError, match="packs/two"):
        store.get_range("packs/two", offset, length)
    assert store.head("packs/two") is None
    # A folder is not an object.
    assert store.head("packs") is None
    with pytest.raises(KeyMissingError):
        store.get_range("packs", offset, length)


def test_head_and_list_agree(site: StoreSite, store: ProbedStore) -> None:
    before = datetime.now(timezone.utc)
    store.put_new("packs/one", b"12345")
    (listed,) = store.list("")
    found = find(store, "packs/one")
    assert (found.key, found.size_bytes, found.version_id) == ("packs/one", 5, listed.version_id)
    assert (listed.key, listed.size_bytes, listed.is_newest, listed.is_marker) == (
        "packs/one",
        5,
        True,
        False,
    )
    assert abs(found.modified_at - listed.modified_at) < timedelta(seconds=1)
    assert abs(listed.modified_at - before) < timedelta(minutes=1)
    assert bool(found.version_id) == site.capabilities.has_versions
    assert (found.locked_until is not None) == site.capabilities.has_lock
    if site.capabilities.has_checksums:
        assert found.sha256 == hashlib.sha256(b"12345").hexdigest()


# A lock changes nothing here, and a thousand uploads take seconds.
@for_sites(lambda kind: not kind.capabilities.has_lock)
def test_more_than_a_page_is_listed(store: ProbedStore) -> None:
    keys = [f"packs/{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_new(key, b"x"), keys))
    assert list_keys(store) == keys
    assert list_keys(store, "packs/0109") == keys[1090:]


def test_a_prefix_is_the_start_of_a_key(store: ProbedStore) -> None:
    keys = sorted(["a b", "a/b", "a/bc", "a/c/d", "a0", "b/a", "ab/x"])
    for key in keys:
        store.put_new(key, b"")
    for prefix in ("", "a", "a/", "a/b", "a/c/", "a/c/d", "b/", "x", "a/c/d/e"):
        assert list_keys(store, prefix) == [key for key in keys if key.startswith(prefix)], prefix


@for_sites(lambda kind: not kind.capabilities.has_lock)
def test_an_object_is_deleted_once_and_twice(store: ProbedStore) -> None:
    store.put_new("packs/deep/one", b"x")
    store.put_new("packs/two", b"x")
    (stored,) = store.list("packs/deep/")
    store.delete(stored)
    store.delete(stored)
    assert list_keys(store) == ["packs/two"]
    assert store.head("packs/deep/one") is None
    store.put_new("packs/deep/one", b"again")
    assert get_all(store, "packs/deep/one") == b"again"


@for_sites(lambda kind: kind.capabilities.has_versions)
def test_overwritten_and_hidden_objects_stay_as_versions(site: StoreSite, store: ProbedStore) -> None:
    store.put_new("packs/one", b"first")
    store.put_new("packs/two", b"other")
    # Versions are told apart by whole seconds on most servers.
    time.sleep(1.1)
    between = datetime.now(timezone.utc) - timedelta(seconds=0.05)
    time.sleep(1)
    site.overwrite("packs/one", b"second!")
    site.hide("packs/one")
    store.put_new("packs/z", b"later")
    listed = list(store.list("packs/"))
    assert (listed[-1].key, listed.pop().size_bytes) == ("packs/z", 5)
    assert [(each.key, each.is_newest, each.is_marker) for each in listed] == [
        ("packs/one", True, True),
        ("packs/one", False, False),
        ("packs/one", False, False),
        ("packs/two", True, False),
    ]
    assert [each.size_bytes for each in listed] == [0, 7, 5, 5]
    assert store.head("packs/one") is None
    with pytest.raises(KeyMissingError):
        store.get_range("packs/one", 0, 9)
    assert store.get_range("packs/one", 0, 9, version_id=listed[1].version_id) == b"second!"
    assert store.get_range("packs/one", 1, 9, version_id=listed[2].version_id) == b"irst"
    old = store.head("packs/one", version_id=listed[2].version_id)
    assert old is not None
    assert (old.size_bytes, old.version_id) == (5, listed[2].version_id)
    assert store.head("packs/one", version_id=listed[0].version_id) is None
    as_of = StoreAsOf(store, between)
    assert [each.key for each in as_of.list("")] == ["packs/one", "packs/two"]
    assert as_of.get_range("packs/one", 0, 9) == b"first"
    assert (as_of.head("packs/one") or listed[0]).size_bytes == 5


@for_sites(lambda kind: kind.capabilities.has_versions and not kind.capabilities.has_lock)
def test_exactly_one_version_is_deleted(site: StoreSite, store: ProbedStore) -> None:
    store.put_new("packs/one", b"first")
    site.overwrite("packs/one", b"second")
    site.hide("packs/one")
    marker, second, first = store.list("")
    store.delete(second)
    store.delete(second)
    assert [each.version_id for each in store.list("")] == [marker.version_id, first.version_id]
    store.delete(marker)
    if site.can_unhide:
        assert get_all(store, "packs/one") == b"first"
    assert store.get_range("packs/one", 0, 9, version_id=first.version_id) == b"first"
    store.delete(first)
    assert list_keys(store) == []


@for_sites(lambda kind: kind.capabilities.has_lock)
def test_a_locked_version_is_not_deleted(store: ProbedStore) -> None:
    store.put_new("packs/one", b"first")
    stored = find(store, "packs/one")
    with pytest.raises(LockedError) as refused:
        store.delete(stored)
    assert stored.locked_until is not None
    assert refused.value.until == stored.locked_until
    assert stored.locked_until.isoformat() in str(refused.value)
    assert get_all(store, "packs/one") == b"first"


@for_sites(lambda kind: kind.capabilities.has_lock)
def test_a_lock_is_extended_and_not_shortened(store: ProbedStore) -> None:
    store.put_new("packs/one", b"first")
    stored = find(store, "packs/one")
    later = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)
    store.extend_lock(stored, later)
    assert find(store, "packs/one").locked_until == later
    with pytest.raises(StoreError, match=re.escape(later.isoformat())):
        store.extend_lock(stored, later - timedelta(days=3))
    assert find(store, "packs/one").locked_until == later


@for_sites(lambda kind: not kind.capabilities.has_versions)
def test_a_store_without_locks_does_not_extend_them(store: ProbedStore) -> None:
    store.put_new("packs/one", b"first")
    with pytest.raises(StoreError):
        store.extend_lock(find(store, "packs/one"), datetime.now(timezone.utc) + timedelta(days=1))


def test_a_probe_finds_out_what_the_store_does(site: StoreSite, store: ProbedStore) -> None:
    store.put_new("probes/foreign", b"before")
    assert probe_store(store, "") == site.capabilities
    assert probe_store(store, "sub") == site.capabilities
    assert all(key.startswith(("probes/", "sub/probes/")) for key in list_keys(store))
    assert get_all(store, "probes/foreign") == b"before"
    assert not any(stored.is_marker for stored in store.list(""))


def test_whether_a_probe_can_be_deleted_is_found_out(site: StoreSite, store: ProbedStore) -> None:
    store.put_new("other", b"x")
    assert try_delete_probe(store, "") != site.capabilities.has_lock
    left = list_keys(store)
    assert left[:1] == ["other"]
    assert len(left) == (2 if site.capabilities.has_lock else 1)


def test_several_threads_use_one_store(store: ProbedStore) -> None:
    def work(number: int) -> bytes:
        key = f"packs/{number}"
        store.put_new(key, b"%d" % number * 50_000)
        assert store.head(key) is not None
        return store.get_range(key, 0, 1_000_000)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(40)))
    assert found == [b"%d" % number * 50_000 for number in range(40)]
    assert len(list_keys(store)) == 40


def test_keys_are_listed_in_order(store: ProbedStore) -> None:
    for key in ("b", "B", "a-b/x", "a/x", "a.x", "ä", "z/1", "z!1", "z0"):
        store.put_new(key, b"")
    keys = list_keys(store)
    assert len(keys) == 9
    assert all(before < after for before, after in pairwise(keys))


def assert_no_secret(site: StoreSite, error: BaseException) -> None:
    chain: BaseException | None = error
    while chain is not None:
        text = f"{chain!s} {chain!r} {getattr(chain, 'hint', '')}"
        assert not any(secret in text for secret in (*site.secrets, "wrong-key-canary"))
        chain = chain.__cause__ or chain.__context__


def check_refusals(site: StoreSite, *calls: Callable[[], object]) -> None:
    """Every call fails with an error that has a hint and no secret."""
    for call in calls:
        with pytest.raises(StoreError) as refused:
            call()
        assert not isinstance(refused.value, (KeyMissingError, KeyExistsError, LockedError)), refused.value
        assert refused.value.hint
        assert_no_secret(site, refused.value)


@for_sites(lambda kind: kind.has_credentials)
def test_wrong_credentials_are_refused_with_a_hint(site: StoreSite) -> None:
    store = site.break_credentials()
    stored = StoredObject("packs/one", 1, datetime.now(timezone.utc))
    check_refusals(
        site,
        lambda: store.put_new("packs/one", b"x"),
        lambda: store.get_range("packs/one", 0, 1),
        lambda: store.head("packs/one"),
        lambda: list(store.list("packs/")),
        lambda: store.delete(stored),
    )


@for_sites(lambda kind: kind.can_be_missing)
def test_a_place_that_does_not_exist_is_refused_with_a_hint(site: StoreSite) -> None:
    for call in (
        lambda store: store.put_new("packs/one", b"x"),
        lambda store: store.get_range("packs/one", 0, 1),
        lambda store: store.head("packs/one"),
        lambda store: list(store.list("packs/")),
    ):
        # Each time a new one: it may remember that the place was there.
        check_refusals(site, partial(call, site.remove()))


def test_no_secret_is_shown(site: StoreSite, store: ProbedStore) -> None:
    text = f"{store!r} {store.label} {getattr(site, 'location', '')!r} {vars(store) and ''}"
    assert not any(secret in text for secret in site.secrets)
