"""Differences between a recovery point and the live system as values for JSON, the same on the command line and in the UI."""

from __future__ import annotations

from collections.abc import Iterable

from schedgen_backups.core.restore.objects import ObjectDifference
from schedgen_backups.core.restore.table_diff import TableDiff


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
