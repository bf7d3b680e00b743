"""How `serve` and `webserver` start, what stops them, and that neither process outlives the other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.ui import webserver
from schedgen_backups_tests.support.sites import wait_until
from schedgen_backups_tests.support.ui import JSON, LAUNCH_QUERY, ask, running, write_query

pytestmark = [pytest.mark.edge]


PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a working directory whose .env Dagster would prefer to the environment."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / ".env").write_text("TRIED=of-the-file\n")
    return folder


def find_descendants(process_id: int) -> Iterator[int]:
    for children in Path(f"/proc/{process_id}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from find_descendants(child)


def test_serve_runs_jobs_outside_the_working_directory_and_leaves_no_process(
    tmp_path: Path, checkout: Path
) -> None:
    [port] = free_ports(1)
    others = set(find_descendants(os.getpid()))
    with running(tmp_path, port, "serve", working_directory=checkout, TRIED="of-the-environment") as server:
        assert "LaunchRunSuccess" in ask(port, "POST", "/graphql", [JSON], write_query(LAUNCH_QUERY)).body
        with dg.DagsterInstance.from_config(str(server.home)) as instance:
            wait_until(
                lambda: [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS],
                "the daemon has started the run",
            )
        descendants = set(find_descendants(os.getpid())) - others
    assert set((tmp_path / "seen").read_text().split()) == {"of-the-environment"}
    wait_until(
        lambda: not any(Path(f"/proc/{number}").exists() for number in descendants), "no process is left"
    )


def test_the_webserver_alone_also_starts_outside_the_working_directory(
    tmp_path: Path, checkout: Path
) -> None:
    [port] = free_ports(1)
    with running(tmp_path, port, "webserver", working_directory=checkout, TRIED="of-the-environment"):
        wait_until((tmp_path / "seen").exists, "the location is loaded")
    assert set((tmp_path / "seen").read_text().split()) == {"of-the-environment"}


def test_the_helm_charts_command_is_the_webserver_behind_the_gate(tmp_path: Path) -> None:
    [port] = free_ports(1)
    found = yaml.safe_load((PROJECT / "deploy/kubernetes/values.yaml").read_text())["dagsterWebserver"]["env"]
    [path] = [entry["value"] for entry in found if entry["name"] == "PATH"]
    path = path.replace("/opt/dagster/gate", str(PROJECT / "docker/gate")).replace(
        "/opt/venv/bin", str(Path(sys.executable).parent)
    )
    program = shutil.which("dagster-webserver", path=path)
    assert program == str(PROJECT / "docker/gate/dagster-webserver")
    # The chart's words (1.13, _helpers.tpl); port and workspace follow.
    with running(tmp_path, port, program, "-h", LOOPBACK, PATH=path):
        assert ask(port, "GET", "/", [("Host", "evil.example")]).status == 400


@pytest.mark.parametrize("sites", ["", "[sites.shop]\n[sites.blog]\n"], ids=["one site", "two sites"])
@pytest.mark.parametrize("command", ["serve", "webserver"])
def test_nothing_is_served_with_a_wrong_setting(command: str, sites: str, tmp_path: Path) -> None:
    """The UI is the installation's, whatever its sites are."""
    (tmp_path / "sites.toml").write_text(sites)
    environment = {
        **os.environ,
        "BACKUP_SITES_FILE": str(tmp_path / "sites.toml") if sites else "",
        "DAGSTER_HOME": str(tmp_path),
        "BACKUP_UI_USER_HEADER": "X-User",
        "BACKUP_UI_PROXIES": "",
    }
    words = [sys.executable, "-m", "schedgen_backups.cli.main", command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "BACKUP_UI_PROXIES is not set" in done.stderr


def test_another_version_of_dagster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "SUPPORTED_VERSION", "1.12.")
    with pytest.raises(ConfigurationError, match=dg.__version__):
        webserver.check_version()
