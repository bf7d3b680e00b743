"""Restores beside a live database and puts the result in its place by renaming; the old one stays under another name until somebody drops it.

The application sees the old database until the last moment, and never a half of the new one. A restore that dies leaves a marked database that the
next one removes.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.tables import open_side_database
from schedgen_backups.core.settings import DatabaseSettings

_SWAP_ATTEMPTS = 20
_SWAP_PAUSE_SECONDS = 0.5
"""Applications connect again at once: their sessions are ended and the names exchanged in one breath, a few times."""


@dataclass(frozen=True)
class Swap:
    """The names of one exchange."""

    session: DatabaseSession
    """With the server's maintenance database."""
    live: DatabaseSettings
    fresh: DatabaseSettings
    """What is restored into."""
    old_name: str
    """What the live database is called afterwards."""


def name_old_database(live: DatabaseSettings, point_id: RecoveryPointId) -> str:
    """Return what the live database is called once a restore of this point has taken its place."""
    return f"{live.database}_old_{point_id}"


def check_swap(session: DatabaseSession, live: DatabaseSettings, point_id: RecoveryPointId) -> None:
    """Raise RestoreError where the old database could not get its name."""
    with session.use() as connection:
        _check_free(connection, name_old_database(live, point_id))


@contextmanager
def open_swap(
    session: DatabaseSession, live: DatabaseSettings, point_id: RecoveryPointId, now_id: RecoveryPointId, *, encoding: str
) -> Generator[Swap, None, None]:
    """An empty database beside `live` is there within the block, and gone after it unless `finish_swap` gave it the live one's name.

    Errors are those of `open_side_database`.
    """
    with open_side_database(session, f"{live.database}_new_{now_id}", encoding=encoding) as side:
        # After the exchange no database has the side database's name any more, and nothing is dropped.
        yield Swap(session, live, live.with_database(side.name), name_old_database(live, point_id))


def finish_swap(swap: Swap) -> None:
    """Give the restored database the name of `live`, and that one `old_name`; its settings (ALTER DATABASE … SET) go along.

    Both names change in one transaction, or neither. Sessions of the live database are ended. RestoreError when new ones come too fast, or when
    there is a database called `old_name` already.
    """
    with swap.session.use() as connection:
        _check_free(connection, swap.old_name)
        _copy_settings(connection, swap)
        for _attempt in range(_SWAP_ATTEMPTS):
            try:
                with connection.transaction():
                    _end_sessions(connection, swap)
                    _rename(connection, swap)
            except (psycopg.errors.ObjectInUse, psycopg.errors.LockNotAvailable):
                time.sleep(_SWAP_PAUSE_SECONDS)
            else:
                return
    raise RestoreError(
        f"the database {swap.live.database} could not be renamed: its users connect again faster than they are ended; it is as it was",
        hint="Stop the application, then restore again with --swap.",
    )


def _check_free(connection: Connection, name: str) -> None:
    if _exists(connection, name):
        raise RestoreError(
            f"there is a database {name} already, of an earlier exchange",
            hint=f'Drop it when nobody needs it: DROP DATABASE "{name}";',
        )


def _exists(connection: Connection, name: str) -> bool:
    return connection.execute("SELECT FROM pg_catalog.pg_database WHERE datname = %s", (name,)).fetchone() is not None


def _copy_settings(connection: Connection, swap: Swap) -> None:
    rows = connection.execute(
        "SELECT pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase"
        " WHERE s.setrole = 0 AND d.datname = %s",
        (swap.live.database,),
    ).fetchall()
    for (setting,) in rows:
        name, _equals, value = str(setting).partition("=")
        # As pg_dumpall does: these hold lists that are quoted already.
        literal = sql.SQL(cast("LiteralString", value)) if name.endswith(("search_path", "_libraries", "temp_tablespaces")) else sql.Literal(value)
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(sql.Identifier(swap.fresh.database), sql.Identifier(*name.split(".")), literal)
        )


def _end_sessions(connection: Connection, swap: Swap) -> None:
    connection.execute(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = ANY(%s) AND pid <> pg_catalog.pg_backend_pid()",
        ([swap.live.database, swap.fresh.database],),
    )


def _rename(connection: Connection, swap: Swap) -> None:
    names = [(swap.live.database, swap.old_name)] if _exists(connection, swap.live.database) else []
    for before, after in (*names, (swap.fresh.database, swap.live.database)):
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(after)))
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(sql.Identifier(swap.live.database)))
