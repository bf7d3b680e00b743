"""Markdown tables for the metadata of assets, as the UI shows them.

Values of the operators and of the database go into cells as plain text. Which asset shows a table is decided
in `defs`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    CheckStatus,
    LevelResult,
    Verification,
    VerificationLevel,
)
from schedgen_backups.core.catalog.pins import describe_pin
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.copies.local_folder import CopyState, read_states
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.model import ArtifactKind, Origin
from schedgen_backups.core.units import describe_labels, format_age, format_bytes

_LISTED_TABLES = 200
_LISTED_POINTS = 50
_OVERVIEW_HEADER = ("recovery point", "state", "level", "age", "size", "proofs, copies, pin, labels, reason")
OVERVIEW_KEY = "recovery_points"
"""Metadata key of the table of all points, on `recovery_point` and on its check."""
_SIGNS = re.compile(r"[\\`*_{}\[\]()<>#+!|~&]")
"""Characters that have a meaning in Markdown or HTML (CommonMark 0.31, section 2.4)."""


def make_overview(catalog: Catalog, now: datetime) -> str:
    """Return a table of the newest recovery points, newest first: state, level, ages, sizes, pin and labels.

    It is narrow enough for the UI's column of metadata values.
    """
    points = catalog.list_points() if catalog.directory.is_dir() else ()
    copies = read_states(catalog.directory)
    rows = [_describe_point(catalog, point, copies, now) for point in reversed(points[-_LISTED_POINTS:])]
    if len(points) > _LISTED_POINTS:
        rows.append((f"{len(points) - _LISTED_POINTS} more", *[""] * (len(_OVERVIEW_HEADER) - 1)))
    return _make_table(_OVERVIEW_HEADER, rows)


def describe_points(catalog: Catalog) -> str:
    """Return a digest of the points' states, levels, pins and copies: it differs when one changed.

    It contains no ages.
    """
    points = catalog.list_points() if catalog.directory.is_dir() else ()
    copies = {
        store: sorted(copied.point_id for copied in state.points)
        for store, state in read_states(catalog.directory).items()
    }
    described = [
        (
            point.point_id.text,
            point.state.value,
            [level.status.value for level in point.verification.levels()],
            describe_pin(catalog, point.point_id),
        )
        for point in points
    ]
    return hashlib.sha256(repr((described, copies)).encode()).hexdigest()


def make_levels_table(verification: Verification) -> str:
    """Return a table of the verification levels, lowest first, with status and time."""
    rows = [(level.level.value, level.status.value, _describe_time(level)) for level in verification.levels()]
    return _make_table(("level", "status", "checked (UTC)"), rows)


def make_tables_table(tables: Iterable[TableEntry]) -> str:
    """Return a table of the dump's largest tables with rows and sizes."""
    largest = sorted(tables, key=lambda table: table.size_bytes, reverse=True)
    rows = [
        (table.qualified_name, str(table.rows), format_bytes(table.size_bytes))
        for table in largest[:_LISTED_TABLES]
    ]
    if len(largest) > _LISTED_TABLES:
        rows.append((f"{len(largest) - _LISTED_TABLES} more", "", ""))
    return _make_table(("table", "rows", "size"), rows, right=(1, 2))


def make_list(lines: Iterable[str]) -> str:
    """Return the lines as a Markdown list."""
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _describe_point(
    catalog: Catalog, point: PointListing, copies: Mapping[str, CopyState], now: datetime
) -> tuple[str, ...]:
    origin = point.manifest.origin if point.manifest else Origin()
    passed = [
        level.level.value for level in point.verification.levels() if level.status is CheckStatus.PASSED
    ]
    sizes = [point.measure_kind(kind) for kind in ArtifactKind]
    notes = (describe_pin(catalog, point.point_id), describe_labels(origin.labels), origin.reason)
    proofs = {"read": VerificationLevel.STORED, "restored": VerificationLevel.RESTORED}
    ages = [
        f"{verb} {age} ago"
        for verb, level in proofs.items()
        if (age := _describe_age(point.verification.level(level), now))
    ]
    return (
        point.point_id.text,
        point.state.value,
        passed[-1] if passed else "-",
        _keep_together(format_age(now - point.point_id.taken_at)),
        _keep_together(" + ".join("-" if size is None else format_bytes(size) for size in sizes)),
        "; ".join(filter(None, (*ages, *_describe_copies(point, copies, now), *notes))),
    )


def _describe_copies(point: PointListing, copies: Mapping[str, CopyState], now: datetime) -> Iterable[str]:
    """Yield for each store that holds the point when it was last seen to do so."""
    for store, state in copies.items():
        found = next((each for each in state.points if each.point_id == point.point_id.text), None)
        if found is not None:
            seen_at = max(found.copied_at, state.listed_at or found.copied_at)
            yield f"copy in {store}, seen {format_age(now - seen_at)} ago"


def _describe_age(level: LevelResult, now: datetime) -> str:
    return (
        format_age(now - level.proved_at)
        if level.proved_at is not None and level.status is CheckStatus.PASSED
        else ""
    )


def _keep_together(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _describe_time(level: LevelResult) -> str:
    return (
        f"{level.proved_at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"
        if level.proved_at is not None
        else "-"
    )


def _make_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ("---:" if place in right else "---" for place in range(len(header)))
    lines = (header, tuple(rule), *(tuple(map(_escape, row)) for row in rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escape(text: str) -> str:
    return _SIGNS.sub(r"\\\g<0>", re.sub(r"[ \t\r\n\f\v]+", " ", text))
