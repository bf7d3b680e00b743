"""Restores beside a live database and puts the result in its place by renaming; the old one stays under
another name until somebody drops it.

The application sees the old database until the last moment, and never a half of the new one. A restore that
dies leaves a marked database that the next one removes.
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
"""Applications connect again at once: their sessions are ended and the names exchanged in one breath, a few
times."""


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
    has_live: bool
    """Whether there is a database to exchange with."""
    captured: DatabaseProperties | None = None
    """What the dump's database had besides its contents, for where there is no live one."""


def name_old_database(live: DatabaseSettings, point_id: RecoveryPointId) -> str:
    """Return what the live database is called once a restore of this point has taken its place."""
    return f"{live.database}_old_{point_id}"


def list_way_back(swap: Swap, now_id: RecoveryPointId) -> tuple[str, ...]:
    """Return the statements that give the database of before its name again, and the restored one another."""
    undone = f"{swap.live.database}_undone_{now_id}"
    return tuple(
        sql.SQL("ALTER DATABASE {} RENAME TO {};")
        .format(sql.Identifier(before), sql.Identifier(after))
        .as_string()
        for before, after in ((swap.live.database, undone), (swap.old_name, swap.live.database))
    )


def check_swap(session: DatabaseSession, live: DatabaseSettings, point_id: RecoveryPointId) -> None:
    """Raise RestoreError where the old database could not get its name."""
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
    """An empty database beside `live` is there within the block, and gone after it unless `finish_swap` gave
    it the live one's name.

    Errors are those of `open_side_database`.
    """
    with session.use() as connection:
        present = read_properties(connection, live.database)
    with open_side_database(
        session, f"{live.database}_new_{now_id}", encoding=encoding, like=present or captured
    ) as side:
        # After the exchange no database has the side database's name any more, and nothing is dropped.
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
    """Give the restored database the name of `live`, and that one `old_name`; owner, privileges, limits,
    comment and settings go along.

    Return what of these is not as it was captured, where there was no live database to take it from.

    Both names change in one transaction, or neither. Sessions of the live database are ended. RestoreError
    when new ones come too fast, or when there is a database called `old_name` already.
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
        f"the database {swap.live.database} could not be renamed: its users connect again faster than they "
        "are ended; it is as it was",
        hint="Stop the application, then restore again with --swap.",
    )


def _check_free(connection: Connection, name: str) -> None:
    if _exists(connection, name):
        raise RestoreError(
            f"there is a database {name} already, of an earlier exchange",
            hint=f'Drop it when nobody needs it: DROP DATABASE "{name}";',
        )


def _exists(connection: Connection, name: str) -> bool:
    return (
        connection.execute("SELECT FROM pg_catalog.pg_database WHERE datname = %s", (name,)).fetchone()
        is not None
    )


def _carry_properties(connection: Connection, swap: Swap, live: DatabaseProperties | None) -> tuple[str, ...]:
    """Give the restored database what the live one has besides its contents, or the captured one where there
    is no live one.

    RestoreError where the live one's cannot be given; of the captured one's, what is different is returned.
    """
    wanted = live or swap.captured
    if wanted is None:
        return ()
    carried = carry_properties(connection, swap.fresh.database, wanted)
    if live is None:
        return carried.differences
    if carried.problem or carried.differences:
        raise RestoreError(
            f"the restored database cannot get what {swap.live.database} has besides its contents, which "
            "is as it was: "
            f"{carried.problem or ', '.join(carried.differences)}",
            hint="Restore with a role that may do this, such as a superuser; or without --swap into a "
            "database that you have made as it must be.",
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
    # In place of the mark of something unfinished; without one the comment is NULL.
    name, comment = sql.Identifier(swap.live.database), wanted.comment if wanted is not None else ""
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(comment or None)))
    if wanted is not None and wanted.is_template:
        connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(name))
