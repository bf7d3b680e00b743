"""The two processes of `serve`: the webserver behind the gate, and Dagster's daemon. Neither outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from schedgen_backups.config.installation import find_project
from schedgen_backups.core.errors import StorageError

DEFINITIONS_MODULE = "schedgen_backups.definitions"
_END_GRACE_SECONDS = 15
_POLL_SECONDS = 0.5


def find_workspace() -> Path | None:
    """Return this installation's workspace file, None where there is none: then Dagster loads the module of the definitions."""
    project = find_project()
    return project / "workspace.yaml" if project is not None else None


def make_instance(home: Path) -> None:
    """Let one process alone make Dagster's files in a fresh DAGSTER_HOME: two that do it at once ruin them. The caller holds the home.

    StorageError where Dagster cannot.
    """
    script = "import dagster\nwith dagster.DagsterInstance.get(): pass"
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise StorageError(f"Dagster cannot use DAGSTER_HOME {home}: {last}", hint="Look at the folder's disk, owner and dagster.yaml.")


def run_ui_and_daemon(home: Path, host: str, port: int, workspace: Path | None) -> int:
    """Run webserver and daemon until Ctrl-C or SIGTERM; return 0 then, or the exit code of the one that ended by itself.

    They start in DAGSTER_HOME: Dagster puts the .env of its working directory above the environment.
    """
    target = ["--workspace", str(workspace)] if workspace is not None else []
    commands = (
        [sys.executable, "-m", "schedgen_backups.cli.main", "webserver", "--host", host, "--port", str(port), *target],
        [str(Path(sys.executable).parent / "dagster-daemon"), "run", *(target or ["--module-name", DEFINITIONS_MODULE])],
    )
    with _interrupts(), _children(commands, home) as children:
        try:
            while True:
                for child in children:
                    if (code := child.poll()) is not None:
                        return code or 1
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            return 0


@contextmanager
def _interrupts() -> Generator[None]:
    # A shell starts background jobs with SIGINT ignored, and Dagster copies that to SIGTERM: it could not be ended.
    before = {number: signal.signal(number, _raise_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _children(commands: Sequence[Sequence[str]], folder: Path) -> Generator[list[subprocess.Popen[bytes]]]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}  # child processes: they need PATH and the settings
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            children.append(subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True))  # noqa: PERF401 - ended below, however many
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


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
