"""Restores some tables of a point: into a database beside the live one, with the difference to the live one known before anything else is written.

Here the steps are put in their order; each step is its own module's business (`side_database`, `table_diff`, `table_write`). Whole databases go
through `restore`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from schedgen_backups.core.catalog.catalog import PointListing
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.restore.side_database import (
    ScratchDatabase,
    check_dump_belongs,
    fill_side_database,
    make_side_name,
    open_scratch_database,
    select_tables,
)
from schedgen_backups.core.restore.table_diff import TableDiff, as_condition, diff_table, name_table
from schedgen_backups.core.settings import BackupSettings, DatabaseSettings


@dataclass(frozen=True)
class TableRequest:
    """Which tables of which point, and the live database that they are compared with and may be put back into."""

    point: PointListing
    names: tuple[str, ...]
    live: DatabaseSettings
    where: str = ""
    """A condition on the rows of the only table; empty for all rows."""
    side_name: str = ""


@dataclass(frozen=True)
class RestoredTables:
    """Tables in a side database, and how each differs from the live one."""

    scratch: ScratchDatabase
    tables: tuple[TableEntry, ...]
    diffs: tuple[TableDiff, ...]


@contextmanager
def open_restored_tables(request: TableRequest, backup: BackupSettings) -> Generator[RestoredTables, None, None]:
    """The tables are in a side database within the block, compared with the live ones; it is dropped afterwards unless it was kept.

    RestoreError when a name means no table or the condition cannot be used, TargetNotEmptyError when the side database is there already,
    VerificationError when the file is damaged or another point's. The live database is only read.
    """
    path = request.point.get_path(ArtifactKind.DATABASE)
    with open_dump(path) as dump:
        check_dump_belongs(dump, request.point.point_id)
        tables = select_tables(dump, request.names)
        encoding = dump.record.encoding
    if request.where and len(tables) != 1:
        raise RestoreError("a condition on rows needs exactly one table", hint="Name one table, or leave the condition out.")
    name = request.side_name or make_side_name(request.point.point_id)
    with open_scratch_database(request.live, name, encoding=encoding) as scratch:
        fill_side_database(path, tables, scratch.settings, backup)
        diffs = tuple(diff_table(table, scratch.settings, request.live, where=request.where) for table in tables)
        yield RestoredTables(scratch, tables, diffs)


def read_keys(table: TableEntry, column: str, side: DatabaseSettings, *, where: str) -> tuple[str, ...]:
    """The distinct object keys in this column of the captured rows, in byte order; RestoreError when there is no such column."""
    query = sql.SQL('SELECT DISTINCT {0}::text COLLATE "C" FROM ONLY {1} WHERE ({2}) AND {0} IS NOT NULL ORDER BY 1').format(
        sql.Identifier(column), name_table(table), as_condition(where)
    )
    with connect_database(side) as connection, translate_errors(side):
        connection.read_only = True
        try:
            rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
        except psycopg.errors.UndefinedColumn as error:
            raise RestoreError(
                f"{table.qualified_name} has no column {column}", hint="--key-column names the column that holds object keys."
            ) from error
    return tuple(str(key) for (key,) in rows)
