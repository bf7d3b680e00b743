"""The lock on the backup directory: one run at a time writes, the second is told who that is, and a dead one holds nothing.

Other holders are real processes, killed for good.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import LockHeldError
from schedgen_backups.core.system.lock import LOCK_NAME, DirectoryLock

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
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", LOCK_AND_WAIT, str(catalog.directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_holder_is_refused_with_the_name_of_the_first(catalog: Catalog, other_process: subprocess.Popen[str]) -> None:
    with pytest.raises(LockHeldError, match=f"in use by the other run, process {other_process.pid}") as caught:
        catalog.lock.acquire("me")
    assert caught.value.is_retryable
    assert catalog.directory.joinpath(LOCK_NAME).read_text().startswith("the other run")


def test_a_killed_holder_frees_the_lock(catalog: Catalog, other_process: subprocess.Popen[str]) -> None:
    other_process.kill()
    other_process.wait()
    assert catalog.lock.acquire("me")
    catalog.lock.release()


def test_the_holder_may_ask_again_and_somebody_else_in_the_process_may_not(catalog: Catalog) -> None:
    assert catalog.lock.acquire("me") is True
    assert catalog.lock.acquire("me again") is False
    other = DirectoryLock(catalog.directory)
    with pytest.raises(LockHeldError, match="in use by me, process"):
        other.acquire("other")
    catalog.lock.release()
    catalog.lock.release()
    assert other.acquire("other") is True
    other.release()


def test_a_child_process_does_not_keep_the_lock(catalog: Catalog) -> None:
    """pg_dump is such a child, and may outlive us by a moment."""
    catalog.lock.acquire("me")
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        catalog.lock.release()
        assert catalog.lock.acquire("me again")
        catalog.lock.release()
        child.kill()
