"""The page of a report: one HTML file without scripts, fonts or links to load, readable printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
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
_INK = "var(--ink)"
_HOUR_SECONDS = 3600
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
    """Return the plots as SVG, by what they show."""
    ages = [
        (later.taken_at, (later.taken_at - sooner.taken_at).total_seconds() / _HOUR_SECONDS)
        for sooner, later in zip(report.points, report.points[1:], strict=False)
    ]
    drills = [(drill.began_at, drill.rto_seconds / 60) for drill in report.drills if not drill.store]
    sizes = [(point.taken_at, point.size_bytes / 1e6) for point in report.points]
    allowed_hours = report.allowed_gap_seconds / _HOUR_SECONDS
    allowed_minutes = report.allowed_recovery_seconds / 60
    return {
        "rpo": _draw(report, "rpo", {"hours between points": ages, "allowed": _span(report, allowed_hours)}),
        "rto": _draw(
            report, "rto", {"minutes of a drill": drills, "allowed": _span(report, allowed_minutes)}
        ),
        "size": _draw(report, "size", {"size in MB": sizes}),
    }


def _draw(report: Report, name: str, series: Mapping[str, Sequence[tuple[datetime, float]]]) -> str:
    chart = _make_chart(
        js=[],
        width=760,
        height=240,
        explicit_size=False,
        legend_at_bottom=True,
        show_x_guides=False,
        dots_size=2,
        x_value_formatter=_format_day,
        xrange=(_to_utc(report.begin), _to_utc(report.end)),
        no_data_text="nothing to show",
        include_x_axis=True,
    )
    # Otherwise random: the same report would be another file each time.
    chart.uuid = name
    for title, values in series.items():
        chart.add(title, [(_to_utc(at), round(value, 3)) for at, value in values])
    return _SCRIPT.sub("", chart.render(is_unicode=True, disable_xml_declaration=True))


def _make_chart(**options: object) -> DateTimeLine:
    # Loading it adds a finder of plugins whose interface Python 3.12 removed: on older ones, every later
    # import of a missing module would warn (pygal 3.1).
    from pygal import DateTimeLine  # noqa: PLC0415
    from pygal.style import Style  # noqa: PLC0415

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground=_INK,
        foreground_strong=_INK,
        foreground_subtle="var(--line)",
        colors=("var(--first)", "var(--second)", "var(--third)"),
        font_family="system-ui, sans-serif",
    )
    return DateTimeLine(style=style, **options)


def _is_folded(rows: Sequence[object]) -> bool:
    return len(rows) >= _FOLDED_FROM


def _group_by_day(rows: Iterable[Any], attribute: str) -> list[tuple[str, list[Any]]]:
    """Return the rows of each day (UTC), which are in the order of this time."""
    grouped = groupby(rows, key=lambda row: f"{_to_utc(getattr(row, attribute)):%Y-%m-%d}")
    return [(day, list(found)) for day, found in grouped]


def _format_day(moment: datetime) -> str:
    return f"{moment:%m-%d}"


def _span(report: Report, value: float) -> list[tuple[datetime, float]]:
    return [(report.begin, value), (report.end, value)]


def _to_utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)


def _format_time(moment: datetime | None) -> str:
    return f"{_to_utc(moment):%Y-%m-%d %H:%M}" if moment is not None else "-"


def _format_span(seconds: float | None) -> str:
    return format_age(timedelta(seconds=seconds)) if seconds is not None else "unknown"
