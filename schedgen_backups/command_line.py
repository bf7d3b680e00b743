"""The typer app and what its commands share: the two consoles, the exit codes, how a command ends, how a point is named.

Commands are in `cli` (running and watching backups) and `point_commands` (looking at recovery points and restoring them). Exit codes: 0 done,
1 database, 2 bucket, 3 verification, 4 configuration, 5 another run holds the lock, 130 cancelled.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from schedgen_backups.console import make_console
from schedgen_backups.core.catalog import Catalog, PointListing
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.environment import load_environment, read_backup_settings

CONFIGURATION_EXIT_CODE = 4
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


def open_catalog() -> Catalog:
    """The backup directory; ConfigurationError when it is not there."""
    directory = read_backup_settings(load_environment()).directory
    if not directory.is_dir():
        raise ConfigurationError(f"BACKUP_DIR {directory} is no folder", hint="Set BACKUP_DIR, or take a first backup.")
    return Catalog(directory)


def get_point(catalog: Catalog, text: str) -> PointListing:
    """The point of this id, or the newest sealed one for `latest`; ConfigurationError when there is none."""
    if text == "latest":
        sealed = [point for point in catalog.list_points() if point.manifest is not None]
        if not sealed:
            raise ConfigurationError(f"there is no sealed recovery point in {catalog.directory}", hint="Take one: schedgen-backups backup")
        return sealed[-1]
    return catalog.get_point(RecoveryPointId.parse(text))


def print_json(value: object) -> None:
    """The value is on stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + os.linesep)
