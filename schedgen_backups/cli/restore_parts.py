"""The commands that restore parts of a point: tables, objects, or deleted rows with their objects.

A command reads its arguments, prepares the restore, shows what would change, asks for confirmation, and
calls the restore service.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import (
    JsonOption,
    PointArgument,
    app,
    err,
    get_config,
    out,
    print_json,
)
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    fetch_objects,
    fetch_rows_and_archive,
    fetch_tables,
    open_point,
)
from schedgen_backups.cli.progress import show_work
from schedgen_backups.cli.restore_options import (
    AsOfOption,
    BucketOption,
    ConfirmOption,
    DryRunOption,
    ReasonOption,
    SafetyOption,
    demand_confirmation,
    open_service,
)
from schedgen_backups.cli.tables import draw_diffs, draw_objects, draw_values
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.restore import (
    read_live_bucket,
    read_table_request,
    read_undelete_request,
)
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.restore.objects import (
    PreparedFiles,
    objects_to_json,
    prepare_files,
    prepare_objects,
)
from schedgen_backups.core.restore.service import RestoreService
from schedgen_backups.core.restore.table_diff import diffs_to_json
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import PreparedTables, make_side_name
from schedgen_backups.core.restore.undelete import prepare_undelete
from schedgen_backups.core.units import count, format_bytes, name_some

_LISTED_FILES = 20


@app.command(name="restore-tables")
def restore_tables(
    context: typer.Context,
    point_id: PointArgument,
    table: Annotated[list[str], typer.Argument(help="Table, schema.table, or a glob such as 'public.*'.")],
    *,
    as_of: AsOfOption = "",
    where: Annotated[
        str,
        typer.Option(
            metavar="CONDITION", help="SQL condition (after WHERE) for the rows; only with a single table."
        ),
    ] = "",
    database: Annotated[
        str,
        typer.Option(
            help="Live database to compare with and write to; by default the one that is backed up."
        ),
    ] = "",
    side_database: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the side database; by default restored_ID.")
    ] = "",
    diff_only: Annotated[
        bool, typer.Option("--diff-only", help="Show the differences, then drop the side database.")
    ] = False,
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="Show the values that differ between backup and live, for up to ten rows per table.",
        ),
    ] = False,
    write: Annotated[
        WriteMode | None,
        typer.Option(help="Write rows back to the live tables: missing rows, or also changed rows."),
    ] = None,
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore tables into a side database and show the differences; with --write, write rows back.

    The side database is on the same server as the live one. Only the tables' bytes are read.
    """
    config = get_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    with ExitStack() as stack:
        _config, point = stack.enter_context(
            open_point(config, source, point_id, fetch_tables(tuple(table)), as_of=as_of)
        )
        service = open_service(config, reason, is_safety_wanted=safety_backup)
        request = read_table_request(
            config, point, tuple(table), database=database, where=where, side_name=side_database
        )
        with show_work(err, f"loading {count(len(table), 'table')} into a side database and comparing"):
            prepared = stack.enter_context(service.open_tables(request))
        differences = prepared.describe()
        answer: dict[str, object] = {
            "id": point.point_id.text,
            "tables": diffs_to_json(differences, with_values=values),
        }
        if prepared.left_out:
            err.print(
                "[yellow]note:[/] not in this point, because they were excluded when it was taken: the rows "
                f"of {escape_value(name_some(prepared.left_out))}"
            )
        if not as_json:
            out.print(draw_diffs(differences))
            if values:
                out.print(draw_values(differences))
        if write is not None:
            demand_confirmation(request.target_name, confirm)
            with show_work(err, "writing rows back"):
                written = service.write_rows(prepared, write)
            answer["written"] = {rows.table.qualified_name: rows.count for rows in written}
            for rows in () if as_json else written:
                out.print(
                    f"{escape_value(rows.table.qualified_name)}: {count(rows.count, 'row')} written back to "
                    f"{escape(request.live.label)}"
                )
        elif not diff_only:
            _keep_separate(prepared)
            answer["side_database"] = prepared.side.name
    if as_json:
        print_json(answer)


