"""One consistent view of a database: the exported snapshot, and what is read in it besides the dump.

It provides the server's version, the tables with their row counts, what the role may not read, and the object
keys that rows refer to. Add what must be consistent with the dump. `postgres` connects, `dump` dumps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from heapq import merge
from itertools import groupby, islice
from threading import Event
from typing import Any, cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.errors import ConfigurationError, DatabaseError, DumpError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.patterns import matches_table
from schedgen_backups.core.postgres.connection import (
    STALL_TIMEOUT_SECONDS,
    SessionFacts,
    connect_database,
    read_session_facts,
    translate_errors,
)
from schedgen_backups.core.postgres.database_properties import read_properties
from schedgen_backups.core.postgres.unplanned import count_rows, read_columns, sort_distinct
from schedgen_backups.core.settings import DatabaseSettings, KeyColumns, References
from schedgen_backups.core.units import name_some

_USER_RELATIONS = """
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
_RESTRICT_KINDS: LiteralString = """
SELECT pg_catalog.set_config(name, %s, true) FROM pg_catalog.pg_settings
    WHERE name = 'restrict_nonsystem_relation_kind'"""
_TAKE_SAFE_PATH = "SELECT pg_catalog.set_config('search_path', '', true)"
_TAKE_OWN_PATH = (
    "SELECT pg_catalog.set_config('search_path', "
    "pg_catalog.current_setting('schedgen_backups.search_path'), true)"
)
"""Search path for the operators' own query, whose names are the database's. Our queries must not find an
operator that a user placed before the system's."""
_NARROWEST_COLUMN = """
SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attlen <= 0, a.attlen, a.attnum LIMIT 1"""
_BLANK_PADDED_OID = 1042
"""The type char(n), in every version."""
# A partitioned or inherited table with all tables that hold its rows.
_TREE_OF_TABLE: LiteralString = """
WITH RECURSIVE tree(oid) AS (
    SELECT %(root)s::pg_catalog.oid UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i
        JOIN tree ON i.inhparent = tree.oid)
SELECT n.nspname, c.relname, c.relkind::pg_catalog.text, ARRAY(
    SELECT a.atttypid FROM pg_catalog.unnest(%(columns)s::pg_catalog.text[])
        WITH ORDINALITY AS wanted(name, place)
    JOIN pg_catalog.pg_attribute a ON a.attname OPERATOR(pg_catalog.=) wanted.name::pg_catalog.name
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = '' ORDER BY wanted.place)
FROM tree JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    ORDER BY 1, 2"""
# A user's type may have a user-defined cast to text, but its output function is not user-defined. Numbers and
# the like have only the system's casts.
_KEY_AS_TEXT = sql.SQL("""
CASE WHEN pg_catalog.pg_typeof(key)::pg_catalog.oid OPERATOR(pg_catalog.<) 16384::pg_catalog.oid
THEN key::pg_catalog.text ELSE pg_catalog.format('%s', key) END""")
# A leaf counts like its partitioned tables.
_NAMES_OF_TABLES = f"""
WITH RECURSIVE named(table_oid, oid) AS (
    SELECT c.oid, c.oid {_USER_RELATIONS} AND c.relkind = 'r'
    UNION SELECT named.table_oid, i.inhparent FROM named JOIN pg_catalog.pg_inherits i
        ON i.inhrelid = named.oid
    JOIN pg_catalog.pg_class p ON p.oid = i.inhparent AND p.relkind = 'p')
SELECT n.nspname, c.relname, m.nspname, d.relname FROM named
JOIN pg_catalog.pg_class c ON c.oid = named.table_oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class d ON d.oid = named.oid JOIN pg_catalog.pg_namespace m ON m.oid = d.relnamespace"""  # noqa: S608 - no value of others
_FOREIGN_KEYS = """
SELECT n.nspname, c.relname, m.nspname, d.relname, k.conname FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class d ON d.oid = k.confrelid JOIN pg_catalog.pg_namespace m ON m.oid = d.relnamespace
WHERE k.contype = 'f' ORDER BY 1, 2, 5"""
# Rows of a table partitioned by hash are loaded through it, and may end up in another partition (pg_dump,
# forcePartitionRootLoad).
_HASHED = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_partitioned_table t JOIN pg_catalog.pg_class c
    ON c.oid = t.partrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE t.partstrat = 'h' ORDER BY 1, 2"""
# Tables that a materialized view reads, also through other views.
_READ_BY_VIEWS = """
WITH RECURSIVE reads(view_oid, oid) AS (
    SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'm'
    UNION SELECT reads.view_oid, d.refobjid FROM reads JOIN pg_catalog.pg_rewrite w ON w.ev_class = reads.oid
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        AND d.objid = w.oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
SELECT DISTINCT pg_catalog.format('%I.%I', m.nspname, v.relname), n.nspname, c.relname FROM reads
JOIN pg_catalog.pg_class v ON v.oid = reads.view_oid JOIN pg_catalog.pg_namespace m ON m.oid = v.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = reads.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    ORDER BY 1"""
_JOIN_COLUMNS = """
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid JOIN pg_catalog.pg_type t
        ON t.oid = a.atttypid WHERE"""
_KEYS_PER_BLOCK = 1000
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
        self._connection = connection
        self._settings = settings
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
        with translate_errors(self._settings):
            session = read_session_facts(self._connection)
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
            relation_count=self._count(f"SELECT count(*) {_USER_RELATIONS}"),
            large_object_count=self._count("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata"),
        )

    def read_properties(self) -> DatabaseProperties | None:
        """Return the database's owner, privileges, settings and collation."""
        # A pooler may use another name for it than the server.
        database = str(self._value("SELECT pg_catalog.current_database()"))
        with translate_errors(self._settings):
            return read_properties(self._connection, database)

    def list_tables(self) -> tuple[TableName, ...]:
        """Return every table whose rows a dump must contain, by schema and name.

        Tables of extensions are created by these and are not listed.
        """
        rows = self._rows(f"SELECT n.nspname, c.relname {_USER_RELATIONS} AND c.relkind = 'r' ORDER BY 1, 2")
        return tuple(TableName(str(schema), str(name)) for schema, name in rows)

    def find_tables(self, patterns: Sequence[str]) -> frozenset[TableName]:
        """Return the tables that match the patterns; a partitioned table matches with its partitions."""
        if not patterns:
            return frozenset()
        return frozenset(
            leaf
            for named, leaves in self._read_leaves().items()
            if any(matches_table(pattern, named.schema_name, named.name) for pattern in patterns)
            for leaf in leaves
        )

    def check_exclusions(self, excluded: frozenset[TableName], references: References) -> None:
        """Check that no remaining row needs rows of these tables; ConfigurationError (permanent) otherwise.

        Foreign keys refer to rows, and the built-in query reads object keys from its tables. What a custom
        query reads is unknown.
        """
        if not excluded:
            return
        leaves = self._read_leaves()
        needed: list[str] = []
        for own_schema, own_name, schema, name, constraint in self._rows(_FOREIGN_KEYS):
            own = leaves.get(TableName(str(own_schema), str(own_name)), frozenset())
            if own - excluded and leaves.get(TableName(str(schema), str(name)), frozenset()) & excluded:
                needed.append(f"{own_schema}.{own_name} refers to {schema}.{name} ({constraint})")
        for schema, name in self._rows(_HASHED):
            parts = leaves.get(TableName(str(schema), str(name)), frozenset())
            if parts & excluded and parts - excluded:
                needed.append(
                    f"{schema}.{name} is partitioned by hash, and remaining rows may belong to an "
                    "excluded partition"
                )
        if references.built_in is not None:
            with_keys = excluded.intersection(self._find_reference_tables(references.built_in)[0])
            needed += [
                f"object keys are read from {table.schema_name}.{table.name}"
                for table in sorted(with_keys, key=_order_of)
            ]
        if needed:
            raise ConfigurationError(
                "BACKUP_EXCLUDE_TABLE_DATA excludes rows that others need, so the dump could not "
                f"be restored: {name_some(needed)}",
                hint="Exclude the tables that refer to them as well, or do not exclude these.",
            )

    def find_views_of(self, tables: frozenset[TableName]) -> tuple[str, ...]:
        """Return the materialized views that read one of these tables.

        Without its rows, a restore fills the views with other data, or fails.
        """
        leaves = self._read_leaves()
        read = (
            (str(view), leaves.get(TableName(str(schema), str(name)), frozenset()))
            for view, schema, name in self._rows(_READ_BY_VIEWS)
        )
        return tuple(dict.fromkeys(view for view, parts in read if parts & tables))

    def _read_leaves(self) -> dict[TableName, frozenset[TableName]]:
        """Return each table with itself, and each partitioned one with the partitions that hold its rows."""
        leaves: dict[TableName, frozenset[TableName]] = {}
        for schema, name, named_schema, named in self._rows(_NAMES_OF_TABLES):
            above = TableName(str(named_schema), str(named))
            leaves[above] = leaves.get(above, frozenset()) | {TableName(str(schema), str(name))}
        return leaves

    def read_table_sizes(self) -> dict[TableName, int]:
        """Return table → bytes on the server's disk, with columns compressed as stored, without indexes."""
        rows = self._rows(
            f"SELECT n.nspname, c.relname, pg_catalog.pg_table_size(c.oid) {_USER_RELATIONS} AND c.relkind "
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
        unreadable = self._rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {_USER_RELATIONS}
            AND (c.relkind = 'r' AND NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')
                 OR c.relkind = 'S' AND NOT pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                 OR c.relkind IN ('r', 'S') AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE'))
                     ORDER BY 1"""
        )
        if unreadable:
            raise DatabaseError(
                f"the role {self._settings.user} may not read "
                f"{name_some([str(name) for (name,) in unreadable])}",
                hint=f'As a superuser run: GRANT pg_read_all_data TO "{self._settings.user}";',
            )
        filtered = self._rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {_USER_RELATIONS}
            AND c.relkind = 'r' AND pg_catalog.row_security_active(c.oid) ORDER BY 1"""
        )
        if filtered:
            raise DatabaseError(
                f"row-level security hides rows of {name_some([str(name) for (name,) in filtered])} from "
                f"the role {self._settings.user}",
                hint=f'As a superuser run: ALTER ROLE "{self._settings.user}" BYPASSRLS;',
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
        with translate_errors(self._settings), self._connection.cursor() as cursor:
            try:
                cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
            except (
                psycopg.errors.LockNotAvailable,
                psycopg.errors.UndefinedTable,
                psycopg.errors.InvalidSchemaName,
            ) as error:
                raise DumpError(
                    f"a table of {self._settings.label} cannot be read now: {str(error).splitlines()[0]}",
                    hint="Look for a migration or another session that holds a lock (pg_locks); run the "
                    "backup again.",
                ) from error
        # The snapshot refers to the old table of a name; statements use whatever has the name now.
        replaced = self._rows(
            f"""SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) {_USER_RELATIONS} AND c.relkind = 'r'
            AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', n.nspname, c.relname))::pg_catalog.oid
                IS DISTINCT FROM c.oid ORDER BY 1"""  # noqa: S608 - no value of others
        )
        if replaced:
            raise DumpError(
                f"{name_some([str(name) for (name,) in replaced])} of {self._settings.label} was replaced "
                "while the backup waited for it",
                hint="Look for a migration; run the backup again.",
            )

    def count_rows(self, tables: Sequence[TableName]) -> dict[TableName, int]:
        """Return table → number of rows in the snapshot, counted exactly."""
        narrowest = {
            TableName(str(schema), str(name)): column
            for schema, name, column in self._rows(
                f"SELECT n.nspname, c.relname, ({_NARROWEST_COLUMN}) {_USER_RELATIONS} AND c.relkind = 'r'"
            )
        }
        counts: dict[TableName, int] = {}
        for table in tables:
            column = narrowest.get(table)
            columns = (
                sql.SQL("({})").format(sql.Identifier(str(column))) if column is not None else sql.SQL("")
            )
            with translate_errors(self._settings):
                counts[table] = count_rows(self._connection, _name(table) + columns)
        return counts

    def find_reference_problem(self, references: References) -> str:
        """Return why the references cannot be read, or an empty string.

        The built-in query fails if the application has no such table: that means "not configured". A custom
        query must work: ConfigurationError (permanent) with the server's message otherwise.
        """
        if not references.is_configured:
            return "no reference query is configured (BACKUP_PRESET=none)"
        if references.built_in is not None:
            return self._find_reference_tables(references.built_in)[1]
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.execute(_TAKE_OWN_PATH)
                self._connection.execute(_RESTRICT_KINDS, [""])
                cursor.execute(
                    sql.SQL("SELECT * FROM ({}) AS reference LIMIT 0").format(_as_query(references))
                )
                columns = len(cursor.description or ())
                cursor.execute(_TAKE_SAFE_PATH)
        except psycopg.Error as error:
            raise _reference_error(str(error)) from error
        if columns != 1:
            raise _reference_error(f"it returns {columns} columns, one is needed")
        return ""

    def read_references(self, references: References) -> Iterator[list[str]]:
        r"""Yield the distinct object keys that the rows refer to, in byte order, in blocks of a thousand.

        In a database without an encoding, text that is not UTF-8 cannot be an object's key. It is returned
        with its bytes escaped, as in `\xe9`.
        """
        if references.built_in is not None:
            keys = sort_distinct(map(_decode, self._read_built_in_keys(references.built_in)))
        elif self._connection.info.parameter_status("server_encoding") != "SQL_ASCII":
            keys = self._read_keys(references, sql.SQL('({}) COLLATE pg_catalog."C"').format(_KEY_AS_TEXT))
        else:
            raw = sql.SQL("pg_catalog.convert_to({}, 'SQL_ASCII')").format(_KEY_AS_TEXT)
            # Their escaped form sorts differently from their bytes.
            odd = sorted(_decode(key) for key in self._read_keys(references, raw) if not _is_utf8(key))
            plain = (key.decode() for key in self._read_keys(references, raw) if _is_utf8(key))
            keys = (key for key, _same in groupby(merge(plain, odd)))
        while block := list(islice(keys, _KEYS_PER_BLOCK)):
            yield block

    def has_table(self, name: str) -> bool:
        """Return whether a query with the database's own search path would find a table of this name."""
        with translate_errors(self._settings):
            self._connection.execute(_TAKE_OWN_PATH)
            found = self._connection.execute(
                "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (name,)
            ).fetchone()
            self._connection.execute(_TAKE_SAFE_PATH)
        return bool(found and found[0])

    def list_text_columns(self) -> tuple[TextColumn, ...]:
        """Return every text column that the role may read, in the order of tables and columns.

        Generated columns are not included, since they have no rows to read.
        """
        rows = self._rows(
            f"""SELECT n.nspname, c.relname, a.attname {_USER_RELATIONS.replace("WHERE", _JOIN_COLUMNS, 1)}
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
        with translate_errors(self._settings), suppress(_EnoughReadError), self._connection.transaction():
            values = read_columns(self._connection, _name(column.table), (column.name,))
            with closing(cast("Generator[tuple[bytes | None, ...], None, None]", values)):
                yield (_decode(value) for (value,) in values if value is not None)
            raise _EnoughReadError

    def _find_reference_tables(self, wanted: KeyColumns) -> tuple[dict[TableName, tuple[int, ...]], str]:
        """Return the tables that the built-in query reads with their column types, and why it cannot be read.

        The reason is empty if it can be read.
        """
        with translate_errors(self._settings):
            self._connection.execute(_TAKE_OWN_PATH)
            (root,) = self._connection.execute(
                "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid", (wanted.table,)
            ).fetchone() or (None,)
            self._connection.execute(_TAKE_SAFE_PATH)
            query = self._connection.execute(_TREE_OF_TABLE, {"root": root, "columns": list(wanted.columns)})
            rows = cast("list[tuple[str, str, str, list[int]]]", query.fetchall())
        missing = "the built-in query found no such table or column"
        if not rows:
            return {}, f'{missing}: relation "{wanted.table}" does not exist'
        if {str(kind) for _schema, _name, kind, _types in rows} - {"r", "p"}:
            return (
                {},
                (
                    "the built-in query reads tables only: a view or a foreign table would run its owner's "
                    "functions with the privileges of the backup"
                ),
            )
        if any(len(types) < len(wanted.columns) for _schema, _name, _kind, types in rows):
            return {}, f'{missing}: column "{", ".join(wanted.columns)}" does not exist'
        return {
            TableName(str(schema), str(name)): tuple(types)
            for schema, name, kind, types in rows
            if kind == "r"
        }, ""

    def _read_built_in_keys(self, wanted: KeyColumns) -> Iterator[bytes]:
        prefix = wanted.prefix.encode()
        for table, types in self._find_reference_tables(wanted)[0].items():
            # Trailing blanks are padding, not part of the value (manual, "Character Types").
            padded = [type_oid == _BLANK_PADDED_OID for type_oid in types]
            with translate_errors(self._settings):
                for values in read_columns(self._connection, _name(table), wanted.columns):
                    *needed, last = (
                        value.rstrip(b" ") if value and is_padded else value
                        for value, is_padded in zip(values, padded, strict=True)
                    )
                    parts = [*needed, *([last] if last is not None or not needed else [])]
                    if None not in parts:
                        yield prefix + b"/".join(part for part in parts if part is not None)

    def _read_keys(self, references: References, key: sql.Composable) -> Iterator[Any]:
        query = sql.SQL(
            "SELECT DISTINCT {} FROM ({}) AS reference(key) WHERE key IS NOT NULL ORDER BY 1"
        ).format(key, _as_query(references))
        with translate_errors(self._settings), self._connection.cursor(name="references") as cursor:
            cursor.itersize = _KEYS_PER_BLOCK
            self._connection.execute(_TAKE_OWN_PATH)
            # Views run their owner's functions with our privileges: only the operators' own query may read
            # them.
            self._connection.execute(_RESTRICT_KINDS, [""])
            cursor.execute(query)
            for (value,) in cursor:
                yield value
            self._connection.execute(_TAKE_SAFE_PATH)

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
            self._connection.cancel_safe(timeout=5)

    def _rows(self, query: str) -> list[tuple[object, ...]]:
        with translate_errors(self._settings), self._connection.cursor() as cursor:
            return cursor.execute(cast("LiteralString", query)).fetchall()

    def _row(self, query: str) -> tuple[object, ...]:
        return self._rows(query)[0]

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
                cursor.execute(_TAKE_SAFE_PATH)
                cursor.execute(_RESTRICT_KINDS, ["view, foreign-table"])
        yield Snapshot(connection, settings)


def _order_of(table: TableName) -> tuple[str, str]:
    return table.schema_name, table.name


def _name(table: TableName) -> sql.Composed:
    return sql.SQL("{}").format(sql.Identifier(table.schema_name, table.name))


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _as_query(references: References) -> sql.SQL:
    return sql.SQL(cast("LiteralString", references.query.strip().rstrip(";")))


def _reference_error(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"BACKUP_REFERENCE_QUERY cannot be used: {reason.strip()}",
        hint="Use one SELECT with one column, the object keys, that the backup role may run.",
    )
