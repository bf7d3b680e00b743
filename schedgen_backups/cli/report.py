"""The command `report`: a month's evidence as one page or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.alerts.report import describe_counts, make_report, write_report
from schedgen_backups.cli.app import app, get_config, out
from schedgen_backups.cli.text import escape
from schedgen_backups.core.units import be, count


@app.command()
def report(
    context: typer.Context,
    *,
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write: .html for a page, .json for its values.")
    ],
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="Month; by default the last whole one.")] = "",
) -> None:
    """Write a month's evidence: points, drills, incidents, copies, removals (docs/report.md)."""
    made = make_report(get_config(context), month)
    write_report(made, to)
    out.print(escape(f"{to}: {describe_counts(made)}"))
    if made.unreadable_lines:
        number = made.unreadable_lines
        out.print(f"{count(number, 'line')} of the history {be(number)} not readable")
