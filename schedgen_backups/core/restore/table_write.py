"""Put rows of a side database back into the live one: missing rows, and optionally changed ones.

One transaction for all tables, parents before children. Rows that exist only in the live table are never
touched. To get a table without them, restore the whole point into another database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import CycleError, TopologicalSorter

import psycopg
from psycopg import sql

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.table_diff import (
    TableShape,
    apply_session_settings,
    as_condition,
    join_columns,
    name_table,
    open_reader,
    read_shape,
)

Name = tuple[str, str]
"""Schema and name of a table."""


class WriteMode(str, Enum):
    """Which rows are put back."""

    MISSING = "missing"
    """Rows whose key the live table lacks; without a primary key, rows that it does not contain unchanged."""
    CHANGED = "changed"
    """Also rows whose key exists with other values: they get the captured ones."""


@dataclass(frozen=True)
class WrittenRows:
    """The number of rows of one table that were put back."""

    table: TableEntry
    count: int


def write_rows(
    tables: Sequence[TableEntry],
    side: DatabaseSession,
    live: DatabaseSession,
    mode: WriteMode,
    *,
    where: str = "",
) -> tuple[WrittenRows, ...]:
    """Put the rows back into the live tables; return the number for each table.

    `where` is a condition on captured rows. One transaction: after any error the live database is unchanged.
    RestoreError (permanent) if a live table is missing, has no primary key for `CHANGED`, or refuses a row
    (such as a foreign key whose parent is missing).
    """
    written: list[WrittenRows] = []
    with open_reader(side) as source, live.use() as target, target.transaction():
        apply_session_settings(target)
        for table in _sort_by_foreign_keys(tables, target):
            shape = read_shape(table, source, target)
            check_shape(table, shape, mode)
            written.append(WrittenRows(table, _write_table(table, shape, source, target, mode, where)))
    return tuple(written)


def check_shape(table: TableEntry, shape: TableShape, mode: WriteMode) -> None:
    """Raise RestoreError if the live table cannot take the rows."""
    if not shape.is_there:
        raise RestoreError(
            f"the live database has no table {table.qualified_name}; nothing was written",
            hint="Create it with the application's migrations, or use the side database as it is.",
        )
    if mode is WriteMode.CHANGED and not shape.key:
        raise RestoreError(
            f"{table.qualified_name} has no primary key in the live database: changed rows cannot be "
            "distinguished from new ones; nothing was written",
            hint="Put back the missing rows only.",
        )


def _write_table(
    table: TableEntry, shape: TableShape, source: Connection, target: Connection, mode: WriteMode, where: str
) -> int:
    columns = join_columns(shape.columns)
    staging = sql.Identifier("schedgen_backups_rows")
    name = name_table(table)
    target.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
            staging, columns, name
        )
    )
    select = sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE ({})) TO STDOUT").format(
        columns, name, as_condition(where)
    )
    with (
        source.cursor().copy(select) as reading,
        target.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(staging, columns)) as writing,
    ):
        for block in reading:
            writing.write(block)
    try:
        cursor = target.execute(make_insert(table, shape, mode))
    except psycopg.IntegrityError as error:
        raise RestoreError(
            f"the live database refused a row of {table.qualified_name}; nothing was written: "
            f"{' '.join(str(error).split())}",
            hint="For a foreign key whose parent is missing, also restore the parent's table. For another "
            "constraint, copy the rows by hand from a side database.",
        ) from error
    target.execute(sql.SQL("DROP TABLE {}").format(staging))
    return max(0, cursor.rowcount)


def make_insert(table: TableEntry, shape: TableShape, mode: WriteMode) -> sql.Composed:
    """Return the statement that puts back rows of the temporary table."""
    insert = sql.SQL(
        "INSERT INTO {} AS live ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM schedgen_backups_rows AS rows"
    ).format(name_table(table), join_columns(shape.columns), join_columns(shape.columns, "rows"))
    if not shape.key:
        row = sql.SQL("ROW({})::text")
        return sql.SQL("{} WHERE NOT EXISTS (SELECT FROM {} AS other WHERE {} = {})").format(
            insert,
            name_table(table),
            row.format(join_columns(shape.columns, "other")),
            row.format(join_columns(shape.columns, "rows")),
        )
    settable = [
        name for name in shape.columns if name not in shape.key and name not in shape.generated_always
    ]
    if mode is WriteMode.MISSING or not settable:
        return sql.SQL("{} ON CONFLICT ({}) DO NOTHING").format(insert, join_columns(shape.key))
    changes = sql.SQL(", ").join(
        sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(column)) for column in settable
    )
    return sql.SQL(
        "{} ON CONFLICT ({}) DO UPDATE SET {} WHERE ROW({})::text IS DISTINCT FROM ROW({})::text"
    ).format(
        insert,
        join_columns(shape.key),
        changes,
        join_columns(shape.columns, "live"),
        join_columns(shape.columns, "excluded"),
    )


def _sort_by_foreign_keys(tables: Sequence[TableEntry], live: Connection) -> list[TableEntry]:
    rows = live.execute(
        "SELECT cn.nspname, c.relname, pn.nspname, p.relname FROM pg_catalog.pg_constraint k"
        " JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = "
        "c.relnamespace"
        " JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = "
        "p.relnamespace WHERE k.contype = 'f'"
    ).fetchall()
    pairs = [((str(schema), str(child)), (str(other), str(parent))) for schema, child, other, parent in rows]
    return sort_parents_first(tables, pairs)


def sort_parents_first(tables: Sequence[TableEntry], pairs: Iterable[tuple[Name, Name]]) -> list[TableEntry]:
    """Return the tables, parents before children.

    `pairs` are (child, parent). If there is a cycle, the order of the dump is kept.
    """
    by_name = {(table.schema_name, table.name): table for table in tables}
    graph: dict[Name, set[Name]] = {name: set() for name in by_name}
    for child, parent in pairs:
        if child != parent and child in graph and parent in graph:
            graph[child].add(parent)
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError:
        return list(tables)
