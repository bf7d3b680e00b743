"""Compare a recovery point's table with the live one: rows only in either of them, and changed rows.

Both sides are read in the order of the primary key and merged, so that memory use stays small. If the live
table has no primary key, complete rows are compared.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.session import Connection, DatabaseSession

_FETCHED_ROWS = 2000
_NAMED_KEYS = 10
_SHOWN_CHARACTERS = 200


class ColumnKind(str, Enum):
    """Whether values can be assigned to a column."""

    PLAIN = ""
    ALWAYS = "always"
    """An identity column, GENERATED ALWAYS: only an INSERT can assign a value, with OVERRIDING SYSTEM
    VALUE."""
    GENERATED = "generated"
    """Computed from other columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: ColumnKind = ColumnKind.PLAIN


@dataclass(frozen=True)
class TableShape:
    """What a live table has in common with the captured one."""

    columns: tuple[str, ...]
    """Columns of both, in the order of the captured one, without generated ones."""
    key: tuple[str, ...]
    """The live table's primary key if all of its columns were captured, otherwise empty."""
    is_there: bool
    """Whether the live table exists."""
    only_captured: tuple[str, ...] = ()
    only_live: tuple[str, ...] = ()
    generated_always: tuple[str, ...] = ()
    """Identity columns that an UPDATE cannot set."""


@dataclass(frozen=True)
class ShownValue:
    """A value in its type's text format, cut if long."""

    text: str
    length: int
    """Characters of the complete value."""
    md5: str
    """Of the complete value."""

    def __str__(self) -> str:
        return self.text if len(self.text) == self.length else f"{self.text} … ({self.length} characters)"


@dataclass(frozen=True)
class ChangedValue:
    """A column whose value in a row differs from the captured one; None means NULL."""

    column: str
    captured: ShownValue | None
    live: ShownValue | None


@dataclass(frozen=True)
class ChangedRow:
    """A row that both tables have, with the differing values."""

    key: str
    """As JSON."""
    values: tuple[ChangedValue, ...]


@dataclass(frozen=True)
class TableDiff:
    """The number of differing rows of one table, and some of their keys as JSON."""

    table: TableEntry
    shape: TableShape
    only_captured: int
    only_live: int
    changed: int
    same: int
    only_captured_keys: tuple[str, ...] = ()
    only_live_keys: tuple[str, ...] = ()
    changed_keys: tuple[str, ...] = ()
    changed_rows: tuple[ChangedRow, ...] = ()
    """The rows of `changed_keys`."""

    @property
    def is_equal(self) -> bool:
        """Whether no row differs."""
        return self.only_captured == self.only_live == self.changed == 0


def diff_tables(
    tables: Sequence[TableEntry], side: DatabaseSession, live: DatabaseSession, *, where: str = ""
) -> tuple[TableDiff, ...]:
    """Return how each captured table in `side` differs from the one in `live`, in one snapshot per database.

    `where` is a condition on rows of both sides. RestoreError if `where` is invalid. Raises errors of either
    database.
    """
    with open_reader(side) as captured, open_reader(live) as current:
        return tuple(_diff_table(table, captured, current, where) for table in tables)


def _diff_table(table: TableEntry, captured: Connection, current: Connection, where: str) -> TableDiff:
    shape = read_shape(table, captured, current)
    left = _stream(captured, table, shape, where)
    right = _stream(current, table, shape, where) if shape.is_there else iter(())
    diff = merge_rows(table, shape, left, right)
    return (
        replace(diff, changed_rows=_read_changed_rows(table, shape, diff.changed_keys, captured, current))
        if diff.changed_keys
        else diff
    )


def read_shape(table: TableEntry, side: Connection, live: Connection) -> TableShape:
    """Return what the two tables have in common, as both databases report now."""
    current = _list_columns(live, table)
    is_there = bool(current) or _exists(live, table)
    return derive_shape(_list_columns(side, table), current, _list_key(live, table), is_there=is_there)


def derive_shape(
    captured: Sequence[Column], current: Sequence[Column], key: Sequence[str], *, is_there: bool
) -> TableShape:
    """Return what two tables with these columns have in common.

    `key` is the primary key of the second one, the live one.
    """
    captured_names, current_names = (
        tuple(column.name for column in columns) for columns in (captured, current)
    )
    generated = {column.name for column in (*captured, *current) if column.kind is ColumnKind.GENERATED}
    columns = _keep(captured_names, set(current_names) - generated)
    return TableShape(
        columns=columns,
        key=tuple(key) if set(key) <= set(columns) else (),
        is_there=is_there,
        only_captured=_keep(captured_names, set(captured_names) - set(current_names)),
        only_live=_keep(current_names, set(current_names) - set(captured_names)),
        generated_always=tuple(column.name for column in current if column.kind is ColumnKind.ALWAYS),
    )


def _keep(names: Sequence[str], wanted: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in wanted)


