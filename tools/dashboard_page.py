"""A page of the dashboard's panels, filled by a Prometheus, for machines on which Grafana cannot run.

Expressions, legends, units, thresholds and places are those of deploy/monitoring/dashboard.json. Only what
tools/make_dashboard uses of Grafana is known here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schedgen_backups.core.report.page import make_chart
from schedgen_backups_tests.support.prometheus import FILES, Prometheus

_TEMPLATE = "dashboard.html.j2"
_PALETTE = ("#56a64b", "#f2cc0c", "#3274d9", "#ff780a", "#a352cc", "#37872d", "#5794f2", "#8f3bb8")
_COLOURS = {"green": "#37872d", "orange": "#d9730d", "red": "#c4162a"}
_INK, _LINE = "#24292e", "#e3e5e8"
_TIME_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_SIZE_UNITS = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))
_UNITS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "s": _TIME_UNITS,
    "bytes": _SIZE_UNITS,
    "percentunit": (("%", 0.01),),
    "short": (("K", 1000.0), ("", 1.0)),
    "none": (("", 1.0),),
}
"""Grafana's units → their parts, the largest first."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Span:
    """The time that the page shows."""

    begin: datetime
    end: datetime
    step: timedelta

    @property
    def days(self) -> int:
        """Its length in days, rounded up."""
        return math.ceil((self.end - self.begin) / timedelta(days=1))


@dataclass(frozen=True)
class Series:
    """The answer to one expression for one set of labels."""

    name: str
    labels: Mapping[str, str]
    values: tuple[tuple[datetime, float], ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1][1]


