"""Connects to a PostgreSQL server and turns its refusals into our errors.

Here lives how we log in (psycopg) and how a program of PostgreSQL is told to (environment, never arguments). What is asked once connected
belongs to `snapshot`, `dump` and `database_restore`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from schedgen_backups.core.errors import DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.settings import DatabaseSettings

CONNECT_TIMEOUT_SECONDS = 10
APPLICATION_NAME = "schedgen_backups"


def make_client_environment(settings: DatabaseSettings) -> dict[str, str]:
    """The variables that make pg_dump, pg_dumpall and psql log in; the password is only here, never in an argument."""
    return {
        **dict(settings.libpq_variables),
        "PGHOST": settings.host,
        "PGPORT": str(settings.port),
        "PGUSER": settings.user,
        "PGPASSWORD": settings.password,
        "PGDATABASE": settings.database,
        "PGSSLMODE": settings.ssl_mode,
        "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_SECONDS),
        "PGAPPNAME": APPLICATION_NAME,
    }


@contextmanager
def connect_database(settings: DatabaseSettings, *, options: str = "") -> Generator[psycopg.Connection[tuple[object, ...]], None, None]:
    """A connection is open within the block, and closed without commit after it; `options` are settings for the startup packet.

    DatabaseUnreachableError (retryable) when nobody answers, DatabaseError (permanent) when the login or the database is refused.
    """
    try:
        connection = psycopg.connect(
            make_conninfo(**_make_parameters(settings.libpq_variables)),
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password,
            dbname=settings.database,
            sslmode=settings.ssl_mode,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION_NAME,
            options=options,
            # Without it psycopg hands out bytes where a database's encoding is SQL_ASCII.
            client_encoding="utf8",
        )
    except psycopg.Error as error:
        raise _explain_refusal(settings, error) from None
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def translate_errors(settings: DatabaseSettings) -> Generator[None, None, None]:
    """Errors of psycopg within the block leave it as DatabaseUnreachableError (the connection broke) or DatabaseError."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnreachableError(
            f"the connection to {settings.label} broke: {_first_line(error)}", hint="Look at the server's log; run the backup again."
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {settings.user} lacks a privilege: {_first_line(error)}",
            hint=f'As a superuser run: GRANT pg_read_all_data TO "{settings.user}";',
        ) from error
    except psycopg.Error as error:
        raise DatabaseError(f"{settings.label} refused a query: {_first_line(error)}") from error


def count_user_relations(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """Return how many tables, views, sequences, functions, types and large objects of users the database holds; 0 means empty."""
    query = sql.SQL("""
        WITH extension AS (SELECT objid, classid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
        namespace AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
        SELECT (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace IN (SELECT oid FROM namespace)
                  AND oid NOT IN (SELECT objid FROM extension WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass))
             + (SELECT count(*) FROM pg_catalog.pg_proc WHERE pronamespace IN (SELECT oid FROM namespace)
                  AND oid NOT IN (SELECT objid FROM extension WHERE classid = 'pg_catalog.pg_proc'::pg_catalog.regclass))
             + (SELECT count(*) FROM pg_catalog.pg_type WHERE typnamespace IN (SELECT oid FROM namespace) AND typtype IN ('d', 'e')
                  AND oid NOT IN (SELECT objid FROM extension WHERE classid = 'pg_catalog.pg_type'::pg_catalog.regclass))
             + (SELECT count(*) FROM namespace WHERE oid IS DISTINCT FROM pg_catalog.to_regnamespace('public'))
             + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
    """)
    row = connection.execute(query).fetchone()
    count = row[0] if row else 0
    assert isinstance(count, int)  # noqa: S101 - the column's type
    return count


def _make_parameters(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the connection parameters that these environment variables stand for; names that this libpq does not know are left out, as it does."""
    keywords = {option.envvar: option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    return {keywords[name.encode()]: value for name, value in variables if name.encode() in keywords}


def _explain_refusal(settings: DatabaseSettings, error: psycopg.Error) -> DatabaseError:
    text = _first_line(error)
    if any(words in text for words in ("password authentication failed", "no password supplied", "no pg_hba.conf entry", "role ")):
        return DatabaseError(
            f"PostgreSQL at {settings.host}:{settings.port} refused the login of {settings.user}: {text}",
            hint="Check POSTGRES_USER and POSTGRES_PASSWORD, and pg_hba.conf on the server.",
        )
    if "database" in text and "does not exist" in text:
        return DatabaseError(
            f"PostgreSQL at {settings.host}:{settings.port} has no database {settings.database}: {text}",
            hint=f"Check the name (POSTGRES_DB), or make it: createdb {settings.database}",
        )
    return DatabaseUnreachableError(
        f"PostgreSQL at {settings.host}:{settings.port} cannot be reached: {text}",
        hint="Is the server up, and are POSTGRES_HOST, POSTGRES_PORT and PGSSLMODE right?",
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())
