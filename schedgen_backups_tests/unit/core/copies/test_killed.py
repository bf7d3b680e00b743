"""SIGKILL at every write to the store or to the disk: what is committed stays whole.

While copying, pruning, fetching and healing.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.copies.layout import list_copies
from schedgen_backups.core.copies.proof import prove_listing
from schedgen_backups.core.packs.encryption import PlainEncryptor
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.verify.commit import check_point
from schedgen_backups_tests.support.copies import (
    KEYS,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)

pytestmark = [
    pytest.mark.exhaustive,
    # The child process has other keys.
    pytest.mark.parametrize("layout", Layout, indirect=True, ids=[each.value for each in Layout]),
]

_CHILD = """
import os, signal, sys
from pathlib import Path
from schedgen_backups.core.copies.access import CopyAccess
from schedgen_backups.core.copies.heal import heal_packs
from schedgen_backups.core.packs.encryption import PlainEncryptor
from schedgen_backups.core.copies.prune import Pruner
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups_tests.support.copies import KEYS, CopiedSite

folder, writes_left, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

class DyingStore(FolderStore):
    def put_new(self, key, data):
        super().put_new(key, data)
        self.count_down()

    def delete(self, stored):
        super().delete(stored)
        self.count_down()

    def count_down(self):
        global writes_left
        writes_left -= 1
        if writes_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def count_syncs():
    # Between two of these, a crash may lose either.
    sync = os.fsync
    def die_later(descriptor):
        global writes_left
        sync(descriptor)
        writes_left -= 1
        if writes_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = die_later

if what in {"fetch", "heal"}:
    count_syncs()
    site = CopiedSite(folder / "backups", FolderStore(folder / "store"), encryptor=PlainEncryptor())
    if what == "fetch":
        site.open_reader(0).fetch_into(folder / "fetched")
    else:
        with site.catalog.lock.held("a test"):
            report = heal_packs(site.catalog, CopyAccess(site.store, KEYS, site.decryptor))
        assert not report.damaged, report
    sys.exit()
store = DyingStore(folder / "store")
if what == "copy":
    CopiedSite(folder / "backups", store, encryptor=PlainEncryptor()).copy(1)
else:
    policy = RetentionPolicy(keep_days=1, keep_last=1)
    Pruner(store, KEYS, policy).prune()
"""


def act(folder: Path, writes: int, what: str) -> bool:
    """Copy or prune in a process that is killed after this many writes; return whether it ended itself."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(writes), what],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode == 0


def test_a_copy_killed_at_every_write_goes_on(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store)
    make_point(site.catalog, 0, list_objects(8))
    make_point(site.catalog, 1, list_objects(14))
    # Each process does one write more than the one before, so that every write is the last one once.
    for writes in count():
        ended = act(tmp_path, min(writes, 1), "copy")
        assert prove_listing(store, KEYS).problems == ()
        if ended:
            break
    assert list(list_copies(store, KEYS)) == [make_point_id(1)]
    assert writes > 4
    site.assert_equal(1, tmp_path / "fetched")


def test_pruning_killed_at_every_write_loses_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store)
    objects = list_objects(12)
    for night in range(2):
        others = dict(list(objects.items())[night * 6 :])
        make_point(site.catalog, night, others)
        site.copy(night)
    for writes in count():
        ended = act(tmp_path, writes, "prune")
        assert prove_listing(store, KEYS).problems == ()
        if ended:
            break
    assert writes > 2, "the clock, the commit mark, and what is condemned"
    assert list(list_copies(store, KEYS)) == [make_point_id(1)]
    site.assert_equal(1, tmp_path / "fetched")


def test_a_fetch_killed_at_every_write_leaves_no_point_that_is_not_whole(
    tmp_path: Path, layout: Layout
) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    point = make_point(site.catalog, 0, list_objects(8), layout=layout)
    site.copy(0)
    target = tmp_path / "fetched"
    for writes in count():
        ended = act(tmp_path, writes, "fetch")
        committed = [
            each
            for each in (Catalog(target).list_points() if target.exists() else ())
            if each.manifest is not None
        ]
        assert all(each.problems == () for each in committed)
        if ended:
            break
        # What lies there of the point must be moved away, as the next fetch says.
        shutil.rmtree(target, ignore_errors=True)
    assert [each.manifest for each in committed] == [point.manifest]
    assert writes > 4
    results, _summary = check_point(Catalog(target), committed[0], checked_by="a test")
    assert {result.status for result in results} <= {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED}
