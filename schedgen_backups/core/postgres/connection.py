"""Opens every session with a PostgreSQL server, psycopg's and its programs' alike, and turns its refusals
into our errors.

A session begins with the fixed settings of `session_settings`, sends no password in cleartext over an
unencrypted connection, and is no transaction pooler's. Programs get the same by their environment, never by
arguments. No other module connects (unit/project holds that).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from schedgen_backups.core.errors import DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.postgres.login_refusals import (
    CLEARTEXT_REQUEST,
    UNSUPPORTED_OPTIONS,
    explain_refusal,
)
from schedgen_backups.core.postgres.pooler import check_pooler, is_pooled
from schedgen_backups.core.postgres.session_settings import FIXED_SETTINGS, list_later_settings, make_options
from schedgen_backups.core.postgres.watched_connection import SessionState, WatchedConnection
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings

CONNECT_TIMEOUT_SECONDS = 10
STALL_TIMEOUT_SECONDS: float = TransferSettings.stall_timeout_seconds
"""For sessions that are opened where nobody knows the configured one."""
APPLICATION_NAME = "schedgen_backups"
_NO_CLEARTEXT = "!password"
_REQUIRE_AUTH_VERSION = 160000
"""The first libpq that knows `require_auth` (PostgreSQL 16 release notes)."""
_ENCRYPTED_MODES = frozenset({"require", "verify-ca", "verify-full"})
_MAYBE_ENCRYPTED_MODES = frozenset({"allow", "prefer"})
_KEEPALIVES: Mapping[str, int] = MappingProxyType(
    {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 6}
)
"""Without tcp_user_timeout, which ends a COPY to a server that waits for a lock, although its host answers."""
_POOLER_VARIABLES: Mapping[str, str] = MappingProxyType({"PGTZ": "UTC", "PGDATESTYLE": "ISO,MDY"})
"""libpq sends them as parameters of their own, which poolers take where they refuse options."""
NO_VALUES: Mapping[str, str] = MappingProxyType({})
"""No settings besides the fixed ones."""

_open_sessions: dict[WatchedConnection, DatabaseSettings] = {}
_open_sessions_lock = Lock()

# One that waits for its client says nothing for a reason of ours, or its answer was lost on the way
# (PostgreSQL manual, "Wait Event Types"). With track_activities off the server does not tell.
_AT_WORK = """
SELECT count(*) > 0 FROM pg_catalog.pg_stat_activity
WHERE (coalesce(state, 'disabled') = 'disabled' OR state LIKE 'active%' AND coalesce(wait_event_type, '') <> 'Client')
AND pid <> pg_catalog.pg_backend_pid()
"""
_BEGAN_AT = "SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"


@dataclass(frozen=True)
class SessionFacts:
    """What a session found out that the server's programs have to know."""

    server_major: int = 0
    """0 where it is not known."""
    encoding: str = ""
    """The database's own, in which a dump is written."""
    is_superuser: bool = False
    is_pooled: bool = False
    """Whether a pooler of sessions stands between; those of transactions are refused."""
    is_encrypted: bool = False
    is_encryption_needed: bool = False
    """Whether the server got the password in cleartext, on an encrypted connection that it had to be for
    that."""


def read_session_facts(connection: psycopg.Connection[Any]) -> SessionFacts:
    """Return what programs have to know of the server; errors are psycopg's."""
    return SessionFacts(
        server_major=connection.info.server_version // 10000,
        encoding=connection.info.parameter_status("server_encoding") or "",
        is_superuser=connection.info.parameter_status("is_superuser") == "on",
        is_pooled=is_pooled(connection),
        is_encrypted=bool(connection.pgconn.ssl_in_use),
        is_encryption_needed=connection.info.get_parameters().get("sslmode") in _ENCRYPTED_MODES,
    )


