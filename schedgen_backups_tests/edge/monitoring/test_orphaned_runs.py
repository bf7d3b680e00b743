"""Killed runs of the command line are noticed on the same host and from another container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups import run_tags
from schedgen_backups.monitoring.orphaned_runs import fail_orphaned_runs, mark_own_run

pytestmark = pytest.mark.edge

# A container's host name changes with each container, so the process id means nothing in another one.
ELSEWHERE = """
import sys, time
import dagster as dg
from schedgen_backups import run_tags
from schedgen_backups.monitoring.orphaned_runs import mark_own_run
with dg.DagsterInstance.local_temp(sys.argv[1]) as instance, mark_own_run(instance) as tags:
    tags = {**tags, run_tags.PROCESS: "another-container:1:1"}
    instance.add_run(dg.DagsterRun("backup_job", run_id="1" * 36, status=dg.DagsterRunStatus.STARTED,
        tags=tags))
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_run_fails_only_after_its_process_in_another_container_is_killed(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
                assert fail_orphaned_runs(instance) == ()
                process.kill()
                process.wait()
                assert fail_orphaned_runs(instance) == ("1" * 36,)
                assert fail_orphaned_runs(instance) == ()
                assert list(Path(instance.storage_directory()).glob("running/*")) == []
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", "0" * 32])
def test_a_tag_that_names_no_lock_of_ours_is_ignored(tmp_path: Path, name: str) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        tags = {run_tags.RUN_LOCK: name, run_tags.PROCESS: "another-container:1:1"}
        instance.add_run(
            dg.DagsterRun("backup_job", run_id="1" * 36, status=dg.DagsterRunStatus.STARTED, tags=tags)
        )
        (Path(instance.storage_directory()).parent / "outside").touch()
        assert fail_orphaned_runs(instance) == ()


def test_a_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        with mark_own_run(instance) as tags:
            assert (Path(instance.storage_directory()) / "running" / tags[run_tags.RUN_LOCK]).is_file()
        assert list(Path(instance.storage_directory()).glob("running/*")) == []
