"""Tables of the differences between a recovery point and the live system.

Add what operators must see before they confirm a restore.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from schedgen_backups.cli.text import escape_value
from schedgen_backups.core.restore.objects import ObjectDifference, ObjectStanding
from schedgen_backups.core.restore.table_diff import TableDiff, describe_rows
from schedgen_backups.core.units import count, format_bytes

_LISTED = 50
_STANDING_STYLES = {
    ObjectStanding.MISSING: "yellow",
    ObjectStanding.SAME: "green",
    ObjectStanding.DIFFERENT: "bold red",
}


def draw_diffs(diffs: Iterable[TableDiff]) -> Table:
    """Return a table with a line per table: counts of rows, and some of their keys."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("table", overflow="fold")
    for name in ("only in backup", "only live", "changed", "same"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("rows by primary key", overflow="fold")
    for diff in diffs:
        counts = (diff.only_captured, diff.only_live, diff.changed, diff.same)
        drawn.add_row(
            escape_value(diff.table.qualified_name),
            *(str(count) for count in counts),
            escape_value(describe_rows(diff)),
        )
    return drawn


def draw_values(diffs: Iterable[TableDiff]) -> Table:
    """Return a table with a line per differing value of the listed rows."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("table", "row", "column", "in the backup", "live"):
        drawn.add_column(name, overflow="fold")
    for diff in diffs:
        for row in diff.changed_rows:
            for value in row.values:
                texts = ("NULL" if shown is None else str(shown) for shown in (value.captured, value.live))
                drawn.add_row(
                    *(
                        escape_value(text)
                        for text in (diff.table.qualified_name, row.key, value.column, *texts)
                    )
                )
    return drawn


def draw_objects(differences: tuple[ObjectDifference, ...]) -> Table:
    """Return a table with a line per object that differs, at most fifty, and the number of equal objects."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("object", overflow="fold")
    drawn.add_column("size", justify="right", no_wrap=True)
    drawn.add_column("in the bucket", no_wrap=True)
    unlike = [difference for difference in differences if difference.standing is not ObjectStanding.SAME]
    for difference in unlike[:_LISTED]:
        standing = difference.standing.value + (f" ({difference.what})" if difference.what else "")
        drawn.add_row(
            escape_value(difference.entry.key),
            format_bytes(difference.entry.size_bytes),
            f"[{_STANDING_STYLES[difference.standing]}]{standing}[/]",
        )
    if len(unlike) > _LISTED:
        drawn.add_row(f"{len(unlike) - _LISTED} more", "", "")
    drawn.add_row(count(len(differences) - len(unlike), "object"), "", "[green]same[/]")
    return drawn
