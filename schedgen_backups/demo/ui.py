"""Run the demo's two servers with the Dagster UI and daemon on localhost, until Ctrl-C.

The data is seeded once and kept, so that backups of several starts can be compared. Production uses `serve`,
or webserver and daemon as services, with its own environment.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import load_config
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.postgres.emptiness import count_user_objects
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.demo.seed import destroy_application, seed_application
from schedgen_backups.demo.servers import Stage, open_stage
from schedgen_backups.runs.home import hold_home
from schedgen_backups.ui.processes import check_port_free, find_workspace, make_instance, run_ui_and_daemon


def run_ui(folder: Path, port: int, console: Console) -> int:
    """Run servers, webserver and daemon until interrupted; return 0, or the exit code of a failed process."""
    check_port_free(LOOPBACK, port)
    console.print(f"starting a PostgreSQL and an S3 server in {escape(str(folder / 'ui'))}")
    with open_stage(folder / "ui") as stage:
        _seed_once(stage, console)
        with hold_home(load_config().file) as home:
            make_instance(home)
        log = folder / "ui.log"
        console.print(
            f"recovery points: {escape(str(stage.backup_directory))}; Dagster's log: {escape(str(log))}"
        )
        console.print("starting the Dagster UI and the daemon")
        address = (
            f"[bold]http://{LOOPBACK}:{port}[/]  open Lineage, press [bold]Materialize all[/]; "
            "Ctrl-C stops everything"
        )
        return run_ui_and_daemon(
            home, LOOPBACK, port, find_workspace(), log=log, on_answer=lambda: console.print(address)
        )


def _seed_once(stage: Stage, console: Console) -> None:
    try:
        with connect_database(stage.database) as connection:
            is_seeded = count_user_objects(connection) > 0
    except BackupError:  # the database does not exist yet
        is_seeded = False
    if not is_seeded:
        with console.status("seeding 1,000 users and 2,000 jobs with their PDFs"):
            destroy_application(stage.database, stage.bucket)
            seed_application(stage.database, stage.bucket)
