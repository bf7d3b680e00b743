"""The image and the compose stack: backup, restore, and the alert for a killed run.

Needs a Docker engine: `make test-docker`.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from schedgen_backups_tests.support.docker import (
    IMAGE,
    PROJECT,
    RUN_LABEL,
    SECRET,
    Stack,
    run_docker,
    wait_for,
)

# The first test builds five images.
pytestmark = pytest.mark.timeout(2400)

_RESTORE_BUCKET = "restored-pdfs"
_MAKE_BUCKET = f"""
from minio import Minio
Minio("minio:9000", "demo-access", "{SECRET}", secure=False).make_bucket("{_RESTORE_BUCKET}")
"""
_ASK_PROXY = """
import http.client
def ask(method, path):
    connection = http.client.HTTPConnection("backup-docker", 2375, timeout=30)
    connection.request(method, path, body="{}" if method == "POST" else None,
        headers={"Content-Type": "application/json"})
    print(method, path, connection.getresponse().status)
"""
# What a run's container can do with the login of Dagster's database: queue a copy of a run's record with
# another image and looser settings.
_PLANT = """
import dagster as dg
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
loose = {"docker": {"networks": ["host"], "env_vars": ["PLANTED=1"], "container_kwargs": {
    "privileged": True, "user": "0:0", "read_only": False, "cap_drop": [], "security_opt": [],
    "volumes": ["/:/host"], "mem_limit": "8g"}}}
with dg.DagsterInstance.get() as instance:
    found = instance.get_run_by_id("RUN_ID")
    was = found.job_code_origin.repository_origin
    repository = RepositoryPythonOrigin(was.executable_path, was.code_pointer, "postgres:planted",
        was.entry_point, loose)
    tags = {name: value for name, value in found.tags.items() if not name.startswith("docker/")}
    run = dg.DagsterRun(found.job_name, run_config=found.run_config, status=dg.DagsterRunStatus.QUEUED,
        tags=tags,
        asset_selection=found.asset_selection, asset_check_selection=found.asset_check_selection,
        job_snapshot_id=found.job_snapshot_id, execution_plan_snapshot_id=found.execution_plan_snapshot_id,
        remote_job_origin=found.remote_job_origin,
        job_code_origin=JobPythonOrigin(found.job_name, repository))
    instance.run_storage.add_run(run)
    print(run.run_id)
"""


def test_a_backup_from_the_webserver_runs_in_its_own_hardened_container(stack: Stack, first_run: str) -> None:
    _status, tags = stack.read_run(first_run)
    container = stack.inspect(tags["docker/container_id"])
    assert container["Id"] not in {
        stack.find_container(service) for service in ("backup-code", "backup-daemon", "backup-webserver")
    }
    assert container["Config"]["Image"] == IMAGE
    assert container["Config"]["User"] == "10001:10001"
    assert container["Config"]["Labels"]["com.docker.compose.project"] == "schedgen-backups-runs"
    host = container["HostConfig"]
    assert (host["ReadonlyRootfs"], host["Privileged"], host["CapDrop"], host["Memory"]) == (
        True,
        False,
        ["ALL"],
        1 << 30,
    )
    assert host["SecurityOpt"] == ["no-new-privileges:true"]


def test_a_planted_run_record_loosens_nothing(stack: Stack, first_run: str) -> None:
    run_id = stack.python("backup-code", _PLANT.replace("RUN_ID", first_run))
    container = stack.inspect(stack.wait_for_container(run_id))
    as_always = stack.inspect(stack.read_run(first_run)[1]["docker/container_id"])
    assert (container["Config"]["Image"], container["Config"]["User"]) == (IMAGE, "10001:10001")
    for name in (
        "Binds",
        "Privileged",
        "ReadonlyRootfs",
        "CapAdd",
        "CapDrop",
        "SecurityOpt",
        "Memory",
        "NetworkMode",
        "PidMode",
    ):
        assert container["HostConfig"][name] == as_always["HostConfig"][name], name
    assert not any("PLANTED" in value for value in container["Config"]["Env"])
    assert stack.wait_for_end(run_id) == "SUCCESS"


def test_only_the_runs_own_container_is_stopped(stack: Stack, first_run: str) -> None:
    victim = stack.find_container("backup-code")
    program = f"""
import dagster as dg
with dg.DagsterInstance.get() as instance:
    run = dg.DagsterRun("backup_job", status=dg.DagsterRunStatus.STARTED,
        tags={{"docker/container_id": "{victim}"}})
    instance.run_storage.add_run(run)
    print(instance.run_launcher.terminate(run.run_id))
