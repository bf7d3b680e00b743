"""The commands that restore: a whole point, tables, objects, and rows with their objects.

A command reads its arguments, shows what would change, asks for the confirmation, and lets `restores` do it; it decides nothing else. Drawing
belongs to `restore_views`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.cli.app import CHECKED_BY, CommandEnd, JsonOption, PointArgument, app, err, out, print_json
from schedgen_backups.cli.progress import draw_results, show_progress
from schedgen_backups.cli.tables import draw_diffs, draw_objects
from schedgen_backups.config.environment import load_environment, open_catalog, read_backup_settings, read_bucket_settings, read_database_settings
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.core.catalog.selection import resolve_point
from schedgen_backups.core.errors import ConfigurationError, RestoreError
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.restore.objects import objects_to_json
from schedgen_backups.core.restore.point import RestoreReport, RestoreRequest
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.restore.table_diff import diffs_to_json
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import RestoredTables, TableRequest, make_side_name
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE

AsOfOption = Annotated[str, typer.Option("--as-of", help="With `latest`: the newest verified point that is not later than this time.")]
ReasonOption = Annotated[str, typer.Option(help="Why this is restored, kept in the log of restores.")]
SafetyOption = Annotated[
    bool, typer.Option("--safety-backup/--no-safety-backup", help="Keep what is overwritten in BACKUP_DIR/safety first (default), or do not.")
]
ConfirmOption = Annotated[str, typer.Option(help="The name of what is written to, instead of typing it when asked.")]
DatabaseOption = Annotated[str, typer.Option(help="postgresql://user@host:5432/name, or the name of a database on the server of the backup.")]
BucketOption = Annotated[str, typer.Option(help="http(s)://host:port/name, or the name of a bucket on the server of the backup.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.")]


@app.command()
def restore(
    point_id: PointArgument = "latest",
    *,
    as_of: AsOfOption = "",
    database: DatabaseOption = "",
    bucket: BucketOption = "",
    swap: Annotated[
        bool, typer.Option("--swap", help="Load beside the database, compare, then exchange the names; the old one stays under another name.")
    ] = False,
    into_nonempty: Annotated[
        bool, typer.Option("--into-nonempty", help="Replace what the database holds; overwrite objects of the same keys.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Load an empty database in so many sessions: faster, and no longer one transaction.", min=1, max=64)] = 1,
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Restore the database, the bucket or both, into empty targets unless told otherwise, and compare them with what was captured."""
    environment = load_environment()
    service = _open_service(reason, is_safety_wanted=safety_backup)
    request = RestoreRequest(
        point=resolve_point(service.catalog, point_id, as_of=as_of),
        database=read_database_target(database, environment) if database else None,
        bucket=read_bucket_target(bucket, environment) if bucket else None,
        replace_contents=into_nonempty,
        jobs=jobs,
    )
    steps = service.describe_whole(request, is_swap=swap)
    if not as_json:
        for step in steps:
            err.print(f"{'would ' if dry_run else ''}{escape(step)}")
    if dry_run:
        if as_json:
            print_json({"steps": list(steps)})
        return
    if into_nonempty or swap:
        target = request.database or request.bucket
        demand_confirmation(target.database if request.database else request.bucket.bucket if request.bucket else "", confirm)  # type: ignore[union-attr]
    with show_progress(err, _describe_phases(request)) as bars:
        report = service.restore_whole(request, is_swap=swap, on_progress=bars.advance)
    _print_report(report, as_json=as_json)