def make_client_environment(
    settings: DatabaseSettings, session: SessionFacts = SessionFacts()
) -> dict[str, str]:
    """The variables that make pg_dump, pg_dumpall and psql log in and begin as our own sessions; the password
    is only here.
    """
    is_downgrade_possible = session.is_encrypted and settings.ssl_mode in _MAYBE_ENCRYPTED_MODES
    # On this machine, where encryption protects nothing, programs may have been built without it.
    is_downgrade_possible = is_downgrade_possible and (session.is_encryption_needed or not settings.is_local)
    values = {
        **FIXED_SETTINGS,
        **list_later_settings(session.server_major, is_superuser=session.is_superuser),
    }
    return {
        # libpq of programs older than 16 ignores it; our own session was there first, and obeyed it.
        **(
            {}
            if is_downgrade_possible or _is_always_encrypted(settings)
            else {"PGREQUIREAUTH": _NO_CLEARTEXT}
        ),
        **dict(settings.libpq_variables),
        "PGHOST": settings.host,
        "PGPORT": str(settings.port),
        "PGUSER": settings.user,
        "PGPASSWORD": settings.password,
        "PGDATABASE": settings.database,
        "PGSSLMODE": "require" if is_downgrade_possible else settings.ssl_mode,
        "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_SECONDS),
        "PGAPPNAME": APPLICATION_NAME,
        **({"PGCLIENTENCODING": session.encoding} if session.encoding else {}),
        **(_POOLER_VARIABLES if session.is_pooled else {"PGOPTIONS": make_options(values)}),
    }


@contextmanager
def connect_database(
    settings: DatabaseSettings,
    *,
    values: Mapping[str, str] = NO_VALUES,
    client_encoding: str = "utf8",
    stall_timeout_seconds: float = STALL_TIMEOUT_SECONDS,
    asked_as: DatabaseSettings | None = None,
) -> Generator[WatchedConnection, None, None]:
    """A connection is open within the block, and closed without commit after it.

    `values` are settings besides the fixed ones.

    `stall_timeout_seconds` is how long nothing may be known of its session while the server says nothing.
    `asked_as` is the login that asks for it where its own may not do so again.

    DatabaseUnreachableError (retryable) when nobody answers or no connection is left, DatabaseError
    (permanent) when the login or the database is refused, or a pooler shares sessions between transactions.
    """
    connection = _open(
        settings, asked_as or settings, {**FIXED_SETTINGS, **values}, client_encoding, stall_timeout_seconds
    )
    with _open_sessions_lock:
        _open_sessions[connection] = settings
    try:
        yield connection
    finally:
        with _open_sessions_lock:
            del _open_sessions[connection]
        connection.close()


def give_up_sessions(database: DatabaseSettings) -> None:
    """Let all sessions of this process with this database fail in what they do now or next, whatever the
    server does; of any role.

    A server that ended them cannot tell that to a connection that broke on the way.
    """
    place = (database.host, database.port, database.database)
    with _open_sessions_lock:
        for connection, settings in _open_sessions.items():
            if (settings.host, settings.port, settings.database) == place:
                connection.is_given_up = True


def _open(
    settings: DatabaseSettings,
    asked_as: DatabaseSettings,
    values: Mapping[str, str],
    client_encoding: str,
    stall_timeout_seconds: float,
) -> WatchedConnection:
    # Without an encoding psycopg hands out bytes where a database's encoding is SQL_ASCII.
    parameters: dict[str, Any] = {
        **_make_login(settings),
        "client_encoding": client_encoding,
        "options": make_options(values),
    }
    connection, parameters = _log_in(settings, parameters)
    connection.stall_timeout_seconds = stall_timeout_seconds
    try:
        facts, began_at = _begin(settings, connection, parameters, values)
        condition = _find_session(connection, facts, began_at)
        asking = parameters if asked_as == settings else {**parameters, **_make_login(asked_as)}
        connection.ask_state = partial(_ask_state, asked_as, asking, sql.SQL(_AT_WORK) + condition)
    except BaseException:
        connection.close()
        raise
    return connection


def _log_in(
    settings: DatabaseSettings, parameters: dict[str, Any]
) -> tuple[WatchedConnection, dict[str, Any]]:
    """Connect, with less where the server takes less; return the parameters that it took."""
    information = make_conninfo(**_make_parameters(settings.libpq_variables))
    refused = ""
    while True:
        try:
            return WatchedConnection.connect(information, **parameters), parameters
        except psycopg.Error as error:
            text = _first_line(error)
            if parameters["options"] and UNSUPPORTED_OPTIONS.search(text):
                parameters = {**parameters, "options": ""}
            elif CLEARTEXT_REQUEST.search(text) and parameters["sslmode"] in _MAYBE_ENCRYPTED_MODES:
                # It may have it where nobody can read it; nothing was sent so far.
                refused = text
                parameters = {name: value for name, value in parameters.items() if name != "require_auth"} | {
                    "sslmode": "require"
                }
            else:
                raise explain_refusal(settings, refused or text) from None


