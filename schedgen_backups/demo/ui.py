"""Runs the demo's two servers with the Dagster UI and daemon on localhost, until somebody presses Ctrl-C.

The data is seeded once and kept, so that backups can be compared from start to start. Only for trying out: production starts `dagster-webserver` and
`dagster-daemon` with an environment of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from schedgen_backups.config.config import load_config
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.postgres.connection import connect_database, count_user_relations
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.demo.seed import destroy_application, seed_application
from schedgen_backups.demo.servers import Stage, open_stage
from schedgen_backups.runs.home import prepare_home

_END_GRACE_SECONDS = 15


def run_ui(folder: Path, port: int, console: Console) -> int:
    """Servers, webserver and daemon ran until they were interrupted; returns 0, or the exit code of a Dagster that ended by itself."""
    with open_stage(folder / "ui") as stage:
        _seed_once(stage, console)
        prepare_home(load_config().file)
        console.print(f"[bold]http://{LOOPBACK}:{port}[/]  open Assets, press [bold]Materialize all[/]; Ctrl-C here ends everything")
        console.print(f"recovery points: {stage.backup_directory}")
        return _run_dagster(stage.folder, port)


def _seed_once(stage: Stage, console: Console) -> None:
    try:
        with connect_database(stage.database) as connection:
            is_seeded = count_user_relations(connection) > 0
    except BackupError:  # the database is not there yet
        is_seeded = False
    if not is_seeded:
        with console.status("seeding 1,000 users and 2,000 jobs with their PDFs"):
            destroy_application(stage.database, stage.bucket)
            seed_application(stage.database, stage.bucket)


def _run_dagster(folder: Path, port: int) -> int:
    program = Path(sys.executable).parent / "dagster"
    arguments = [str(program), "dev", "--host", LOOPBACK, "--port", str(port), "--module-name", "schedgen_backups.definitions"]
    # A shell starts background jobs with SIGINT ignored, and Dagster copies that to SIGTERM: it could not be ended.
    before = {number: signal.signal(number, _raise_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}  # a child process: it needs PATH and the environment of the demo
    # In a folder without a .env: Dagster would put that file above the environment.
    process = subprocess.Popen(arguments, cwd=folder, env=environment, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_END_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
