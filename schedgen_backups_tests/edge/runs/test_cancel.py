"""Runs that are cancelled or killed while pg_dump hangs: no child lives on, nothing stays staged, and the
next backup succeeds.

Backups run as processes of their own here: from the command line, and as the worker that Dagster's launcher
starts for a click in the UI.
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

from schedgen_backups.core.catalog.catalog import PointState
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.support.fake_pg_dump import HANGS_AFTER_THE_FIRST_BYTES, make_pg_bin_dir
from schedgen_backups_tests.support.sites import Site, failures_of, find_client_processes, wait_until

pytestmark = [pytest.mark.edge]

# The first thing it does is to cancel whoever started it, which is then still busy with starting it.
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
    """What a failed test would leave behind is gone."""
    for process_id in find_client_processes(site.application):
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def assert_nothing_is_left_and_the_next_backup_succeeds(site: Site, instance: dg.DagsterInstance) -> None:
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
    """Ctrl-C, and what systemd and cron's time limits send."""
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
            # Nobody asked Dagster for it, so that Dagster calls it a failure: whoever is told of failures is
            # told of this.
            assert [run.status for run in history.get_runs()] == [dg.DagsterRunStatus.FAILURE]
        assert_nothing_is_left_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)


def test_a_cancel_that_comes_while_pg_dump_is_being_started_leaves_no_child(
    site: Site, instance: dg.DagsterInstance, postgres_bin_dir: Path
) -> None:
    """The moment in which a program runs already and nobody holds it yet."""
    bin_dir = make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=CANCELS_ITS_PARENT_AT_ONCE)
    try:
        with site.start_cli("backup", PG_BIN_DIR=str(bin_dir)) as process:
            process.communicate()
        assert process.returncode == 130
        assert_nothing_is_left_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)


def test_after_a_killed_backup_the_next_one_sweeps_and_succeeds(
    site: Site, instance: dg.DagsterInstance, hanging: Path
) -> None:
    """Nothing of ours runs after SIGKILL: the kernel frees the lock, and the next run removes what was
    staged.
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
    """Whether the location's jobs are known: the webserver answers before that."""
    found = ask(
        port, "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }", {}
    )
    return bool(found.get("nodes"))


@contextmanager
def running_dagster(site: Site, port: int, module: str = "schedgen_backups.definitions") -> Iterator[None]:
    """Webserver, daemon and code server run with the project's own dagster.yaml, as `make ui` and the
    operators start them.
    """
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
    """The answer of the webserver's GraphQL, which is what the UI's buttons call."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        data = json.load(response)["data"]
    [answer] = data.values()
    return answer


def test_a_run_that_is_terminated_in_the_ui_leaves_nothing_behind(
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
        assert_nothing_is_left_and_the_next_backup_succeeds(site, instance)
    finally:
        end_children(site)
