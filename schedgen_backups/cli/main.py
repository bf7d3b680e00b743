"""The command line: the same work as in the Dagster UI, for terminals, scripts, cron and systemd.

Where it starts and how it ends; which commands there are stands in `command_line`. A command reads its arguments, calls core or the Dagster
instance, prints, and ends with an exit code (`exit_codes`); it decides nothing else.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.cli.app import CommandEnd, app, err, out
from schedgen_backups.config.environment import export_environment
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.exit_codes import CONFIGURATION_EXIT_CODE

__all__ = ["app", "main"]
_USAGE_EXIT_CODE = 2


def main() -> None:
    """Runs the command line and ends the process with one of the documented exit codes."""
    export_environment()
    try:
        app()
    except CommandEnd as end:
        sys.exit(end.exit_code)
    except BackupError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # A wrong option ends with 2 in every command line; here 2 is the bucket's.
        sys.exit(CONFIGURATION_EXIT_CODE if end.code == _USAGE_EXIT_CODE else end.code)


def print_error(error: BackupError) -> None:
    """The message and what to do, on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"[bold]what to do:[/] {escape(error.hint)}")


@app.callback(invoke_without_command=True)
def show_version(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Every command reads the environment and the project's .env; `doctor` checks all of it."""
    if version:
        out.print(TOOL_VERSION)
        raise typer.Exit


if __name__ == "__main__":
    main()