@dataclass(frozen=True)
class Cell:
    """A value as it is shown."""

    name: str
    text: str
    colour: str = _INK


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard, and what Prometheus answered."""

    content: Mapping[str, Any]
    series: tuple[Series, ...]
    span: Span

    @property
    def kind(self) -> str:
        """The type of the panel, as Grafana names it."""
        return self.content["type"]

    @property
    def title(self) -> str:
        """The title."""
        return self.content["title"]

    @property
    def description(self) -> str:
        """What is shown, if the title does not say it."""
        return self.content.get("description", "")

    @property
    def place(self) -> Mapping[str, int]:
        """Column, row, width and height in the grid of 24 columns."""
        return self.content["gridPos"]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.series

    @property
    def no_value(self) -> str:
        """The text in place of a value."""
        return self._defaults.get("noValue", "no data")

    @property
    def stats(self) -> list[Cell]:
        """The last value of each series."""
        steps = self._defaults["thresholds"]["steps"]
        return [
            Cell(each.name, _format(each.last, self._unit), _choose_colour(steps, each.last))
            for each in self.series
        ]

    @property
    def corner(self) -> str:
        """The head of a table's first column."""
        return f"{self._matrix['rowField']} \\ {self._matrix['columnField']}"

    @property
    def columns(self) -> list[str]:
        """The other columns of a table."""
        return list(dict.fromkeys(each.labels[self._matrix["columnField"]] for each in self.series))

    @property
    def rows(self) -> Iterator[tuple[str, list[Cell]]]:
        """The rows of a table."""
        row_field, column_field = self._matrix["rowField"], self._matrix["columnField"]
        found = {(each.labels[row_field], each.labels[column_field]): each.last for each in self.series}
        for name in dict.fromkeys(row for row, _column in found):
            yield name, [self._make_cell(column, found.get((name, column))) for column in self.columns]

    @property
    def legend(self) -> list[Cell]:
        """The series of a plot with their colours."""
        plain = iter(_PALETTE * len(self.series))
        fixed = [self._find_style(each.name).get("color", {}).get("fixedColor") for each in self.series]
        return [
            Cell(each.name, "", _COLOURS[colour] if colour else next(plain))
            for each, colour in zip(self.series, fixed, strict=True)
        ]

    @property
    def plot(self) -> str:
        """The plot of a time series as SVG."""
        top = max(value for each in self.series for _at, value in each.values) or 1.0
        width = 66 * self.place["w"]
        legend_lines = math.ceil(sum(6 * len(each.name) + 26 for each in self.series) / (width - 60))
        chart = make_chart(
            [each.colour for each in self.legend],
            _INK,
            _LINE,
            width=width,
            height=38 * self.place["h"] - 46 - 14 * legend_lines,
            show_legend=False,
            show_dots=False,
            allow_interruptions=True,
            margin=4,
            range=(0, top),
            y_labels=_list_ticks(top, self._unit),
            value_formatter=partial(_format, unit=self._unit),
            xrange=(self.span.begin, self.span.end),
            x_labels=[self.span.begin + timedelta(days=day) for day in range(0, self.span.days, 5)],
            x_value_formatter="{:%m-%d}".format,
        )
        chart.uuid = f"panel-{self.content['id']}"
        for each in self.series:
            dash = self._find_style(each.name).get("custom.lineStyle", {}).get("dash")
            stroke = {"width": 2, **({"dasharray": ", ".join(map(str, dash))} if dash else {})}
            chart.add(each.name, list(self._list_dots(each)), stroke_style=stroke)
        return chart.render(is_unicode=True, disable_xml_declaration=True)

    def _list_dots(self, series: Series) -> Iterator[tuple[datetime, float | None]]:
        """Yield the values, not below the axis, and None where there is none."""
        known = {at: max(0.0, value) for at, value in series.values}
        for number in range((self.span.end - self.span.begin) // self.span.step + 1):
            at = self.span.begin + number * self.span.step
            yield at, known.get(at)

    @property
    def _defaults(self) -> Mapping[str, Any]:
        return self.content["fieldConfig"]["defaults"]

    @property
    def _unit(self) -> str:
        return self._defaults["unit"]

    @property
    def _matrix(self) -> Mapping[str, str]:
        [transformation] = self.content["transformations"]
        return transformation["options"]

    def _make_cell(self, column: str, value: float | None) -> Cell:
        steps = self._find_style(column).get("thresholds", {}).get("steps")
        if value is None:
            return Cell(column, "")
        return Cell(column, _format(value, self._unit), _choose_colour(steps, value) if steps else _INK)

    def _find_style(self, name: str) -> dict[str, Any]:
        """Return what the overrides say of the series or column of this name."""
        found: dict[str, Any] = {}
        for override in self.content["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            pattern = matcher["options"].strip("/") if matcher["id"] == "byRegexp" else re.escape(name)
            if matcher["options"] == name or (matcher["id"] == "byRegexp" and re.search(pattern, name)):
                found.update({each["id"]: each["value"] for each in override["properties"]})
        return found


def ask_panels(prometheus: Prometheus, span: Span, *, site: str = ".*") -> list[Panel]:
    """Return the panels of the dashboard, rows included, with the answers for these sites."""
    panels = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    return [
        Panel(
            content,
            tuple(
                series
                for target in content.get("targets", [])
                for series in _ask(prometheus, target, span, site)
            ),
            span,
        )
        for content in panels
    ]


def render_page(panels: list[Panel], subtitle: str) -> str:
    """Return the HTML of the panels at their places."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(_TEMPLATE).render(title="Backups", subtitle=subtitle, panels=panels)


def _ask(prometheus: Prometheus, target: Mapping[str, Any], span: Span, site: str) -> Iterator[Series]:
    expression = target["expr"].replace("$site", site)
    if target["range"]:
        found = prometheus.ask_range(expression, span.begin, span.end, span.step)
        answers = [(each["metric"], each["values"]) for each in found]
    else:
        answers = [(each["metric"], [each["value"]]) for each in prometheus.ask(expression, span.end)]
    for labels, values in answers:
        name = target["legendFormat"]
        for label in _PLACEHOLDER.findall(name):
            name = name.replace(f"{{{{{label}}}}}", labels.get(label, ""))
        times = ((datetime.fromtimestamp(at, timezone.utc), float(value)) for at, value in values)
        yield Series(name, labels, tuple(times))


def _choose_colour(steps: list[dict[str, Any]], value: float) -> str:
    """Return the colour of the last step that the value has reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return _COLOURS[reached[-1]]


def _choose_part(value: float, unit: str) -> tuple[str, float]:
    parts = _UNITS[unit]
    return next((part for part in parts if abs(value) >= part[1]), parts[-1])


def _format(value: float, unit: str) -> str:
    part, size = _choose_part(value, unit)
    separator = "" if part in {"", "%", "K"} else " "
    return f"{value / size:.3g}{separator}{part}"


def _list_ticks(top: float, unit: str) -> list[float]:
    """Return four to eight round values from 0 on; the last is not below the top."""
    _part, size = _choose_part(top, unit)
    rough = top / size / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= rough) * power * size
    below = list(takewhile(lambda tick: tick < top, (number * step for number in count())))
    return [*below, len(below) * step]
