"""The command line: the same work as in the Dagster UI, for terminals, scripts, cron and systemd.

A command reads its arguments, calls core or the Dagster instance, prints, and ends with an exit code; it decides nothing else. Rendering belongs to
`console`. Exit codes: 0 done, 1 database, 2 bucket, 3 verification, 4 configuration, 5 another run holds the lock,
130 cancelled.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.console import (
    describe_rungs,
    draw_findings,
    draw_points,
    draw_results,
    make_console,
    show_capture,
    show_progress,
)
from schedgen_backups.core.catalog import Catalog, PointListing
from schedgen_backups.core.errors import BackupError, ConfigurationError, RestoreError
from schedgen_backups.core.live import LiveApplication, LiveSystem
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId
from schedgen_backups.core.restore import RestoreRequest, describe_restore, restore_point
from schedgen_backups.core.sealing import verify_point
from schedgen_backups.core.settings import BackupSettings
from schedgen_backups.core.verification import ClaimResult, ClaimStatus
from schedgen_backups.core.verify import verify_archive, verify_dump, verify_dump_against_snapshot, verify_every_object
from schedgen_backups.core.version import TOOL_VERSION
from schedgen_backups.doctor import Verdict, examine
from schedgen_backups.environment import (
    export_environment,
    find_project_folder,
    load_environment,
    read_backup_settings,
    read_bucket_settings,
    read_database_settings,
)
from schedgen_backups.instance import make_tags, run_backup_job
from schedgen_backups.sizes import format_bytes
from schedgen_backups.targets import read_bucket_target, read_database_target

CONFIGURATION_EXIT_CODE = 4
VERIFICATION_EXIT_CODE = 3
_USAGE_EXIT_CODE = 2
CHECKED_BY = "command line"

app = typer.Typer(
    name="schedgen-backups",
    help="Backs up a PostgreSQL database and its S3 bucket as one recovery point, and proves that it can be restored.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = make_console()
err = make_console(is_error=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PointArgument = Annotated[str, typer.Argument(metavar="ID", help="A recovery point such as 20261122_020000, or `latest`.")]


class CommandEnd(Exception):  # noqa: N818 - not an error: how a command says its exit code
    """Ends the command with this exit code, after everything was printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def main() -> None:
    """Runs the command line and ends the process with one of the documented exit codes."""
    export_environment()
    try:
        app()
    except CommandEnd as end:
        sys.exit(end.exit_code)
    except BackupError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # A wrong option ends with 2 in every command line; here 2 is the bucket's.
        sys.exit(CONFIGURATION_EXIT_CODE if end.code == _USAGE_EXIT_CODE else end.code)


def print_error(error: BackupError) -> None:
    """The message and what to do, on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"[bold]what to do:[/] {escape(error.hint)}")


@app.callback(invoke_without_command=True)
def show_version(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Every command reads the environment and the project's .env; `doctor` checks all of it."""
    if version:
        out.print(TOOL_VERSION)
        raise typer.Exit


@app.command()
def demo(*, ui: Annotated[bool, typer.Option("--ui", help="Start the two servers with the Dagster UI instead, until Ctrl-C.")] = False) -> None:
    """Back up, verify, destroy, restore and compare a real database and bucket that live in .demo/ only."""
    try:
        from schedgen_backups.demo import story, workshop  # noqa: PLC0415 - the extra `demo` need not be installed
    except ImportError as error:
        raise ConfigurationError(f"the demo needs more packages: {error.name}", hint="pip install 'schedgen-backups[demo]'") from error
    folder = find_project_folder() / ".demo"
    raise CommandEnd(workshop.run_workshop(folder, out) if ui else story.tell_story(folder, out))


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Check every precondition of a backup: settings, servers, versions, privileges, space, clock."""
    findings = list(examine(load_environment()))
    if as_json:
        _print_json([{"what": f.subject, "state": f.verdict.value, "detail": f.detail, "fix": f.fix} for f in findings])
    else:
        out.print(draw_findings(findings))
    raise CommandEnd(CONFIGURATION_EXIT_CODE if any(finding.verdict is Verdict.PROBLEM for finding in findings) else 0)


@app.command()
def backup(
    *,
    reason: Annotated[str, typer.Option(help="Why this backup is taken, kept in its manifest.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value, kept in the manifest; may be given several times.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recovery point, verify it and print its id. The run appears in the Dagster UI."""
    labels = dict(_split_label(text) for text in label or [])
    directory = read_backup_settings(load_environment()).directory
    with show_capture(err, directory):
        outcome = run_backup_job(make_tags(reason, labels))
    if as_json:
        failures = [{"step": failure.step, "reason": failure.reason} for failure in outcome.failures]
        _print_json({"id": outcome.point_id.text, "run_id": outcome.run_id, "success": outcome.is_success, "failures": failures})
    elif outcome.is_success:
        out.print(outcome.point_id.text)
    for failure in () if as_json else outcome.failures:
        err.print(f"[bold red]{escape(failure.step)} failed:[/] {escape(failure.reason)}")
    raise CommandEnd(outcome.exit_code)


