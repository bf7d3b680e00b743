"""Draw how an hour grows with the bucket: `python -m benchmarks.growth RESULTS.json`.

Reads what `python -m benchmarks.hours` printed and writes docs/images/growth-*.svg.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pygal import XY
from pygal.style import Style

_IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
_SCRIPT = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
_Curve = Sequence[tuple[int, float]]


def draw(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the plots as SVG, by the names of their files."""

    def read(value: Any) -> list[tuple[int, float]]:
        return [(each["objects"], value(each)) for each in found]

    def average(each: Mapping[str, Any], name: str) -> float:
        return mean(hour[name] for hour in each["hours"][1:])

    return {
        "growth-seconds": _plot(
            "growth-seconds",
            "Seconds by objects in the bucket",
            {
                "first point": read(lambda each: each["beyond"][0]["seconds"] + _list_seconds(each)),
                "an hour, 0.1 % changed": read(
                    lambda each: mean(hour["seconds"] for hour in each["beyond"][1:]) + _list_seconds(each)
                ),
                "the listing alone": read(_list_seconds),
            },
        ),
        "growth-memory": _plot(
            "growth-memory",
            "Peak memory above the idle process, MiB, by objects in the bucket",
            {
                "first point": read(lambda each: each["hours"][0]["peak_mebibytes"]),
                "an hour, 0.1 % changed": read(lambda each: average(each, "peak_mebibytes")),
            },
        ),
        "growth-disk": _plot(
            "growth-disk",
            "MB written by objects of 1 KiB in the bucket",
            {
                "first point": read(lambda each: each["hours"][0]["written_bytes"] / 1e6),
                "an hour, 0.1 % changed": read(lambda each: average(each, "written_bytes") / 1e6),
                "the objects that changed": read(lambda each: each["objects"] / 1000 * 1024 / 1e6),
            },
        ),
    }


def _list_seconds(each: Mapping[str, Any]) -> float:
    return float(each["listing"]["seconds"]["listing"])


def _plot(name: str, title: str, curves: Mapping[str, _Curve]) -> str:
    style = Style(
        background="white",
        plot_background="white",
        foreground="#444444",
        foreground_strong="#222222",
        foreground_subtle="#cccccc",
        guide_stroke_color="#dddddd",
        guide_stroke_dasharray="none",
        major_guide_stroke_color="#dddddd",
        major_guide_stroke_dasharray="none",
        colors=("#7d8590", "#2f6fde", "#e08a1e"),
        font_family="sans-serif",
        title_font_size=14,
        label_font_size=12,
        major_label_font_size=12,
        legend_font_size=12,
        value_font_size=11,
        opacity="1",
    )
    values = [value for curve in curves.values() for _count, value in curve]
    lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    counts = sorted({count for curve in curves.values() for count, _value in curve})
    chart: Any = XY(
        style=style,
        title=title,
        width=720,
        height=340,
        logarithmic=True,
        legend_at_bottom=True,
        legend_box_size=10,
        dots_size=4,
        print_values=True,
        formatter=lambda point: _format(point[1] if isinstance(point, (tuple, list)) else point),
        x_value_formatter=lambda value: f"{round(value):,}",
        x_labels=counts,
        xrange=(counts[0] / 1.3, counts[-1] * 1.8),
        y_labels=[float(f"1e{power}") for power in range(lowest, highest + 1)],
        range=(float(f"1e{lowest}"), float(f"1e{highest}")),
        truncate_legend=-1,
        legend_at_bottom_columns=3,
        js=[],
    )
    # Otherwise random: the same plot would be another file each time.
    chart.uuid = name
    for label, curve in curves.items():
        chart.add(label, [(count, round(value, 3)) for count, value in curve])
    return _SCRIPT.sub("", chart.render(is_unicode=True, disable_xml_declaration=True)) + "\n"


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 20 else f"{value:.2g}"


def main() -> None:
    """Write the plots of the results in this file."""
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name, text in draw(found).items():
        (_IMAGES / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
