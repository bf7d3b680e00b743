"""Entry point and exit of the command line, for terminals, scripts, cron and systemd."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import COMMAND_MODULES, CommandEnd, app, err, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import choose_environment_file, load_config
from schedgen_backups.config.sites import load_site
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, SITES_VARIABLE
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.exit_codes import CANCELLED_EXIT_CODE, USAGE_EXIT_CODE, get_exit_code

__all__ = ["app", "main"]
_JSON_OPTION = "--json"


def main() -> None:
    """Run the command line and exit with one of the documented exit codes."""
    try:
        # Typer's standalone mode supports neither our exit codes nor errors as JSON.
        ended = app(standalone_mode=False)
        exit_code = ended if isinstance(ended, int) else 0
    except CommandEnd as end:
        exit_code = end.exit_code
    except BackupError as error:
        exit_code = get_exit_code(error)
        print_refusal(error.message, error.hint, exit_code)
    except typer.TyperException as error:
        exit_code = USAGE_EXIT_CODE
        print_refusal(error.format_message(), f"`{_name_help()}` shows the usage.", exit_code)
    except typer.Abort:
        exit_code = CANCELLED_EXIT_CODE
        print_refusal("cancelled", "", exit_code)
    sys.exit(exit_code)


def print_refusal(message: str, hint: str, exit_code: int) -> None:
    """Print why a command failed and what to do: on stderr, or as JSON on stdout with --json."""
    if _JSON_OPTION in sys.argv[1:]:
        print_json({"error": message, "hint": hint, "exit_code": exit_code})
        return
    err.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        err.print(f"[bold]What to do:[/] {escape(hint)}")


def _name_help() -> str:
    command = next((word for word in sys.argv[1:] if word in COMMAND_MODULES), "")
    return " ".join(filter(None, ("schedgen-backups", command, "--help")))


@app.callback(invoke_without_command=True)
def begin(
    context: typer.Context,
    *,
    env_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Read the settings from this file instead of .env; like {ENV_FILE_VARIABLE}.",
        ),
    ] = None,
    site: Annotated[
        str,
        typer.Option(
            "--site",
            metavar="NAME",
            help=f"The site of {SITES_VARIABLE} to work on, or SITE/NAME for one database or bucket of it.",
        ),
    ] = "",
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Read the settings from the environment and the environment file; `doctor` checks them."""
    if version:
        out.print(TOOL_VERSION)
        raise typer.Exit
    if context.invoked_subcommand is None:
        err.print(context.get_help())
        raise typer.Exit(USAGE_EXIT_CODE)
    if env_file is not None:
        choose_environment_file(env_file)
    # Only what needs the settings may fail for want of a site: `--help` and `setup` do not.
    context.obj = load_site(site) if site else load_config()


if __name__ == "__main__":
    main()
