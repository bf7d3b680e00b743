"""The commands that serve the Dagster UI behind the gate: `serve` with the daemon, `webserver` alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, app, out
from schedgen_backups.config.config import load_config
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.runs.home import hold_home, prepare_home

HostOption = Annotated[str, typer.Option("--host", "-h", help="Address to listen on.")]
PortOption = Annotated[
    int, typer.Option("--port", "-p", help="Port to listen on.", envvar="SCHEDGEN_UI_PORT", min=1, max=65535)
]

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Dagster workspace file; by default that of the checkout."),
]


@app.command()
def serve(
    *,
    host: HostOption = LOOPBACK,
    port: PortOption = 3000,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the Dagster UI behind the gate and run the Dagster daemon, until Ctrl-C."""
    from schedgen_backups.ui.processes import (  # noqa: PLC0415 - other commands start without it
        check_port_free,
        find_workspace,
        make_instance,
        run_ui_and_daemon,
    )

    config = load_config()
    config.check("ui")
    check_port_free(host, port)
    with hold_home(config.file) as home:
        make_instance(home)
    address = f"[bold]http://{host}:{port}[/]  Ctrl-C stops the webserver and the daemon"
    chosen = workspace.absolute() if workspace is not None else find_workspace()
    raise CommandEnd(run_ui_and_daemon(home, host, port, chosen, on_answer=lambda: out.print(address)))


@app.command()
def webserver(
    *,
    host: HostOption = LOOPBACK,
    port: PortOption = 3000,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the Dagster UI behind the gate, without the daemon."""
    from schedgen_backups.ui.processes import find_workspace  # noqa: PLC0415
    from schedgen_backups.ui.webserver import run_webserver  # noqa: PLC0415 - imports Dagster

    config = load_config()
    settings = config.ui
    found = workspace.absolute() if workspace is not None else find_workspace()
    # The .env of Dagster's working directory would override the environment: use a directory without one.
    os.chdir(prepare_home(config.file))
    run_webserver(settings, host, port, found)
