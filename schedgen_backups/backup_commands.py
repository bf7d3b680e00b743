"""The commands that take a backup and find the one before a deployment: backup, last.

A command reads its arguments, runs the job, prints, and ends with an exit code. Looking at points and removing them belongs to `point_commands`.
"""

from __future__ import annotations

import getpass
import re
import shlex
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.command_line import CommandEnd, JsonOption, app, err, out, print_json
from schedgen_backups.console import format_age, show_capture
from schedgen_backups.core.catalog import Catalog, PointListing, PointState
from schedgen_backups.core.deployment_marker import write_marker
from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.core.lock import DirectoryLock
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.pruning import Pin, write_pin
from schedgen_backups.environment import load_environment, read_backup_directory
from schedgen_backups.instance import make_tags, run_backup_job
from schedgen_backups.points import open_catalog

_SPAN = re.compile(r"(?P<count>[1-9][0-9]{0,4})(?P<unit>[hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@app.command()
def backup(
    *,
    reason: Annotated[str, typer.Option(help="Why this backup is taken, kept in its manifest.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value, kept in the manifest; may be given several times.")] = None,
    pin_for: Annotated[str, typer.Option("--pin-for", help="Keep it for so long whatever retention says: 12h, 30d, 8w.")] = "",
    write_marker_to: Annotated[
        Path | None, typer.Option("--write-marker", help="A file that then names the point, for a deployment script to source.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recovery point, verify it and print its id; ends with 0 only when it is verified. The run appears in the Dagster UI."""
    kept_for = _parse_span(pin_for) if pin_for else None
    labels = dict(_split_label(text) for text in label or [])
    directory = read_backup_directory(load_environment())
    _refuse_when_locked(directory)
    with show_capture(err, directory):
        outcome = run_backup_job(make_tags(reason, labels))
    if outcome.is_success:
        _keep(Catalog(directory), outcome.point_id, kept_for, write_marker_to, reason or ", ".join(label or []))
    if as_json:
        failures = [{"step": failure.step, "reason": failure.reason} for failure in outcome.failures]
        print_json({"id": outcome.point_id.text, "run_id": outcome.run_id, "success": outcome.is_success, "failures": failures})
    elif outcome.is_success:
        out.print(outcome.point_id.text)
    for failure in () if as_json else outcome.failures:
        err.print(f"[bold red]{escape(failure.step)} failed:[/] {escape(failure.reason)}")
    raise CommandEnd(outcome.exit_code)


def _refuse_when_locked(directory: Path) -> None:
    """LockHeldError at once: a run that is started all the same would wait in the pool until the other ends.

    Whatever else is wrong with the directory is for the run to find: a run that fails is told of.
    """
    lock = DirectoryLock(directory)
    with suppress(OSError):
        lock.acquire("the command line")
    lock.release()


def _split_label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"--label {text!r} is not key=value", hint="--label deployment=v2.1.0")
    return name, value


@app.command()
def last(
    *,
    label: Annotated[str, typer.Option(help="Only points with this label: key, or key=value.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the newest verified recovery point and the commands that go back to it; ends with 3 when there is none."""
    catalog = open_catalog()
    fitting = [point for point in catalog.list_points() if point.state is PointState.VERIFIED and _has_label(point, label)]
    if not fitting:
        wanted = f" with the label {label}" if label else ""
        raise VerificationError(f"there is no verified recovery point{wanted} in {catalog.directory}", hint="Take one: schedgen-backups backup")
    point = fitting[-1]
    manifest = point.manifest
    assert manifest is not None  # noqa: S101 - a verified point is sealed
    labels = manifest.origin.labels
    commands = _list_rollback(point)
    if as_json:
        files = {artifact.name.kind.value: str(artifact.path) for artifact in point.artifacts}
        taken_at = manifest.snapshot_at.isoformat()
        print_json({"id": point.point_id.text, "taken_at": taken_at, "labels": labels, "files": files, "rollback": list(commands)})
        return
    age = format_age(datetime.now(timezone.utc) - manifest.snapshot_at)
    described = " ".join(f"{name}={value}" for name, value in labels.items())
    out.print(f"[bold]{point.point_id}[/]  verified  {age} old  {escape(described)}")
    for artifact in point.artifacts:
        out.print(f"  {escape(str(artifact.path))}")
    out.print("to go back to it (stop the application first):")
    for command in commands:
        out.print(f"  {escape(command)}")


def _keep(catalog: Catalog, point_id: RecoveryPointId, kept_for: timedelta | None, marker: Path | None, reason: str) -> None:
    if kept_for is not None:
        now = datetime.now(timezone.utc)
        pin = Pin(point_id=point_id.text, reason=reason or "asked for", pinned_by=getpass.getuser(), pinned_at=now, expires_at=now + kept_for)
        write_pin(catalog, pin)
    if marker is not None:
        write_marker(marker.absolute(), catalog.get_point(point_id))


def _has_label(point: PointListing, wanted: str) -> bool:
    labels = point.manifest.origin.labels if point.manifest is not None else {}
    name, separator, value = wanted.partition("=")
    return not wanted or (name in labels and (not separator or labels[name] == value))


def _list_rollback(point: PointListing) -> tuple[str, ...]:
    names = {artifact.name.kind: shlex.quote(artifact.name.source_name) for artifact in point.artifacts}
    database, bucket = names[ArtifactKind.DATABASE], names[ArtifactKind.BUCKET]
    return (
        f"schedgen-backups restore {point.point_id} --database {database} --swap --confirm {database} --reason rollback",
        f"schedgen-backups restore-objects {point.point_id} '*' --back --overwrite --confirm {bucket} --reason rollback",
    )


def _parse_span(text: str) -> timedelta:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"--pin-for {text!r} is no span of time", hint="Write 12h, 30d or 8w.")
    return int(match["count"]) * _UNITS[match["unit"]]
