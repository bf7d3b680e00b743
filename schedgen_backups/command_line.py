"""The typer app and what its commands share: the two consoles, how a command ends, options that several have.

Commands are in `cli` (running and watching backups) and in the modules named `…_command` and `…_commands`. What a command ends with: `exit_codes`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from schedgen_backups.console import make_console

CHECKED_BY = "command line"

app = typer.Typer(
    name="schedgen-backups",
    help="Backs up a PostgreSQL database and its S3 bucket as one recovery point, and proves that it can be restored.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = make_console()
err = make_console(is_error=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PointArgument = Annotated[str, typer.Argument(metavar="ID", help="A recovery point such as 20261122_020000, or `latest`.")]


class CommandEnd(Exception):  # noqa: N818 - not an error: how a command says its exit code
    """Ends the command with this exit code, after everything was printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def print_json(value: object) -> None:
    """The value is on stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + os.linesep)
