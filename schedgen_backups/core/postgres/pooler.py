"""Detect a connection pooler in front of a server; refuse those that share sessions between transactions."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg

from schedgen_backups.core.errors import DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.postgres.session_settings import FIXED_SETTINGS, INHERITED_THROUGH_POOLER
from schedgen_backups.core.settings import DatabaseSettings

_ROUNDS = 3
"""A pooler that uses sessions in turn may give the same one again in the first round if it has two."""
_ANSWER_SECONDS = 10
_DIRECT_HINT = (
    "Connect to the server itself, or to a pool with pool_mode = session: POSTGRES_HOST and POSTGRES_PORT."
)

_Connection = psycopg.Connection[Any]


def is_pooled(connection: _Connection) -> bool:
    """Return whether a pooler answered the login: the backend's process id differs from the reported one."""
    return _read_backend_pid(connection) != connection.info.backend_pid


def check_pooler(
    settings: DatabaseSettings, connection: _Connection, connect_again: Callable[[], _Connection]
) -> None:
    """Raise DatabaseError (permanent) if a backup through this pooler would not be valid.

    That is the case if transactions of one connection run in different sessions of the server, or if programs
    would inherit settings that change what they write. `connection` is in autocommit. Nothing is left in any
    session. DatabaseUnreachableError (retryable) if the pool has no second session.
    """
    wrong = _find_inherited(connection)
    with closing(connect_again()) as other:
        other.autocommit = True
        for _round in range(_ROUNDS):
            before = _read_backend_pid(connection)
            held = _begin_and_read_pid(settings, other)
            # With only one session in the pool, the second query would wait in vain.
            if held == before or _read_backend_pid(connection) != before:
                raise make_pooling_error(settings)
            other.execute("ROLLBACK")
    if wrong:
        raise DatabaseError(
            f"the pooler at {settings.host}:{settings.port} accepts no settings, and the server's settings "
            f"would change a dump: {wrong}",
            hint=f"{_DIRECT_HINT} Or change the settings for the database or the role.",
        )


def make_pooling_error(settings: DatabaseSettings) -> DatabaseError:
    """Return the error for a pooler that shares sessions between transactions."""
    return DatabaseError(
        f"a connection pooler at {settings.host}:{settings.port} shares sessions between transactions: "
        "snapshots and settings would be lost, and ours would reach the application's sessions",
        hint=_DIRECT_HINT,
    )


def _read_backend_pid(connection: _Connection) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


def _begin_and_read_pid(settings: DatabaseSettings, connection: _Connection) -> int:
    """Begin a transaction and return its backend's process id; fail if the pool has no free session."""
    pgconn = connection.pgconn
    pgconn.send_query(b"BEGIN; SELECT pg_catalog.pg_backend_pid()")
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while pgconn.is_busy():
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise DatabaseUnreachableError(
                f"the connection pool at {settings.host}:{settings.port} has no second session; a backup "
                "needs at least two",
                hint="Raise default_pool_size of the pooler, or connect to the server itself.",
            )
        pgconn.consume_input()
    value = 0
    while (result := pgconn.get_result()) is not None:
        if (
            result.status == psycopg.pq.ExecStatus.FATAL_ERROR
        ):  # a pool in statement mode does not support transactions
            raise make_pooling_error(settings)
        if result.ntuples:
            value = int(result.get_value(0, 0) or b"0")
    return value


def _find_inherited(connection: _Connection) -> str:
    names = list(INHERITED_THROUGH_POOLER)
    rows = connection.execute(
        "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS name",
        (names,),
    ).fetchall()
    return ", ".join(f"{name} = {value}" for name, value in rows if value != FIXED_SETTINGS[str(name)])
