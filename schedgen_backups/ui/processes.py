"""The two processes of `serve`: the webserver behind the gate, and the Dagster daemon; both end together."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

from schedgen_backups.config.installation import find_project
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.servers.loopback import LOOPBACK

DEFINITIONS_MODULE = "schedgen_backups.definitions"
_END_GRACE_SECONDS = 15
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not listened on
_LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp (proc_net_tcp of the kernel's documentation)."""


def find_workspace() -> Path | None:
    """Return this installation's workspace file; without one, Dagster loads the module of the definitions."""
    project = find_project()
    return project / "workspace.yaml" if project is not None else None


def make_instance(home: Path) -> None:
    """Create Dagster's files in a new DAGSTER_HOME; two processes that do so concurrently would corrupt them.

    The caller holds the lock of DAGSTER_HOME. Raise StorageError if Dagster cannot use it.
    """
    script = "import dagster\nwith dagster.DagsterInstance.get(): pass"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=home, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise StorageError(
            f"Dagster cannot use DAGSTER_HOME {home}: {last}",
            hint="Check the directory's disk, owner and dagster.yaml.",
        )


def check_port_free(host: str, port: int) -> None:
    """Raise ConfigurationError if another program listens there, with its name if this user may see it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _name, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="Check --host and --port.",
            ) from error
        raise ConfigurationError(
            f"port {port} is in use by {_find_listener(port) or 'another program'}",
            hint="Stop that program, or choose another port with --port or SCHEDGEN_UI_PORT.",
        ) from error


def _find_listener(port: int) -> str:
    """Return name and id of the process that listens on the port; "" if unknown (proc(5), /proc/net/tcp)."""
    sockets: set[str] = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            rows = (
                line.split() for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]
            )
            sockets |= {
                f"socket:[{row[9]}]"
                for row in rows
                if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port
            }
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            if str(link.readlink()) in sockets:
                process = link.parents[1]
                return f"{(process / 'comm').read_text(encoding='utf-8').strip()} (process {process.name})"
    return ""


def run_ui_and_daemon(
    home: Path,
    host: str,
    port: int,
    workspace: Path | None,
    *,
    log: Path | None = None,
    on_answer: Callable[[], object] = lambda: None,
) -> int:
    """Run webserver and daemon until Ctrl-C or SIGTERM; return 0, or the exit code of the one that exited.

    Their output goes to `log`, or if it is None to this process's output. `on_answer` is called when the UI
    answers. They start in DAGSTER_HOME, because the .env of Dagster's working directory would override the
    environment.
    """
    target = ["--workspace", str(workspace)] if workspace is not None else []
    commands = (
        [
            sys.executable,
            "-m",
            "schedgen_backups.cli.main",
            "webserver",
            "--host",
            host,
            "--port",
            str(port),
            *target,
        ],
        [
            str(Path(sys.executable).parent / "dagster-daemon"),
            "run",
            *(target or ["--module-name", DEFINITIONS_MODULE]),
        ],
    )
    with _interrupts(), _children(commands, home, log) as children:
        is_answering = False
        try:
            while True:
                for child in children:
                    if (code := child.poll()) is not None:
                        return code or 1
                if not is_answering and (is_answering := _is_answering(host, port)):
                    on_answer()
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            return 0


def _is_answering(host: str, port: int) -> bool:
    # Use loopback if it listens on every address. The gate may refuse the name, but a refusal is an answer.
    connection = HTTPConnection(LOOPBACK if host in _EVERY_ADDRESS else host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/server_info")
        return connection.getresponse().status < HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _interrupts() -> Generator[None]:
    # A shell starts background jobs with SIGINT ignored, and Dagster copies that to SIGTERM: the process
    # could not be stopped.
    before = {number: signal.signal(number, _raise_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _children(
    commands: Sequence[Sequence[str]], folder: Path, log: Path | None
) -> Generator[list[subprocess.Popen[bytes]]]:
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
    }  # child processes: they need PATH and the settings
    children: list[subprocess.Popen[bytes]] = []
    stream = log.open("ab") if log is not None else None
    try:
        for command in commands:
            child = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
            children.append(child)
        yield children
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(timeout=_END_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if stream is not None:
            stream.close()


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
