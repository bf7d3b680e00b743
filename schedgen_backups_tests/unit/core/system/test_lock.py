"""The lock on the backup directory: one run writes at a time, and a dead run holds nothing.

A second run is refused with the name of the first.

Other holders are real processes, killed with SIGKILL.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import LockHeldError, StorageError
from schedgen_backups.core.system.lock import LOCK_NAME, DirectoryLock, FileLock

LOCK_AND_WAIT = """
import sys, time
from pathlib import Path
from schedgen_backups.core.system.lock import LOCK_NAME, DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire("the other run")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@pytest.fixture
def other_process(catalog: Catalog) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(catalog.directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_holder_is_refused_with_the_name_of_the_first(
    catalog: Catalog, other_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(
        LockHeldError, match=f"in use by the other run, process {other_process.pid}"
    ) as caught:
        catalog.lock.acquire("me")
    assert caught.value.is_retryable
    assert catalog.directory.joinpath(LOCK_NAME).read_text().startswith("the other run")


def test_a_killed_holder_frees_the_lock(catalog: Catalog, other_process: subprocess.Popen[str]) -> None:
    other_process.kill()
    other_process.wait()
    assert catalog.lock.acquire("me")
    catalog.lock.release()


def test_the_holder_may_lock_again_and_others_in_the_process_may_not(catalog: Catalog) -> None:
    assert catalog.lock.acquire("me") is True
    assert catalog.lock.acquire("me again") is False
    other = DirectoryLock(catalog.directory)
    with pytest.raises(LockHeldError, match="in use by me, process"):
        other.acquire("other")
    catalog.lock.release()
    catalog.lock.release()
    assert other.acquire("other") is True
    other.release()


def test_a_free_lock_names_no_holder(catalog: Catalog) -> None:
    catalog.lock.acquire("me")
    catalog.lock.release()
    assert catalog.directory.joinpath(LOCK_NAME).read_bytes() == b""


def test_nothing_remains_of_a_killed_holders_longer_name(
    catalog: Catalog, other_process: subprocess.Popen[str]
) -> None:
    other_process.kill()
    other_process.wait()
    catalog.lock.acquire("me")
    assert catalog.directory.joinpath(LOCK_NAME).read_text().count("\n") == 1
    catalog.lock.release()


def test_a_child_process_does_not_keep_the_lock(catalog: Catalog) -> None:
    """pg_dump is such a child, and may outlive us by a moment."""
    catalog.lock.acquire("me")
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        catalog.lock.release()
        assert catalog.lock.acquire("me again")
        catalog.lock.release()
        child.kill()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_named_and_is_not_a_held_lock(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    before = count_open_files()
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StorageError, match="does not support file locks") as caught:
        catalog.lock.acquire("me")
    assert "NFS version 4" in caught.value.hint
    assert count_open_files() == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_lock_is_taken_without_its_note(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.pwrite", refuse)
    assert catalog.lock.acquire("me") is True
    with pytest.raises(LockHeldError, match="another process"):
        DirectoryLock(catalog.directory).acquire("other")
    catalog.lock.release()
    assert DirectoryLock(catalog.directory).acquire("other") is True


def test_a_lock_of_another_user_is_refused_with_instructions(catalog: Catalog) -> None:
    """As root leaves it after one backup."""
    path = catalog.directory / LOCK_NAME
    path.touch()
    catalog.directory.chmod(0o755)
    path.chmod(0o000)
    is_root = os.geteuid() == 0
    if is_root:
        # Other users cannot enter the tests' folders.
        path = Path("/tmp") / f"lock-of-root-{os.getpid()}"  # noqa: S108
        path.touch(mode=0o600)
        os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match="cannot be opened: Permission denied") as caught:
            FileLock(path).try_acquire()
    finally:
        if is_root:
            os.seteuid(0)
            path.unlink()
    assert "chown -R" in caught.value.hint


def count_open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
