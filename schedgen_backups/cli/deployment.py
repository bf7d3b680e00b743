"""The commands around a deployment of the application: `last` and the rollback it prints, markers, pins."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import JsonOption, app, get_config, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, StorageError
from schedgen_backups.core.system.files import write_atomically
from schedgen_backups.core.units import describe_labels


@dataclass(frozen=True)
class Rollback:
    """Commands that put a recovery point in the place of what is live."""

    database: str
    bucket: str


def make_rollback(point: PointListing, config: Config) -> Rollback:
    """Return the commands for the database and the bucket that are backed up, ready for a shell."""
    reader = config.open_reader()
    database, bucket = reader.text("POSTGRES_DB"), reader.text("MINIO_BUCKET")
    point_id = point.point_id.text
    swap = [
        "schedgen-backups",
        "restore",
        point_id,
        "--database",
        database,
        "--swap",
        "--confirm",
        database,
        "--reason",
        "rollback",
    ]
    back = [
        "schedgen-backups",
        "restore-objects",
        point_id,
        "*",
        "--back",
        "--overwrite",
        "--confirm",
        bucket,
        "--reason",
        "rollback",
    ]
    return Rollback(shlex.join(swap), shlex.join(back))


def check_marker_folder(path: Path) -> None:
    """A marker can be written there.

    ConfigurationError otherwise, which is better told before the backup than after it.
    """
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"no marker can be written to {path}",
            hint="--write-marker wants the path of a file in a folder that may be written.",
        )


def write_marker(path: Path, catalog: Catalog, point: PointListing) -> None:
    """The file tells of the point in lines that a shell can source; whole or not at all.

    StorageError when it cannot be written.
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
            hint="The recovery point is verified all the same.",
        ) from error


@app.command()
def last(
    context: typer.Context,
    *,
    label: Annotated[str, typer.Option(help="Only points with this label: key, or key=value.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the newest verified recovery point and the commands that go back to it; ends with 8 when there is
    none.
    """
    config = get_config(context)
    catalog = config.open_catalog()
    point = find_newest_verified(catalog, label=label)
    if point is None or point.manifest is None:
        asked = f" with the label {label}" if label else ""
        raise PointNotFoundError(
            f"there is no verified recovery point{asked} in {catalog.directory}",
            hint="Take one: schedgen-backups backup",
        )
    rollback = make_rollback(point, config)
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
                "rollback": {"database": rollback.database, "bucket": rollback.bucket},
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
    out.print("To go back, stop the application and run:", soft_wrap=True)
    for command in (rollback.database, rollback.bucket):
        out.print(f"  {escape(command)}", soft_wrap=True)
