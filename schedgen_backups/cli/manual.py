"""Generate the manual page from the commands' help, so that `--help` and `man` never differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import typer

from schedgen_backups.cli.app import COMMAND_MODULES, app, out
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, VARIABLES
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.exit_codes import MEANINGS, STATUS_MEANINGS

_PAGES = ("README.md", "docs/BACKUP_AUTOMATION.md", "docs/restore.md", "docs/reference/")


@app.command()
def manual() -> None:
    """Print the manual page: schedgen-backups manual | man -l -."""
    out.print(make_manual(), markup=False, end="")


def make_manual() -> str:
    """Return the manual page in man(7) format."""
    return "\n".join(_list_lines()) + "\n"


def _list_lines() -> Iterator[str]:
    group = cast("Any", typer.main.get_command(app))
    yield f'.TH SCHEDGEN\\-BACKUPS 1 "" "schedgen\\-backups {_escape(TOOL_VERSION)}" "User Commands"'
    yield from (
        ".SH NAME",
        (
            "schedgen\\-backups \\- back up a PostgreSQL database and its S3 bucket as one recovery point, "
            "and prove it"
        ),
    )
    yield from (
        ".SH SYNOPSIS",
        ".B schedgen\\-backups",
        "[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...",
    )
    yield from (".SH DESCRIPTION", _escape(str(group.help)))
    yield ".SH OPTIONS"
    yield from _write_options(group)
    yield ".SH COMMANDS"
    for name in COMMAND_MODULES:
        command = group.commands[name]
        yield f'.SS "{_escape(f"{name} {name_arguments(command)}".strip())}"'
        yield _escape(" ".join(str(command.help).split()))
        yield from _write_options(command)
    status = ", ".join(f"{code}: {meaning}" for code, meaning in STATUS_MEANINGS.items())
    yield from (".SH EXIT STATUS", f"\\fBstatus\\fR uses its own codes. {_escape(status)}.")
    for code, meaning in MEANINGS.items():
        yield from (".TP", f".B {code}", _escape(meaning))
    yield from (
        ".SH ENVIRONMENT",
        (
            f"{_escape(ENV_FILE_VARIABLE)} names the environment file. Instead of any variable NAME, "
            ""
            "NAME_FILE can name a file with its value."
        ),
    )
    for variable in VARIABLES:
        default = f" [{variable.default}]" if variable.default else ""
        yield from (".TP", f".B {_escape(variable.name)}", _escape(f"{variable.meaning}{default}."))
    yield from (".SH SEE ALSO", _escape(", ".join(_PAGES)))


def _write_options(command: Any) -> Iterator[str]:
    for names, text in list_options(command):
        yield from (".TP", f".B {_escape(names)}", _escape(text))


def name_arguments(command: Any) -> str:
    """Return the arguments of a command of click, as its usage line names them."""
    context = typer.Context(command)
    pieces = [each.get_usage_pieces(context) for each in command.params if each.param_type_name == "argument"]
    return " ".join(word for piece in pieces for word in piece)


def list_options(command: Any) -> Iterator[tuple[str, str]]:
    """Yield each option of a command of click: its names, and its help in one line."""
    context = typer.Context(command)
    for each in command.params:
        if each.param_type_name == "option" and (record := each.get_help_record(context)) is not None:
            yield record[0], " ".join(record[1].split())


def _escape(text: str) -> str:
    """Return the text escaped for roff: backslashes, and a dot or quote at the start of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
