"""Restore single tables: load them into a side database, compare them with the live ones, put rows back."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.dump_sections import make_loadable
from schedgen_backups.core.formats.dump_text import DumpDigest, Text, split_table
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.patterns import matches_table
from schedgen_backups.core.postgres.database_properties import read_properties
from schedgen_backups.core.postgres.psql import feed_psql
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.database import PreparedDatabase, prepare_new_database
from schedgen_backups.core.restore.new_database import create_database, drop_database
from schedgen_backups.core.restore.table_diff import (
    TableDiff,
    as_condition,
    diff_tables,
    name_table,
    open_reader,
)
from schedgen_backups.core.restore.table_write import WriteMode, WrittenRows, write_rows
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.units import name_some

_MARK = "schedgen-backups: unfinished, removed by the next restore when its maker is gone"
SIDE_PREFIX = "restored_"


def make_side_name(point_id: RecoveryPointId) -> str:
    """Return the default name of a side database."""
    return f"{SIDE_PREFIX}{point_id}"


def check_dump_belongs(dump: DumpFile, point_id: RecoveryPointId) -> None:
    """Check that the dump belongs to the point; VerificationError if it is another point's file."""
    if dump.record.point_id != point_id.text:
        raise VerificationError(
            f"the dump belongs to recovery point {dump.record.point_id}, not to {point_id}",
            hint="The files of two points were swapped or renamed: restore their names.",
        )


def select_tables(dump: DumpFile, names: tuple[str, ...]) -> tuple[TableEntry, ...]:
    """Return the tables that match any name, in the order of the dump.

    A name is `schema.table`, `table` (in any schema), `schema.*` or another glob. RestoreError (permanent)
    lists names without a match. A partitioned table has no rows of its own: name its partitions.
    """
    chosen: list[TableEntry] = []
    unused = set(names)
    for table in dump.tables:
        matching = [name for name in names if matches_table(name, table.schema_name, table.name)]
        if matching:
            chosen.append(table)
            unused.difference_update(matching)
    if unused:
        left_out = find_left_out(dump, tuple(unused))
        if left_out:
            raise RestoreError(
                f"the dump contains no rows of {name_some(left_out)}: BACKUP_EXCLUDE_TABLE_DATA excluded "
                "them from the backup",
                hint="Look for an earlier recovery point: schedgen-backups list",
            )
        raise RestoreError(
            f"the dump contains no rows of {', '.join(sorted(unused))}",
            hint="Give a table, schema.table or a glob such as public.jobs_*; for a partitioned table, its "
            "partitions. `show ID --tables` lists them.",
        )
    return tuple(chosen)


