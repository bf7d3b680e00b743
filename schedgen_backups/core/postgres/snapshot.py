"""One consistent view of a database: the exported snapshot, and what is read in it besides the dump.

It provides the server's version, the tables with their row counts, and what the role may not read. Add what
must be consistent with the dump. `object_keys` and `exclusions` read in a snapshot as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from threading import Event
from typing import cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.errors import DatabaseError, DumpError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.postgres.connection import (
    STALL_TIMEOUT_SECONDS,
    SessionFacts,
    connect_database,
    read_session_facts,
    translate_errors,
)
from schedgen_backups.core.postgres.database_properties import read_properties
from schedgen_backups.core.postgres.unplanned import count_rows, read_columns
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.units import name_some

USER_RELATIONS = """
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
"""


_KEEP_OWN_PATH = (
    "SELECT pg_catalog.set_config('schedgen_backups.search_path', "
    "pg_catalog.current_setting('search_path'), true)"
)
# Supported by minor versions of August 2024 and newer (CVE-2024-7348).
RESTRICT_KINDS: LiteralString = """
SELECT pg_catalog.set_config(name, %s, true) FROM pg_catalog.pg_settings
    WHERE name = 'restrict_nonsystem_relation_kind'"""
TAKE_SAFE_PATH = "SELECT pg_catalog.set_config('search_path', '', true)"
TAKE_OWN_PATH = (
    "SELECT pg_catalog.set_config('search_path', "
    "pg_catalog.current_setting('schedgen_backups.search_path'), true)"
)
"""Search path for the operators' own query, whose names are the database's. Our queries must not find an
operator that a user placed before the system's."""
_NARROWEST_COLUMN = """
SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attlen <= 0, a.attlen, a.attnum LIMIT 1"""
_JOIN_COLUMNS = """
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid JOIN pg_catalog.pg_type t
        ON t.oid = a.atttypid WHERE"""
_KEEP_ALIVE_SECONDS = 1.0
"""Some proxies have timeouts of seconds (HAProxy's manual shows 5 s for tests, 30 s and more otherwise)."""


@dataclass(frozen=True)
class TableName:
    """A table with its own rows: an ordinary table or a leaf of a partitioned one."""

    schema_name: str
    name: str


@dataclass(frozen=True)
class TextColumn:
    """A text column of a table with rows."""

    table: TableName
    name: str


@dataclass(frozen=True)
class DatabaseFacts:
    """Facts about the database as a whole."""

    server_version: str
    session: SessionFacts
    system_identifier: str
    encoding: str
    collation: str
    relation_count: int
    large_object_count: int

    @property
    def server_major(self) -> int:
        """The server's major version."""
        return self.session.server_major


class _EnoughReadError(Exception):
    """Raised to end a savepoint with a rollback."""


