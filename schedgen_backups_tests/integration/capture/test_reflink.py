"""On file systems that share blocks, a night needs only the space of what changed.

Each archive is complete.

XFS and Btrfs are created in a file and mounted for the test, which needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.system.reflink import can_share_blocks, shares_blocks
from schedgen_backups.core.verify.files import verify_archive
from schedgen_backups_tests.support.artifacts import make_noise, publish_archive
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.small_disk import mount_small_disk

pytestmark = pytest.mark.integration

DISK_BYTES = 600 << 20
"""The file is sparse: mkfs.xfs needs 300 MB, mkfs.btrfs 110."""
SECOND, THIRD = "20261123_020000", "20261124_020000"
SETTLED_SECONDS = 3.2


@pytest.fixture(params=["xfs", "btrfs"])
def shared_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield an empty file system that shares blocks."""
    make = shutil.which(f"mkfs.{request.param}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if make is None or os.getuid() != 0:
        pytest.skip(f"it takes root and mkfs.{request.param}")
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    folder.mkdir()
    subprocess.run([make, "-q", disk], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_file_system_is_recognized_by_trying(shared_disk: Path, tmp_path: Path) -> None:
    assert shares_blocks(shared_disk)
    assert list(shared_disk.glob("tmp*")) == []
    with mount_small_disk(tmp_path / "other", "1m"):
        assert not shares_blocks(tmp_path / "other")
    assert not shares_blocks(tmp_path / "missing")


def measure_used(folder: Path) -> int:
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_night_needs_only_the_space_of_what_changed(shared_disk: Path, bucket: BucketSettings) -> None:
    bodies = {f"uploads/{number:03}.pdf": make_noise(150_000 + 17 * number, number) for number in range(200)}
    bodies["large.bin"] = make_noise(IN_MEMORY_BYTES + 4_000_001, 8)
    for key, data in bodies.items():
        put(bucket, key, data)
    time.sleep(SETTLED_SECONDS)
    catalog = Catalog(shared_disk / "backups")
    catalog.prepare()
    first = publish_archive(catalog, bucket)
    with first.open("rb") as file:
        assert can_share_blocks(file.fileno(), shared_disk)
    used = measure_used(shared_disk)
    for point_id, seed in ((SECOND, 501), (THIRD, 502)):
        changed = {
            f"uploads/{number:03}.pdf": make_noise(120_000 + seed, seed + number) for number in (7, 90, 150)
        }
        for key, data in changed.items():
            put(bucket, key, data)
        bodies |= changed
        time.sleep(SETTLED_SECONDS)
        path = publish_archive(catalog, bucket, point_id)
        assert {result.status for result in verify_archive(path)} == {CheckStatus.PASSED}
        with open_archive(path) as archive:
            assert {
                entry.key: b"".join(archive.read_object(entry)) for entry in archive.read_entries()
            } == bodies
        before, used = used, measure_used(shared_disk)
        assert used - before < path.stat().st_size // 10
    first.unlink()
    assert {result.status for result in verify_archive(path)} == {CheckStatus.PASSED}
