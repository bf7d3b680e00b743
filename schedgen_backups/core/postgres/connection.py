"""Open every session with a PostgreSQL server, for psycopg and programs, and translate its refusals.

A session starts with the fixed settings of `session_settings` and sends no password in cleartext over an
unencrypted connection. Transaction poolers are refused. Programs get the same through their environment,
never through arguments. No other module connects (unit/project checks that).
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
"""Default for sessions that are opened without access to the configured value."""
APPLICATION_NAME = "schedgen_backups"
_NO_CLEARTEXT = "!password"
_REQUIRE_AUTH_VERSION = 160000
"""The first libpq that supports `require_auth` (PostgreSQL 16 release notes)."""
_ENCRYPTED_MODES = frozenset({"require", "verify-ca", "verify-full"})
_MAYBE_ENCRYPTED_MODES = frozenset({"allow", "prefer"})
_KEEPALIVES: Mapping[str, int] = MappingProxyType(
    {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 6}
)
"""Without tcp_user_timeout, which would end a COPY to a server that waits for a lock although its host
answers."""
_POOLER_VARIABLES: Mapping[str, str] = MappingProxyType({"PGTZ": "UTC", "PGDATESTYLE": "ISO,MDY"})
"""libpq sends them as separate parameters, which poolers accept even if they refuse options."""
NO_VALUES: Mapping[str, str] = MappingProxyType({})
"""No settings besides the fixed ones."""

_open_sessions: dict[WatchedConnection, DatabaseSettings] = {}
_open_sessions_lock = Lock()

# A session that waits for its client is waiting for us, or its answer was lost on the way (PostgreSQL manual,
# "Wait Event Types"). With track_activities off, the server does not show the state.
_AT_WORK = """
SELECT count(*) > 0 FROM pg_catalog.pg_stat_activity
WHERE (coalesce(state, 'disabled') = 'disabled' OR state LIKE 'active%'
    AND coalesce(wait_event_type, '') <> 'Client')
AND pid <> pg_catalog.pg_backend_pid()
"""
_BEGAN_AT = "SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"


@dataclass(frozen=True)
class SessionFacts:
    """Facts from a session that the client programs need."""

    server_major: int = 0
    """0 if unknown."""
    server_version: str = ""
    """As the server states it; empty if unknown."""
    encoding: str = ""
    """The database's encoding, in which a dump is written."""
    is_superuser: bool = False
    is_pooled: bool = False
    """Whether a session pooler is in between; transaction poolers are refused."""
    is_encrypted: bool = False
    is_encryption_needed: bool = False
    """Whether the server requested the password in cleartext, so that the connection had to be encrypted."""


def read_session_facts(connection: psycopg.Connection[Any]) -> SessionFacts:
    """Return the facts that programs need; errors are psycopg's."""
    return SessionFacts(
        server_major=connection.info.server_version // 10000,
        server_version=connection.info.parameter_status("server_version") or "",
        encoding=connection.info.parameter_status("server_encoding") or "",
        is_superuser=connection.info.parameter_status("is_superuser") == "on",
        is_pooled=is_pooled(connection),
        is_encrypted=bool(connection.pgconn.ssl_in_use),
        is_encryption_needed=connection.info.get_parameters().get("sslmode") in _ENCRYPTED_MODES,
    )


def make_client_environment(
    settings: DatabaseSettings, session: SessionFacts = SessionFacts()
) -> dict[str, str]:
    """Return the environment in which pg_dump, pg_dumpall and psql log in and start like our own sessions.

    The password is passed only here.
    """
    is_downgrade_possible = session.is_encrypted and settings.ssl_mode in _MAYBE_ENCRYPTED_MODES
    # On this machine, where encryption protects nothing, programs may have been built without it.
    is_downgrade_possible = is_downgrade_possible and (session.is_encryption_needed or not settings.is_local)
    values = {
        **FIXED_SETTINGS,
        **list_later_settings(session.server_major, is_superuser=session.is_superuser),
    }
    return {
        # libpq of programs older than 16 ignores it; our own session has connected before under the same
        # rule.
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
    """Open a connection within the block; close it without commit afterwards.

    `values` are settings besides the fixed ones. `stall_timeout_seconds` limits how long the state of the
    session may be unknown while the server is silent. `asked_as` is the login that queries that state if the
    session's own login cannot be used again. DatabaseUnreachableError (retryable) if the server does not
    answer or has no connection left. DatabaseError (permanent) if the login or the database is refused, or a
    pooler shares sessions between transactions.
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
    """Make all sessions of this process with this database fail in their current or next operation.

    Sessions of any role are affected. A server that ended them cannot notify a connection that broke on the
    way.
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
    # Without an encoding, psycopg returns bytes if the database's encoding is SQL_ASCII.
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
    """Connect, with fewer options if the server accepts fewer; return the parameters that worked."""
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
                # The server may get the password on an encrypted connection; nothing was sent so far.
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
        # Overrides PGHOSTADDR of our environment, which would send the password elsewhere.
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
    """Return whether no one on a network can read the connection: TLS is required, or it is a Unix socket."""
    return settings.ssl_mode in _ENCRYPTED_MODES or settings.host.startswith(("/", "@"))


def _begin(
    settings: DatabaseSettings,
    connection: WatchedConnection,
    parameters: dict[str, Any],
    values: Mapping[str, str],
) -> tuple[SessionFacts, object]:
    """Apply the session's settings; return its facts and the start time of its server process.

    The time is None if the server does not provide it.
    """
    began_at: object = None
    with translate_errors(settings):
        connection.autocommit = True
        facts = read_session_facts(connection)
        later = list_later_settings(facts.server_major, is_superuser=facts.is_superuser)
        if facts.is_pooled:
            check_pooler(settings, connection, lambda: _log_in(settings, parameters)[0])
            # The pooler may have dropped the options as well.
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
    """Return the SQL condition that selects the session among the server's sessions."""
    if facts.is_pooled:
        # The process id on the server is unknown; our sessions have a name.
        return sql.SQL("AND application_name = {}").format(APPLICATION_NAME)
    condition = sql.SQL("AND pid = {}").format(connection.info.backend_pid)
    # The process id may have been reused by then.
    return condition if began_at is None else condition + sql.SQL(" AND backend_start = {}").format(began_at)


def _ask_state(settings: DatabaseSettings, parameters: dict[str, Any], query: sql.Composed) -> SessionState:
    """Query the session's state in another session.

    Only an answer to the query counts. A refused login shows only that a server exists. A pooler without a
    free session, or in front of a hung server, answers the login and lets the query wait.
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
    """Convert psycopg's errors: DatabaseUnreachableError if the connection broke, otherwise DatabaseError."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnreachableError(
            f"the connection to {settings.label} broke: {_first_line(error)}",
            hint="Check the server's log; run the backup again.",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {settings.user} lacks a privilege: {_first_line(error)}",
            hint=f'As a superuser run: GRANT pg_read_all_data TO "{settings.user}";',
        ) from error
    except psycopg.Error as error:
        raise DatabaseError(f"{settings.label} refused a query: {_first_line(error)}") from error


def _make_parameters(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return these environment variables as connection parameters, without those unknown to this libpq."""
    keywords = {
        option.envvar: option.keyword.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.envvar
    }
    return {keywords[name.encode()]: value for name, value in variables if name.encode() in keywords}


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())