def as_condition(where: str) -> sql.SQL:
    """Return the condition of a WHERE clause as SQL; true without a condition."""
    return sql.SQL(cast("LiteralString", where or "true"))


def name_table(table: TableEntry) -> sql.Identifier:
    """Return the table's quoted name."""
    return sql.Identifier(table.schema_name, table.name)


def join_columns(names: tuple[str, ...], prefix: str = "") -> sql.Composed:
    """Return the quoted column names, separated by commas; as `prefix.name` if `prefix` is given."""
    return sql.SQL(", ").join(
        sql.Identifier(prefix, name) if prefix else sql.Identifier(name) for name in names
    )


@contextmanager
def open_reader(session: DatabaseSession) -> Generator[Connection, None, None]:
    """Open a read-only transaction with one snapshot within the block."""
    with session.use() as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        apply_session_settings(connection)
        yield connection


def apply_session_settings(connection: Connection) -> None:
    """Turn rows hidden by a policy into an error, so that they are not reported as differences.

    Every session has fixed settings for the format of values.
    """
    connection.execute("SET LOCAL row_security = off")


def _list_columns(connection: Connection, table: TableEntry) -> tuple[Column, ...]:
    rows = connection.execute(
        "SELECT attname, CASE WHEN attgenerated <> '' THEN 'generated' WHEN attidentity = 'a' THEN "
        "'always' ELSE '' END"
        " FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN "
        "pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (table.schema_name, table.name),
    ).fetchall()
    return tuple(Column(str(name), ColumnKind(kind)) for name, kind in rows)


def _list_key(connection: Connection, table: TableEntry) -> tuple[str, ...]:
    rows = connection.execute(
        "SELECT a.attname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)"
        " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum"
        " WHERE i.indisprimary AND n.nspname = %s AND c.relname = %s ORDER BY k.place",
        (table.schema_name, table.name),
    ).fetchall()
    return tuple(str(name) for (name,) in rows)


def _exists(connection: Connection, table: TableEntry) -> bool:
    query = sql.SQL("SELECT pg_catalog.to_regclass({}) IS NOT NULL").format(
        sql.Literal(name_table(table).as_string(connection))
    )
    row = connection.execute(query).fetchone()
    return bool(row and row[0])


def _stream(
    connection: Connection, table: TableEntry, shape: TableShape, where: str
) -> Iterator[tuple[str, str]]:
    """Yield (key, digest of the row) in the byte order of the keys.

    Without a primary key, the digest is the key.
    """
    digest = sql.SQL("pg_catalog.md5(ROW({})::text)").format(join_columns(shape.columns))
    key = (
        sql.SQL("pg_catalog.jsonb_build_array({})::text").format(join_columns(shape.key))
        if shape.key
        else digest
    )
    query = sql.SQL(
        'SELECT k, d FROM (SELECT {} AS k, {} AS d FROM ONLY {} WHERE ({})) AS rows ORDER BY k COLLATE "C"'
    ).format(key, digest, name_table(table), as_condition(where))
    try:
        with connection.cursor(name="captured_or_current") as cursor:
            cursor.itersize = _FETCHED_ROWS
            for found_key, found_digest in cursor.execute(query):
                yield str(found_key), str(found_digest)
    except (
        psycopg.errors.SyntaxError,
        psycopg.errors.UndefinedColumn,
        psycopg.errors.DataError,
        psycopg.errors.UndefinedFunction,
    ) as error:
        raise RestoreError(
            f"the condition {where!r} is invalid: {' '.join(str(error).split())}",
            hint="Use an SQL condition, without the word WHERE.",
        ) from error


def _read_changed_rows(
    table: TableEntry, shape: TableShape, keys: Sequence[str], captured: Connection, current: Connection
) -> tuple[ChangedRow, ...]:
    before, now = (_read_rows(connection, table, shape, keys) for connection in (captured, current))
    return tuple(
        ChangedRow(
            key,
            tuple(
                ChangedValue(column, old, new)
                for column, old, new in zip(shape.columns, before[key], now[key], strict=True)
                if old != new
            ),
        )
        for key in keys
        if key in before and key in now
    )


def _read_rows(
    connection: Connection, table: TableEntry, shape: TableShape, keys: Sequence[str]
) -> dict[str, tuple[ShownValue | None, ...]]:
    """Return the rows with these keys."""
    # No cast to text: a type may have a user-defined one, which is a function of its owner. Only the start of
    # a large value is transferred.
    value = sql.SQL(
        "CASE WHEN pg_catalog.num_nulls({0}) = 0 THEN "
        "pg_catalog.concat(pg_catalog.md5(pg_catalog.format('%s', {0})), ' ',"
        " pg_catalog.length(pg_catalog.format('%s', {0})), ' ', pg_catalog.left(pg_catalog.format('%s', "
        "{0}), {1})) END"
    )
    query = sql.SQL(
        "SELECT k, v FROM (SELECT pg_catalog.jsonb_build_array({})::text AS k, ARRAY[{}]::text[] AS v FROM "
        "ONLY {}) AS rows"
        " WHERE k OPERATOR(pg_catalog.=) ANY({})"
    ).format(
        join_columns(shape.key),
        sql.SQL(", ").join(
            value.format(sql.Identifier(name), sql.Literal(_SHOWN_CHARACTERS)) for name in shape.columns
        ),
        name_table(table),
        sql.Literal(list(keys)),
    )
    return {
        str(key): tuple(map(_parse_value, values)) for key, values in connection.execute(query).fetchall()
    }


