"""The command `demo`: the complete walkthrough on its own servers, or these servers with the Dagster UI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, app, out
from schedgen_backups.config.env_file import find_checkout
from schedgen_backups.core.errors import ConfigurationError


@app.command()
def demo(
    *,
    open_ui: Annotated[
        bool, typer.Option("--ui", help="Run the two servers with the Dagster UI instead, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port of the UI.", envvar="SCHEDGEN_UI_PORT", min=1, max=65535)
    ] = 3000,
) -> None:
    """Back up, verify, destroy, restore and compare a demo database and bucket, all in .demo/."""
    try:
        from schedgen_backups.demo import ui, walkthrough  # noqa: PLC0415 - the extra `demo` need not be installed
    except ImportError as error:
        raise ConfigurationError(
            f"the demo needs a package that is not installed: {error.name}",
            hint="pip install 'schedgen-backups[demo]'",
        ) from error
    folder = (find_checkout() or Path.cwd()) / ".demo"
    raise CommandEnd(ui.run_ui(folder, port, out) if open_ui else walkthrough.run_walkthrough(folder, out))
