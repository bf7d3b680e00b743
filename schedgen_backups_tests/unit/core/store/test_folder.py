"""What only a folder has as a store: a disk that may not be mounted, and files of unfinished writes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
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


KILLED = """
import os, sys, time
from pathlib import Path
from schedgen_backups.core.store.folder import FolderStore
def pause(descriptor):
    if os.fstat(descriptor).st_size == 100_000:
        print("written", flush=True)
        time.sleep(600)
os.fsync = pause
FolderStore(Path(sys.argv[1])).put_new("site/packs/two", b"x" * 100_000)
"""


def kill_an_upload(folder: Path) -> Path:
    """Kill a process in the middle of an upload; return the file that it leaves."""
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    return next((folder / "site" / "packs").glob(".two.*"))


def make_older(path: Path, age: timedelta) -> None:
    seconds = path.stat().st_mtime - age.total_seconds()
    os.utime(path, (seconds, seconds))


def test_what_a_killed_upload_leaves_is_removed_when_it_is_old(store: FolderStore, tmp_path: Path) -> None:
    store.put_new("site/packs/one", b"x")
    left = kill_an_upload(tmp_path / "disk")
    before = datetime.now(timezone.utc) - timedelta(days=1)
    assert store.remove_unfinished("site/", before) == ()
    assert left.exists()
    make_older(left, timedelta(days=1, seconds=1))
    [removed] = store.remove_unfinished("site/", before)
    assert (removed.key, removed.size_bytes) == (f"site/packs/{left.name}", 100_000)
    assert not left.exists()
    assert [stored.key for stored in store.list("")] == ["site/packs/one"]


def test_only_our_own_unfinished_files_below_the_prefix_are_removed(
    store: FolderStore, tmp_path: Path
) -> None:
    names = (
        "site/packs/one",
        "site/packs/.one.tmp",
        "site/packs/.one.0123456789abcde.tmp",
        "site/packs/.one.0123456789abcdef.tmp~",
        "site/packs/one.0123456789abcdef.tmp",
        "other/packs/.one.0123456789abcdef.tmp",
        ".schedgen-backups-store",
    )
    (tmp_path / "elsewhere").write_bytes(b"x")
    for name in names:
        path = tmp_path / "disk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        make_older(path, timedelta(days=30))
    (tmp_path / "disk" / "site" / "linked").symlink_to(tmp_path / "disk" / "other")
    assert store.remove_unfinished("site/", datetime.now(timezone.utc)) == ()
    assert all((tmp_path / "disk" / name).exists() for name in names)
    # What is not ours is an object that a proof reports.
    assert {stored.key for stored in store.list("site/packs")} == {*names[:5]}


def test_an_upload_whose_file_was_removed_fails_and_leaves_no_object(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(_descriptor: int) -> None:
        for path in (tmp_path / "disk" / "packs").iterdir():
            path.unlink()

    monkeypatch.setattr(os, "fsync", remove)
    with pytest.raises(StoreError) as failed:
        store.put_new("packs/one", b"x")
    assert failed.value.hint
    monkeypatch.undo()
    assert list(store.list("")) == []
    store.put_new("packs/one", b"x")


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