def _parse_value(text: str | None) -> ShownValue | None:
    if text is None:
        return None
    md5, length, shown = text.split(" ", 2)
    return ShownValue(shown, int(length), md5)


def merge_rows(
    table: TableEntry, shape: TableShape, left: Iterator[tuple[str, str]], right: Iterator[tuple[str, str]]
) -> TableDiff:
    """Return how the rows differ: (key, digest) of both sides, in the byte order of the keys."""
    only_captured: list[str] = []
    only_live: list[str] = []
    changed: list[str] = []
    counts = {"captured": 0, "live": 0, "changed": 0, "same": 0}

    def note(kind: str, keys: list[str], key: str, count: int) -> None:
        counts[kind] += count
        if count and len(keys) < _NAMED_KEYS and shape.key:
            keys.append(key)

    for key, captured, current in _pair(_group(left), _group(right)):
        if shape.key and captured and current:
            if captured == current:
                counts["same"] += 1
            else:
                note("changed", changed, key, 1)
            continue
        # Without a key, the same row may exist several times.
        counts["same"] += min(len(captured), len(current))
        note("captured", only_captured, key, max(0, len(captured) - len(current)))
        note("live", only_live, key, max(0, len(current) - len(captured)))
    return TableDiff(
        table=table,
        shape=shape,
        only_captured=counts["captured"],
        only_live=counts["live"],
        changed=counts["changed"],
        same=counts["same"],
        only_captured_keys=tuple(only_captured),
        only_live_keys=tuple(only_live),
        changed_keys=tuple(changed),
    )


def _group(rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    for key, group in groupby(rows, key=lambda row: row[0]):
        yield key, [digest for _key, digest in group]


def _pair(
    left: Iterator[tuple[str, list[str]]], right: Iterator[tuple[str, list[str]]]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Merge two sorted streams; yield (key, digests on the left, digests on the right).

    The byte order of UTF-8 is the order of Python's strings.
    """
    here, there = next(left, None), next(right, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0] < there[0]):
            assert here is not None  # noqa: S101 - one of the two exists
            yield here[0], here[1], []
            here = next(left, None)
        elif here is None or there[0] < here[0]:
            yield there[0], [], there[1]
            there = next(right, None)
        else:
            yield here[0], here[1], there[1]
            here, there = next(left, None), next(right, None)


def diffs_to_json(diffs: Iterable[TableDiff], *, with_values: bool = False) -> list[dict[str, object]]:
    """Return the differences as values for JSON; row values only if `with_values`."""
    return [
        {
            "table": diff.table.qualified_name,
            "only_in_backup": diff.only_captured,
            "only_live": diff.only_live,
            "changed": diff.changed,
            "same": diff.same,
            "changed_rows": [_row_to_json(row, with_values=with_values) for row in diff.changed_rows],
            "note": describe_rows(diff),
        }
        for diff in diffs
    ]


def _row_to_json(row: ChangedRow, *, with_values: bool) -> dict[str, object]:
    shown: dict[str, object] = {"key": row.key, "columns": [value.column for value in row.values]}
    if with_values:
        shown["values"] = {
            value.column: {
                side: None if each is None else str(each)
                for side, each in (("backup", value.captured), ("live", value.live))
            }
            for value in row.values
        }
    return shown


def describe_rows(diff: TableDiff) -> str:
    """Return a text on the differing rows, the columns of changed ones, and limits of the comparison."""
    columns = {row.key: f" ({', '.join(value.column for value in row.values)})" for row in diff.changed_rows}
    parts = [
        f"{name}: {', '.join(keys)}{' …' if count > len(keys) else ''}"
        for name, keys, count in (
            ("only in backup", diff.only_captured_keys, diff.only_captured),
            ("only live", diff.only_live_keys, diff.only_live),
            ("changed", tuple(f"{key}{columns.get(key, '')}" for key in diff.changed_keys), diff.changed),
        )
        if keys
    ]
    if not diff.shape.is_there:
        parts.append("the live database has no such table")
    elif not diff.shape.key:
        parts.append("no primary key: complete rows are compared")
    for name, columns in (("backup", diff.shape.only_captured), ("live table", diff.shape.only_live)):
        if columns and diff.shape.is_there:
            parts.append(f"columns that only the {name} has are not compared: {', '.join(columns)}")
    return "; ".join(parts)