def find_left_out(dump: DumpFile, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the matching tables whose rows the operator excluded from the dump."""
    excluded = dump.record.excluded_tables
    return tuple(
        f"{each.schema_name}.{each.name}"
        for each in excluded
        if any(matches_table(name, each.schema_name, each.name) for name in names)
    )


class SideDatabase:
    """A database that is dropped when its `with` block ends, unless it is kept."""

    def __init__(self, session: DatabaseSession, name: str) -> None:
        self._session = session
        self.name = name
        self.is_kept = False

    def keep(self, comment: str) -> None:
        """Keep the database; replace the mark of an unfinished restore by this comment."""
        with self._session.use() as connection:
            connection.execute(
                sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                    sql.Identifier(self.name), sql.Literal(comment)
                )
            )
        self.is_kept = True


@contextmanager
def open_side_database(
    session: DatabaseSession, name: str, *, encoding: str, like: DatabaseProperties | None = None
) -> Generator[SideDatabase, None, None]:
    """Create a new, empty database of this name for the block; remove side databases of killed processes.

    `session` is connected to the server's maintenance database. Errors and `like` are those of
    `create_database`.
    """
    with session.use() as connection:
        # The session ends with this process in any case; the next restore may then remove what it left.
        connection.execute("SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtext(%s))", (name,))
        _sweep(connection)
        create_database(connection, name, session.settings, encoding=encoding, like=like)
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(_MARK))
        )
    side = SideDatabase(session, name)
    try:
        yield side
    finally:
        if not side.is_kept:
            with session.use() as connection:
                drop_database(connection, name)


def read_like(prepared: PreparedDatabase, live: DatabaseSettings) -> DatabaseProperties | None:
    """Return the properties of the live database, or the captured ones if it does not exist."""
    with prepared.session.use() as connection:
        return read_properties(connection, live.database) or prepared.record.properties


def _sweep(connection: Connection) -> None:
    rows = connection.execute(
        "SELECT datname FROM pg_catalog.pg_database d WHERE pg_catalog.shobj_description(d.oid, "
        "'pg_database') = %s",
        (_MARK,),
    ).fetchall()
    for (name,) in rows:
        free = connection.execute(
            "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext(%s))", (name,)
        ).fetchone()
        if free and free[0]:
            drop_database(connection, str(name))
            connection.execute("SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtext(%s))", (name,))


def _fill(prepared: PreparedDatabase, tables: tuple[TableEntry, ...], side: DatabaseSettings) -> None:
    """Load the schema without constraints and indexes, and the rows of these tables, into the empty database.

    All in one transaction, committed after each table's digest has matched. RestoreError if psql stops,
    VerificationError if the file is damaged; then the database is empty.
    """
    through_root = next((table for table in tables if table.root), None)
    if through_root is not None:
        raise RestoreError(
            f"{through_root.qualified_name} is a hash partition; another database may put its rows into "
            f"another partition of {through_root.root}",
            hint="Restore the whole point into a separate database: schedgen-backups restore ID "
            "--database NAME",
        )
    with prepared.artifact.name_errors():
        feed_psql(
            prepared.client,
            side,
            prepared.facts.session,
            prepared.transfer,
            list_texts(prepared.dump, tables),
        )


def list_texts(dump: DumpFile, tables: tuple[TableEntry, ...]) -> Iterator[bytes]:
    """Yield all input of psql; the COMMIT comes only after each table's digest has matched."""
    yield b"BEGIN;\n"
    yield from (segment.data for segment in make_loadable(map(Text, dump.read_schema())))
    for table in tables:
        contents = DumpDigest()
        for segment in split_table(dump.read_table(table)):
            contents.add(segment)
            yield segment.data
        found = contents.facts().tables
        if [(facts.name, facts.sha256) for facts in found] != [(table.name, table.sha256)]:
            raise VerificationError(
                f"the rows of {table.qualified_name} differ from what was captured; nothing was loaded",
                hint="Use another copy or another recovery point.",
            )
    yield b"COMMIT;\n"


@dataclass(frozen=True)
class TableRequest:
    """The tables of a point to compare with the live database, and possibly to put back into it."""

    point: PointListing
    names: tuple[str, ...]
    live: DatabaseSettings
    where: str = ""
    """A condition on the rows of the only table; empty for all rows."""
    side_name: str = ""

    @property
    def target_name(self) -> str:
        """The name that the operator types to confirm."""
        return self.live.database


@dataclass(frozen=True)
class PreparedTables:
    """Tables in a side database, compared with the live ones, which are still unchanged."""

    request: TableRequest
    tables: tuple[TableEntry, ...]
    side: SideDatabase
    captured: DatabaseSession
    live: DatabaseSession
    differences: tuple[TableDiff, ...]
    left_out: tuple[str, ...]
    """Requested tables whose rows the point does not contain."""

    def describe(self) -> tuple[TableDiff, ...]:
        """Return how the tables differed at preparation."""
        return self.differences

    def execute(self, mode: WriteMode) -> tuple[WrittenRows, ...]:
        """Put rows back; return the number for each table.

        Errors are those of `write_rows`, after which the live database is unchanged.
        """
        return write_rows(self.tables, self.captured, self.live, mode, where=self.request.where)

    def compare(self) -> tuple[TableDiff, ...]:
        """Return how the tables differ now."""
        return diff_tables(self.tables, self.captured, self.live, where=self.request.where)

    def read_keys(self, column: str) -> tuple[str, ...]:
        """Return the distinct object keys in this column of the first table's captured rows, in byte order.

        RestoreError if the column does not exist.
        """
        table = self.tables[0]
        query = sql.SQL(
            'SELECT DISTINCT {0}::text COLLATE "C" FROM ONLY {1} WHERE ({2}) AND {0} IS NOT NULL ORDER BY 1'
        ).format(sql.Identifier(column), name_table(table), as_condition(self.request.where))
        with open_reader(self.captured) as connection:
            try:
                rows = connection.execute(query).fetchall()
            except psycopg.errors.UndefinedColumn as error:
                raise RestoreError(
                    f"{table.qualified_name} has no column {column}",
                    hint="Set --key-column to the column that contains object keys.",
                ) from error
        return tuple(str(key) for (key,) in rows)


@contextmanager
def prepare_tables(
    request: TableRequest, transfer: TransferSettings
) -> Generator[PreparedTables, None, None]:
    """Load the tables into a side database for the block, and compare them with the live ones.

    The side database is dropped afterwards unless it is kept. RestoreError if a name matches no table or the
    condition is invalid, TargetNotEmptyError if the side database exists, VerificationError if the file is
    damaged or another point's. The live database is only read.
    """
    point_id = request.point.point_id
    with (
        prepare_new_database(
            request.point.get_path(ArtifactKind.DATABASE), request.live, transfer, keys=request.point.keys
        ) as prepared,
        DatabaseSession(request.live, stall_timeout_seconds=transfer.stall_timeout_seconds) as live,
    ):
        check_dump_belongs(prepared.dump, point_id)
        tables = select_tables(prepared.dump, request.names)
        if request.where and len(tables) != 1:
            raise RestoreError(
                "a condition on rows needs exactly one table",
                hint="Give one table, or omit the condition.",
            )
        name = request.side_name or make_side_name(point_id)
        with (
            open_side_database(
                prepared.session,
                name,
                encoding=prepared.record.encoding,
                like=read_like(prepared, request.live),
            ) as side,
            DatabaseSession(
                request.live.with_database(name), stall_timeout_seconds=transfer.stall_timeout_seconds
            ) as captured,
        ):
            _fill(prepared, tables, captured.settings)
            differences = diff_tables(tables, captured, live, where=request.where)
            yield PreparedTables(
                request,
                tables,
                side,
                captured,
                live,
                differences,
                find_left_out(prepared.dump, request.names),
            )
