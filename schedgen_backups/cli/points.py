"""The commands for recovery points: `show`, `verify`, `pin`, `adopt`, `prune` and others."""

from __future__ import annotations

import getpass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import (
    CHECKED_BY,
    CommandEnd,
    JsonOption,
    PointArgument,
    app,
    err,
    get_config,
    get_whole_config,
    out,
    print_json,
)
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    fetch_indexes,
    fetch_whole,
    open_point,
)
from schedgen_backups.cli.copy_status import KnownCopies
from schedgen_backups.cli.progress import (
    describe_levels,
    draw_plan,
    draw_results,
    draw_tables,
    show_progress,
)
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.config import Config
from schedgen_backups.config.site_parts import find_baseline_source, read_known_live_parts
from schedgen_backups.core.catalog import missing_objects
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.catalog.pins import Pin, describe_pin, read_pin, remove_pin, write_pin
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.catalog.selection import resolve_point
from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.core.formats.records import describe_left_out
from schedgen_backups.core.model import AcceptedObject, Adoption, ArtifactKind, ArtifactName, Manifest
from schedgen_backups.core.retention.prune import plan_pruning, remove_points
from schedgen_backups.core.units import count, describe_labels, format_bytes
from schedgen_backups.core.verify.commit import check_point, verify_point
from schedgen_backups.core.verify.files import (
    verify_archive,
    verify_dump,
    verify_dump_against_snapshot,
    verify_every_object,
)
from schedgen_backups.core.verify.live_system import LiveSystem
from schedgen_backups.core.verify.reread import find_unread
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


@app.command()
def show(
    context: typer.Context,
    point_id: PointArgument,
    *,
    tables: Annotated[
        bool, typer.Option("--tables", help="List only the tables of the dump, with rows and size.")
    ] = False,
    objects: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="List only the objects whose key starts with this; '' for all."),
    ] = None,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a recovery point: files, copies, check results, origin; or its tables, or its objects."""
    source = CopySource.from_options(from_store, identity, version_time, site)
    with open_point(get_config(context), source, point_id, fetch_indexes) as (config, point):
        if tables or objects is not None:
            _browse(point, is_tables=tables, prefix=objects, as_json=as_json)
        else:
            copies = KnownCopies(get_config(context))
            _show(config.open_catalog(), point, copies, store=source.store, as_json=as_json)


def _show(catalog: Catalog, point: PointListing, copies: KnownCopies, *, store: str, as_json: bool) -> None:
    """Print the point; of a copy, only the index of each file was fetched, into a folder that goes."""
    if as_json:
        print_json(point_to_json(catalog, point, copies))
        return
    out.print(
        f"[bold]{point.point_id}[/]  {point.state.value}  taken "
        f"{point.point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    for artifact in point.artifacts:
        out.print(
            f"  {artifact.name.kind.value:9} {format_bytes(artifact.size_bytes):>9}  "
            f"{escape(f'{artifact.path.name}, in {store}' if store else str(artifact.path))}"
        )
    for problem in point.problems:
        out.print(f"  [bold red]problem[/]   {escape(problem)}")
    for name in () if store else point.unread_files:
        out.print(
            f"  [yellow]unread[/]    {escape_value(name)} was copied or modified after it was read; it will "
            "be read again"
        )
    seen = ", as recorded when it was taken" if store else ""
    out.print(f"  levels     {describe_levels(point)}{seen}")
    for name, value in _describe_manifest(point.manifest).items() if point.manifest is not None else ():
        out.print(f"  {name:9} {escape_value(value)}")
    if pinned := describe_pin(catalog, point.point_id):
        out.print(f"  pin       {escape(pinned)}")
    for line in copies.describe_point(point.point_id, datetime.now(timezone.utc)):
        out.print(f"  copy      {escape(line)}")
    if copies.error:
        out.print(f"  copies    unknown: {escape(copies.error)}")
    out.print(draw_results(point.verification.results))


@app.command()
def verify(
    context: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="Recovery point, `latest`, or a file of a point.")
    ] = "",
    *,
    every: Annotated[bool, typer.Option("--all", help="Verify every recovery point.")] = False,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed", help="Verify points whose files were copied or modified after they were read."
        ),
    ] = False,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Read files from the disk again and perform every check on them.

    Exit code 3 if a check fails.
    """
    if [bool(subject), every, changed].count(True) != 1:
        raise ConfigurationError(
            "give exactly one of a recovery point or file, --all and --changed",
            hint="Example: schedgen-backups verify latest",
        )
    if subject and Path(subject).is_file():
        results = {subject: _verify_file(Path(subject))}
    else:
        source = CopySource.from_options(from_store, identity, version_time, site)
        if source.store and not subject:
            raise ConfigurationError(
                "--from needs a recovery point", hint="Example: schedgen-backups verify latest --from STORE"
            )
        results = _verify_points(get_config(context), source, subject, every=every)
    if as_json:
        print_json(
            {
                "results": {
                    name: [result.model_dump(mode="json") for result in found]
                    for name, found in results.items()
                }
            }
        )
    else:
        for name, found in results.items():
            out.print(f"[bold]{escape_value(name)}[/]")
            out.print(draw_results(found))
    allowed = {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED}
    is_good = all(result.status in allowed for found in results.values() for result in found)
    raise CommandEnd(0 if is_good else VERIFICATION_EXIT_CODE)


