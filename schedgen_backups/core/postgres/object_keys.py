"""The object keys that rows refer to: the operators' own query, or the built-in one, read in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import groupby, islice
from typing import Any, cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.postgres.connection import translate_errors
from schedgen_backups.core.postgres.snapshot import (
    RESTRICT_KINDS,
    TAKE_OWN_PATH,
    TAKE_SAFE_PATH,
    Snapshot,
    TableName,
    decode_text,
    quote_table,
)
from schedgen_backups.core.postgres.unplanned import read_columns, sort_distinct
from schedgen_backups.core.settings import KeyColumns, References

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
_KEYS_PER_BLOCK = 1000


def find_reference_problem(snapshot: Snapshot, references: References) -> str:
    """Return why the references cannot be read, or an empty string.

    The built-in query fails if the application has no such table: that means "not configured". A custom
    query must work: ConfigurationError (permanent) with the server's message otherwise.
    """
    if not references.is_configured:
        return "no reference query is configured (BACKUP_PRESET=none)"
    if references.built_in is not None:
        return find_reference_tables(snapshot, references.built_in)[1]
    try:
        with snapshot.connection.transaction(), snapshot.connection.cursor() as cursor:
            cursor.execute(TAKE_OWN_PATH)
            snapshot.connection.execute(RESTRICT_KINDS, [""])
            cursor.execute(sql.SQL("SELECT * FROM ({}) AS reference LIMIT 0").format(_as_query(references)))
            columns = len(cursor.description or ())
            cursor.execute(TAKE_SAFE_PATH)
    except psycopg.Error as error:
        raise _reference_error(str(error)) from error
    if columns != 1:
        raise _reference_error(f"it returns {columns} columns, one is needed")
    return ""


def read_references(snapshot: Snapshot, references: References) -> Iterator[list[str]]:
    r"""Yield the distinct object keys that the rows refer to, in byte order, in blocks of a thousand.

    In a database without an encoding, text that is not UTF-8 cannot be an object's key. It is returned
    with its bytes escaped, as in `\xe9`.
    """
    if references.built_in is not None:
        keys = sort_distinct(map(decode_text, _read_built_in_keys(snapshot, references.built_in)))
    elif snapshot.connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        keys = _read_keys(snapshot, references, sql.SQL('({}) COLLATE pg_catalog."C"').format(_KEY_AS_TEXT))
    else:
        raw = sql.SQL("pg_catalog.convert_to({}, 'SQL_ASCII')").format(_KEY_AS_TEXT)
        # Their escaped form sorts differently from their bytes.
        odd = sorted(decode_text(key) for key in _read_keys(snapshot, references, raw) if not _is_utf8(key))
        plain = (key.decode() for key in _read_keys(snapshot, references, raw) if _is_utf8(key))
        keys = (key for key, _same in groupby(merge(plain, odd)))
    while block := list(islice(keys, _KEYS_PER_BLOCK)):
        yield block


def find_reference_tables(
    snapshot: Snapshot, wanted: KeyColumns
) -> tuple[dict[TableName, tuple[int, ...]], str]:
    """Return the tables that the built-in query reads with their column types, and why it cannot be read.

    The reason is empty if it can be read.
    """
    with translate_errors(snapshot.settings):
        snapshot.connection.execute(TAKE_OWN_PATH)
        (root,) = snapshot.connection.execute(
            "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid", (wanted.table,)
        ).fetchone() or (None,)
        snapshot.connection.execute(TAKE_SAFE_PATH)
        query = snapshot.connection.execute(_TREE_OF_TABLE, {"root": root, "columns": list(wanted.columns)})
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
        TableName(str(schema), str(name)): tuple(types) for schema, name, kind, types in rows if kind == "r"
    }, ""


def _read_built_in_keys(snapshot: Snapshot, wanted: KeyColumns) -> Iterator[bytes]:
    prefix = wanted.prefix.encode()
    for table, types in find_reference_tables(snapshot, wanted)[0].items():
        # Trailing blanks are padding, not part of the value (manual, "Character Types").
        padded = [type_oid == _BLANK_PADDED_OID for type_oid in types]
        with translate_errors(snapshot.settings):
            for values in read_columns(snapshot.connection, quote_table(table), wanted.columns):
                *needed, last = (
                    value.rstrip(b" ") if value and is_padded else value
                    for value, is_padded in zip(values, padded, strict=True)
                )
                parts = [*needed, *([last] if last is not None or not needed else [])]
                if None not in parts:
                    yield prefix + b"/".join(part for part in parts if part is not None)


def _read_keys(snapshot: Snapshot, references: References, key: sql.Composable) -> Iterator[Any]:
    query = sql.SQL("SELECT DISTINCT {} FROM ({}) AS reference(key) WHERE key IS NOT NULL ORDER BY 1").format(
        key, _as_query(references)
    )
    with translate_errors(snapshot.settings), snapshot.connection.cursor(name="references") as cursor:
        cursor.itersize = _KEYS_PER_BLOCK
        snapshot.connection.execute(TAKE_OWN_PATH)
        # Views run their owner's functions with our privileges: only the operators' own query may read
        # them.
        snapshot.connection.execute(RESTRICT_KINDS, [""])
        cursor.execute(query)
        for (value,) in cursor:
            yield value
        snapshot.connection.execute(TAKE_SAFE_PATH)


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_query(references: References) -> sql.SQL:
    return sql.SQL(cast("LiteralString", references.query.strip().rstrip(";")))


def _reference_error(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"BACKUP_REFERENCE_QUERY cannot be used: {reason.strip()}",
        hint="Use one SELECT with one column, the object keys, that the backup role may run.",
    )