class Snapshot:
    """An open, exported snapshot.

    pg_dump can use its id within the `with` block of `open_snapshot`.
    """

    def __init__(
        self, connection: psycopg.Connection[tuple[object, ...]], settings: DatabaseSettings
    ) -> None:
        self.connection = connection
        self.settings = settings
        self.snapshot_id = str(self._value("SELECT pg_catalog.pg_export_snapshot()"))
        taken_at = self._value("SELECT pg_catalog.transaction_timestamp()")
        assert isinstance(taken_at, datetime)  # noqa: S101 - the column's type
        self.taken_at = taken_at.astimezone(timezone.utc)
        """By the server's clock."""
        self.opened_at = datetime.now(timezone.utc)
        """By this host's clock. A listing that starts afterwards contains every upload made before the
        snapshot."""

    def read_facts(self) -> DatabaseFacts:
        """Return version, encoding and the number of relations."""
        with translate_errors(self.settings):
            session = read_session_facts(self.connection)
        collation, encoding = self._row(
            "SELECT datcollate, pg_catalog.pg_encoding_to_char(encoding) FROM pg_catalog.pg_database WHERE "
            "datname = pg_catalog.current_database()"
        )
        may_identify = self._value(
            "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
        )
        identifier = (
            self._value("SELECT system_identifier FROM pg_catalog.pg_control_system()")
            if may_identify
            else ""
        )
        return DatabaseFacts(
            server_version=str(self._value("SHOW server_version")),
            session=session,
            system_identifier=str(identifier),
            encoding=str(encoding),
            collation=str(collation),
            relation_count=self._count(f"SELECT count(*) {USER_RELATIONS}"),
            large_object_count=self._count("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata"),
        )

    def read_properties(self) -> DatabaseProperties | None:
        """Return the database's owner, privileges, settings and collation."""
        # A pooler may use another name for it than the server.
        database = str(self._value("SELECT pg_catalog.current_database()"))
        with translate_errors(self.settings):
            return read_properties(self.connection, database)

    def list_tables(self) -> tuple[TableName, ...]:
        """Return every table whose rows a dump must contain, by schema and name.

        Tables of extensions are created by these and are not listed.
        """
        rows = self.rows(f"SELECT n.nspname, c.relname {USER_RELATIONS} AND c.relkind = 'r' ORDER BY 1, 2")
        return tuple(TableName(str(schema), str(name)) for schema, name in rows)

    def read_table_sizes(self) -> dict[TableName, int]:
        """Return table → bytes on the server's disk, with columns compressed as stored, without indexes."""
        rows = self.rows(
            f"SELECT n.nspname, c.relname, pg_catalog.pg_table_size(c.oid) {USER_RELATIONS} AND c.relkind "
            "= 'r'"
        )
        # For a table that was dropped meanwhile, the size is NULL.
        return {
            TableName(str(schema), str(name)): cast("int", size_bytes or 0)
            for schema, name, size_bytes in rows
        }

    def check_privileges(self) -> None:
        """Check that every table, sequence and schema is readable in full.

        DatabaseError (permanent) names the others.
        """
        unreadable = self.rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {USER_RELATIONS}
            AND (c.relkind = 'r' AND NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')
                 OR c.relkind = 'S' AND NOT pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                 OR c.relkind IN ('r', 'S') AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE'))
                     ORDER BY 1"""
        )
        if unreadable:
            raise DatabaseError(
                f"the role {self.settings.user} may not read "
                f"{name_some([str(name) for (name,) in unreadable])}",
                hint=f'As a superuser run: GRANT pg_read_all_data TO "{self.settings.user}";',
            )
        filtered = self.rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {USER_RELATIONS}
            AND c.relkind = 'r' AND pg_catalog.row_security_active(c.oid) ORDER BY 1"""
        )
        if filtered:
            raise DatabaseError(
                f"row-level security hides rows of {name_some([str(name) for (name,) in filtered])} from "
                f"the role {self.settings.user}",
                hint=f'As a superuser run: ALTER ROLE "{self.settings.user}" BYPASSRLS;',
            )

    def lock_tables(self, tables: Sequence[TableName]) -> None:
        """Lock the tables until the snapshot is closed, against dropping, truncating and rewriting.

        Rows can still be read and written. DumpError (retryable) if another session keeps a table locked too
        long, or has dropped or replaced it: a view with its name would run its owner's functions with our
        privileges.
        """
        if not tables:
            return
        names = sql.SQL(", ").join(
            sql.SQL("ONLY {}").format(sql.Identifier(table.schema_name, table.name)) for table in tables
        )
        with translate_errors(self.settings), self.connection.cursor() as cursor:
            try:
                cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
            except (
                psycopg.errors.LockNotAvailable,
                psycopg.errors.UndefinedTable,
                psycopg.errors.InvalidSchemaName,
            ) as error:
                raise DumpError(
                    f"a table of {self.settings.label} cannot be read now: {str(error).splitlines()[0]}",
                    hint="Look for a migration or another session that holds a lock (pg_locks); run the "
                    "backup again.",
                ) from error
        # The snapshot refers to the old table of a name; statements use whatever has the name now.
        replaced = self.rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {USER_RELATIONS} AND c.relkind = 'r'
            AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', n.nspname, c.relname))::pg_catalog.oid
                IS DISTINCT FROM c.oid ORDER BY 1"""  # noqa: S608 - no value of others
        )
        if replaced:
            raise DumpError(
                f"{name_some([str(name) for (name,) in replaced])} of {self.settings.label} was replaced "
                "while the backup waited for it",
                hint="Look for a migration; run the backup again.",
            )

    def count_rows(self, tables: Sequence[TableName]) -> dict[TableName, int]:
        """Return table → number of rows in the snapshot, counted exactly."""
        narrowest = {
            TableName(str(schema), str(name)): column
            for schema, name, column in self.rows(
                f"SELECT n.nspname, c.relname, ({_NARROWEST_COLUMN}) {USER_RELATIONS} AND c.relkind = 'r'"
            )
        }
        counts: dict[TableName, int] = {}
        for table in tables:
            column = narrowest.get(table)
            columns = (
                sql.SQL("({})").format(sql.Identifier(str(column))) if column is not None else sql.SQL("")
            )
            with translate_errors(self.settings):
                counts[table] = count_rows(self.connection, quote_table(table) + columns)
        return counts

    def has_table(self, name: str) -> bool:
        """Return whether a query with the database's own search path would find a table of this name."""
        with translate_errors(self.settings):
            self.connection.execute(TAKE_OWN_PATH)
            found = self.connection.execute(
                "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (name,)
            ).fetchone()
            self.connection.execute(TAKE_SAFE_PATH)
        return bool(found and found[0])

    def list_text_columns(self) -> tuple[TextColumn, ...]:
        """Return every text column that the role may read, in the order of tables and columns.

        Generated columns are not included, since they have no rows to read.
        """
        rows = self.rows(
            f"""SELECT n.nspname, c.relname, a.attname {USER_RELATIONS.replace("WHERE", _JOIN_COLUMNS, 1)}
            AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
            AND t.typcategory = 'S'
            AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')
            ORDER BY 1, 2, a.attnum"""
        )
        return tuple(
            TextColumn(TableName(str(schema), str(table)), str(name)) for schema, table, name in rows
        )

    @contextmanager
    def open_text_column(self, column: TextColumn) -> Generator[Iterator[str], None, None]:
        """Yield an iterator over the column's values that are not NULL; it need not be exhausted."""
        # A COPY that is not read to its end is an error on the server, which ends with the savepoint.
        with translate_errors(self.settings), suppress(_EnoughReadError), self.connection.transaction():
            values = read_columns(self.connection, quote_table(column.table), (column.name,))
            with closing(cast("Generator[tuple[bytes | None, ...], None, None]", values)):
                yield (decode_text(value) for (value,) in values if value is not None)
            raise _EnoughReadError

    def keep_alive(self, stop: Event) -> None:
        """Send a cheap query now and then until `stop` is set.

        Proxies and firewalls close silent connections. DatabaseUnreachableError (retryable) as soon as the
        connection, and with it the snapshot, is lost.
        """
        while not stop.wait(_KEEP_ALIVE_SECONDS):
            self._value("SELECT 1")

    def cancel(self) -> None:
        """Cancel a query that runs in another thread; one that cannot be cancelled ends with its session."""
        with suppress(psycopg.Error):
            self.connection.cancel_safe(timeout=5)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Return the rows of a query of our own."""
        with translate_errors(self.settings), self.connection.cursor() as cursor:
            return cursor.execute(cast("LiteralString", query)).fetchall()

    def _row(self, query: str) -> tuple[object, ...]:
        return self.rows(query)[0]

    def _value(self, query: str) -> object:
        return self._row(query)[0]

    def _count(self, query: str) -> int:
        return cast("int", self._value(query))


@contextmanager
def open_snapshot(
    settings: DatabaseSettings, *, stall_timeout_seconds: float = STALL_TIMEOUT_SECONDS
) -> Generator[Snapshot, None, None]:
    """Export a snapshot that is valid within the block: read-only, repeatable read, all rows.

    `stall_timeout_seconds` limits waits for a lock, and for a server whose state is unknown.
    DatabaseUnreachableError (retryable) or DatabaseError (permanent) if the server cannot be used.
    """
    with connect_database(settings, stall_timeout_seconds=stall_timeout_seconds) as connection:
        with translate_errors(settings):
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.cursor() as cursor:
                cursor.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(
                        sql.Literal(int(stall_timeout_seconds * 1000))
                    )
                )
                # Rows hidden by a policy must cause an error, never a smaller backup.
                cursor.execute("SET LOCAL row_security = off")
                cursor.execute(_KEEP_OWN_PATH)
                cursor.execute(TAKE_SAFE_PATH)
                cursor.execute(RESTRICT_KINDS, ["view, foreign-table"])
        yield Snapshot(connection, settings)


def quote_table(table: TableName) -> sql.Composed:
    """Return the table's name for a statement."""
    return sql.SQL("{}").format(sql.Identifier(table.schema_name, table.name))


def decode_text(key: bytes) -> str:
    r"""Return the text with bytes that are not UTF-8 escaped, as in `\xe9`."""
    return key.decode("utf-8", "backslashreplace")
