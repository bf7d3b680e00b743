"""The operator's checks of restored data: SQL statements that must each return one row with one true value.

Reads the statements from a file and runs them read-only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.units import count
from schedgen_backups.core.verify.files import make_result, name_some

# Tokens in which a semicolon does not end a statement (PostgreSQL manual, section 4.1).
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<quoted>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<end>;)
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class SqlCheck:
    """One statement and its name."""

    name: str
    statement: str


def read_sql_checks(path: Path) -> tuple[SqlCheck, ...]:
    """Return the checks of the file in order, each named by the `-- comment` before it or its first words.

    ConfigurationError when the file cannot be read or contains none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"DRILL_SQL_CHECKS {path} cannot be read: {error}",
            hint="Use a UTF-8 file of SQL statements, or remove the setting.",
        ) from error
    checks = split_sql_checks(text)
    if not checks:
        raise ConfigurationError(
            f"DRILL_SQL_CHECKS {path} contains no statement", hint="Write: SELECT count(*) > 0 FROM jobs;"
        )
    return checks


def split_sql_checks(text: str) -> tuple[SqlCheck, ...]:
    """Return the statements of the text, split at the semicolons that end them."""
    checks: list[SqlCheck] = []
    name = statement = ""
    for token in _TOKEN.finditer(text):
        if token["end"]:
            if statement.strip():
                checks.append(_make_check(name, statement))
            name = statement = ""
        elif token["comment"]:
            if not statement.strip():
                # The last line before the statement names it.
                name = token["comment"].strip("-/* \t\n")
            statement += " "
        else:
            statement += token[0]
    if statement.strip():
        checks.append(_make_check(name, statement))
    return tuple(checks)


def run_sql_checks(
    checks: tuple[SqlCheck, ...],
    database: DatabaseSettings,
    *,
    timeout_seconds: int,
    on_progress: Callable[[int], object] = lambda _count: None,
) -> CheckResult:
    """Check `operator_checks_hold`: each check must return one row with one true value.

    Not configured without checks. Connection errors are raised; an error of a check makes it fail.
    `on_progress` gets 1 for each check.
    """
    if not checks:
        return make_result(
            Check.OPERATOR_CHECKS_HOLD, CheckStatus.NOT_CONFIGURED, "DRILL_SQL_CHECKS is not set", {}
        )
    wrong: list[str] = []
    for check in checks:
        problem = _find_problem(check, database, timeout_seconds)
        on_progress(1)
        if problem:
            wrong.append(f"{check.name} ({problem})")
    status = CheckStatus.FAILED if wrong else CheckStatus.PASSED
    summary = (
        f"{len(wrong)} of {count(len(checks), 'check')} failed: {name_some(wrong)}"
        if wrong
        else f"{len(checks)} of {count(len(checks), 'check')} passed"
    )
    return make_result(
        Check.OPERATOR_CHECKS_HOLD, status, summary, {"checks": len(checks), "checks_failed": len(wrong)}
    )


def _make_check(name: str, statement: str) -> SqlCheck:
    words = " ".join(statement.split())
    return SqlCheck(name or words[:_SHOWN_CHARACTERS], statement.strip())


def _find_problem(check: SqlCheck, database: DatabaseSettings, timeout_seconds: int) -> str:
    """Return why the check fails; empty when it passes.

    Each check has its own connection, so that none affects the next one.
    """
    with connect_database(database, stall_timeout_seconds=timeout_seconds) as connection:
        connection.read_only = True
        try:
            connection.execute(
                sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(timeout_seconds * 1000))
            )
            cursor = connection.execute(sql.SQL(cast("LiteralString", check.statement)))
            if cursor.description is None:
                return "it returns no rows"
            rows = cursor.fetchmany(2)
        except psycopg.Error as error:
            return " ".join(str(error).split())
    if len(rows) != 1 or len(rows[0]) != 1:
        return (
            f"it returns {'several' if len(rows) > 1 else len(rows)} rows of {len(cursor.description)} "
            "columns instead of one row of one column"
        )
    return "" if rows[0][0] is True else f"it returns {rows[0][0]!r}"
