"""Create the databases that restores need, as captured if the server allows it, and drop them."""

from __future__ import annotations

from contextlib import suppress

import psycopg
from psycopg import sql

from schedgen_backups.core.errors import DatabaseError, RestoreError, TargetNotEmptyError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.postgres.database_properties import UNKNOWN_LOCALE_ERRORS, make_locale_clause
from schedgen_backups.core.postgres.session import Connection
from schedgen_backups.core.settings import DatabaseSettings

_NAME_LIMIT_BYTES = 63
"""PostgreSQL manual, section 4.1.1 (NAMEDATALEN - 1)."""


def check_may_create(connection: Connection, server: DatabaseSettings) -> None:
    """Raise DatabaseError (permanent) if the session's role may not create databases."""
    row = connection.execute(
        "SELECT rolcreatedb OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
    ).fetchone()
    if row is not None and not row[0]:
        raise _make_refusal(server)


def create_database(
    connection: Connection,
    name: str,
    server: DatabaseSettings,
    *,
    encoding: str,
    like: DatabaseProperties | None,
) -> None:
    """Create an empty database with owner, collation and tablespace of `like`, where the server has them.

    RestoreError if the name is too long, TargetNotEmptyError if it is taken, DatabaseError if the role may
    not create databases.
    """
    if len(name.encode()) > _NAME_LIMIT_BYTES:
        raise RestoreError(f"{name!r} is too long for a database name", hint="Use another name.")
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {}").format(
        sql.Identifier(name), sql.Literal(encoding)
    )
    try:
        for clause in _list_clauses(like, connection.info.server_version // 10000):
            # Refused: a collation of another encoding, or an owner, collation or tablespace that is not
            # available to this server or role.
            with suppress(*UNKNOWN_LOCALE_ERRORS, psycopg.errors.InsufficientPrivilege):
                connection.execute(statement + clause)
                return
        connection.execute(statement)
    except psycopg.errors.DuplicateDatabase:
        raise TargetNotEmptyError(
            f"the database {name} exists already",
            hint=f'Use another name, or drop it when it is no longer needed: DROP DATABASE "{name}";',
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise _make_refusal(server) from error


def _list_clauses(like: DatabaseProperties | None, server_major: int) -> tuple[sql.Composed, ...]:
    """Return the clauses that create a database like the captured one, best first."""
    if like is None:
        return ()
    # Even naming the default one requires a privilege.
    tablespace = (
        sql.SQL("")
        if like.tablespace == "pg_default"
        else sql.SQL(" TABLESPACE {}").format(sql.Identifier(like.tablespace))
    )
    storage = tablespace + make_locale_clause(like, server_major)
    # The owner may create objects in the schema public. Without superuser privileges, this is the only way
    # for a restore to give it the tables.
    owner = sql.SQL(" OWNER {}").format(sql.Identifier(like.owner))
    return (owner + storage, storage, sql.Composed([owner]))


def drop_database(connection: Connection, name: str) -> None:
    """Drop the database if it exists, and end its sessions."""
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _make_refusal(server: DatabaseSettings) -> DatabaseError:
    return DatabaseError(
        f"the role {server.user} may not create a database",
        hint=f'As a superuser run: ALTER ROLE "{server.user}" CREATEDB; or set RESTORE_POSTGRES_USER and '
        "its password to a role that may.",
    )