@app.command(name="list")
def list_points(*, as_json: JsonOption = False) -> None:
    """List the recovery points, oldest first, with their state."""
    catalog = _open_catalog()
    points = catalog.list_points()
    unmanaged = catalog.list_unmanaged()
    if as_json:
        _print_json({"points": [_point_to_json(point) for point in points], "unmanaged": [path.name for path in unmanaged]})
        return
    if points:
        out.print(draw_points(points, datetime.now(timezone.utc)))
    else:
        out.print(f"no recovery points in {escape(str(catalog.directory))}")
    if unmanaged:
        names = ", ".join(path.name for path in unmanaged)
        out.print(f"unmanaged (not made by schedgen-backups, never touched): {escape(names)}")


@app.command()
def show(point_id: PointArgument, *, as_json: JsonOption = False) -> None:
    """Show one recovery point: its files, what was proven of it and when, who asked for it."""
    point = _get_point(_open_catalog(), point_id)
    if as_json:
        _print_json(_point_to_json(point))
        return
    out.print(f"[bold]{point.point_id}[/]  {point.state.value}  taken {point.point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC")
    for artifact in point.artifacts:
        out.print(f"  {artifact.name.kind.value:9} {format_bytes(artifact.size_bytes):>9}  {escape(str(artifact.path))}")
    out.print(f"  rungs     {describe_rungs(point)}")
    if point.manifest is not None:
        origin = point.manifest.origin
        described = {
            "reason": origin.reason,
            "labels": ", ".join(f"{name}={value}" for name, value in origin.labels.items()),
            "git": f"{origin.git_commit} {origin.git_branch}".strip(),
            "by": f"{origin.user}@{origin.host}",
            "run": origin.run_id,
        }
        for name, value in described.items():
            if value:
                out.print(f"  {name:9} {escape(value)}")
    out.print(draw_results(point.verification.results))


