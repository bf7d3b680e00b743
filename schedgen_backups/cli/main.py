"""The command line: the same work as in the Dagster UI, for terminals, scripts, cron and systemd. Where it starts and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.cli.app import CommandEnd, app, err, out
from schedgen_backups.config.config import choose_environment_file, load_config
from schedgen_backups.config.variables import ENV_FILE_VARIABLE
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.exit_codes import CONFIGURATION_EXIT_CODE, get_exit_code

__all__ = ["app", "main"]
_USAGE_EXIT_CODE = 2


def main() -> None:
    """Runs the command line and ends the process with one of the documented exit codes."""
    try:
        app()
    except CommandEnd as end:
        sys.exit(end.exit_code)
    except BackupError as error:
        print_error(error)
        sys.exit(get_exit_code(error))
    except SystemExit as end:
        # A wrong option ends with 2 in every command line; here 2 is the bucket's.
        sys.exit(CONFIGURATION_EXIT_CODE if end.code == _USAGE_EXIT_CODE else end.code)


def print_error(error: BackupError) -> None:
    """Print the message and what to do on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"[bold]What to do:[/] {escape(error.hint)}")


@app.callback(invoke_without_command=True)
def begin(
    context: typer.Context,
    *,
    env_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Read the settings from this file instead of .env; {ENV_FILE_VARIABLE} names one, too.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Every command reads the environment and the environment file; `doctor` checks all settings."""
    if version:
        out.print(TOOL_VERSION)
        raise typer.Exit
    if env_file is not None:
        choose_environment_file(env_file)
    context.obj = load_config()


if __name__ == "__main__":
    main()