@app.command(name="restore-objects")
def restore_objects(
    context: typer.Context,
    point_id: PointArgument,
    key: Annotated[list[str], typer.Argument(help="Key, prefix that ends in /, or glob.")],
    *,
    as_of: AsOfOption = "",
    to: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Write them as files into this directory.")
    ] = None,
    bucket: BucketOption = "",
    back: Annotated[
        bool, typer.Option("--back", help="Write them into the bucket that is backed up.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace objects or files that differ.")
    ] = False,
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore single objects into a directory, another bucket or the live bucket.

    The differences are shown first. Only the objects' bytes are read.
    """
    config = get_config(context)
    if sum((to is not None, bool(bucket), back)) != 1:
        raise ConfigurationError(
            "give exactly one of --to, --bucket and --back",
            hint="Use --to DIRECTORY, --bucket NAME or --back.",
        )
    source = CopySource.from_options(from_store, identity, version_time, site)
    with open_point(config, source, point_id, fetch_objects(tuple(key)), as_of=as_of) as (_config, point):
        service = open_service(config, reason, is_safety_wanted=safety_backup)
        if to is not None:
            _restore_files(
                service,
                point,
                tuple(key),
                to,
                overwrite=overwrite,
                confirm=confirm,
                dry_run=dry_run,
                as_json=as_json,
            )
            return
        with ExitStack() as stack:
            with show_work(err, "comparing with the bucket"):
                prepared = stack.enter_context(
                    prepare_objects(point, tuple(key), read_live_bucket(config, bucket), service.transfer)
                )
            differences = prepared.describe()
            if not as_json:
                out.print(draw_objects(differences))
            written: tuple[ObjectEntry, ...] = ()
            if not dry_run:
                if back or prepared.needs_confirmation:
                    demand_confirmation(prepared.target_name, confirm)
                with show_work(err, f"writing into {prepared.bucket.target.label}"):
                    written = service.write_objects(prepared, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "id": point.point_id.text,
                "objects": objects_to_json(differences),
                "written": [entry.key for entry in written],
            }
        )
    elif not dry_run:
        out.print(
            f"{count(len(written), 'object')} written to {escape(prepared.bucket.target.label)}, read "
            "back and found equal"
        )


@app.command()
def undelete(
    context: typer.Context,
    point_id: PointArgument,
    table: Annotated[str, typer.Argument(help="Table whose rows were deleted, such as jobs.")],
    *,
    where: Annotated[
        str, typer.Option(metavar="CONDITION", help="SQL condition (after WHERE) for the rows.")
    ],
    key_column: Annotated[str, typer.Option(help="Column of the table with the object keys.")] = "s3_key",
    as_of: AsOfOption = "",
    database: Annotated[str, typer.Option(help="Live database; by default the one that is backed up.")] = "",
    bucket: Annotated[str, typer.Option(help="Live bucket; by default the one that is backed up.")] = "",
    confirm: ConfirmOption = "",
    safety_backup: SafetyOption = True,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore deleted rows and the objects that they refer to.

    Only missing rows and objects are written, objects first.
    """
    config = get_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    with ExitStack() as stack:
        _config, point = stack.enter_context(
            open_point(config, source, point_id, fetch_rows_and_archive((table,)), as_of=as_of)
        )
        service = open_service(config, reason, is_safety_wanted=safety_backup)
        rows = read_table_request(config, point, (table,), database=database, where=where)
        request = read_undelete_request(config, rows, bucket=bucket, key_column=key_column)
        with show_work(err, f"loading {table} into a side database and comparing"):
            prepared = stack.enter_context(prepare_undelete(request, service.transfer))
        row_differences, object_differences = prepared.tables.describe(), prepared.objects.describe()
        answer: dict[str, object] = {
            "tables": diffs_to_json(row_differences),
            "objects": objects_to_json(object_differences),
            "lost_keys": list(prepared.lost_keys),
        }
        if not as_json:
            out.print(draw_diffs(row_differences))
            out.print(draw_objects(object_differences))
            for lost in prepared.lost_keys:
                why = (
                    ": BACKUP_EXCLUDE_OBJECTS excluded it when the point was taken"
                    if lost in prepared.excluded_keys
                    else ""
                )
                err.print(f"[yellow]note:[/] the archive does not contain {escape_value(lost)}{why}")
        if not dry_run:
            demand_confirmation(request.target_name, confirm)
            with show_work(err, "writing objects, then rows"):
                undeleted = service.undelete(prepared)
            answer |= {
                "rows_written": undeleted.row_count,
                "objects_written": [entry.key for entry in undeleted.objects],
            }
            if not as_json:
                out.print(
                    f"{count(undeleted.row_count, 'row')} and {count(len(undeleted.objects), 'object')} "
                    "restored"
                )
    if as_json:
        print_json(answer)


def _restore_files(
    service: RestoreService,
    point: PointListing,
    patterns: tuple[str, ...],
    folder: Path,
    *,
    overwrite: bool,
    confirm: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    with prepare_files(point, patterns, folder) as files:
        if overwrite and not dry_run:
            demand_confirmation(str(folder), confirm)
        written: tuple[Path, ...] = ()
        if not dry_run:
            with show_work(err, f"writing {_measure(files.entries)} into {folder}"):
                written = service.write_files(files, overwrite=overwrite)
        _print_files(files, written, as_json=as_json)


def _print_files(files: PreparedFiles, written: tuple[Path, ...], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "id": files.point.point_id.text,
                "objects": [entry.key for entry in files.entries],
                "files": [str(path) for path in written],
            }
        )
        return
    lines = [str(path) for path in written] or [f"would {line}" for line in files.describe()]
    for text in lines[:_LISTED_FILES]:
        out.print(escape(text))
    if len(lines) > _LISTED_FILES:
        out.print(f"{len(lines) - _LISTED_FILES} more; --json prints all")
    done = "written, read back and found equal" if written else "would be written"
    out.print(f"{_measure(files.entries)}, {done}, in {escape(str(files.folder))}")
    if written and files.index_path is not None:
        out.print(f"list of keys that are not valid file names: {escape(str(files.index_path))}")


def _measure(entries: tuple[ObjectEntry, ...]) -> str:
    return f"{count(len(entries), 'object')}, {format_bytes(sum(entry.size_bytes for entry in entries))}"


def _keep_separate(prepared: PreparedTables) -> None:
    name, request = prepared.side.name, prepared.request
    prepared.side.keep(
        f"schedgen-backups: {', '.join(request.names)} of recovery point {request.point.point_id}"
    )
    err.print(
        f"the tables are in the database {escape(name)} on the same server; copy what you need, then run: "
        f'DROP DATABASE "{escape(name)}";'
    )
    if name == make_side_name(request.point.point_id):
        err.print(
            "to write rows back to the live tables, drop that database and repeat the command with --write "
            "missing or --write changed"
        )
