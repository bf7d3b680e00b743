"""Explain a refused login from the server's text: libpq passes on no SQLSTATE at this stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

from schedgen_backups.core.errors import DatabaseError, DatabaseMissingError, DatabaseUnreachableError
from schedgen_backups.core.settings import DatabaseSettings

CLEARTEXT_REQUEST = re.compile(r"server requested a cleartext password")
UNSUPPORTED_OPTIONS = re.compile(r"unsupported startup parameter")


@dataclass(frozen=True)
class _Refusal:
    sqlstate: str
    """PostgreSQL's code (manual, appendix A), which libpq does not report; empty for messages of libpq and of
    poolers."""
    words: re.Pattern[str]
    cause: str
    hint: str
    is_passing: bool = False
    """Whether trying again may help."""


def _refusal(sqlstate: str, words: str, cause: str, hint: str, *, is_passing: bool = False) -> _Refusal:
    return _Refusal(sqlstate, re.compile(words), cause, hint, is_passing)


_NO_DATABASE = "3D000"
# The first match wins. `{user}` and the like are fields of the settings.
_REFUSALS = (
    _refusal(
        "53300",
        "too many connections for role",
        "has no connection left for the role {user}",
        'Raise or remove the role\'s limit: ALTER ROLE "{user}" CONNECTION LIMIT -1; a backup needs '
        "BACKUP_DUMP_JOBS + 2 connections at a time.",
        is_passing=True,
    ),
    _refusal(
        "53300",
        "too many connections for database",
        "has no connection left for the database {database}",
        'Raise or remove the database\'s limit: ALTER DATABASE "{database}" CONNECTION LIMIT -1; a backup '
        "needs BACKUP_DUMP_JOBS + 2 connections.",
        is_passing=True,
    ),
    _refusal(
        "53300",
        "too many clients already|remaining connection slots are reserved|too many connections|no more "
        "connections allowed",
        "has no connection left",
        "Raise max_connections of the server (or the pooler's limits), or end unused sessions "
        "(pg_stat_activity).",
        is_passing=True,
    ),
    _refusal(
        "57P03",
        "the database system is (?:starting up|shutting down|in recovery mode|not yet accepting "
        "connections|not accepting connections)"
        "|the database system is in standby|recovery mode",
        "does not accept connections yet",
        "The server is starting, stopping or recovering; see its log. Run the backup again when it is up.",
        is_passing=True,
    ),
    _refusal(
        "57P01",
        "terminating connection due to",
        "closed the connection during login",
        "An administrator closed it: run the backup again.",
        is_passing=True,
    ),
    _refusal(
        "55000",
        'database ".*" is not currently accepting connections',
        "does not allow connections to the database {database}",
        'As a superuser run: ALTER DATABASE "{database}" ALLOW_CONNECTIONS true;',
    ),
    _refusal(
        "55000",
        "cannot connect to invalid database",
        "has only a half-dropped database {database}",
        'A DROP DATABASE was interrupted: use another database, or finish it: DROP DATABASE "{database}";',
    ),
    _refusal(
        "42501",
        'permission denied for database "',
        "does not allow {user} to connect to the database {database}",
        'As its owner run: GRANT CONNECT ON DATABASE "{database}" TO "{user}";',
    ),
    _refusal(
        "42501",
        "permission denied to set parameter",
        "does not allow {user} to set a parameter that backup sessions need",
        'As a superuser run: GRANT SET ON PARAMETER name TO "{user}"; with the name in the message.',
    ),
    _refusal(
        "0A000",
        "unsupported frontend protocol|does not support feature",
        "speaks another protocol",
        "Check that POSTGRES_HOST and POSTGRES_PORT are those of a PostgreSQL server of version 10 or newer.",
    ),
    _refusal(
        _NO_DATABASE,
        'database ".*" does not exist|no such database',
        "has no database {database}",
        "Check the name (POSTGRES_DB), or create it: createdb {database}",
    ),
    _refusal(
        "28000",
        'role ".*" is not permitted to log in',
        "does not allow {user} to log in",
        'As a superuser run: ALTER ROLE "{user}" LOGIN;',
    ),
    _refusal(
        "28000",
        'role ".*" does not exist',
        "has no role {user}",
        "Check POSTGRES_USER, or create the role on the server: createuser {user}",
    ),
    _refusal(
        "28000",
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "has no pg_hba.conf rule that allows {user} to connect from here",
        "Add a line for this host, role, database and encryption to pg_hba.conf on the server, then reload "
        "it.",
    ),
    _refusal(
        "28000",
        "(?:peer|ident|certificate|gssapi|sspi|pam|ldap|radius) authentication failed",
        "refused the login of {user}",
        "pg_hba.conf on the server requires this method for the login: check what it needs, or require a "
        "password there (scram-sha-256).",
    ),
    _refusal(
        "28P01",
        "password authentication failed|no password supplied|empty password|authentication failed",
        "refused the login of {user}",
        "Check POSTGRES_USER and POSTGRES_PASSWORD, and pg_hba.conf on the server.",
    ),
    _refusal(
        "",
        "cleartext password",
        "requested the password in cleartext on an unencrypted connection; it was not sent",
        "Set PGSSLMODE=require (better: verify-full with PGSSLROOTCERT), or let pg_hba.conf on the server "
        "require scram-sha-256.",
    ),
    _refusal(
        "",
        "authentication method requirement",
        "requires an authentication method that PGREQUIREAUTH does not allow",
        "Check that it is the right server, or change PGREQUIREAUTH.",
    ),
    _refusal(
        "",
        "certificate verify failed|root certificate file|does not match host name",
        "has a certificate that is not trusted here",
        "Set PGSSLROOTCERT to the file of its certificate authority, and check POSTGRES_HOST.",
        is_passing=True,
    ),
    _refusal(
        "",
        "server does not support SSL|sslmode value",
        "does not offer encryption",
        "Enable ssl on the server, or set PGSSLMODE=prefer if the network is trusted.",
        is_passing=True,
    ),
    _refusal(
        "",
        "could not translate host name|Name or service not known|could not resolve",
        "cannot be found: this machine cannot resolve the host name",
        "Check POSTGRES_HOST and the machine's DNS.",
        is_passing=True,
    ),
)
_PROGRAM_FAILURE = re.compile(r"connection to server .* failed|could not connect")


def explain_refusal(settings: DatabaseSettings, text: str) -> DatabaseError:
    """Return the error for this message of libpq or of the server: retryable if waiting may help."""
    found = _find(text)
    if found is None:
        return DatabaseUnreachableError(
            f"PostgreSQL at {settings.host}:{settings.port} cannot be reached: {text}",
            hint="Check that the server is up and that POSTGRES_HOST, POSTGRES_PORT and PGSSLMODE are right.",
        )
    kind = (
        DatabaseUnreachableError
        if found.is_passing
        else DatabaseMissingError
        if found.sqlstate == _NO_DATABASE
        else DatabaseError
    )
    return kind(
        f"PostgreSQL at {settings.host}:{settings.port} {_fill(found.cause, settings)}: {text}",
        hint=_fill(found.hint, settings),
    )


def find_login_hint(settings: DatabaseSettings, output: str) -> str:
    """Return the hint for a program's failed login, from its stderr; empty if that was not the reason."""
    found = _find(output) if _PROGRAM_FAILURE.search(output) else None
    return _fill(found.hint, settings) if found is not None else ""


def _find(text: str) -> _Refusal | None:
    return next((refusal for refusal in _REFUSALS if refusal.words.search(text)), None)


def _fill(text: str, settings: DatabaseSettings) -> str:
    return text.replace("{user}", settings.user).replace("{database}", settings.database)