@app.command()
def verify(
    subject: Annotated[str, typer.Argument(metavar="ID|FILE", help="A recovery point, `latest`, or one file of one.")] = "",
    *,
    every: Annotated[bool, typer.Option("--all", help="Verify every recovery point.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read files again from the disk and check every claim on them; ends with 3 when one fails."""
    if bool(subject) == every:
        raise ConfigurationError("name either one recovery point or file, or --all", hint="schedgen-backups verify latest")
    if not every and Path(subject).is_file():
        results = {subject: _verify_file(Path(subject))}
    else:
        catalog = _open_catalog()
        points = catalog.list_points() if every else (_get_point(catalog, subject),)
        results = {point.point_id.text: _verify_listed(catalog, point) for point in points}
    if as_json:
        _print_json({name: [result.model_dump(mode="json") for result in found] for name, found in results.items()})
    else:
        for name, found in results.items():
            out.print(f"[bold]{escape(name)}[/]")
            out.print(draw_results(found))
    allowed = {ClaimStatus.PASSED, ClaimStatus.NOT_CONFIGURED}
    is_good = all(result.status in allowed for found in results.values() for result in found)
    raise CommandEnd(0 if is_good else VERIFICATION_EXIT_CODE)


@app.command()
def restore(
    point_id: PointArgument,
    *,
    database: Annotated[str, typer.Option(help="postgresql://user@host:5432/name, or the name of a database on the server of the backup.")] = "",
    bucket: Annotated[str, typer.Option(help="http(s)://host:port/name, or the name of a bucket on the server of the backup.")] = "",
    into_nonempty: Annotated[
        bool, typer.Option("--into-nonempty", help="Replace what the database holds; overwrite objects of the same keys.")
    ] = False,
    confirm: Annotated[str, typer.Option(help="With --into-nonempty: the target's name, instead of typing it when asked.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore the database, the bucket or both into empty targets, and compare them with what was captured."""
    environment = load_environment()
    options = read_backup_settings(environment)
    catalog = _open_catalog()
    request = RestoreRequest(
        point=_get_point(catalog, point_id),
        database=read_database_target(database, environment) if database else None,
        bucket=read_bucket_target(bucket, environment) if bucket else None,
        replace_contents=into_nonempty,
    )
    steps = describe_restore(request, options)
    if not as_json:
        for step in steps:
            err.print(f"{'would ' if dry_run else ''}{escape(step)}")
    if dry_run:
        if as_json:
            _print_json({"steps": list(steps)})
        return
    if into_nonempty:
        _demand_confirmation(request, confirm)
    _restore(request, options, catalog, as_json=as_json)


def _restore(request: RestoreRequest, options: BackupSettings, catalog: Catalog, *, as_json: bool) -> None:
    with show_progress(err, _describe_phases(request)) as bars:
        report = restore_point(request, options, catalog=catalog, restored_by=CHECKED_BY, observe=bars.advance)
    if as_json:
        _print_json(
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


def _demand_confirmation(request: RestoreRequest, confirm: str) -> None:
    name = request.database.database if request.database is not None else request.bucket.bucket if request.bucket is not None else ""
    if not confirm and sys.stdin.isatty():
        confirm = typer.prompt(f"This cannot be undone. Type {name} to go on")
    if confirm != name:
        raise RestoreError(f"not confirmed: {name!r} was not typed, nothing was written", hint=f"--into-nonempty --confirm {name}")


def _verify_listed(catalog: Catalog, point: PointListing) -> tuple[ClaimResult, ...]:
    total = point.size_bytes
    with show_progress(err, {"verify": (f"verify {point.point_id}", total)}) as bars:
        verification, _summary = verify_point(
            catalog,
            point,
            checked_by=CHECKED_BY,
            live=_find_live() if point.manifest is None else None,
            observe=lambda size_bytes: bars.advance("verify", size_bytes),
        )
    return verification.results


def _verify_file(path: Path) -> tuple[ClaimResult, ...]:
    name = ArtifactName.from_file_name(path.name)
    is_dump = name.kind is ArtifactKind.DATABASE if name is not None else not path.name.endswith(ArtifactKind.BUCKET.file_suffix)
    with show_progress(err, {"verify": (f"verify {path.name}", path.stat().st_size)}) as bars:

        def passed(size_bytes: int) -> None:
            bars.advance("verify", size_bytes)

        if is_dump:
            return (*verify_dump(path, observe=passed), verify_dump_against_snapshot(path))
        return (*verify_archive(path, observe=passed), verify_every_object(path))


def _find_live() -> LiveSystem | None:
    """The live system, where it is configured: a point that was never sealed has no verdicts yet."""
    environment = load_environment()
    try:
        return LiveApplication(read_database_settings(environment), read_bucket_settings(environment), read_backup_settings(environment))
    except ConfigurationError:
        return None


def _open_catalog() -> Catalog:
    directory = read_backup_settings(load_environment()).directory
    if not directory.is_dir():
        raise ConfigurationError(f"BACKUP_DIR {directory} is no folder", hint="Set BACKUP_DIR, or take a first backup.")
    return Catalog(directory)


def _get_point(catalog: Catalog, text: str) -> PointListing:
    if text == "latest":
        sealed = [point for point in catalog.list_points() if point.manifest is not None]
        if not sealed:
            raise ConfigurationError(f"there is no sealed recovery point in {catalog.directory}", hint="Take one: schedgen-backups backup")
        return sealed[-1]
    return catalog.get_point(RecoveryPointId.parse(text))


def _split_label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"--label {text!r} is not key=value", hint="--label deployment=v2.1.0")
    return name, value


def _point_to_json(point: PointListing) -> dict[str, object]:
    return {
        "id": point.point_id.text,
        "taken_at": point.point_id.taken_at.isoformat(),
        "state": point.state.value,
        "artifacts": {artifact.name.kind.value: {"path": str(artifact.path), "size_bytes": artifact.size_bytes} for artifact in point.artifacts},
        "rungs": {rung.rung.value: rung.status.value for rung in point.verification.rungs()},
        "manifest": point.manifest.model_dump(mode="json") if point.manifest else None,
        "verification": point.verification.model_dump(mode="json"),
    }


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + os.linesep)


if __name__ == "__main__":
    main()
