"""The compose stack of local stand-ins and the webserver's GraphQL API, for the container tests.

The stack is docker/compose.yaml with docker/compose.demo.yaml, unchanged; only images, ports and secrets are
this machine's. Add what two test files need; tests and the fixture are in `docker/`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups.core.store.folder import FolderStore

PROJECT = Path(__file__).resolve().parents[2]
STAND_INS = Path(os.environ.get("SCHEDGEN_STAND_INS", PROJECT.parent / "shared" / "ci-images"))
"""Scripts that build base images from Debian's packages: no image registry is reachable here."""
BASE_IMAGE = "local/python-standin:3.11-bookworm"
POSTGRES_IMAGE = "local/postgres-standin:15"
S3_IMAGE = "local/s3-standin:1"
IMAGE = "schedgen-backups:test"
RUNTIME_IMAGE = "schedgen-backups:test-runtime"
"""The stage `runtime`: no servers for a drill."""
PATIENCE_SECONDS = 420
SECRET = "demo-of-no-secret"
SINK_PORT = 8080
RUN_LABEL = "schedgen-backups.kind=run"
_SERVICES_WITH_SECRETS = ("backup-code", "backup-daemon", "backup-webserver", "backup-cli")
_SINK = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", {SINK_PORT}), Handler).serve_forever()
"""
_LAUNCH = """mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUN = "query($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status tags { key value } } } }"
_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
  loadStatus locationOrLoadError { __typename } } } } }"""
_FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
_Seen = TypeVar("_Seen")


def run_docker(
    *words: str, environment: Mapping[str, str] | None = None, is_failure_expected: bool = False
) -> str:
    """Return the docker client's stdout; a failure includes all its output."""
    done = subprocess.run(
        ["docker", *words],
        cwd=PROJECT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert is_failure_expected or done.returncode == 0, (
        f"docker {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def wait_for(look: Callable[[], _Seen | None], what: str) -> _Seen:
    """Return the first result found; fail after more time than a slow machine needs.

    A server that does not answer is asked again.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    reason = "nothing was seen"
    while True:
        try:
            seen = look()
        except (OSError, HTTPException) as error:
            seen, reason = None, repr(error)
        if seen is not None:
            return seen
        assert time.monotonic() < deadline, f"waited in vain: {what}: {reason}"
        time.sleep(1)


def make_stand_ins() -> None:
    """Create the images that registries would provide. Fail with instructions if no engine answers."""
    engine = subprocess.run(
        ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, check=False
    )
    if engine.returncode != 0 or not engine.stdout.strip():
        pytest.fail(
            f"no Docker engine answers ({engine.stderr.strip()}): these tests need one; .ci/docker start "
            "starts it where it is installed"
        )
    if not STAND_INS.is_dir():
        pytest.fail(f"{STAND_INS} is not here: SCHEDGEN_STAND_INS names the folder with make-base-image.sh")
    subprocess.run([STAND_INS / "make-base-image.sh", "python", "bookworm", BASE_IMAGE], check=True)
    for image, dockerfile in ((POSTGRES_IMAGE, "postgres.Dockerfile"), (S3_IMAGE, "s3.Dockerfile")):
        run_docker(
            "build",
            "--file",
            str(STAND_INS / dockerfile),
            "--build-arg",
            f"BASE_IMAGE={BASE_IMAGE}",
            "--tag",
            image,
            str(STAND_INS),
        )


def build_runtime(directory: Path, tag: str) -> None:
    """Build the stage `runtime` from what the directory holds, with clients of Debian's one major."""
    arguments = (f"BASE_IMAGE={BASE_IMAGE}", "POSTGRES_PACKAGES=debian")
    options = [word for argument in arguments for word in ("--build-arg", argument)]
    run_docker(
        "build",
        "--file",
        str(directory / "docker" / "Dockerfile"),
        "--target",
        "runtime",
        *options,
        "--tag",
        tag,
        str(directory),
    )


class Stack:
    """The deployment and an application beside it, as one compose project."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self.secrets = folder / "secrets"
        self.copies = folder / "copies"
        self.key_pair = make_key_pair()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._environment = {
            "DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
            "BACKUP_BASE_IMAGE": BASE_IMAGE,
            "BACKUP_PROXY_BASE_IMAGE": BASE_IMAGE,
            "BACKUP_POSTGRES_PACKAGES": "debian",
            "BACKUP_SOCKET_PROXY_IMAGE": "schedgen-backups-socket-proxy:test",
            "BACKUP_DB_IMAGE": POSTGRES_IMAGE,
            "DEMO_POSTGRES_IMAGE": POSTGRES_IMAGE,
            "DEMO_S3_IMAGE": S3_IMAGE,
            "BACKUP_UI_PORT": str(self.port),
            "BACKUP_SECRETS": str(self.secrets),
            "BACKUP_COPIES": str(self.copies),
            "BACKUP_STORES_FILE": "/run/secrets/stores.toml",
            "BACKUP_ALERT_WEBHOOK_URL_FILE": "/run/secrets/alert_webhook",
        }

    def start(self) -> None:
        """Start the stack and fill the application.

        On return, the code location is loaded and alerts are accepted.
        """
        self._write_secrets()
        self.compose("build")
        self.compose("up", "--detach")
        # In the code location's own network: its sensors send to this machine's loopback, where http is
        # allowed.
        code = self.find_container("backup-code")
        run_docker(
            "run",
            "--detach",
            "--name",
            f"{self.name}-sink",
            "--network",
            f"container:{code}",
            IMAGE,
            "python3",
            "-c",
            _SINK,
        )
        wait_for(self._look_for_location, "the webserver shows the code location")
        wait_for(lambda: self._look_for_exit("demo-seed"), "the application is filled")

    def stop(self) -> None:
        """Remove everything of the stack but its images."""
        run_docker("rm", "--force", f"{self.name}-sink", is_failure_expected=True)
        runs = run_docker(
            "ps",
            "--all",
            "--quiet",
            "--filter",
            f"network={self.name}_backups",
            "--filter",
            f"label={RUN_LABEL}",
        ).split()
        if runs:
            run_docker("rm", "--force", *runs)
        self.compose("--profile", "cli", "down", "--volumes", "--timeout", "5")

    def compose(self, *words: str, image: str = IMAGE, is_failure_expected: bool = False) -> str:
        """What compose printed."""
        files = ("docker/compose.yaml", "docker/compose.demo.yaml", str(self._folder / "secrets.yaml"))
        options = [word for file in files for word in ("--file", file)]
        command = ("compose", "--project-name", self.name, *options, *words)
        return run_docker(
            *command,
            environment={**self._environment, "BACKUP_IMAGE": image},
            is_failure_expected=is_failure_expected,
        )

    def command_line(self, *words: str) -> str:
        """Return the output of `schedgen-backups` in its own container."""
        return self.compose("run", "--rm", "--no-TTY", "backup-cli", *words)

    def python(self, service: str, program: str) -> str:
        """Return the output of a Python program in a service's container."""
        return self.compose("exec", "--no-TTY", service, "python3", "-c", program).strip()

    def sql(self, statement: str) -> str:
        """Return the answer of the application's database."""
        return self.compose(
            "exec",
            "--no-TTY",
            "postgres",
            "psql",
            "-XAtq",
            "-U",
            "schedgen",
            "-d",
            "schedgen",
            "-c",
            statement,
        ).strip()

    def find_container(self, service: str) -> str:
        """Return the id of the service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return everything the engine knows about a container."""
        return json.loads(run_docker("inspect", container))[0]

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """Return the webserver's answer; fail on errors of GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310 - the address is ours
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, job: str) -> str:
        """Request a run as the UI does; return its id."""
        selector = {
            "repositoryLocationName": "schedgen_backups",
            "repositoryName": "__repository__",
            "jobName": job,
        }
        answer = self.ask(_LAUNCH, parameters={"selector": selector, "runConfigData": "{}"})["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def read_run(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Return status and tags."""
        run = self.ask(_RUN, id=run_id)["runOrError"]
        assert run["__typename"] == "Run", run
        return run["status"], {tag["key"]: tag["value"] for tag in run["tags"]}

    def wait_for_end(self, run_id: str) -> str:
        """Return the run's final status."""
        return wait_for(
            lambda: status if (status := self.read_run(run_id)[0]) in _FINISHED else None,
            f"run {run_id} ends",
        )

    def wait_for_container(self, run_id: str) -> str:
        """Return the id of the container that the run was given."""
        return wait_for(
            lambda: self.read_run(run_id)[1].get("docker/container_id"), f"run {run_id} has a container"
        )

    def read_alerts(self) -> list[str]:
        """Return the alerts that were delivered."""
        return [json.loads(line)["text"] for line in run_docker("logs", f"{self.name}-sink").splitlines()]

    def _write_secrets(self) -> None:
        self.secrets.mkdir(mode=0o755)
        values = {
            "postgres_password": SECRET,
            "minio_secret_key": SECRET,
            "alert_webhook": f"http://127.0.0.1:{SINK_PORT}/alerts",
        }
        values["stores.toml"] = (
            f'[stores.nas]\nurl = "file:///copies"\nrecipients = ["{self.key_pair.public}"]'
        )
        values["key.txt"] = self.key_pair.private
        for name, value in values.items():
            path = self.secrets / name
            path.write_text(value + "\n")
            path.chmod(0o400)
            os.chown(path, 10001, 10001)
        FolderStore(self.copies).prepare()
        os.chown(self.copies, 10001, 10001)
        from_files = {
            "POSTGRES_PASSWORD": "",
            "POSTGRES_PASSWORD_FILE": "/run/secrets/postgres_password",
            "MINIO_SECRET_KEY": "",
            "MINIO_SECRET_KEY_FILE": "/run/secrets/minio_secret_key",
        }
        services = {service: {"environment": from_files} for service in _SERVICES_WITH_SECRETS}
        (self._folder / "secrets.yaml").write_text(yaml.safe_dump({"services": services}))

    def _look_for_location(self) -> bool | None:
        entries = self.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        kinds = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries]
        return True if kinds == ["RepositoryLocation"] else None

    def _look_for_exit(self, service: str) -> bool | None:
        state = self.inspect(self.find_container(service))["State"]
        if state["Status"] != "exited":
            return None
        assert state["ExitCode"] == 0, self.compose("logs", service)
        return True
