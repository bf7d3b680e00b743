"""The cron file that setup writes, run by a real cron.

A verified point, and failures logged with their exit code. cron runs in its own mount namespace, where only
that file is in /etc/cron.d: nothing of this machine is started or changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups_tests.edge.setup.test_setup import Machine
from schedgen_backups_tests.support.sites import Application, wait_until

# The test waits for a full minute, cron's resolution.
pytestmark = [pytest.mark.edge, pytest.mark.exhaustive, pytest.mark.timeout(600)]

CRON = shutil.which("cron", path=f"{os.environ['PATH']}:/usr/sbin")
# Its lock file is in /run, and other files in /etc/cron.d belong to this machine.
ISOLATED = (
    'mount --bind "$1" /etc/cron.d && mount -t tmpfs none /run && mount --bind /dev/null '
    "/etc/crontab && exec cron -f -L 0"
)


@contextmanager
def running_cron(folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", ISOLATED, "sh", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.skipif(CRON is None or os.geteuid() != 0, reason="it takes root and Debian's cron")
def test_a_real_cron_takes_a_verified_point_and_logs_a_failure(
    tmp_path: Path, application: Application
) -> None:
    Path("/etc/cron.d").mkdir(exist_ok=True)
    machine = Machine(tmp_path, application, "")
    flags = [
        *machine.answer_flags(),
        "--deployment",
        "cron",
        "--schedule",
        "* * * * *",
        "--timezone",
        "UTC",
        "--yes",
        "--no-first-backup",
    ]
    code, seen = machine.run(*(flag for flag in flags if "webhook" not in flag), TZ="UTC")
    assert code == 0, seen
    [file] = machine.places["cron-dir"].iterdir()
    assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o644, 0)
    log = machine.places["log-dir"] / "backup.log"

    def read_log() -> str:
        return log.read_text(encoding="utf-8") if log.exists() else ""

    with running_cron(machine.places["cron-dir"]):
        wait_until(lambda: "ended with exit code 0" in read_log(), "cron has taken a point")
        assert {point.state for point in Catalog(machine.points).list_points()} == {PointState.VERIFIED}
        text = machine.env.read_text(encoding="utf-8").replace(
            f"MINIO_BUCKET={application.bucket.bucket}", "MINIO_BUCKET=no-such-bucket"
        )
        machine.env.write_text(text, encoding="utf-8")
        wait_until(
            lambda: "ended with exit code 2" in read_log() or "ended with exit code 4" in read_log(),
            "cron has noted a failure",
        )
    assert {
        point.manifest is not None
        for point in Catalog(machine.points).list_points()
        if point.state is PointState.VERIFIED
    } == {True}
