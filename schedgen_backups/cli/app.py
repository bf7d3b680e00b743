"""The typer app: the table of commands and what they share, such as consoles, options and exit.

The module of a command is imported when the command is called: commands that run no job must not wait for
Dagster. Add a command to the table.
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
from schedgen_backups.config.site_commands import add_site_to_error
from schedgen_backups.config.sites import load_sites, require_one_site
from schedgen_backups.core.errors import BackupError, ConfigurationError

CHECKED_BY = "command line"
COMMAND_MODULES = {
    "demo": "demo.command",
    "setup": "setup.command",
    "deploy": "setup.deploy",
    "doctor": "cli.monitor",
    "backup": "cli.backup",
    "last": "cli.deployment",
    "list": "cli.listing",
    "show": "cli.points",
    "verify": "cli.points",
    "restore": "cli.restore",
    "restore-tables": "cli.restore_parts",
    "restore-objects": "cli.restore_parts",
    "undelete": "cli.restore_parts",
    "log": "cli.restore",
    "audit": "cli.monitor",
    "drill": "cli.drill",
    "sites": "setup.sites",
    "stores": "cli.stores",
    "fetch": "cli.stores",
    "heal": "cli.heal",
    "pin": "cli.points",
    "unpin": "cli.points",
    "adopt": "cli.points",
    "accept-missing": "cli.points",
    "prune": "cli.points",
    "status": "cli.monitor",
    "alert-test": "cli.monitor",
    "metrics": "cli.metrics",
    "receipts": "cli.evidence",
    "report": "cli.evidence",
    "serve": "cli.serve",
    "webserver": "cli.serve",
    "manual": "cli.manual",
}
"""Command → module, in the order of the help. The module's decorators register it."""
JSON_FORMAT_VERSION = 1
"""Version of the --json output; increased when a field is renamed, removed or changes its meaning. A new
field does not increase it."""
_CONTROLS = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""One-byte controls of ISO 6429, and characters that have no width or change the direction of the text."""
_PIPE_WIDTH = 100_000
"""Wider than any table, so that output to a pipe or file is never wrapped."""


class CommandGroup(TyperGroup):
    """The commands of the table; the module of a command is imported when the command is looked up."""

    def __init__(self, *, commands: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(COMMAND_MODULES)
        self.registered = commands or {}
        """Commands whose module was imported when this group was made."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the commands that its error names are those of the site it works on."""
        try:
            return super().invoke(ctx)
        except BackupError as error:
            config = ctx.find_object(Config)
            if config is None:
                raise
            raise add_site_to_error(error, config) from error


class _Commands(UserDict[str, Any]):
    """Mapping from a name to its module, replaced by the command at the first look-up.

    As in "Lazily Loading Subcommands" of Click's documentation.
    """

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, str):
            import_module(f"schedgen_backups.{found}")
            self.update(cast("CommandGroup", typer.main.get_group(app)).registered)
        return super().__getitem__(name)


class LineConsole(Console):
    """A console that does not wrap text, so that a copied command or path contains no line break."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as `Console` does, but wrap text only on request; tables fit the width of the screen."""
        is_text = all(isinstance(each, str) for each in objects)
        super().print(*objects, soft_wrap=is_text if soft_wrap is None else soft_wrap, **options)


def make_console(*, is_error: bool = False) -> Console:
    """Return a console on stdout, or on stderr for everything but the answer."""
    stream = sys.stderr if is_error else sys.stdout
    return LineConsole(stderr=is_error, highlight=False, width=None if stream.isatty() else _PIPE_WIDTH)


app = typer.Typer(
    name="schedgen-backups",
    cls=CommandGroup,
    help="Back up a PostgreSQL database and its S3 bucket as one recovery point, and prove that the backup "
    "restores, by restoring it.",
    # Plain help: rich help truncates the names of options at 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = make_console()
err = make_console(is_error=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PointArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Recovery point such as 20261122_020000, or `latest`.")
]


class CommandEnd(Exception):  # noqa: N818 - not an error: it sets the exit code
    """Raised to exit with this code after everything was printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def get_config(context: typer.Context) -> Config:
    """Return the configuration that was read when the command started.

    ConfigurationError when the file of sites describes several and none was named.
    """
    config = context.find_object(Config) or load_config()
    return config if config.site_name else require_one_site(load_sites())


def get_whole_config(context: typer.Context) -> Config:
    """Return the same for a command that works on a whole site; ConfigurationError for a part of one."""
    config = get_config(context)
    if config.part is not None:
        raise ConfigurationError(
            f"this command works on a whole site, not on {config.part}",
            hint=f"Add --site {config.site_name} instead.",
        )
    return config


def print_json(answer: Mapping[str, object]) -> None:
    """Print the answer on stdout as one JSON object with its format version (docs/reference/json.md)."""
    text = json.dumps({"format_version": JSON_FORMAT_VERSION, **answer}, indent=1, ensure_ascii=False)
    # JSON does not escape some characters that a terminal interprets.
    sys.stdout.write(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + os.linesep)
