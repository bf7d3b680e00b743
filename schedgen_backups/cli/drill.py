"""The command `drill`: restore a point into scratch servers in a Dagster run; print results and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Annotated

import typer
from rich.table import Table

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, get_config, out, print_json
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    fetch_whole,
    open_point,
)
from schedgen_backups.cli.progress import draw_results, print_failure, show_work
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.catalog.selection import LATEST
from schedgen_backups.core.copies.service import CopyService
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.units import format_age
from schedgen_backups.runs.launch import run_drill
from schedgen_backups.runs.results import DrillResult


@app.command()
def drill(
    context: typer.Context,
    point_id: Annotated[
        str,
        typer.Argument(metavar="[ID|latest]", help="Recovery point, or `latest`: the newest verified one."),
    ] = LATEST,
    *,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore a recovery point into scratch servers, compare it, open PDFs by key and measure the time.

    Exit code 3 if a check fails.
    """
    if point_id != LATEST:
        RecoveryPointId.parse(point_id)
    config = get_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    if source.store:
        outcome = _drill_copy(config, source, point_id)
    else:
        with show_work(err, "restoring into scratch servers"):
            outcome = run_drill(config, point_id)
    if as_json:
        print_json(_to_json(outcome))
    elif outcome.report is not None:
        _print_report(outcome.report)
    for failure in () if as_json else outcome.failures:
        # The table already contains the results of the checks.
        if outcome.report is None:
            print_failure(err, failure)
    raise CommandEnd(outcome.exit_code)


def _drill_copy(config: Config, source: CopySource, point_id: str) -> DrillResult:
    """Drill the copy, and record that it could be restored.

    Not if only a sample of its objects was, and not of an earlier state of the store, or of another site: the
    store may not hold such a copy now, or here.
    """
    with (
        open_point(config, source, point_id, fetch_whole) as (fetched, point),
        show_work(err, "restoring into scratch servers"),
    ):
        outcome = run_drill(fetched, point.point_id.text)
    own = config.make_catalog().read_site()
    is_own = own is None or point.manifest is None or point.manifest.site_id == own.site_id
    is_whole = outcome.report is not None and not any(
        result.status is CheckStatus.SAMPLED for result in outcome.report.results
    )
    is_whole = is_whole and config.part is None
    if outcome.exit_code == 0 and is_whole and is_own and not source.version_time:
        service = CopyService(config.open_catalog(), config.find_store(source.store))
        service.record_opened(point.point_id, datetime.now(timezone.utc))
    return outcome


def _to_json(outcome: DrillResult) -> dict[str, object]:
    report = outcome.report
    return {
        "run_id": outcome.run_id,
        "success": outcome.exit_code == 0,
        "exit_code": outcome.exit_code,
        "rto_seconds": report.rto_seconds if report is not None else None,
        "rpo_seconds": report.rpo_seconds if report is not None else None,
        "report": report.model_dump(mode="json") if report is not None else None,
        "failures": [
            {"step": failure.step, "reason": failure.reason, "hint": failure.hint}
            for failure in outcome.failures
        ],
    }


def _print_report(report: DrillReport) -> None:
    out.print(f"[bold]{report.point_id}[/]  restored into {escape(report.target)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase", no_wrap=True)
    table.add_column("seconds", justify="right")
    for name, seconds in report.seconds.model_dump().items():
        table.add_row("[bold]total (RTO)[/]" if name == "total" else name.replace("_", " "), f"{seconds:.1f}")
    out.print(table)
    out.print(f"age of the data (RPO): {format_age(timedelta(seconds=report.rpo_seconds))}")
    out.print(draw_results(report.results))
    for note in report.notes:
        out.print(f"note: {escape(note)}")
