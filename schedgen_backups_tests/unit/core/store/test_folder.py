"""What only a folder has as a store: a disk that may not be mounted, and files of unfinished writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from schedgen_backups.core.errors import KeyExistsError, StoreError, StoreUnreachableError
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store, probe_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "disk")
    store.prepare()
    return store


def test_a_disk_that_is_not_mounted_is_not_written(tmp_path: Path) -> None:
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    store = FolderStore(mount_point)
    for call in (
        lambda: store.put_new("packs/one", b"x"),
        lambda: store.get_range("packs/one", 0, 1),
        lambda: store.head("packs/one"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreUnreachableError) as failed:
            call()
        assert "Mount" in failed.value.hint
    assert list(mount_point.iterdir()) == []


def test_unfinished_files_are_not_objects(store: FolderStore, tmp_path: Path) -> None:
    store.put_new("packs/one", b"x")
    (tmp_path / "disk" / "packs" / ".two.0123456789abcdef.tmp").write_bytes(b"unfinished")
    assert [stored.key for stored in store.list("")] == ["packs/one"]
    with pytest.raises(StoreError, match="unfinished"):
        store.put_new("packs/.two.0123456789abcdef.tmp", b"x")


def test_a_failed_write_leaves_nothing(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left") as failed:
        store.put_new("packs/one", b"x")
    assert "Free space" in failed.value.hint
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "disk" / "packs").iterdir()] == []


def test_without_hard_links_a_taken_name_is_refused_and_the_probe_says_so(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    store.put_new("packs/one", b"first")
    with pytest.raises(KeyExistsError):
        store.put_new("packs/one", b"second")
    assert store.get_range("packs/one", 0, 9) == b"first"
    assert not probe_store(store, "").has_conditional_put


def test_the_path_of_a_url_is_decoded(tmp_path: Path) -> None:
    FolderStore(tmp_path / "a disk").prepare()
    store = open_store(StoreLocation(f"file://{tmp_path}/a%20disk"))
    store.put_new("one", b"x")
    assert (tmp_path / "a disk" / "one").read_bytes() == b"x"
