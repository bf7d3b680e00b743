"""Restores single tables into a separate database next to the live one, and undeletes rows with their objects."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from schedgen_backups.core.catalog.catalog import PointListing
from schedgen_backups.core.errors import DatabaseError, RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_text import DumpDigest, split_table
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.psql import feed_psql
from schedgen_backups.core.restore.database import check_database_target
from schedgen_backups.core.restore.table_diff import TableDiff, as_condition, diff_table, name_table
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings

_MARK = "schedgen-backups: unfinished, removed by the next restore when its maker is gone"
SIDE_PREFIX = "restored_"
MAINTENANCE_DATABASE = "postgres"
_NAME_LIMIT_BYTES = 63
"""PostgreSQL manual, section 4.1.1 (NAMEDATALEN - 1)."""


def make_side_name(point_id: RecoveryPointId) -> str:
    """The name that a side database gets when nobody names it."""
    return f"{SIDE_PREFIX}{point_id}"


def check_dump_belongs(dump: DumpFile, point_id: RecoveryPointId) -> None:
    """The dump is the point's own; VerificationError when the file was exchanged with another point's."""
    if dump.record.point_id != point_id.text:
        raise VerificationError(
            f"the dump says that it is of recovery point {dump.record.point_id}, not of {point_id}",
            hint="The files of two points were exchanged or renamed: give them their own names.",
        )


def select_tables(dump: DumpFile, names: tuple[str, ...]) -> tuple[TableEntry, ...]:
    """The tables that any name means, in the order of the dump: `schema.table`, `table` (in any schema), `schema.*` or another glob.

    RestoreError (permanent) names what means no table. A partitioned table has no rows of its own: its partitions are named.
    """
    chosen: list[TableEntry] = []
    unused = set(names)
    for table in dump.tables:
        matching = [name for name in names if name in {table.name, table.qualified_name} or fnmatchcase(table.qualified_name, name)]
        if matching:
            chosen.append(table)
            unused.difference_update(matching)
    if unused:
        raise RestoreError(
            f"the dump holds no rows of {', '.join(sorted(unused))}",
            hint="Name a table, schema.table or a glob such as public.jobs_*; of a partitioned table, its partitions. `show ID --tables` lists them.",
        )
    return tuple(chosen)


class ScratchDatabase:
    """A database that is dropped when its `with` block ends, unless it was kept."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self.is_kept = False

    def keep(self, comment: str) -> None:
        """The database stays, with this comment in place of the mark of something unfinished."""
        with connect_database(self.settings) as connection, translate_errors(self.settings):
            name = sql.Identifier(self.settings.database)
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(comment)))
            connection.commit()
        self.is_kept = True


@contextmanager
def open_scratch_database(server: DatabaseSettings, name: str, *, encoding: str) -> Generator[ScratchDatabase, None, None]:
    """A new, empty database of this name is on the server within the block; what killed processes left there of this kind is gone.

    TargetNotEmptyError when the name is taken, DatabaseError when the role may not make databases.
    """
    if len(name.encode()) > _NAME_LIMIT_BYTES:
        raise RestoreError(f"{name!r} is longer than a database's name may be", hint="Name another one.")
    with connect_database(server.with_database(MAINTENANCE_DATABASE)) as connection, translate_errors(server):
        connection.autocommit = True
        # The session ends with this process, whatever happens to it: then the next one may remove what it left.
        connection.execute("SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtext(%s))", (name,))
        _sweep(connection, server)
        _create_database(connection, name, server, encoding)
        scratch = ScratchDatabase(server.with_database(name))
        try:
            yield scratch
        finally:
            if not scratch.is_kept:
                drop_database(scratch.settings)


def _create_database(connection: psycopg.Connection[Any], name: str, server: DatabaseSettings, encoding: str) -> None:
    identifier = sql.Identifier(name)
    try:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {}").format(identifier, sql.Literal(encoding)))
    except psycopg.errors.DuplicateDatabase:
        raise TargetNotEmptyError(
            f"there is a database {name} already", hint=f'Name another one, or drop it when nobody needs it: DROP DATABASE "{name}";'
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {server.user} may not make a database: {error}", hint=f'As a superuser run: ALTER ROLE "{server.user}" CREATEDB;'
        ) from error
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(identifier, sql.Literal(_MARK)))


def _sweep(connection: psycopg.Connection[Any], server: DatabaseSettings) -> None:
    rows = connection.execute(
        "SELECT datname FROM pg_catalog.pg_database d WHERE pg_catalog.shobj_description(d.oid, 'pg_database') = %s", (_MARK,)
    ).fetchall()
    for (name,) in rows:
        free = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext(%s))", (name,)).fetchone()
        if free and free[0]:
            drop_database(server.with_database(str(name)))
            connection.execute("SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtext(%s))", (name,))


def drop_database(database: DatabaseSettings) -> None:
    """The database is gone, its sessions ended; nothing happens when it was not there."""
    with connect_database(database.with_database(MAINTENANCE_DATABASE)) as connection, translate_errors(database):
        connection.autocommit = True
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.database)))


def fill_side_database(dump_path: Path, tables: tuple[TableEntry, ...], side: DatabaseSettings, transfer: TransferSettings) -> None:
    """The empty database holds the dump's schema without constraints and indexes, and the rows of these tables.

    All in one transaction, committed when each table's digest was seen to match. RestoreError when psql stops, VerificationError when the
    file is damaged; then the database is empty.
    """
    with open_dump(dump_path) as dump:
        client, _relation_count = check_database_target(dump.record, side, transfer)
        feed_psql(client, side, transfer, _list_texts(dump, tables))


def _list_texts(dump: DumpFile, tables: tuple[TableEntry, ...]) -> Iterator[bytes]:
    """Everything that goes to psql; the COMMIT comes only after each table's digest was seen to match."""
    yield b"BEGIN;\n"
    yield from dump.read_schema()
    for table in tables:
        contents = DumpDigest()
        for segment in split_table(dump.read_table(table)):
            contents.add(segment)
            yield segment.data
        found = contents.facts().tables
        if [(facts.name, facts.sha256) for facts in found] != [(table.name, table.sha256)]:
            raise VerificationError(
                f"the rows of {table.qualified_name} are not what was captured; nothing was loaded",
                hint="Use another copy or another recovery point.",
            )
    yield b"COMMIT;\n"


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
def open_restored_tables(request: TableRequest, transfer: TransferSettings) -> Generator[RestoredTables, None, None]:
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
        fill_side_database(path, tables, scratch.settings, transfer)
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
