"""Terminal output: tables of recovery points and check results, failures, and progress bars."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.model import ArtifactKind, ArtifactName, Origin, RecoveryPointId
from schedgen_backups.core.retention.plan import RetentionPlan
from schedgen_backups.core.units import describe_labels, format_age, format_bytes
from schedgen_backups.doctor.results import PreconditionResult, Verdict
from schedgen_backups.runs.results import StepFailure

_STATE_STYLES = {
    PointState.VERIFIED: "green",
    PointState.UNVERIFIED: "yellow",
    PointState.PARTIAL: "yellow",
    PointState.FOREIGN: "dim",
    PointState.AHEAD: "bold red",
    PointState.DAMAGED: "bold red",
    PointState.FAILED: "bold red",
}
_STATUS_STYLES = {
    CheckStatus.PASSED: "green",
    CheckStatus.INCOMPLETE: "yellow",
    CheckStatus.SAMPLED: "yellow",
    CheckStatus.FAILED: "bold red",
    CheckStatus.NOT_CONFIGURED: "yellow",
    CheckStatus.UNKNOWN: "dim",
}
_VERDICT_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.PROBLEM: "bold red"}
_POLL_SECONDS = 0.2
_DRILL_LEVELS = (VerificationLevel.RESTORED, VerificationLevel.EQUAL)


def draw_points(
    points: Iterable[PointListing],
    now: datetime,
    pins: Mapping[RecoveryPointId, str],
    copies: Mapping[RecoveryPointId, str] | None = None,
) -> Table:
    """Return a table with a line per recovery point, oldest first.

    `pins` has each point's pin as text, `copies` the stores that hold it; None without stores.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("recovery point", "age"):
        table.add_column(name, no_wrap=True)
    for name in ("database", "bucket"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("level", no_wrap=True)
    for level in _DRILL_LEVELS:
        table.add_column(level.value, no_wrap=True)
    if copies is not None:
        table.add_column("copies", overflow="fold")
    table.add_column("pin, labels, reason", overflow="fold")
    for point in points:
        origin = point.manifest.origin if point.manifest else Origin()
        notes = ("to be read again",) if point.unread_files else ()
        sizes = [point.measure_kind(kind) for kind in ArtifactKind]
        table.add_row(
            point.point_id.text,
            format_age(now - point.point_id.taken_at),
            *("-" if size is None else format_bytes(size) for size in sizes),
            f"[{_STATE_STYLES[point.state]}]{point.state.value}[/]",
            find_highest_level(point),
            *(_describe_level(point, level) for level in _DRILL_LEVELS),
            *([] if copies is None else [escape_value(copies[point.point_id] or "-")]),
            escape_value(
                "; ".join(
                    filter(
                        None, (*notes, pins[point.point_id], describe_labels(origin.labels), origin.reason)
                    )
                )
            ),
        )
    return table


def draw_results(results: Iterable[CheckResult]) -> Table:
    """Return a table with a line per check."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("details", overflow="fold")
    for result in results:
        table.add_row(
            escape_value(result.name),
            f"[{_STATUS_STYLES[result.status]}]{result.status.value}[/]",
            escape(result.summary),
        )
    return table


def draw_tables(tables: Iterable[TableEntry]) -> Table:
    """Return a table with a line per table of a dump, in its order."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("table", overflow="fold")
    drawn.add_column("rows", justify="right", no_wrap=True)
    drawn.add_column("size", justify="right", no_wrap=True)
    for table in tables:
        drawn.add_row(escape_value(table.qualified_name), str(table.rows), format_bytes(table.size_bytes))
    return drawn


def print_precondition_results(console: Console, results: Iterable[PreconditionResult]) -> None:
    """Print a line per precondition, and the fix below it if there is one.

    A table would wrap commands at the width of the screen.
    """
    for result in results:
        console.print(
            f"[{_VERDICT_STYLES[result.verdict]}]{result.verdict.value:7}[/] "
            f"[bold]{escape(result.subject)}:[/] {escape(result.detail)}"
        )
        if result.fix:
            console.print(f"{'':7} [bold]fix:[/] {escape(result.fix)}")


def draw_plan(plan: RetentionPlan) -> Table:
    """Return a table with a line per recovery point: what retention does with it and why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("recovery point", "state", "decision"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for decision in plan.decisions:
        state = decision.candidate.state
        verdict = "[green]keep[/]" if decision.is_kept else "[yellow]remove[/]"
        table.add_row(
            decision.candidate.point_id.text,
            f"[{_STATE_STYLES[state]}]{state.value}[/]",
            verdict,
            escape("; ".join(decision.reasons)),
        )
    return table


def print_failure(console: Console, failure: StepFailure) -> None:
    """Print which step failed, why, and what to do."""
    console.print(f"[bold red]{escape(failure.step)} failed:[/] {escape(failure.reason)}")
    if failure.hint:
        console.print(f"[bold]What to do:[/] {escape(failure.hint)}")


def _describe_level(point: PointListing, level: VerificationLevel) -> str:
    """Return whether the point was found restored or equal; a dash if nobody tried."""
    found = point.verification.level(level)
    if found.checked_at is None:
        return "-"
    return "yes" if found.status is CheckStatus.PASSED else found.status.value


def find_highest_level(point: PointListing) -> str:
    """Return the highest level that passed, or a dash."""
    passed = [
        level.level.value for level in point.verification.levels() if level.status is CheckStatus.PASSED
    ]
    return passed[-1] if passed else "-"


def describe_levels(point: PointListing) -> str:
    """Return every level with its status, lowest first."""
    return ", ".join(
        f"{level.value}: {point.verification.level(level).status.value}" for level in VerificationLevel
    )


@contextmanager
def show_work(console: Console, text: str) -> Generator[None, None, None]:
    """Show the text and the elapsed time on a terminal during the block, for work of unknown size."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


@contextmanager
def show_capture(
    console: Console, staging: Path, expected: Mapping[ArtifactKind, int]
) -> Generator[None, None, None]:
    """Show on a terminal during the block how much of each file was written, from the staging directory.

    `expected` has the sizes of the newest point's files, as an estimate of the total.
    """
    if not console.is_terminal:
        yield
        return
    with _make_bars(console) as progress:
        is_done = threading.Event()
        watcher = threading.Thread(
            target=_watch_staging, args=(progress, staging, expected, is_done), daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            is_done.set()
            watcher.join()


@contextmanager
def show_progress(
    console: Console, descriptions: Mapping[str, tuple[str, int | None]]
) -> Generator[ProgressBars, None, None]:
    """Yield progress bars for phases: name → (description, expected bytes or None).

    Draw nothing without a terminal.
    """
    with _make_bars(console) as progress:
        # A phase starts with its first byte: the remaining time would be wrong otherwise.
        tasks = {
            name: progress.add_task(text, total=total, start=False)
            for name, (text, total) in descriptions.items()
        }
        yield ProgressBars(progress, tasks)


class ProgressBars:
    """Bars that `show_progress` draws."""

    def __init__(self, progress: Progress, tasks: dict[str, TaskID]) -> None:
        self._progress = progress
        self._tasks = tasks
        self._started: set[str] = set()

    def advance(self, phase: str, size_bytes: int) -> None:
        """Add bytes to this phase."""
        task = self._tasks[phase]
        if phase not in self._started:
            self._started.add(phase)
            self._progress.start_task(task)
        self._progress.advance(task, size_bytes)


def _make_bars(console: Console) -> Progress:
    """Return bars with amount, total, rate and remaining time that fit into 80 columns."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )


_CAPTURES = {ArtifactKind.DATABASE: "dump of the database", ArtifactKind.BUCKET: "archive of the bucket"}


def _watch_staging(
    progress: Progress, staging: Path, expected: Mapping[ArtifactKind, int], is_done: threading.Event
) -> None:
    tasks: dict[ArtifactKind, TaskID] = {}
    # Before the first byte and after the last, no bytes are counted: while Dagster loads, the snapshot is
    # opened, and the files are read again.
    other = progress.add_task("loading Dagster", total=None)
    while not is_done.wait(_POLL_SECONDS):
        for path in staging.glob("*/*.gz"):
            name = ArtifactName.from_file_name(path.name)
            try:
                size_bytes = path.stat().st_size
            except FileNotFoundError:  # published just now
                continue
            if name is None:
                continue
            if name.kind not in tasks:
                tasks[name.kind] = progress.add_task(_CAPTURES[name.kind], total=expected.get(name.kind))
                progress.update(other, description="verifying and committing", visible=False)
            # The last point's size is an estimate; a full bar would be misleading.
            total = expected.get(name.kind)
            progress.update(
                tasks[name.kind],
                completed=size_bytes,
                total=total if total is None or size_bytes < total else None,
            )
        is_writing = any(staging.glob("*/*.gz"))
        progress.update(other, visible=not tasks or not is_writing)