@app.command(name="restore-tables")
def restore_tables(
    point_id: PointArgument,
    table: Annotated[list[str], typer.Argument(help="A table, schema.table, or a glob such as 'public.*'.")],
    *,
    as_of: AsOfOption = "",
    where: Annotated[str, typer.Option(help="A condition on the rows of the only table, as behind WHERE in SQL.")] = "",
    database: Annotated[str, typer.Option(help="The live database to compare with and write to; by default the one that is backed up.")] = "",
    side_database: Annotated[str, typer.Option(help="Name of the database beside it; by default restored_ID.")] = "",
    diff_only: Annotated[bool, typer.Option("--diff-only", help="Show the difference, and drop the side database again.")] = False,
    write: Annotated[WriteMode | None, typer.Option(help="Put rows back: the missing ones, or also those that were changed.")] = None,
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore tables into a database beside the live one and show how they differ; with --write put rows back. Reads only the tables' bytes."""
    environment = load_environment()
    service = _open_service(reason, is_safety_wanted=safety_backup)
    live = read_database_target(database, environment) if database else read_database_settings(environment)
    request = TableRequest(resolve_point(service.catalog, point_id, as_of=as_of), tuple(table), live, where, side_database)
    with service.open_tables(request) as restored:
        answer: dict[str, object] = {"id": request.point.point_id.text, "tables": diffs_to_json(restored.diffs)}
        if not as_json:
            out.print(draw_diffs(restored.diffs))
        if write is not None:
            demand_confirmation(live.database, confirm)
            written = service.write_back(request, restored, write)
            answer["written"] = {rows.table.qualified_name: rows.count for rows in written}
            for rows in () if as_json else written:
                out.print(f"{escape(rows.table.qualified_name)}: {rows.count} rows put back into {escape(live.label)}")
        elif not diff_only:
            _keep_separate(request, restored)
            answer["side_database"] = restored.scratch.settings.database
    if as_json:
        print_json(answer)


@app.command(name="restore-objects")
def restore_objects(
    point_id: PointArgument,
    key: Annotated[list[str], typer.Argument(help="A key, a prefix that ends in /, or a glob.")],
    *,
    as_of: AsOfOption = "",
    to: Annotated[Path | None, typer.Option(help="A folder that gets them as files.")] = None,
    bucket: BucketOption = "",
    back: Annotated[bool, typer.Option("--back", help="Into the bucket that is backed up.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also replace objects, or files, that are different.")] = False,
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Restore some objects, reading only their bytes: into a folder, another bucket, or back. What differs is shown first."""
    environment = load_environment()
    if sum((to is not None, bool(bucket), back)) != 1:
        raise ConfigurationError("where to is not said, or said twice", hint="Give one of --to FOLDER, --bucket NAME and --back.")
    service = _open_service(reason, is_safety_wanted=safety_backup)
    point = resolve_point(service.catalog, point_id, as_of=as_of)
    entries = service.find_objects(point, tuple(key))
    if to is not None:
        paths = () if dry_run else service.extract_objects(point, entries, to, overwrite=overwrite)
        if as_json:
            print_json({"id": point.point_id.text, "objects": [entry.key for entry in entries], "files": [str(path) for path in paths]})
        for text in () if as_json else [str(path) for path in paths] or [f"would write {entry.key}" for entry in entries]:
            out.print(escape(text))
        return
    target: BucketSettings = read_bucket_target(bucket or read_bucket_settings(environment).bucket, environment)
    differences = service.compare(entries, target)
    if not as_json:
        out.print(draw_objects(differences))
    written = ()
    if not dry_run:
        if overwrite or back:
            demand_confirmation(target.bucket, confirm)
        written = service.restore_objects(point, differences, target, overwrite=overwrite)
    if as_json:
        print_json({"id": point.point_id.text, "objects": objects_to_json(differences), "written": [entry.key for entry in written]})
    elif not dry_run:
        out.print(f"{len(written)} objects written into {escape(target.label)}, read back and found equal")


@app.command()
def undelete(
    point_id: PointArgument,
    table: Annotated[str, typer.Argument(help="The table whose rows were deleted, such as jobs.")],
    *,
    where: Annotated[str, typer.Option(help="Which rows, as behind WHERE in SQL.")],
    key_column: Annotated[str, typer.Option(help="The table's column that holds object keys.")] = "s3_key",
    as_of: AsOfOption = "",
    database: Annotated[str, typer.Option(help="The live database; by default the one that is backed up.")] = "",
    bucket: Annotated[str, typer.Option(help="The live bucket; by default the one that is backed up.")] = "",
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring back deleted rows with the objects that they refer to: only what is missing is written, objects first."""
    environment = load_environment()
    service = _open_service(reason, is_safety_wanted=safety_backup)
    live = read_database_target(database, environment) if database else read_database_settings(environment)
    target = read_bucket_target(bucket or read_bucket_settings(environment).bucket, environment)
    request = TableRequest(resolve_point(service.catalog, point_id, as_of=as_of), (table,), live, where)
    with service.open_undelete(request, key_column, target) as found:
        diffs = found.tables.diffs
        answer: dict[str, object] = {
            "tables": diffs_to_json(diffs),
            "objects": objects_to_json(found.differences),
            "lost_keys": list(found.lost_keys),
        }
        if not as_json:
            out.print(draw_diffs(diffs))
            out.print(draw_objects(found.differences))
            for lost in found.lost_keys:
                err.print(f"[yellow]note:[/] the archive has no object {escape(lost)}")
        if not dry_run:
            demand_confirmation(live.database, confirm)
            objects, rows = service.finish_undelete(request, found, target)
            answer |= {"rows_written": rows, "objects_written": [entry.key for entry in objects]}
            if not as_json:
                out.print(f"{rows} rows and {len(objects)} objects brought back")
    if as_json:
        print_json(answer)


def demand_confirmation(name: str, confirm: str) -> None:
    """Returns when the target's name was typed or given; RestoreError otherwise, and nothing was written."""
    if not confirm and sys.stdin.isatty():
        confirm = typer.prompt(f"This writes into {name}. Type {name} to go on")
    if confirm != name:
        raise RestoreError(f"not confirmed: {name!r} was not typed, nothing was written", hint=f"--confirm {name}")


def _open_service(reason: str, *, is_safety_wanted: bool) -> RestoreService:
    options = RestoreOptions(CHECKED_BY, reason, is_safety_wanted)
    return RestoreService(open_catalog(), read_backup_settings(load_environment()).capture, options, report=lambda text: err.print(escape(text)))


def _keep_separate(request: TableRequest, restored: RestoredTables) -> None:
    name = restored.scratch.settings.database
    restored.scratch.keep(f"schedgen-backups: {', '.join(request.names)} of recovery point {request.point.point_id}")
    err.print(f'the tables are in the database {escape(name)} on the same server; look, copy what you need, then: DROP DATABASE "{escape(name)}";')
    if name == make_side_name(request.point.point_id):
        err.print("to put rows back into the live tables: the same command with --write missing or --write changed, once it is dropped")


def _print_report(report: RestoreReport, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "equal": report.is_equal,
                "seconds": report.seconds,
                "notes": list(report.notes),
                "results": [result.model_dump(mode="json") for result in report.results],
            }
        )
    else:
        for note in report.notes:
            err.print(f"[yellow]note:[/] {escape(note)}")
        out.print(draw_results(report.results))
        out.print(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in report.seconds.items()))
    raise CommandEnd(0 if report.is_equal else VERIFICATION_EXIT_CODE)


def _describe_phases(request: RestoreRequest) -> dict[str, tuple[str, int | None]]:
    sizes = {kind: artifact.size_bytes for kind in ArtifactKind if (artifact := request.point.artifact(kind)) is not None}
    wanted = {ArtifactKind.DATABASE: request.database, ArtifactKind.BUCKET: request.bucket}
    total = sum(size for kind, size in sizes.items() if wanted[kind] is not None)
    phases: dict[str, tuple[str, int | None]] = {"verify": ("verify files", total)}
    if request.database is not None:
        phases["database"] = ("load database", sizes.get(ArtifactKind.DATABASE))
    if request.bucket is not None:
        phases["bucket"] = ("write objects", None)
    return {**phases, "compare": ("compare", None)}
