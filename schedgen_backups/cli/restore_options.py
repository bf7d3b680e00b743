"""Options, confirmation and service that all commands share which restore something."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from schedgen_backups.cli.app import CHECKED_BY, err
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService

AsOfOption = Annotated[
    str,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="With `latest`: the newest verified point that is not later than this time.",
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why this is restored; recorded in the restore log.")]
SafetyOption = Annotated[
    bool,
    typer.Option(
        "--safety-backup/--no-safety-backup",
        help="Whether to copy what is overwritten to BACKUP_DIR/safety first.",
    ),
]
ConfirmOption = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the target, instead of typing it at the prompt.")
]
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="Target as postgresql://user@host:5432/name, or the name of a database on the server that is "
        "backed up."
    ),
]
BucketOption = Annotated[
    str,
    typer.Option(
        help="Target as http(s)://host:port/name, or the name of a bucket on the server that is backed up."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would happen without writing anything.")
]


def demand_confirmation(name: str, confirm: str) -> None:
    """Raise RestoreError, before anything is written, unless the target's name was given or typed."""
    if not confirm and sys.stdin.isatty():
        confirm = typer.prompt(f"This writes to {name}. Type {name} to continue")
    if confirm != name:
        raise RestoreError(
            f"not confirmed: the name {name!r} was not given; nothing was written", hint=f"--confirm {name}"
        )


def open_service(config: Config, reason: str, *, is_safety_wanted: bool) -> RestoreService:
    """Return the service that does what the command asks for and records it in the restore log."""
    options = RestoreOptions(CHECKED_BY, reason, is_safety_wanted)
    return RestoreService(
        config.open_catalog(), config.capture, options, report=lambda text: err.print(escape(text))
    )
