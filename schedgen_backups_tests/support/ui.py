"""For tests of the gate: requests with exact headers, and a real webserver with one job behind it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import dagster as dg

from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups_tests.support.sites import wait_until

JSON = ("Content-Type", "application/json")
LAUNCH_QUERY = """mutation { launchRun(executionParams: {mode: "default", selector: {
  repositoryLocationName: "tried.py", repositoryName: "__repository__", jobName: "tried_job"}})
  { __typename ... on LaunchRunSuccess { run { runId } } } }"""
_OURS = (sys.executable, "-m", "schedgen_backups.cli.main")
_CODE = """import os
import dagster as dg
with open({seen!r}, "a") as file:
    file.write(os.environ.get("TRIED", "") + "\\n")
@dg.op
def nothing(): ...
@dg.job
def tried_job():
    nothing()
defs = dg.Definitions(jobs=[tried_job])
"""


@dataclass(frozen=True)
class Reply:
    """The server's answer."""

    status: int
    headers: http.client.HTTPMessage
    body: str


def ask(
    port: int,
    method: str,
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    body: str = "",
    host: str = LOOPBACK,
) -> Reply:
    """Send these headers and no others; `Host` is the port's unless given."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if all(name != "Host" for name, _ in headers):
            connection.putheader("Host", f"{LOOPBACK}:{port}")
        for name, value in headers:
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body.encode())))
        connection.endheaders(body.encode() or None)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read().decode(errors="replace"))
    finally:
        connection.close()


def write_query(query: str) -> str:
    return json.dumps({"query": query})


def write_workspace(folder: Path) -> Path:
    """Write a workspace with one location; return its file.

    Its job is `tried_job`; `seen` records what TRIED is when it loads.
    """
    (folder / "tried.py").write_text(_CODE.format(seen=str(folder / "seen")))
    workspace = folder / "workspace.yaml"
    workspace.write_text("load_from:\n  - python_file: {relative_path: tried.py, location_name: tried.py}\n")
    return workspace


@dataclass(frozen=True)
class Server:
    """A webserver behind the gate, and the home of its instance."""

    port: int
    home: Path

    def count_runs(self) -> int:
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return instance.get_runs_count()


@contextmanager
def running(
    folder: Path, port: int, *command: str, working_directory: Path | None = None, **environment: str
) -> Iterator[Server]:
    """Serve the UI of a new workspace on this port, without this process's settings.

    The command is one of ours or a program's path.
    """
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((Path(__file__).resolve().parents[2] / "dagster.yaml").read_bytes())
    env = folder / "settings"
    env.touch(mode=0o600)
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    words = [
        *([] if command[0].startswith("/") else _OURS),
        *command,
        "-p",
        str(port),
        "-w",
        str(write_workspace(folder)),
    ]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            words,
            cwd=working_directory or folder,
            env={**kept, "DAGSTER_HOME": str(home), ENV_FILE_VARIABLE: str(env), **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: _is_up(port) or process.poll() is not None, f"the webserver answers; its log is {log}"
        )
        assert process.poll() is None, log.read_text()
        yield Server(port, home)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(port: int) -> bool:
    with suppress(OSError):
        return ask(port, "GET", "/server_info").status == HTTPStatus.OK
    return False
