"""Answers of a command about one site or, with --all-sites, about each site of the file of sites.

A site whose settings are wrong is shown with the reason and does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer
from rich.console import RenderableType

from schedgen_backups.cli.app import CommandEnd, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.config.site_commands import add_site, add_site_to_error
from schedgen_backups.config.sites import load_sites
from schedgen_backups.config.variables import SITES_VARIABLE
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.exit_codes import get_exit_code

AllSitesOption = Annotated[
    bool,
    typer.Option(
        "--all-sites",
        help=f"Every site of {SITES_VARIABLE}; the exit code is the largest of all.",
    ),
]
_UNNAMED = "default"
"""Name of the site that the environment describes."""


@dataclass(frozen=True)
class SiteAnswer:
    """What a command answers about one site."""

    fields: Mapping[str, object]
    """For --json."""
    lines: Sequence[RenderableType]
    """For the terminal: text with foreign parts escaped, or tables."""
    exit_code: int = 0


def print_answer(answer: SiteAnswer, *, as_json: bool) -> None:
    """Print the answer about a site that need not be named, and exit with its code."""
    if as_json:
        print_json(answer.fields)
    else:
        for line in answer.lines:
            out.print(line)
    raise CommandEnd(answer.exit_code)


def print_answers_of_all_sites(
    context: typer.Context, answer: Callable[[Config], SiteAnswer], *, as_json: bool
) -> None:
    """Print the answer about each site, by its name, and exit with the largest code.

    ConfigurationError if one site was named, or the file of sites cannot be read.
    """
    if (named := context.find_object(Config)) is not None and named.site_name:
        raise ConfigurationError(
            f"--site {named.site_name} and --all-sites exclude each other", hint="Leave one of them out."
        )
    answers = {site.site_name or _UNNAMED: _answer_safely(site, answer) for site in load_sites()}
    if as_json:
        print_json({"sites": {name: each.fields for name, each in answers.items()}})
    else:
        for name, each in answers.items():
            out.print(f"[bold]{escape(name)}[/]")
            for line in each.lines:
                out.print(line)
    raise CommandEnd(max(each.exit_code for each in answers.values()))


def _answer_safely(site: Config, answer: Callable[[Config], SiteAnswer]) -> SiteAnswer:
    try:
        answered = answer(site)
    except BackupError as failure:
        error = add_site_to_error(failure, site)
        return SiteAnswer(
            {"error": error.message, "hint": error.hint, "exit_code": get_exit_code(error)},
            tuple(_describe(error)),
            get_exit_code(error),
        )
    try:
        site.check("database", "bucket", "backup_directory", "capture", "schedule", "retention", "alerts")
    except ConfigurationError as error:
        # The command did not need it; the next backup does.
        return replace(
            answered,
            fields={**answered.fields, "settings_error": add_site(error.message, site)},
            lines=(*answered.lines, *_describe(add_site_to_error(error, site))),
            exit_code=max(answered.exit_code, get_exit_code(error)),
        )
    return answered


def _describe(error: BackupError) -> Iterator[str]:
    yield f"[bold red]error:[/] {escape(error.message)}"
    if error.hint:
        yield f"[bold]What to do:[/] {escape(error.hint)}"
