"""The page of a report: one HTML file without scripts, fonts or links to load, readable printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schedgen_backups.core.report.content import Report
from schedgen_backups.core.units import format_age, format_bytes

if TYPE_CHECKING:
    from pygal import DateTimeLine

_TEMPLATE = "report.html.j2"
_SCRIPT = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
_HOUR_SECONDS = 3600
_DAYS_BETWEEN_LABELS = 3
_FOLDED_FROM = 100
"""Rows from which a table is folded by day: three a day are still readable as one table."""


def render_page(report: Report) -> str:
    """Return the HTML of the report."""
    environment: Any = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["is_folded"] = _is_folded
    environment.filters["by_day"] = _group_by_day
    environment.filters["time"] = _format_time
    environment.filters["bytes"] = format_bytes
    environment.filters["span"] = _format_span
    return environment.get_template(_TEMPLATE).render(report=report, plots=draw_plots(report))


def draw_plots(report: Report) -> dict[str, str]:
    """Return the plots as SVG, by what they show; empty where nothing was measured."""
    ages = [
        (later.taken_at, (later.taken_at - sooner.taken_at).total_seconds() / _HOUR_SECONDS)
        for sooner, later in zip(report.points, report.points[1:], strict=False)
    ]
    drills = [(drill.began_at, drill.rto_seconds / 60) for drill in report.drills if not drill.store]
    sizes = [(point.taken_at, point.size_bytes / 1e6) for point in report.points]
    return {
        "rpo": _draw(report, "rpo", "hours between points", ages, report.allowed_gap_seconds / _HOUR_SECONDS),
        "rto": _draw(report, "rto", "minutes of a drill", drills, report.allowed_recovery_seconds / 60),
        "size": _draw(report, "size", "size in MB", sizes),
    }


def _draw(
    report: Report,
    name: str,
    title: str,
    values: Sequence[tuple[datetime, float]],
    allowed: float | None = None,
) -> str:
    if not values:
        return ""
    begin, end = _to_utc(report.begin), _to_utc(report.end)
    chart = make_chart(
        ("var(--first)", "var(--second)"),
        "var(--ink)",
        "var(--line)",
        width=760,
        height=220,
        explicit_size=False,
        legend_at_bottom=True,
        legend_box_size=9,
        dots_size=2,
        max_scale=6,
        margin=6,
        x_labels=[begin + timedelta(days=day) for day in range(0, (end - begin).days, _DAYS_BETWEEN_LABELS)],
        x_value_formatter=_format_day,
        xrange=(begin, end),
        include_x_axis=True,
    )
    # Otherwise random: the same report would be another file each time.
    chart.uuid = name
    chart.add(title, [(_to_utc(at), round(value, 3)) for at, value in values])
    if allowed is not None:
        chart.add(
            "allowed",
            [(begin, round(allowed, 3)), (end, round(allowed, 3))],
            show_dots=False,
            stroke_style={"dasharray": "6, 4"},
        )
    return _SCRIPT.sub("", chart.render(is_unicode=True, disable_xml_declaration=True))


def make_chart(colours: Sequence[str], ink: str, line: str, **options: object) -> DateTimeLine:
    """Return an empty plot over time in these colours, as CSS writes them; with further options of pygal."""
    # Loading it adds a finder of plugins whose interface Python 3.12 removed: on older ones, every later
    # import of a missing module would warn (pygal 3.1).
    from pygal import DateTimeLine  # noqa: PLC0415
    from pygal.style import Style  # noqa: PLC0415

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground=ink,
        foreground_strong=ink,
        foreground_subtle=line,
        guide_stroke_color=line,
        guide_stroke_dasharray="none",
        major_guide_stroke_color=line,
        major_guide_stroke_dasharray="none",
        legend_font_size=11,
        label_font_size=11,
        major_label_font_size=11,
        opacity="1",
        stroke_opacity="1",
        colors=tuple(colours),
        font_family="system-ui, sans-serif",
    )
    return DateTimeLine(style=style, js=[], show_x_guides=False, **options)


def _is_folded(rows: Sequence[object]) -> bool:
    return len(rows) >= _FOLDED_FROM


def _group_by_day(rows: Iterable[Any], attribute: str) -> list[tuple[str, list[Any]]]:
    """Return the rows of each day (UTC), which are in the order of this time."""
    grouped = groupby(rows, key=lambda row: f"{_to_utc(getattr(row, attribute)):%Y-%m-%d}")
    return [(day, list(found)) for day, found in grouped]


def _format_day(moment: datetime) -> str:
    return f"{moment:%m-%d}"


def _to_utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)


def _format_time(moment: datetime | None) -> str:
    return f"{_to_utc(moment):%Y-%m-%d %H:%M}" if moment is not None else "-"


def _format_span(seconds: float | None) -> str:
    return format_age(timedelta(seconds=seconds)) if seconds is not None else "unknown"
