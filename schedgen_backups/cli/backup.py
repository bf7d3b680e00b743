"""The command `backup`: takes a recovery point through Dagster, and prints its id or why there is none."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, get_config, out, print_json
from schedgen_backups.cli.deployment import check_marker_folder
from schedgen_backups.cli.deployment import write_marker as mark_deployment
from schedgen_backups.cli.progress import print_failure, show_capture
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, ConfigurationError, StorageError
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.system.lock import DirectoryLock
from schedgen_backups.core.units import parse_span
from schedgen_backups.runs.launch import run_backup


@app.command()
def backup(
    context: typer.Context,
    *,
    reason: Annotated[str, typer.Option(help="Why this backup is taken, kept in its manifest.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="key=value, kept in the manifest; may be given several times.")
    ] = None,
    pin_for: Annotated[
        str, typer.Option(metavar="SPAN", help="Keep it so long whatever retention says: 12h, 30d, 4w.")
    ] = "",
    write_marker: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Once it is verified, write id, time and labels here, to be sourced."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recovery point, verify it and print its id. The run appears in the Dagster UI."""
    labels = dict(_split_label(text) for text in label or [])
    config = get_config(context)
    directory = config.backup_directory
    if pin_for:
        parse_span(pin_for)
    if write_marker is not None:
        check_marker_folder(write_marker)
    _refuse_when_locked(directory)
    with show_capture(err, directory, _find_last_sizes(directory)):
        outcome = run_backup(config, reason, labels, pin_for=pin_for)
    if outcome.is_success and write_marker is not None:
        catalog = Catalog(directory)
        mark_deployment(write_marker, catalog, catalog.get_point(outcome.point_id))
    if as_json:
        failures = [
            {"step": failure.step, "reason": failure.reason, "hint": failure.hint}
            for failure in outcome.failures
        ]
        print_json(
            {
                "id": outcome.point_id.text,
                "run_id": outcome.run_id,
                "success": outcome.is_success,
                "failures": failures,
                "exit_code": outcome.exit_code,
            }
        )
    elif outcome.is_success:
        out.print(outcome.point_id.text)
    for failure in () if as_json else outcome.failures:
        print_failure(err, failure)
    raise CommandEnd(outcome.exit_code)


def _find_last_sizes(directory: Path) -> dict[ArtifactKind, int]:
    """The sizes of the newest complete point's files; none where there is no point, or nobody would see them."""
    if not err.is_terminal or not directory.is_dir():
        return {}
    try:
        complete = [
            point for point in Catalog(directory).list_points() if len(point.artifacts) == len(ArtifactKind)
        ]
    except BackupError:  # for the run to find, which is told of
        return {}
    return (
        {artifact.name.kind: artifact.size_bytes for artifact in complete[-1].artifacts} if complete else {}
    )


def _refuse_when_locked(directory: Path) -> None:
    """LockHeldError at once: a run that is started all the same would wait in the pool until the other ends.

    Whatever else is wrong with the directory is for the run to find: a run that fails is told of.
    """
    lock = DirectoryLock(directory)
    with suppress(StorageError):
        lock.acquire("the command line")
    lock.release()


def _split_label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"--label {text!r} is not key=value", hint="--label deployment=v2.1.0")
    return name, value
