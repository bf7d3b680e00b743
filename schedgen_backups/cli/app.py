"""The typer app: which commands there are and where, and what they share: the two consoles, options that
several have, how a command ends.

A command is in the module that is named for it here, which is loaded when somebody calls it: commands that
run no job must not wait for Dagster. Add a command to the table.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from schedgen_backups.config.config import Config, load_config

CHECKED_BY = "command line"
COMMAND_MODULES = {
    "demo": "demo.command",
    "setup": "setup.command",
    "deploy": "setup.deploy",
    "doctor": "cli.monitor",
    "backup": "cli.backup",
    "last": "cli.deployment",
    "list": "cli.points",
    "show": "cli.points",
    "verify": "cli.points",
    "restore": "cli.restore",
    "restore-tables": "cli.restore",
    "restore-objects": "cli.restore",
    "undelete": "cli.restore",
    "log": "cli.restore",
    "audit": "cli.monitor",
    "drill": "cli.drill",
    "pin": "cli.points",
    "unpin": "cli.points",
    "adopt": "cli.points",
    "accept-missing": "cli.points",
    "prune": "cli.points",
    "status": "cli.monitor",
    "alert-test": "cli.monitor",
    "serve": "cli.serve",
    "webserver": "cli.serve",
    "manual": "cli.manual",
}
"""Command → module, in the order of the help. The module's decorators register it."""
JSON_FORMAT_VERSION = 1
"""Of the answers to --json: higher when a field is renamed, removed or means something else; a new field
changes nothing."""
_OBEYED = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Controls of ISO 6429 in one byte, and signs without a width or that turn the direction of the text."""
_PIPE_WIDTH = 100_000
"""Wider than any table: what a pipe or a file gets is cut or folded by whoever reads it, never here."""


class CommandGroup(TyperGroup):
    """The commands of the table; the module of each is imported when the command is looked up."""

    def __init__(self, *, commands: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(COMMAND_MODULES)
        self.registered = commands or {}
        """Those whose module was there when this group was made."""


class _Commands(UserDict[str, Any]):
    """Names with their modules, that are commands once they are looked up: Click's "Lazily Loading
    Subcommands", as a mapping.
    """

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, str):
            import_module(f"schedgen_backups.{found}")
            self.update(cast("CommandGroup", typer.main.get_group(app)).registered)
        return super().__getitem__(name)


class LineConsole(Console):
    """A console that gives out text as it is: the terminal folds a long line, so that a command or path is
    copied without a line break in it.
    """

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as `Console` does; text is not wrapped unless that is asked for, tables are drawn for the
        width of the screen.
        """
        is_text = all(isinstance(each, str) for each in objects)
        super().print(*objects, soft_wrap=is_text if soft_wrap is None else soft_wrap, **options)


def make_console(*, is_error: bool = False) -> Console:
    """A console on stdout, or on stderr for what is not the answer itself."""
    stream = sys.stderr if is_error else sys.stdout
    return LineConsole(stderr=is_error, highlight=False, width=None if stream.isatty() else _PIPE_WIDTH)


app = typer.Typer(
    name="schedgen-backups",
    cls=CommandGroup,
    help="Backs up a PostgreSQL database and its S3 bucket as one recovery point, and proves that it can "
    "be restored.",
    # Plain help: the drawn one cuts the names of options at 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = make_console()
err = make_console(is_error=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PointArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A recovery point such as 20261122_020000, or `latest`.")
]


class CommandEnd(Exception):  # noqa: N818 - not an error: how a command says its exit code
    """Ends the command with this exit code, after everything was printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def get_config(context: typer.Context) -> Config:
    """Return the configuration that was read when the command began."""
    return context.find_object(Config) or load_config()


def print_json(answer: Mapping[str, object]) -> None:
    """Print the answer on stdout as one JSON object, with the version of its shape (docs/reference/json.md)."""
    text = json.dumps({"format_version": JSON_FORMAT_VERSION, **answer}, indent=1, ensure_ascii=False)
    # JSON's own rules leave some signs as they are that a terminal obeys.
    sys.stdout.write(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + os.linesep)
