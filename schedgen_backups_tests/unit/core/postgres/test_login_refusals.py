"""How a refused login is reported: cause and hint from the server's message, and whether a retry may help."""

from __future__ import annotations

import pytest

from schedgen_backups.core.postgres.login_refusals import explain_refusal, find_login_hint
from schedgen_backups.core.settings import DatabaseSettings

SETTINGS = DatabaseSettings("db.example", 5432, "backup", "canary-7d1f", "app")
PREFIX = 'connection failed: connection to server at "192.0.2.1", port 5432 failed: FATAL: '


@pytest.mark.parametrize(
    ("words", "cause", "hint", "is_retryable"),
    [
        (
            'too many connections for role "backup"',
            "no connection left for the role",
            "CONNECTION LIMIT",
            True,
        ),
        (
            'too many connections for database "app"',
            "no connection left for the database",
            'ALTER DATABASE "app" CONNECTION LIMIT',
            True,
        ),
        ("sorry, too many clients already", "no connection left", "max_connections", True),
        (
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "no connection left",
            "max_connections",
            True,
        ),
        ("the database system is starting up", "does not accept connections yet", "log", True),
        ("the database system is shutting down", "does not accept connections yet", "log", True),
        ("the database system is in recovery mode", "does not accept connections yet", "log", True),
        (
            "the database system is not yet accepting connections",
            "does not accept connections yet",
            "log",
            True,
        ),
        (
            'database "app" is not currently accepting connections',
            "does not allow connections",
            "ALLOW_CONNECTIONS",
            False,
        ),
        ('permission denied for database "app"', "does not allow backup to connect", "GRANT CONNECT", False),
        ('database "app" does not exist', "has no database app", "createdb app", False),
        ('role "backup" does not exist', "has no role backup", "createuser backup", False),
        (
            'role "backup" is not permitted to log in',
            "does not allow backup to log in",
            'ALTER ROLE "backup" LOGIN',
            False,
        ),
        (
            'no pg_hba.conf entry for host "192.0.2.7", user "backup", database "app", no encryption',
            "no pg_hba.conf rule",
            "pg_hba.conf",
            False,
        ),
        ('Peer authentication failed for user "backup"', "refused the login", "pg_hba.conf", False),
        ('password authentication failed for user "backup"', "refused the login", "POSTGRES_PASSWORD", False),
    ],
)
def test_each_refusal_has_its_own_cause_and_hint(
    words: str, cause: str, hint: str, is_retryable: bool
) -> None:
    error = explain_refusal(SETTINGS, PREFIX + words)
    assert (cause in error.message, hint in error.hint, error.is_retryable) == (True, True, is_retryable), (
        error.message,
        error.hint,
    )
    assert "canary" not in error.message + error.hint


def test_only_a_refused_password_is_reported_as_one() -> None:
    errors = [
        explain_refusal(SETTINGS, PREFIX + words)
        for words in ('too many connections for role "backup"', 'role "backup" does not exist')
    ]
    assert [error for error in errors if "POSTGRES_PASSWORD" in error.hint] == []


def test_an_unknown_refusal_may_be_temporary() -> None:
    error = explain_refusal(SETTINGS, "connection refused")
    assert error.is_retryable
    assert "cannot be reached" in error.message


def test_a_program_that_could_not_log_in_gets_the_same_hint() -> None:
    said = (
        'pg_dump: error: connection to server at "x", port 5432 failed: FATAL:  too many connections '
        'for role "backup"'
    )
    assert "CONNECTION LIMIT" in find_login_hint(SETTINGS, said)
    assert find_login_hint(SETTINGS, "pg_dump: error: query failed: too many connections for role") == ""
