"""How the difference between a recovery point and the live system is shown: tables for people, values for JSON.

Only rendering, for `restore_commands` and `restore_jobs`. Add what people must see before they let a restore write.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from schedgen_backups.core.object_selection import ObjectDifference, ObjectStanding
from schedgen_backups.core.table_diff import TableDiff
from schedgen_backups.sizes import format_bytes

_LISTED = 50
_STANDING_STYLES = {ObjectStanding.MISSING: "yellow", ObjectStanding.SAME: "green", ObjectStanding.DIFFERENT: "bold red"}


def draw_diffs(diffs: Iterable[TableDiff]) -> Table:
    """One line per table, and some keys below."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("table", overflow="fold")
    for name in ("only in backup", "only live", "changed", "same"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("rows by primary key", overflow="fold")
    for diff in diffs:
        counts = (diff.only_captured, diff.only_live, diff.changed, diff.same)
        drawn.add_row(escape(diff.table.qualified_name), *(str(count) for count in counts), escape(describe_rows(diff)))
    return drawn


def describe_rows(diff: TableDiff) -> str:
    """Which rows differ, and what else must be known of the comparison."""
    parts = [
        f"{name}: {', '.join(keys)}{' …' if count > len(keys) else ''}"
        for name, keys, count in (
            ("only in backup", diff.only_captured_keys, diff.only_captured),
            ("only live", diff.only_live_keys, diff.only_live),
            ("changed", diff.changed_keys, diff.changed),
        )
        if keys
    ]
    if not diff.shape.is_there:
        parts.append("the live database has no such table")
    elif not diff.shape.key:
        parts.append("no primary key: rows are compared as wholes")
    for name, columns in (("backup", diff.shape.only_captured), ("live table", diff.shape.only_live)):
        if columns and diff.shape.is_there:
            parts.append(f"columns that only the {name} has are not compared: {', '.join(columns)}")
    return "; ".join(parts)


def diffs_to_json(diffs: Iterable[TableDiff]) -> list[dict[str, object]]:
    """The same for programs."""
    return [
        {
            "table": diff.table.qualified_name,
            "only_in_backup": diff.only_captured,
            "only_live": diff.only_live,
            "changed": diff.changed,
            "same": diff.same,
            "note": describe_rows(diff),
        }
        for diff in diffs
    ]


def draw_objects(differences: tuple[ObjectDifference, ...]) -> Table:
    """One line per object that is not the same, up to fifty, and how many are."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("object", overflow="fold")
    drawn.add_column("size", justify="right", no_wrap=True)
    drawn.add_column("in the bucket", no_wrap=True)
    unlike = [difference for difference in differences if difference.standing is not ObjectStanding.SAME]
    for difference in unlike[:_LISTED]:
        standing = difference.standing.value + (f" ({difference.what})" if difference.what else "")
        drawn.add_row(
            escape(difference.entry.key), format_bytes(difference.entry.size_bytes), f"[{_STANDING_STYLES[difference.standing]}]{standing}[/]"
        )
    if len(unlike) > _LISTED:
        drawn.add_row(f"{len(unlike) - _LISTED} more", "", "")
    drawn.add_row(f"{len(differences) - len(unlike)} objects", "", "[green]same[/]")
    return drawn


def objects_to_json(differences: Iterable[ObjectDifference]) -> list[dict[str, object]]:
    """The same for programs."""
    return [
        {
            "key": difference.entry.key,
            "size_bytes": difference.entry.size_bytes,
            "standing": difference.standing.value,
            "difference": difference.what,
        }
        for difference in differences
    ]
