"""Daemon and webserver under a booted systemd: sandbox, restarts, the alert of a killed backup."""

from __future__ import annotations

import re

import pytest

from schedgen_backups_tests.edge.systemd.installation import BACKUP, ENV_FILE, POINTS, SERVICES, Installation
from schedgen_backups_tests.support.docker import wait_for
from schedgen_backups_tests.support.sites import wait_until

pytestmark = [pytest.mark.edge, pytest.mark.exhaustive, pytest.mark.timeout(900)]

LAUNCH = """mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } } }"""
METRICS = "schedgen-backups-metrics.service"
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def test_daemon_and_webserver_work_in_their_sandbox_and_come_back_after_a_kill(
    installation: Installation,
) -> None:
    installation.add_units()
    machine = installation.machine
    machine.run("systemctl", "enable", "--now", *SERVICES)
    installation.wait_for_services()
    selector = {
        "repositoryLocationName": "schedgen_backups",
        "repositoryName": "__repository__",
        "jobName": "backup_job",
    }
    launched = installation.ask(LAUNCH, parameters={"selector": selector, "runConfigData": "{}"})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    installation.wait_for_point()
    wait_for(
        lambda: (
            installation.ask(RUN, id=launched["run"]["runId"])["runOrError"]["status"] == "SUCCESS" or None
        ),
        "the run has succeeded",
    )
    for unit in SERVICES:
        process_id = installation.show(unit, "MainPID")
        status = machine.run("cat", f"/proc/{process_id}/status")
        for line in (r"NoNewPrivs:\s1", r"Seccomp:\s2", r"CapBnd:\s0+", r"CapEff:\s0+"):
            assert re.search(f"^{line}$", status, flags=re.MULTILINE), f"{unit}: {line}\n{status}"
        code, seen = machine.try_run(
            "nsenter", "--target", process_id, "--mount", "touch", f"{ENV_FILE}.changed"
        )
        assert (code, "Read-only file system" in seen) == (1, True), seen
    before = {unit: installation.show(unit, "MainPID") for unit in SERVICES}
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", *SERVICES)
    for unit in SERVICES:
        wait_for(
            lambda unit=unit: installation.show(unit, "MainPID") not in {"0", before[unit]} or None,
            f"{unit} is back",
        )
        assert installation.show(unit, "NRestarts") == "1"
    installation.wait_for_services()


def test_the_metrics_unit_serves_a_point_in_its_sandbox(installation: Installation) -> None:
    installation.add_units()
    machine = installation.machine
    assert installation.show(METRICS, "UnitFileState") == "disabled"
    machine.run("systemctl", "start", BACKUP)
    machine.run("systemctl", "enable", "--now", METRICS)
    text = wait_for(
        lambda: seen if "last_verified" in (seen := installation.read_metrics()) else None, "the port answers"
    )
    assert 'schedgen_backup_points{site="default",state="verified"} 1.0' in text
    process_id = installation.show(METRICS, "MainPID")
    code, seen = machine.try_run("nsenter", "--target", process_id, "--mount", "touch", f"{POINTS}/changed")
    assert (code, "Read-only file system" in seen) == (1, True), seen


def test_a_killed_backup_fails_the_unit_and_the_daemon_alerts(installation: Installation) -> None:
    installation.add_units()
    machine = installation.machine
    machine.run("systemctl", "start", "schedgen-backups-daemon.service")
    machine.run("systemctl", "start", "--no-block", BACKUP)
    staging = machine.path(f"{POINTS}/.staging")
    wait_until(lambda: staging.is_dir() and any(staging.iterdir()), "the backup writes")
    machine.run("systemctl", "kill", "--signal=KILL", BACKUP)
    wait_for(lambda: installation.show(BACKUP, "ActiveState") == "failed" or None, "the unit is failed")
    assert installation.show(BACKUP, "Result") == "signal"
    wait_for(lambda: installation.alerts or None, "the daemon has sent an alert")
    [alert] = installation.alerts
    assert alert.startswith("[CRITICAL]")
    installation.assert_took_points(0)