def _make_login(settings: DatabaseSettings) -> dict[str, Any]:
    has_own_rule = any(name == "PGREQUIREAUTH" for name, _value in settings.libpq_variables)
    is_rule_needed = (
        not has_own_rule
        and not _is_always_encrypted(settings)
        and psycopg.pq.version() >= _REQUIRE_AUTH_VERSION
    )
    return {
        "host": settings.host,
        # PGHOSTADDR of our own environment would send the password elsewhere.
        "hostaddr": "",
        "port": settings.port,
        "user": settings.user,
        "password": settings.password,
        "dbname": settings.database,
        "sslmode": settings.ssl_mode,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": APPLICATION_NAME,
        **_KEEPALIVES,
        **({"require_auth": _NO_CLEARTEXT} if is_rule_needed else {}),
    }


def _is_always_encrypted(settings: DatabaseSettings) -> bool:
    """Return whether nobody on a network can read the connection: TLS is certain, or it is a Unix socket."""
    return settings.ssl_mode in _ENCRYPTED_MODES or settings.host.startswith(("/", "@"))


def _begin(
    settings: DatabaseSettings,
    connection: WatchedConnection,
    parameters: dict[str, Any],
    values: Mapping[str, str],
) -> tuple[SessionFacts, object]:
    """Give the session its settings; return its facts and when the server's process began, None where the
    server does not tell.
    """
    began_at: object = None
    with translate_errors(settings):
        connection.autocommit = True
        facts = read_session_facts(connection)
        later = list_later_settings(facts.server_major, is_superuser=facts.is_superuser)
        if facts.is_pooled:
            check_pooler(settings, connection, lambda: _log_in(settings, parameters)[0])
            # It may have swallowed the options as well.
            later = {**values, **later}
        if later:
            assignments = (
                sql.SQL("pg_catalog.set_config({}, {}, false)").format(name, value)
                for name, value in later.items()
            )
            connection.execute(sql.SQL("SELECT ") + sql.SQL(", ").join(assignments))
        with suppress(psycopg.errors.InsufficientPrivilege):
            row = connection.execute(_BEGAN_AT).fetchone()
            began_at = row[0] if row is not None else None
        connection.autocommit = False
    return facts, began_at


def _find_session(connection: WatchedConnection, facts: SessionFacts, began_at: object) -> sql.Composed:
    """Return the condition that finds the session among those of the server."""
    if facts.is_pooled:
        # The number of the server's process is not known; the sessions of ours have a name.
        return sql.SQL("AND application_name = {}").format(APPLICATION_NAME)
    condition = sql.SQL("AND pid = {}").format(connection.info.backend_pid)
    # The number may be another process's by then.
    return condition if began_at is None else condition + sql.SQL(" AND backend_start = {}").format(began_at)


def _ask_state(settings: DatabaseSettings, parameters: dict[str, Any], query: sql.Composed) -> SessionState:
    """Ask in a session of its own.

    Only an answer to the question is one: a refused login says that a server is there, and a pooler without a
    free session, or before a server that hangs, answers the login and lets the question wait.
    """
    try:
        with _log_in(settings, parameters)[0] as connection:
            connection.silence_seconds = connection.stall_timeout_seconds = CONNECT_TIMEOUT_SECONDS
            is_at_work = connection.execute(query).fetchone() == (True,)
    except (DatabaseError, psycopg.Error):
        return SessionState.UNKNOWN
    return SessionState.AT_WORK if is_at_work else SessionState.NOT_AT_WORK


@contextmanager
def translate_errors(settings: DatabaseSettings) -> Generator[None, None, None]:
    """Errors of psycopg within the block leave it as DatabaseUnreachableError (the connection broke) or
    DatabaseError.
    """
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnreachableError(
            f"the connection to {settings.label} broke: {_first_line(error)}",
            hint="Look at the server's log; run the backup again.",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {settings.user} lacks a privilege: {_first_line(error)}",
            hint=f'As a superuser run: GRANT pg_read_all_data TO "{settings.user}";',
        ) from error
    except psycopg.Error as error:
        raise DatabaseError(f"{settings.label} refused a query: {_first_line(error)}") from error


def _make_parameters(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the connection parameters that these environment variables stand for; names that this libpq does
    not know are left out, as it does.
    """
    keywords = {
        option.envvar: option.keyword.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.envvar
    }
    return {keywords[name.encode()]: value for name, value in variables if name.encode() in keywords}


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())
