"""Make docs/performance.md and its plot from the newest results: `python -m benchmarks.report`.

The bars are the project's own goals (ratios in one paired run). A test compares the page with the results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bucket, database
from benchmarks.paired import Timing

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "performance.md"
PLOT = PROJECT / "docs" / "images" / "performance.svg"
BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- end -->"
_SMALL, _LARGE = "20000 x 100 KB", "300 x 10 MB"
_BAR_WIDTH, _ROW_HEIGHT, _LABEL_WIDTH = 420, 22, 330


@dataclass(frozen=True)
class Bar:
    """One goal: the limit of a ratio of two medians, or without a peer, of the seconds of one work."""

    text: str
    work: str
    over: str
    under: str | None
    limit: float
    is_at_least: bool
    under_work: str = ""
    is_size: bool = False

    def judge(self, timings: dict[tuple[str, str], Timing]) -> str:
        """Return a line of the table; "" if a part was not measured."""
        measured = self._read(timings)
        if measured is None:
            return ""
        is_met = measured >= self.limit if self.is_at_least else measured <= self.limit
        word = "at least" if self.is_at_least else "at most"
        return f"| {self.text} | {word} {self.limit:g} | {measured:.2f} | {'yes' if is_met else '**no**'} |"

    def _read(self, timings: dict[tuple[str, str], Timing]) -> float | None:
        over = timings.get((self.work, self.over))
        if over is None or self.under is None:
            return over.median if over is not None else None
        under = timings.get((self.under_work or self.work, self.under))
        if under is None:
            return None
        return over.result_bytes / under.result_bytes if self.is_size else over.median / under.median


def _make_bars() -> list[Bar]:
    bars = [
        Bar(
            "dump: times as fast as `pg_dump \\| gzip`",
            database.CAPTURE,
            database.SCRIPT,
            database.OURS,
            5,
            is_at_least=True,
        ),
        Bar(
            "dump with verification: times as fast",
            database.CAPTURE,
            database.SCRIPT,
            database.VERIFIED,
            4,
            is_at_least=True,
        ),
        Bar(
            "dump: size against gzip's",
            database.CAPTURE,
            database.OURS,
            database.SCRIPT,
            1.12,
            is_at_least=False,
            is_size=True,
        ),
        Bar(
            "dump: time against `pg_dump > /dev/null`",
            database.CAPTURE,
            database.OURS,
            database.LIMIT,
            1.15,
            is_at_least=False,
        ),
        Bar(
            "database restore, `--jobs 2`: times as fast as `gunzip \\| psql`",
            database.RESTORE,
            database.STOCK_RESTORE,
            database.OURS_JOBS,
            1.5,
            is_at_least=True,
        ),
    ]
    for shape in (_SMALL, _LARGE):
        first, next_night = f"{shape}: first night", f"{shape}: next night, 1 % changed"
        bars += [
            Bar(
                f"{shape}: capture against GET-and-discard",
                first,
                database.OURS,
                bucket.CURL,
                1.5,
                is_at_least=False,
            ),
            Bar(
                f"{shape}: capture against restic's first backup",
                first,
                database.OURS,
                bucket.RESTIC,
                1,
                is_at_least=False,
            ),
            Bar(
                f"{shape}: capture against rclone copy + tar",
                first,
                database.OURS,
                bucket.RCLONE_TAR,
                1,
                is_at_least=False,
            ),
            Bar(
                f"{shape}: next night against the first",
                next_night,
                database.OURS,
                database.OURS,
                0.08,
                is_at_least=False,
                under_work=first,
            ),
            Bar(
                f"{shape}: next night against restic's second backup",
                next_night,
                database.OURS,
                bucket.RESTIC,
                1,
                is_at_least=False,
            ),
            Bar(
                f"{shape}: restore against the first capture",
                f"{shape}: restore",
                database.OURS,
                database.OURS,
                1.5,
                is_at_least=False,
                under_work=first,
            ),
            Bar(
                f"{shape}: verify against gzip -t + tar -tzf",
                f"{shape}: verify",
                database.OURS,
                bucket.STOCK_VERIFY,
                1,
                is_at_least=False,
            ),
            Bar(
                f"{shape}: one PDF as a command: seconds",
                f"{shape}: {bucket.ONE_AS_COMMAND}",
                database.OURS,
                None,
                1,
                is_at_least=False,
            ),
        ]
    return bars


def main() -> None:
    """Write the page and the plot of the newest results."""
    parts = read_newest()
    text = PAGE.read_text(encoding="utf-8")
    before, _rest = text.split(BEGIN)
    _made, after = text.split(END)
    PAGE.write_text(before + BEGIN + "\n" + make_tables(parts) + END + after, encoding="utf-8")
    PLOT.write_text(make_plot(parts), encoding="utf-8")


def read_newest() -> dict[str, Any]:
    """Return the newest results: part → rounds, machine, timings; and the date."""
    path = max(RESULTS.glob("????-??-??.json"))
    return {"date": path.stem, **json.loads(path.read_text(encoding="utf-8"))}


def make_tables(parts: dict[str, Any]) -> str:
    """Return the goals and all measurements as Markdown."""
    timings = _list_timings(parts)
    by_name = {(timing.work, timing.name): timing for timing in timings}
    lines = [
        f"Measured {parts['date']}: {_describe(parts)}.",
        "",
        "| promise | bar | measured | met |",
        "| --- | --- | ---: | --- |",
    ]
    lines += [line for line in (bar.judge(by_name) for bar in _make_bars()) if line]
    lines += ["", "| work | by | seconds: median (lowest to highest) | MB |", "| --- | --- | ---: | ---: |"]
    for timing in timings:
        size = f"{timing.result_bytes / 1e6:.1f}" if timing.result_bytes else ""
        spread = f"{timing.median:.2f} ({min(timing.seconds):.2f} to {max(timing.seconds):.2f})"
        lines.append(f"| {timing.work} | {timing.name} | {spread} | {size} |")
    return "\n".join(lines) + "\n"


def make_plot(parts: dict[str, Any]) -> str:
    """Return an SVG with bars of the median seconds, one group per work."""
    groups: dict[str, list[Timing]] = {}
    for timing in _list_timings(parts):
        groups.setdefault(timing.work, []).append(timing)
    rows: list[str] = []
    y = 10

    def write(x: int, text: str, style: str = "") -> None:
        rows.append(
            f'<text x="{x}" y="{y + 15}" '
            f"{style}>{text.replace('&', '&amp;').replace(chr(92), '').replace('>', '&gt;')}</text>"
        )

    for work, timings in groups.items():
        write(10, work, 'font-weight="bold"')
        y += _ROW_HEIGHT
        longest = max(timing.median for timing in timings)
        for timing in timings:
            width = max(1, round(_BAR_WIDTH * timing.median / longest))
            color = "#2f6fde" if timing.name.startswith("schedgen") else "#b9bec8"
            write(20, timing.name)
            rows.append(f'<rect x="{_LABEL_WIDTH}" y="{y + 3}" width="{width}" height="15" fill="{color}"/>')
            write(_LABEL_WIDTH + width + 6, f"{timing.median:.2f} s")
            y += _ROW_HEIGHT
        y += 8
    style = 'font-family="sans-serif" font-size="13"'
    width = _LABEL_WIDTH + _BAR_WIDTH + 90
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 10}" {style}>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


def _list_timings(parts: dict[str, Any]) -> list[Timing]:
    return [
        Timing.from_json(value)
        for part in parts.values()
        if isinstance(part, dict)
        for value in part["timings"]
    ]


def _describe(parts: dict[str, Any]) -> str:
    measured = {name: part for name, part in parts.items() if isinstance(part, dict)}
    machines = sorted({str(part["machine"]) for part in measured.values()})
    rounds = ", ".join(
        f"{name} {part['rounds']}{_on(part, parts['date'])}" for name, part in measured.items()
    )
    return f"{'; '.join(machines)}; rounds in turn: {rounds}"


def _on(part: dict[str, Any], date: str) -> str:
    measured_on = part.get("date", date)
    return f" (on {measured_on})" if measured_on != date else ""


if __name__ == "__main__":
    main()
