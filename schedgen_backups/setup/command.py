"""The command `setup`.

The flags that answer questions are those of `config.variables`; a secret comes from a file, the environment
or a hidden prompt.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from schedgen_backups.cli.app import CommandEnd, app, get_config, out
from schedgen_backups.config.variables import VARIABLES, Variable
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.exit_codes import CANCELLED_EXIT_CODE
from schedgen_backups.setup.added_site import add_site_by_questions
from schedgen_backups.setup.plan import LOG_AT, SERVICE_USER, STATE_AT, Deployment
from schedgen_backups.setup.run import UNIT_DIR, Wishes, set_up
from schedgen_backups.setup.run import remove as remove_deployment

Parameters = ParamSpec("Parameters")
_ASKED = {variable.flag.replace("-", "_"): variable for variable in VARIABLES if variable.flag}
"""Parameter of the command → the variable that it answers."""


def add_answers(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Give the command a flag for each variable that setup asks for; secrets come from a file."""

    def make_parameter(name: str, variable: Variable) -> inspect.Parameter:
        kind, metavar = (Path, "FILE") if variable.is_secret else (str, "TEXT")
        text = (
            f"{variable.name}: read from this file."
            if variable.is_secret
            else f"{variable.name}: {variable.meaning}."
        )
        option = typer.Option(f"--{variable.flag}", metavar=metavar, help=text)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )

    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [make_parameter(name, variable) for name, variable in _ASKED.items()]
    # typer reads both attributes. The variables follow the first option, --deployment.
    parameters = [*own[:2], *added, *own[2:]]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


@app.command()
@add_answers
def setup(
    context: typer.Context,
    *,
    deployment: Annotated[
        Deployment | None, typer.Option(help="What starts the backups; by default, setup asks.")
    ] = None,
    unit_dir: Annotated[Path, typer.Option(help="Directory for the systemd units.")] = UNIT_DIR,
    cron_dir: Annotated[Path, typer.Option(help="Directory for the cron file.")] = Path("/etc/cron.d"),
    state_dir: Annotated[Path, typer.Option(help="systemd, cron: DAGSTER_HOME.")] = Path(STATE_AT),
    log_dir: Annotated[Path, typer.Option(help="cron: directory for the log.")] = Path(LOG_AT),
    service_user: Annotated[
        str,
        typer.Option(
            help=f"systemd, cron: user that runs the backups; by default {SERVICE_USER} if it exists, "
            "otherwise you."
        ),
    ] = "",
    application_compose: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The application's compose file; .env is in the same directory."),
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="compose: build and start the containers now, without asking.")
    ] = False,
    first_backup: Annotated[
        bool,
        typer.Option("--first-backup/--no-first-backup", help="Take and verify a first recovery point."),
    ] = True,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Ask nothing: use flags, the environment, .env and defaults."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print what would be written, with masked secrets, without writing anything."
        ),
    ] = False,
    site: Annotated[
        str,
        typer.Option(
            "--site",
            metavar="NAME",
            help="Add a site of this name to the file of sites, with the same questions; install nothing "
            "(docs/sites.md).",
        ),
    ] = "",
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove timer and units, or the cron file; keep settings and recovery points."
        ),
    ] = False,
    **answers: str | Path | None,
) -> None:
    """Ask for the settings, try each answer, write .env, install a schedule and take a first backup.

    It can be repeated.
    """
    wishes = Wishes(
        unit_dir=unit_dir.absolute(),
        cron_dir=cron_dir.absolute(),
        state_dir=state_dir.absolute(),
        log_dir=log_dir.absolute(),
        service_user=service_user,
        application_compose=application_compose,
        is_started=start,
        is_first_backup_wanted=first_backup,
    )
    if remove:
        remove_deployment(wishes, get_config(context).file)
        return
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError(
            "setup cannot ask questions without a terminal",
            hint="Run it with --yes; `schedgen-backups setup --help` lists a flag for every question.",
        )
    try:
        given = {
            _ASKED[name].name: _read_answer(value) for name, value in answers.items() if value is not None
        }
        if site:
            add_site_by_questions(site, given, is_interactive=not yes, is_dry=dry_run)
            return
        set_up(given, wishes, deployment, get_config(context).file, is_interactive=not yes, is_dry=dry_run)
    except (typer.Abort, KeyboardInterrupt):
        # typer would exit with 1, the code of database errors.
        out.print(
            "Cancelled. The answers of finished groups are kept for the next run of setup; files that were "
            "already written are kept too."
        )
        raise CommandEnd(CANCELLED_EXIT_CODE) from None


def _read_answer(answer: str | Path) -> str:
    if isinstance(answer, str):
        return answer
    path = answer
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read", hint="It must be a UTF-8 text file that you can read."
        ) from error
