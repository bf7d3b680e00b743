"""Read tables without planning a query on them, for a role with more privileges than their owner.

Planning a query runs functions of the table's owner with the privileges of the planning role: those in
expressions of indexes, statistics and partition keys, if they are declared immutable and their arguments are
constant (observed on PostgreSQL 18, 2026-11-29). `COPY table TO` plans nothing and calls only output
functions of types, which only superusers can create. No lock available to a reader stops an owner from
creating such an index, so checking beforehand does not help.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import psycopg
from psycopg import sql
from psycopg.generators import execute as send_command
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait

_NULL = rb"\N"
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
"""PostgreSQL manual, COPY, "Text Format"; characters that stand for themselves are not included."""


def count_rows(connection: psycopg.Connection[Any], table: sql.Composable) -> int:
    """Return the number of rows that the server copies of the table.

    `table` may be followed by a list of columns: one narrow column is the fastest. Text is copied in the
    database's own encoding, so no value fails to be converted. Raises psycopg's errors. Takes 0.2 µs of
    processor time per row, where psycopg's own COPY takes 0.6 µs (2026-11-29).
    """
    own_encoding = connection.info.parameter_status("server_encoding") or ""
    command = (
        sql.SQL("COPY {} TO STDOUT (ENCODING {})")
        .format(table, sql.Literal(own_encoding))
        .as_bytes(connection)
    )
    with connection.lock:
        return connection.wait(_count_copied(connection.pgconn, command))


def read_columns(
    connection: psycopg.Connection[Any], table: sql.Composable, columns: Sequence[str]
) -> Iterator[tuple[bytes | None, ...]]:
    """Yield the columns' values as UTF-8 text, NULL as None, in the order of the table.

    From a database without an encoding, the bytes are returned as stored.
    """
    encoding = "SQL_ASCII" if connection.info.parameter_status("server_encoding") == "SQL_ASCII" else "UTF8"
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    command = sql.SQL("COPY {} ({}) TO STDOUT (ENCODING {})").format(table, names, sql.Literal(encoding))
    with connection.cursor() as cursor, cursor.copy(command) as copy:
        for line in copy:
            # A tab within a value is escaped.
            yield tuple(map(_read_value, bytes(line).removesuffix(b"\n").split(b"\t")))


def sort_distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text once, in the order of its UTF-8 bytes.

    More than a few megabytes are kept on disk.
    """
    # An empty name means a private file that is removed when it is closed (SQLite manual, "In-Memory
    # Databases", "Temporary Databases").
    with closing(sqlite3.connect("", check_same_thread=False)) as sorter:
        sorter.execute("CREATE TABLE sorted (text TEXT PRIMARY KEY) WITHOUT ROWID")
        sorter.executemany("INSERT OR IGNORE INTO sorted VALUES (?)", ((text,) for text in texts))
        yield from (text for (text,) in sorter.execute("SELECT text FROM sorted ORDER BY text"))


def _count_copied(pgconn: PGconn, command: bytes) -> Generator[Wait, Any, int]:
    pgconn.send_query(command)
    _require(ExecStatus.COPY_OUT, (yield from send_command(pgconn)))
    while (size := pgconn.get_copy_data(1)[0]) >= 0:
        if size == 0:  # no data yet
            while not (yield Wait.R):
                pass
            pgconn.consume_input()
    return int(_require(ExecStatus.COMMAND_OK, (yield from send_command(pgconn))).command_tuples or 0)


def _require(status: ExecStatus, results: list[PGresult]) -> PGresult:
    if results[-1].status != status:
        raise psycopg.errors.error_from_result(results[-1])
    return results[-1]


def _read_value(text: bytes) -> bytes | None:
    if text == _NULL:
        return None
    return _ESCAPE.sub(_unescape, text) if b"\\" in text else text


def _unescape(found: re.Match[bytes]) -> bytes:
    return _ESCAPED.get(found[1], found[1])
