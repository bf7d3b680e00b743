"""The demo: seed, back up through Dagster, verify, destroy the originals, restore and compare.

Every step is one that an operator would do on the command line.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from schedgen_backups.cli.progress import draw_results, print_failure
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import load_config
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.core.catalog.check_results import VerificationLevel
from schedgen_backups.core.restore.point import RestoreRequest, restore_point
from schedgen_backups.core.units import format_bytes
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.demo.seed import destroy_application, seed_application
from schedgen_backups.demo.servers import BUCKET, DATABASE, Stage, open_stage
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.runs.launch import run_backup

USER_COUNT = 1_000
JOB_COUNT = 2_000
_Result = TypeVar("_Result")


class _Reporter:
    """Prints each step with its duration, and keeps the durations for the summary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.rows: list[tuple[str, str, float]] = []

    def report(self, step: str, work: Callable[[], _Result], describe: Callable[[_Result], str]) -> _Result:
        started = time.monotonic()
        with self._console.status(step):
            result = work()
        seconds = time.monotonic() - started
        text = describe(result)
        self.rows.append((step, text, seconds))
        self._console.print(f"[green]done[/]  {step}: {escape(text)} [dim]({seconds:.1f} s)[/]")
        return result


def run_walkthrough(folder: Path, console: Console) -> int:
    """Run the demo; return 0 if every check passed. It can be repeated in the same directory."""
    started = time.monotonic()
    reporter = _Reporter(console)
    console.print(
        f"starting a PostgreSQL and an S3 server in {escape(str(folder / 'run'))}; the demo takes about a "
        "minute"
    )
    with open_stage(folder / "run") as stage:
        reporter.rows.append(
            ("start PostgreSQL and an S3 server", "on loopback, in .demo/run", time.monotonic() - started)
        )
        return _play(stage, reporter, console, started)


def _play(stage: Stage, reporter: _Reporter, console: Console, started: float) -> int:
    config = load_config()
    destroy_application(stage.database, stage.bucket)
    reporter.report(
        "seed the application",
        lambda: seed_application(stage.database, stage.bucket, user_count=USER_COUNT, job_count=JOB_COUNT),
        lambda seeded: (
            f"{seeded.users} users, {seeded.jobs} jobs, {seeded.objects} PDFs "
            f"({format_bytes(seeded.object_bytes)})"
        ),
    )
    outcome = reporter.report(
        "back up through Dagster",
        lambda: run_backup(config, "demo", {"made-by": "demo"}),
        lambda ended: f"recovery point {ended.point_id}" if ended.is_success else "failed",
    )
    if not outcome.is_success:
        for failure in outcome.failures:
            print_failure(console, failure)
        return outcome.exit_code
    catalog = config.make_catalog()
    point = catalog.get_point(outcome.point_id)
    verification, references = reporter.report(
        "verify the files",
        lambda: verify_point(catalog, point, checked_by="demo"),
        lambda found: ", ".join(
            f"{level.value}: {found[0].level(level).status.value}"
            for level in (VerificationLevel.STORED, VerificationLevel.PARSED, VerificationLevel.COHERENT)
        ),
    )
    reporter.report(
        "destroy the originals",
        lambda: destroy_application(stage.database, stage.bucket),
        lambda _nothing: "database dropped and created again, bucket emptied",
    )
    request = RestoreRequest(
        point, read_database_target(DATABASE, config), read_bucket_target(BUCKET, config)
    )
    report = reporter.report(
        "restore and compare",
        lambda: restore_point(request, config.capture.transfer, catalog=catalog, restored_by="demo"),
        lambda done: "equal" if done.is_equal else "NOT equal",
    )
    console.print()
    console.print("[bold]What was proven[/]")
    console.print(draw_results((*verification.results, *report.results)))
    console.print()
    console.print(_draw_times(reporter.rows, time.monotonic() - started))
    resolved = f"{references.resolved_count} of {references.reference_count}" if references else "unknown"
    console.print(f"PDFs that the database refers to and the recovery point contains: {resolved}")
    console.print()
    console.print("[bold]The files[/] (plain gzip: gunzip, psql and tar read them)")
    for path in sorted(stage.backup_directory.glob(f"*{outcome.point_id}*")):
        console.print(f"  {format_bytes(path.stat().st_size):>9}  {escape(str(path))}")
    console.print()
    console.print("[bold]Try next[/]")
    for command in _list_next_commands(stage, outcome.point_id.text):
        console.print(f"  {escape(command)}")
    is_good = report.is_equal and all(result.is_passed for result in verification.results)
    return 0 if is_good else VERIFICATION_EXIT_CODE


def _list_next_commands(stage: Stage, point_id: str) -> tuple[str, str, str]:
    program = shlex.quote(str(Path(sys.argv[0]).parent / "schedgen-backups"))
    directory = f"BACKUP_DIR={shlex.quote(str(stage.backup_directory))}"
    dump = next(stage.backup_directory.glob(f"db_*_{point_id}.sql.gz"))
    return (
        f"{directory} {program} show {point_id}",
        f"gunzip -c {shlex.quote(str(dump))} | less",
        "make ui    # the same in the Dagster UI: press Materialize all",
    )


def _draw_times(rows: list[tuple[str, str, float]], total_seconds: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    table.add_column("seconds", justify="right")
    for step, _text, seconds in rows:
        table.add_row(step, f"{seconds:.1f}")
    table.add_row("[bold]total[/]", f"[bold]{total_seconds:.1f}[/]")
    return table
