"""Runs that are cancelled or killed while pg_dump hangs.

No child survives, nothing stays staged, the next backup works. Backups run as separate processes: from the
command line, and as the worker that Dagster's launcher starts for a click in the UI.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.support.fake_pg_dump import HANGS_AFTER_THE_FIRST_BYTES, make_pg_bin_dir
from schedgen_backups_tests.support.sites import Site, failures_of, find_client_processes, wait_until

pytestmark = [pytest.mark.edge]

# It first cancels the process that started it, which is still busy starting it.
CANCELS_ITS_PARENT_AT_ONCE = "kill -INT $PPID\nexec sleep 3600"
SELECTOR = {
    "repositoryName": "__repository__",
    "repositoryLocationName": "schedgen_backups.definitions",
    "jobName": "backup_job",
}
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = (
    "mutation($id: String!) { terminateRun(runId: $id) { __typename ... on PythonError { message } } }"
)


@pytest.fixture
def hanging(site: Site, postgres_bin_dir: Path) -> Path:
    return make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=HANGS_AFTER_THE_FIRST_BYTES)


def is_dumping(site: Site) -> bool:
    return any(command.startswith("sleep") for command in find_client_processes(site.application).values())


def end_children(site: Site) -> None:
    """Remove what a failed test would leave behind."""
    for process_id in find_client_processes(site.application):
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def assert_clean_and_the_next_backup_succeeds(site: Site, instance: dg.DagsterInstance) -> None:
    assert find_client_processes(site.application) == {}
    assert [point.state for point in site.points()] == []
    site.assert_left_clean()
    result = site.run(instance)
    assert failures_of(result) == {}
    assert [point.state for point in site.points()] == [PointState.VERIFIED]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_backup_leaves_nothing_behind(
    number: signal.Signals, site: Site, instance: dg.DagsterInstance, hanging: Path
) -> None:
    """Ctrl-C and SIGTERM, which systemd and cron's time limits send."""
    try:
        with site.start_cli("backup", PG_BIN_DIR=str(hanging)) as process:
            wait_until(lambda: is_dumping(site), "pg_dump runs")
            process.send_signal(number)
            stdout, stderr = process.communicate()
        assert process.returncode == 130
        assert stdout == ""
        assert "database_dump failed: cancelled" in stderr
        assert "Traceback" not in stderr
        with dg.DagsterInstance.from_config(str(site.home)) as history:
            # No one requested the cancellation through Dagster, so Dagster records a failure, which is
            # alerted.
            assert [run.status for run in history.get_runs()] == [dg.DagsterRunStatus.FAILURE]
        assert_clean_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)


def test_a_cancel_while_pg_dump_starts_leaves_no_child(
    site: Site, instance: dg.DagsterInstance, postgres_bin_dir: Path
) -> None:
    """At this moment the program already runs, and no variable refers to it yet."""
    bin_dir = make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=CANCELS_ITS_PARENT_AT_ONCE)
    try:
        with site.start_cli("backup", PG_BIN_DIR=str(bin_dir)) as process:
            process.communicate()
        assert process.returncode == 130
        assert_clean_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)


def test_after_a_killed_backup_the_next_one_sweeps_and_succeeds(
    site: Site, instance: dg.DagsterInstance, hanging: Path
) -> None:
    """No code of ours runs after SIGKILL.

    The kernel frees the lock, and the next run removes staged files.
    """
    try:
        with site.start_cli("backup", PG_BIN_DIR=str(hanging)) as process:
            wait_until(lambda: is_dumping(site), "pg_dump runs")
            process.kill()
        left = list((site.directory / ".staging").iterdir())
        assert len(left) == 1
    finally:
        end_children(site)
    result = site.run(instance)
    assert failures_of(result) == {}
    assert [point.state for point in site.points()] == [PointState.VERIFIED]
    assert not left[0].exists()
    site.assert_left_clean()


def answers(port: int) -> bool:
    with (
        suppress(OSError),
        urllib.request.urlopen(f"http://{LOOPBACK}:{port}/server_info", timeout=5) as response,
    ):
        return response.status == HTTPStatus.OK
    return False


def has_loaded(port: int) -> bool:
    """Return whether the location's jobs are loaded: the webserver answers earlier."""
    found = ask(
        port, "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }", {}
    )
    return bool(found.get("nodes"))


@contextmanager
def running_dagster(site: Site, port: int, module: str = "schedgen_backups.definitions") -> Iterator[None]:
    """Run webserver, daemon and code server with the project's own dagster.yaml, as `make ui` does."""
    words = [sys.executable, "-m", "dagster", "dev", "--host", LOOPBACK, "--port", str(port)]
    log = site.folder / "dagster.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*words, "--module-name", module],
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: answers(port) and has_loaded(port), f"the webserver serves the location; its log is {log}"
        )
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(port: int, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Query the webserver's GraphQL, as the UI's buttons do."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        data = json.load(response)["data"]
    [answer] = data.values()
    return answer


def test_a_run_terminated_in_the_ui_leaves_nothing_behind(
    site: Site, instance: dg.DagsterInstance, hanging: Path
) -> None:
    [port] = free_ports(1)
    site.set(PG_BIN_DIR=str(hanging))
    try:
        with running_dagster(site, port):
            launched = ask(port, LAUNCH, {"params": {"selector": SELECTOR, "mode": "default"}})
            assert launched["__typename"] == "LaunchRunSuccess", launched
            [run_id] = launched["run"].values()
            wait_until(lambda: is_dumping(site), "pg_dump runs")
            terminated = ask(port, TERMINATE, {"id": run_id})
            assert terminated["__typename"] == "TerminateRunSuccess", terminated
            with dg.DagsterInstance.from_config(str(site.home)) as history:
                wait_until(lambda: history.get_run_by_id(run_id).is_finished, "the run has ended")
                assert history.get_run_by_id(run_id).status is dg.DagsterRunStatus.CANCELED
            wait_until(lambda: find_client_processes(site.application) == {}, "no child runs")
        site.unset("PG_BIN_DIR")
        assert_clean_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)
