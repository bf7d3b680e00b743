"""What a deployment of the application needs: `last` with the rollback commands, and markers."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import JsonOption, app, get_config, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, StorageError
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.system.files import write_atomically
from schedgen_backups.core.units import describe_labels


def list_rollbacks(point: PointListing, config: Config) -> dict[ArtifactKind, tuple[str, ...]]:
    """Return the shell commands for every database and every bucket that are backed up."""
    found: dict[ArtifactKind, dict[str, None]] = {kind: {} for kind in ArtifactKind}
    for part in config.parts:
        for kind in part.part.kinds if part.part is not None else ArtifactKind:
            found[kind][_make_rollback(point, part, kind)] = None
    return {kind: tuple(commands) for kind, commands in found.items()}


def _make_rollback(point: PointListing, config: Config, kind: ArtifactKind) -> str:
    reader = config.open_reader()
    point_id = point.point_id.text
    if kind is ArtifactKind.DATABASE:
        target = reader.text("POSTGRES_DB")
        words = ["restore", point_id, "--database", target, "--swap", "--confirm", target]
    else:
        target = reader.text("MINIO_BUCKET")
        words = ["restore-objects", point_id, "*", "--back", "--overwrite", "--confirm", target]
    return shlex.join([*config.command_words, *words, "--reason", "rollback"])


def check_marker_folder(path: Path) -> None:
    """Raise ConfigurationError if no marker can be written there; called before the backup starts."""
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the marker {path} cannot be written",
            hint="Give --write-marker the path of a file in a writable directory.",
        )


def write_marker(path: Path, catalog: Catalog, point: PointListing) -> None:
    """Write the point's data atomically to the file, as lines that a shell can source.

    Raise StorageError when it cannot be written.
    """
    origin = point.manifest.origin if point.manifest is not None else None
    pin = read_pin(catalog, point.point_id)
    values = {
        "LAST_BACKUP_ID": point.point_id.text,
        "LAST_BACKUP_TAKEN_AT": point.point_id.taken_at.isoformat(),
        "LAST_BACKUP_LABEL": describe_labels(origin.labels) if origin else "",
        "LAST_BACKUP_REASON": origin.reason if origin else "",
        "LAST_BACKUP_GIT_COMMIT": origin.git_commit if origin else "",
        "LAST_BACKUP_GIT_BRANCH": origin.git_branch if origin else "",
        "LAST_BACKUP_LOCATION": str(catalog.directory),
        "LAST_BACKUP_PINNED_UNTIL": pin.expires_at.isoformat()
        if pin is not None and pin.expires_at is not None
        else "",
    }
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    try:
        write_atomically(path.absolute(), text.encode())
    except OSError as error:
        raise StorageError(
            f"the marker {path} cannot be written: {error.strerror}",
            hint="The recovery point is verified nevertheless.",
        ) from error


@app.command()
def last(
    context: typer.Context,
    *,
    label: Annotated[str, typer.Option(help="Only points with this label: key, or key=value.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the newest verified recovery point and the commands that roll back to it.

    Exit code 8 if there is none.
    """
    config = get_config(context)
    catalog = config.open_catalog()
    point = find_newest_verified(catalog, label=label)
    if point is None or point.manifest is None:
        asked = f" with the label {label}" if label else ""
        raise PointNotFoundError(
            f"no verified recovery point{asked} in {catalog.directory}",
            hint="Take one: schedgen-backups backup",
        )
    rollbacks = list_rollbacks(point, config)
    origin, pin = point.manifest.origin, read_pin(catalog, point.point_id)
    pinned_until = pin.expires_at.isoformat() if pin is not None and pin.expires_at is not None else None
    if as_json:
        print_json(
            {
                "id": point.point_id.text,
                "taken_at": point.point_id.taken_at.isoformat(),
                "location": str(catalog.directory),
                "labels": dict(origin.labels),
                "reason": origin.reason,
                "git_commit": origin.git_commit,
                "git_branch": origin.git_branch,
                "is_pinned": pin is not None,
                "pinned_until": pinned_until,
                "rollback": {kind.value: "; ".join(commands) for kind, commands in rollbacks.items()},
            }
        )
        return
    lines = {
        "taken": f"{point.point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC",
        "in": str(catalog.directory),
        "labels": describe_labels(origin.labels),
        "reason": origin.reason,
        "git": f"{origin.git_commit} {origin.git_branch}".strip(),
        "pinned": f"{pin.reason}, until {pinned_until or 'it is unpinned'}" if pin is not None else "",
    }
    out.print(f"[bold]{point.point_id}[/]")
    for name, value in lines.items():
        if value:
            out.print(f"  {name:7} {escape(value)}", soft_wrap=True)
    out.print("To roll back, stop the application and run:", soft_wrap=True)
    for command in (command for commands in rollbacks.values() for command in commands):
        out.print(f"  {escape(command)}", soft_wrap=True)