def _verify_points(
    config: Config, source: CopySource, subject: str, *, every: bool
) -> dict[str, tuple[CheckResult, ...]]:
    if subject:
        with open_point(config, source, subject, fetch_whole) as (found, point):
            return {point.point_id.text: _verify_listed(found, found.open_catalog(), point)}
    catalog = config.open_catalog()
    points = catalog.list_points() if every else find_unread(catalog)
    return {point.point_id.text: _verify_listed(config, catalog, point) for point in points}


@app.command()
def pin(
    context: typer.Context,
    point_id: PointArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why the point must be kept.")],
    days: Annotated[int, typer.Option(help="Days to keep it; 0: until it is unpinned.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Keep a recovery point whatever retention says."""
    catalog = get_config(context).open_catalog()
    point = resolve_point(catalog, point_id)
    now = datetime.now(timezone.utc)
    expires_at = now + timedelta(days=days) if days else None
    user = getpass.getuser()
    made = Pin(
        point_id=point.point_id.text, reason=reason, pinned_by=user, pinned_at=now, expires_at=expires_at
    )
    write_pin(catalog, made)
    if as_json:
        print_json({"id": point.point_id.text, "pin": made.model_dump(mode="json")})
    else:
        out.print(
            f"{point.point_id} is pinned{f' until {expires_at:%Y-%m-%d}' if expires_at else ''}: "
            f"{escape(reason)}"
        )


@app.command()
def unpin(context: typer.Context, point_id: PointArgument, *, as_json: JsonOption = False) -> None:
    """Remove the pin, so that retention applies to the recovery point again."""
    catalog = get_config(context).open_catalog()
    point = resolve_point(catalog, point_id)
    was_pinned = remove_pin(catalog, point.point_id)
    if as_json:
        print_json({"id": point.point_id.text, "was_pinned": was_pinned})
    else:
        out.print(f"{point.point_id} is {'no longer pinned' if was_pinned else 'not pinned'}")


@app.command()
def adopt(
    context: typer.Context,
    point_id: PointArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why a point of another site is used here.")],
    as_json: JsonOption = False,
) -> None:
    """Treat a recovery point that another site took as this site's own."""
    catalog = get_config(context).open_catalog()
    point = resolve_point(catalog, point_id)
    if point.state is not PointState.FOREIGN:
        raise ConfigurationError(
            f"recovery point {point.point_id} already belongs to this site",
            hint="`schedgen-backups list` shows which points are foreign.",
        )
    now = datetime.now(timezone.utc)
    adoption = Adoption(
        point_id=point.point_id.text, reason=reason, adopted_by=getpass.getuser(), adopted_at=now
    )
    catalog.adopt(adoption)
    if as_json:
        print_json({"id": point.point_id.text, "adoption": adoption.model_dump(mode="json")})
    else:
        out.print(f"{point.point_id} now belongs to this site: {escape(reason)}")


@app.command()
def accept_missing(
    context: typer.Context,
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY...", help="Keys of objects that the database refers to and are lost."),
    ],
    *,
    reason: Annotated[str, typer.Option(help="Why their absence is accepted.")],
    as_json: JsonOption = False,
) -> None:
    """Accept that these objects are missing: send no more alerts for them."""
    now = datetime.now(timezone.utc)
    user = getpass.getuser()
    accepted = [AcceptedObject(key=key, reason=reason, accepted_by=user, accepted_at=now) for key in keys]
    config = get_config(context)
    missing_objects.accept_missing(config.open_catalog(), accepted, source=find_baseline_source(config))
    if as_json:
        print_json({"accepted": [each.model_dump(mode="json") for each in accepted]})
    else:
        out.print(f"accepted: {count(len(accepted), 'missing object')}")


@app.command()
def prune(
    context: typer.Context,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the decisions without removing anything.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the recovery points that no retention rule keeps, and print the reasons."""
    config = get_whole_config(context)
    catalog, policy = config.open_catalog(), config.retention
    if dry_run:
        plan, freed_bytes = plan_pruning(catalog, policy, datetime.now(timezone.utc)), 0
        packs_kept_because = ""
    else:
        with catalog.lock.held("prune on the command line"):
            report = remove_points(
                catalog, policy, lambda point: check_point(catalog, point, checked_by=CHECKED_BY)[0]
            )
        plan, freed_bytes = report.plan, report.freed_bytes
        packs_kept_because = report.packs_kept_because
    if as_json:
        decisions = [
            {
                "id": made.candidate.point_id.text,
                "state": made.candidate.state.value,
                "kept": made.is_kept,
                "reasons": list(made.reasons),
            }
            for made in plan.decisions
        ]
        print_json(
            {
                "refusal": plan.refusal,
                "packs_kept_because": packs_kept_because,
                "freed_bytes": freed_bytes,
                "decisions": decisions,
            }
        )
        return
    out.print(draw_plan(plan))
    done = "would be removed" if dry_run else f"removed, {format_bytes(freed_bytes)} freed"
    out.print(
        f"{len(plan.kept)} kept, {len(plan.removed)} {done}"
        + (f"; nothing is removed: {plan.refusal}" if plan.refusal else "")
    )
    if packs_kept_because:
        out.print(f"[yellow]packs are kept:[/] {escape(packs_kept_because)}")


def _describe_manifest(manifest: Manifest) -> dict[str, str]:
    origin = manifest.origin
    described = {
        "left out": describe_left_out(manifest.left_out),
        "reason": origin.reason,
        "labels": describe_labels(origin.labels),
        "git": f"{origin.git_commit} {origin.git_branch}".strip(),
        "by": f"{origin.user}@{origin.host}",
        "run": origin.run_id,
    }
    return {name: value for name, value in described.items() if value}


def _browse(point: PointListing, *, is_tables: bool, prefix: str | None, as_json: bool) -> None:
    answer: dict[str, object] = {}
    if is_tables:
        with point.open_dump() as dump:
            answer["tables"] = [
                {"name": table.qualified_name, "rows": table.rows, "size_bytes": table.size_bytes}
                for table in dump.tables
            ]
            if not as_json:
                out.print(draw_tables(dump.tables))
    if prefix is not None:
        with point.open_archive() as archive:
            entries = (entry for entry in archive.read_entries() if entry.key.startswith(prefix))
            if as_json:
                answer["objects"] = [
                    entry.model_dump(mode="json", exclude={"offset", "length", "member_name"})
                    for entry in entries
                ]
            else:
                # Line by line: a bucket may hold too many objects for a table in memory.
                for entry in entries:
                    out.print(
                        f"{format_bytes(entry.size_bytes):>9}  {entry.modified_at:%Y-%m-%d %H:%M:%S}  "
                        f"{escape_value(entry.key)}"
                    )
    if as_json:
        print_json(answer)


def _verify_listed(config: Config, catalog: Catalog, point: PointListing) -> tuple[CheckResult, ...]:
    total = point.size_bytes
    with show_progress(err, {"verify": (f"verify {point.point_id}", total)}) as bars:
        verification, _summary = verify_point(
            catalog,
            point,
            checked_by=CHECKED_BY,
            live=_find_live(config) if point.manifest is None else None,
            parts=read_known_live_parts(config) if point.manifest is None else (),
            on_progress=lambda size_bytes: bars.advance("verify", size_bytes),
        )
    return verification.results


def _verify_file(path: Path) -> tuple[CheckResult, ...]:
    name = ArtifactName.from_file_name(path.name)
    is_dump = (
        name.kind is ArtifactKind.DATABASE
        if name is not None
        else not path.name.endswith(ArtifactKind.BUCKET.file_suffix)
    )
    with show_progress(err, {"verify": (f"verify {path.name}", path.stat().st_size)}) as bars:

        def passed(size_bytes: int) -> None:
            bars.advance("verify", size_bytes)

        if is_dump:
            return (*verify_dump(path, on_progress=passed), verify_dump_against_snapshot(path))
        return (*verify_archive(path, on_progress=passed), verify_every_object(path))


def _find_live(config: Config) -> LiveSystem | None:
    """Return the live system if it is configured: an uncommitted point has no results yet."""
    try:
        return config.live_application
    except ConfigurationError:
        return None


def point_to_json(catalog: Catalog, point: PointListing, copies: KnownCopies) -> dict[str, object]:
    """Return the fields of a point in `list --json` and `show --json`."""
    try:
        found = read_pin(catalog, point.point_id)
        pin_answer: object = found.model_dump(mode="json") if found is not None else None
    except VerificationError as error:
        pin_answer = {"error": error.message}
    return {
        "id": point.point_id.text,
        "taken_at": point.point_id.taken_at.isoformat(),
        "state": point.state.value,
        "pin": pin_answer,
        "problems": list(point.problems),
        "unread_files": list(point.unread_files),
        "artifacts": {
            artifact.name.kind.value
            if len(point.list_sources(artifact.name.kind)) == 1
            else f"{artifact.name.kind.value} {artifact.name.source_name}": {
                "path": str(artifact.path),
                "size_bytes": artifact.size_bytes,
            }
            for artifact in point.artifacts
        },
        "copies": copies.point_to_json(point.point_id),
        "levels": {level.level.value: level.status.value for level in point.verification.levels()},
        "manifest": point.manifest.model_dump(mode="json") if point.manifest else None,
        "verification": point.verification.model_dump(mode="json"),
    }
