"""The command that restores a whole point, and the one that prints the restore log.

`restore` reads its arguments, prepares the restore, shows what would change, asks for confirmation, and calls
the restore service.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timezone
from typing import Annotated

import typer

from schedgen_backups.cli.app import (
    CommandEnd,
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
    fetch_whole,
    open_point,
)
from schedgen_backups.cli.progress import draw_results, show_progress
from schedgen_backups.cli.restore_options import (
    AsOfOption,
    BucketOption,
    ConfirmOption,
    DatabaseOption,
    DryRunOption,
    ReasonOption,
    SafetyOption,
    demand_confirmation,
    open_service,
)
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.restore import read_restore_request
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.restore.point import PreparedRestore, RestoreReport, prepare_restore
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


@app.command()
def restore(
    context: typer.Context,
    point_id: PointArgument = "latest",
    *,
    as_of: AsOfOption = "",
    database: DatabaseOption = "",
    bucket: BucketOption = "",
    swap: Annotated[
        bool,
        typer.Option(
            "--swap",
            help="Load into a second database, compare, then exchange the names; the old database is kept "
            "under another name.",
        ),
    ] = False,
    into_nonempty: Annotated[
        bool,
        typer.Option(
            "--into-nonempty",
            help="Replace the contents of the database; overwrite objects that have the same keys. Asks "
            "for the name of the target, or takes it from --confirm.",
        ),
    ] = False,
    create: Annotated[
        bool,
        typer.Option(
            "--create/--no-create",
            help="Create a missing database or bucket (default), or fail.",
            show_default=False,
        ),
    ] = True,
    jobs: Annotated[
        int,
        typer.Option(
            help="Concurrent sessions that load an empty database; with more than one, the load is not a "
            "single transaction.",
            min=1,
            max=64,
        ),
    ] = 1,
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
    """Restore the database, the bucket or both, and compare the result with what was captured.

    The targets must be empty unless --swap or --into-nonempty is given.
    """
    config = get_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    with ExitStack() as stack:
        _config, point = stack.enter_context(open_point(config, source, point_id, fetch_whole, as_of=as_of))
        service = open_service(config, reason, is_safety_wanted=safety_backup)
        request = read_restore_request(
            config,
            point,
            database=database,
            bucket=bucket,
            replace_contents=into_nonempty,
            jobs=jobs,
            is_swap=swap,
            creates_targets=create,
        )
        prepared = stack.enter_context(prepare_restore(request, service.transfer))
        steps = prepared.describe()
        if dry_run and as_json:
            print_json({"steps": list(steps)})
        for step in () if as_json else steps:
            err.print(f"{'would ' if dry_run else ''}{escape(step)}")
        if dry_run:
            return
        if request.needs_confirmation:
            demand_confirmation(request.target_name, confirm)
        with show_progress(err, _describe_phases(prepared)) as bars:
            report = service.restore_whole(prepared, on_progress=bars.advance)
    _print_report(report, as_json=as_json)


@app.command(name="log")
def show_log(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """Show every restore from this backup directory: time, user, point, target, reason and result."""
    entries = read_restore_log(get_config(context).open_catalog().directory)
    if as_json:
        print_json({"entries": [entry.model_dump(mode="json") for entry in entries]})
        return
    # Lines instead of a table: on a narrow screen, its cells would wrap ids and addresses.
    for entry in entries:
        started = entry.started_at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        out.print(
            f"[bold]{started}[/]  {escape_value(f'{entry.user}@{entry.host}')}  "
            f"{escape_value(entry.point_id)}"
        )
        result = f"{entry.result} ({entry.seconds:.1f} s)" + (f"; {entry.reason}" if entry.reason else "")
        out.print(f"  {escape_value(f'{entry.subject} into {entry.target}: {result}')}")
    if not entries:
        out.print("the restore log is empty")


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


def _describe_phases(prepared: PreparedRestore) -> dict[str, tuple[str, int | None]]:
    """Return the phases with the bytes of each: files, loaded dump, objects, and both read back."""
    point, database, bucket = prepared.request.point, prepared.database, prepared.bucket
    halves = [ArtifactKind.DATABASE] * (database is not None) + [ArtifactKind.BUCKET] * (bucket is not None)
    sizes = {kind: size for kind in halves if (size := point.measure_kind(kind)) is not None}
    phases: dict[str, tuple[str, int | None]] = {"verify": ("verify the files", sum(sizes.values()))}
    if database is not None:
        phases["database"] = ("load the database", sizes.get(ArtifactKind.DATABASE))
    if bucket is not None:
        phases["bucket"] = ("write the objects", bucket.record.size_bytes)
    read_back = (database.record.size_bytes if database is not None else 0) + (
        bucket.record.size_bytes if bucket is not None else 0
    )
    return {**phases, "compare": ("compare", read_back)}
