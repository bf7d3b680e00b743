"""The command `backup`: take a recovery point in a Dagster run; print its id, or why it failed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, get_whole_config, out, print_json
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
    reason: Annotated[str, typer.Option(help="Why this backup is taken; recorded in the manifest.")] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label as key=value; recorded in the manifest. Can be given several times."),
    ] = None,
    pin_for: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Keep it for this duration whatever retention says: 12h, 30d, 4w."
        ),
    ] = "",
    write_marker: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write id, time and labels of the verified point to this file, for a shell to source.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recovery point, verify it and print its id. The run appears in the Dagster UI."""
    labels = dict(_split_label(text) for text in label or [])
    config = get_whole_config(context)
    directory = config.backup_directory
    if pin_for:
        parse_span(pin_for)
    if write_marker is not None:
        check_marker_folder(write_marker)
    _refuse_when_locked(directory)
    with show_capture(err, config.make_catalog().staging, _find_last_sizes(directory)):
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
    """Return the sizes of the newest complete point's files; empty without a point or a terminal."""
    if not err.is_terminal or not directory.is_dir():
        return {}
    try:
        complete = [
            point for point in Catalog(directory).list_points() if len(point.artifacts) == len(ArtifactKind)
        ]
    except BackupError:  # the run finds it too, and reports it
        return {}
    return (
        {artifact.name.kind: artifact.size_bytes for artifact in complete[-1].artifacts} if complete else {}
    )


def _refuse_when_locked(directory: Path) -> None:
    """Raise LockHeldError at once: a started run would wait in the pool until the other ends.

    Ignore other errors of the directory: the run finds them, and its failure is reported.
    """
    lock = DirectoryLock(directory)
    with suppress(StorageError):
        lock.acquire("the command line")
    lock.release()


def _split_label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(
            f"invalid label {text!r}: use key=value", hint="Example: --label deployment=v2.1.0"
        )
    return name, value
