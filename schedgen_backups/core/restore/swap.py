"""Restore next to a live database and swap the names; the old database is kept under another name.

The application sees the old database until the swap, and never a partial new one. A restore that dies leaves
a marked database, which the next one removes.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.postgres.database_properties import carry_properties, read_properties
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.tables import open_side_database
from schedgen_backups.core.settings import DatabaseSettings

_SWAP_ATTEMPTS = 20
_SWAP_PAUSE_SECONDS = 0.5
"""Applications reconnect immediately: ending their sessions and swapping the names is tried several times in
quick succession."""


@dataclass(frozen=True)
class Swap:
    """The databases of one swap."""

    session: DatabaseSession
    """A session with the server's maintenance database."""
    live: DatabaseSettings
    fresh: DatabaseSettings
    """The database that the restore loads."""
    old_name: str
    """The live database's name after the swap."""
    has_live: bool
    """Whether the live database exists."""
    captured: DatabaseProperties | None = None
    """Properties of the captured database, used if the live one does not exist."""


def name_old_database(live: DatabaseSettings, point_id: RecoveryPointId) -> str:
    """Return the live database's name after a restore of this point has replaced it."""
    return f"{live.database}_old_{point_id}"


def list_way_back(swap: Swap, now_id: RecoveryPointId) -> tuple[str, ...]:
    """Return the statements that rename the previous database back, and the restored one away."""
    undone = f"{swap.live.database}_undone_{now_id}"
    return tuple(
        sql.SQL("ALTER DATABASE {} RENAME TO {};")
        .format(sql.Identifier(before), sql.Identifier(after))
        .as_string()
        for before, after in ((swap.live.database, undone), (swap.old_name, swap.live.database))
    )


def check_swap(session: DatabaseSession, live: DatabaseSettings, point_id: RecoveryPointId) -> None:
    """Raise RestoreError if the old database's new name is taken."""
    with session.use() as connection:
        _check_free(connection, name_old_database(live, point_id))


@contextmanager
def open_swap(
    session: DatabaseSession,
    live: DatabaseSettings,
    point_id: RecoveryPointId,
    now_id: RecoveryPointId,
    *,
    encoding: str,
    captured: DatabaseProperties | None = None,
) -> Generator[Swap, None, None]:
    """Create an empty database next to `live`; drop it after the block unless `finish_swap` renamed it.

    Errors are those of `open_side_database`.
    """
    with session.use() as connection:
        present = read_properties(connection, live.database)
    with open_side_database(
        session, f"{live.database}_new_{now_id}", encoding=encoding, like=present or captured
    ) as side:
        # After the swap no database has the side database's name, so nothing is dropped.
        fresh = live.with_database(side.name)
        yield Swap(
            session,
            live,
            fresh,
            name_old_database(live, point_id),
            has_live=present is not None,
            captured=captured,
        )


def finish_swap(swap: Swap) -> tuple[str, ...]:
    """Rename `live` to `old_name` and the restored database to `live`, with the live one's properties.

    These are owner, privileges, limits, comment and settings. Without a live database, the captured ones are
    used; return those that differ. Both names change in one transaction, or neither. Sessions of the live
    database are ended. RestoreError if new ones arrive too fast, or if `old_name` is taken.
    """
    with swap.session.use() as connection:
        _check_free(connection, swap.old_name)
        live = read_properties(connection, swap.live.database)
        differences = _carry_properties(connection, swap, live)
        for _attempt in range(_SWAP_ATTEMPTS):
            try:
                with connection.transaction():
                    _end_sessions(connection, swap)
                    _rename(connection, swap, live or swap.captured)
            except (psycopg.errors.ObjectInUse, psycopg.errors.LockNotAvailable):
                time.sleep(_SWAP_PAUSE_SECONDS)
            else:
                return differences
    raise RestoreError(
        f"the database {swap.live.database} could not be renamed: its clients reconnect faster than their "
        "sessions can be ended; it is unchanged",
        hint="Stop the application, then restore again with --swap.",
    )


def _check_free(connection: Connection, name: str) -> None:
    if _exists(connection, name):
        raise RestoreError(
            f"the database {name} exists already, from an earlier swap",
            hint=f'Drop it when it is no longer needed: DROP DATABASE "{name}";',
        )


def _exists(connection: Connection, name: str) -> bool:
    return (
        connection.execute("SELECT FROM pg_catalog.pg_database WHERE datname = %s", (name,)).fetchone()
        is not None
    )


def _carry_properties(connection: Connection, swap: Swap, live: DatabaseProperties | None) -> tuple[str, ...]:
    """Apply the live database's properties to the restored one, or the captured ones if there is none.

    RestoreError if the live one's cannot be applied; of the captured ones, return those that differ.
    """
    wanted = live or swap.captured
    if wanted is None:
        return ()
    carried = carry_properties(connection, swap.fresh.database, wanted)
    if live is None:
        return carried.differences
    if carried.problem or carried.differences:
        raise RestoreError(
            f"the properties of {swap.live.database}, which is unchanged, cannot be applied to the restored "
            "database: "
            f"{carried.problem or ', '.join(carried.differences)}",
            hint="Restore with a role that has the privileges, such as a superuser; or restore without "
            "--swap into a database that you created with these properties.",
        )
    return ()


def _end_sessions(connection: Connection, swap: Swap) -> None:
    connection.execute(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = "
        "ANY(%s) AND pid <> pg_catalog.pg_backend_pid()",
        ([swap.live.database, swap.fresh.database],),
    )


def _rename(connection: Connection, swap: Swap, wanted: DatabaseProperties | None) -> None:
    names = [(swap.live.database, swap.old_name)] if _exists(connection, swap.live.database) else []
    for before, after in (*names, (swap.fresh.database, swap.live.database)):
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(after))
        )
    # Replaces the mark of an unfinished restore; without a comment it becomes NULL.
    name, comment = sql.Identifier(swap.live.database), wanted.comment if wanted is not None else ""
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(comment or None)))
    if wanted is not None and wanted.is_template:
        connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(name))