"""
    assert stack.read_run(first_run)[0] == "SUCCESS"
    assert stack.python("backup-webserver", program).splitlines()[-1] == "False"
    assert stack.inspect(victim)["State"]["Status"] == "running"


def test_another_sites_page_cannot_query_the_webserver(stack: Stack) -> None:
    for name, value, status in (
        ("Host", "evil.example", 400),
        ("Origin", "http://evil.example", 403),
        ("Content-Type", "text/plain", 415),
    ):
        headers = {"Content-Type": "application/json", name: value}
        request = urllib.request.Request(
            f"http://127.0.0.1:{stack.port}/graphql", b'{"query": "{ version }"}', headers
        )
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)  # noqa: S310 - the address is ours
        with caught.value as refused:
            assert refused.code == status


def test_the_engine_shows_no_secret_of_a_container(stack: Stack, first_run: str) -> None:
    run = stack.read_run(first_run)[1]["docker/container_id"]
    for container in (
        run,
        *(stack.find_container(service) for service in ("backup-code", "backup-daemon", "backup-webserver")),
    ):
        answer = json.dumps(stack.inspect(container))
        assert "/run/secrets/postgres_password" in answer
        assert SECRET not in answer


def test_the_point_is_verified_and_restored_from_the_command_line(stack: Stack, first_run: str) -> None:
    assert stack.read_run(first_run)[0] == "SUCCESS"
    points = json.loads(stack.command_line("list", "--json"))
    assert len(points["points"]) >= 1
    assert " failed " not in stack.command_line("verify", "latest")
    stack.compose("exec", "--no-TTY", "postgres", "createdb", "--no-password", "-U", "schedgen", "restored")
    stack.compose("run", "--rm", "--no-TTY", "--entrypoint", "python3", "backup-cli", "-c", _MAKE_BUCKET)
    answer = stack.command_line("restore", "latest", "--database", "restored", "--bucket", _RESTORE_BUCKET)
    assert re.search(r"database_is_equal +passed", answer), answer
    assert re.search(r"bucket_is_equal +passed", answer), answer


def test_a_point_is_copied_to_the_mounted_folder_and_comes_back_with_the_key(
    stack: Stack, first_run: str
) -> None:
    assert stack.read_run(first_run)[0] == "SUCCESS"
    points = {point["id"] for point in json.loads(stack.command_line("list", "--json"))["points"]}
    # The sensor starts the copy in a container of its own.
    copied = wait_for(
        lambda: {path.parent.name for path in stack.copies.glob("*/points/*/committed.json")} or None,
        "the copy",
    )
    assert copied & points
    words = ("--from", "nas", "--identity", "/run/secrets/key.txt", "--json")
    folder = "/tmp/fetched"  # noqa: S108 - in a container of its own
    answer = json.loads(stack.command_line("fetch", min(copied), *words, "--to", folder))
    assert len(answer["files"]) == 2


def test_a_killed_run_fails_with_one_alert_and_the_next_run_works(stack: Stack, first_run: str) -> None:
    assert stack.read_run(first_run)[0] == "SUCCESS"
    # The dump waits for this table, so the run is still active when it is killed.
    stack.compose(
        "exec",
        "--no-TTY",
        "--detach",
        "postgres",
        "psql",
        "-U",
        "schedgen",
        "-c",
        "BEGIN; LOCK TABLE jobs; SELECT pg_sleep(3600)",
    )
    locked = (
        "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = "
        "'jobs'::regclass AND granted"
    )
    wait_for(lambda: True if stack.sql(locked) == "1" else None, "the table is locked")
    run_id = stack.launch("backup_job")
    container = stack.wait_for_container(run_id)
    wait_for(
        lambda: True if stack.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "0" else None,
        "the run waits for the table",
    )
    run_docker("kill", container)
    assert stack.wait_for_end(run_id) == "FAILURE"
    wait_for(lambda: [text for text in stack.read_alerts() if run_id in text] or None, "the alert")
    stack.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE%' AND "
        "pid <> pg_backend_pid()"
    )
    assert stack.wait_for_end(stack.launch("backup_job")) == "SUCCESS"
    wait_for(
        lambda: [text for text in stack.read_alerts() if "Backups work again" in text] or None,
        "the recovery",
    )
    # The outbox has run again by now: a second alert would be here.
    (alert,) = [text for text in stack.read_alerts() if run_id in text]
    assert alert.startswith("[CRITICAL]")
    assert "backup_job" in alert
    assert '"ExitCode": 137' in alert


def test_a_drill_runs_in_a_container_with_its_own_servers(stack: Stack, first_run: str) -> None:
    assert stack.read_run(first_run)[0] == "SUCCESS"
    assert stack.wait_for_end(stack.launch("restore_drill_job")) == "SUCCESS"
    levels = json.loads(stack.command_line("show", "latest", "--json"))["levels"]
    assert (levels["restored"], levels["equal"]) == ("passed", "passed"), levels


def test_a_command_line_backup_appears_in_the_ui(stack: Stack) -> None:
    answer = json.loads(stack.command_line("backup", "--json"))
    assert answer["success"]
    assert stack.read_run(answer["run_id"])[0] == "SUCCESS"


def test_the_engine_is_reached_only_through_the_proxy_for_what_runs_need(stack: Stack) -> None:
    code = stack.find_container("backup-code")
    asked = {
        "GET /_ping": 200,
        "GET /version": 200,
        f"GET /containers/{code}/json": 200,
        "GET /containers/json": 403,
        "GET /v1.41/containers/json": 403,
        f"POST /containers/{code}/exec": 403,
        f"GET /containers/{code}/logs": 403,
        f"GET /containers/{code}/archive?path=/run/secrets": 403,
        f"DELETE /containers/{code}": 403,
        "POST /images/create?fromImage=anything": 403,
        "GET /containers/x/../json": 403,
        "GET /%63ontainers/json": 403,
        "GET /secrets": 403,
    }
    program = _ASK_PROXY + "\n".join(f"ask(*{tuple(request.split(' ', 1))!r})" for request in asked)
    assert stack.python("backup-daemon", program).splitlines() == [
        f"{request} {status}" for request, status in asked.items()
    ]
    unreachable = (
        "import socket\ntry:\n    socket.getaddrinfo('backup-docker', 2375)\nexcept "
        "socket.gaierror as error:\n    print('unknown')"
    )
    assert stack.python("backup-code", unreachable) == "unknown"


def test_the_ui_listens_on_loopback_only(stack: Stack) -> None:
    for service, ports in (
        ("backup-webserver", [("127.0.0.1", str(stack.port))]),
        ("backup-code", []),
        ("backup-db", []),
        ("backup-docker", []),
    ):
        bindings = stack.inspect(stack.find_container(service))["NetworkSettings"]["Ports"] or {}
        assert [
            (binding["HostIp"], binding["HostPort"]) for found in bindings.values() for binding in found or []
        ] == ports


@pytest.mark.parametrize("service", ["backup-db", "backup-code", "backup-webserver"])
def test_every_service_becomes_healthy_without_a_restart(stack: Stack, service: str) -> None:
    container = stack.find_container(service)
    wait_for(
        lambda: True if stack.inspect(container)["State"]["Health"]["Status"] == "healthy" else None,
        f"{service} is healthy",
    )
    assert stack.inspect(container)["RestartCount"] == 0


def test_the_daemons_health_check_finds_every_part_alive(stack: Stack) -> None:
    """Run the check directly: its interval is two minutes."""
    container = stack.inspect(stack.find_container("backup-daemon"))
    kind, *words = container["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    check = ("exec", "--no-TTY", "backup-daemon", *words)
    wait_for(
        lambda: True if "Daemon live" in stack.compose(*check, is_failure_expected=True) else None,
        "every part of the daemon was seen",
    )
    assert container["RestartCount"] == 0


def test_old_containers_of_runs_are_removed_by_label(stack: Stack, first_run: str) -> None:
    container = stack.read_run(first_run)[1]["docker/container_id"]
    wait_for(
        lambda: True if stack.inspect(container)["State"]["Status"] == "exited" else None,
        "the run's container has ended",
    )
    line = next(
        line
        for line in Path(PROJECT / "deploy/cron/schedgen-backups-containers").read_text().splitlines()
        if "prune" in line
    )
    words = line[line.index("container prune") : line.index(" >")].split()
    assert words[-2:] == ["--filter", "until=168h"]
    assert f"label={RUN_LABEL}" in words
    # Only this stack's runs, whatever else is on this machine; the test does not wait for `until`.
    run_docker(*words[:-2], "--filter", f"label=dagster/run_id={first_run}")
    assert run_docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"id={container}") == ""
    assert (
        run_docker("ps", "--quiet", "--no-trunc", "--filter", f"id={stack.find_container('backup-code')}")
        != ""
    )
