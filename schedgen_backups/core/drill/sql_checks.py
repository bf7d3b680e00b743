"""The operators' own checks of restored data: statements of a file, each of which must return exactly one row
with one true.

Reads the file and runs it, read only. What is worth checking is the operators' business; add here only how a
check is written and judged.
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

# What a semicolon may stand in without ending a statement (PostgreSQL manual, section 4.1).
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
    """One statement and what it is called."""

    name: str
    statement: str


def read_sql_checks(path: Path) -> tuple[SqlCheck, ...]:
    """The checks of the file, in order, each named by the `-- comment` before it or by its first words.

    ConfigurationError when the file cannot be read or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"DRILL_SQL_CHECKS {path} cannot be read: {error}",
            hint="Name a file of SQL in UTF-8, or leave it out.",
        ) from error
    checks = split_sql_checks(text)
    if not checks:
        raise ConfigurationError(
            f"DRILL_SQL_CHECKS {path} holds no statement", hint="Write: SELECT count(*) > 0 FROM jobs;"
        )
    return checks


def split_sql_checks(text: str) -> tuple[SqlCheck, ...]:
    """The statements of the text, split at the semicolons that end one."""
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
    """`operator_checks_hold`: each check returned one row with one true.

    Errors of the connection are raised, those of a check make it fail.

    `on_progress` gets 1 for each check. Not configured without any.
    """
    if not checks:
        return make_result(
            Check.OPERATOR_CHECKS_HOLD, CheckStatus.NOT_CONFIGURED, "DRILL_SQL_CHECKS names no file", {}
        )
    wrong: list[str] = []
    for check in checks:
        problem = _find_problem(check, database, timeout_seconds)
        on_progress(1)
        if problem:
            wrong.append(f"{check.name} ({problem})")
    status = CheckStatus.FAILED if wrong else CheckStatus.PASSED
    summary = (
        f"{len(wrong)} of {count(len(checks), 'check')} did not hold: {name_some(wrong)}"
        if wrong
        else f"{len(checks)} of {count(len(checks), 'check')} held"
    )
    return make_result(
        Check.OPERATOR_CHECKS_HOLD, status, summary, {"checks": len(checks), "checks_failed": len(wrong)}
    )


def _make_check(name: str, statement: str) -> SqlCheck:
    words = " ".join(statement.split())
    return SqlCheck(name or words[:_SHOWN_CHARACTERS], statement.strip())


def _find_problem(check: SqlCheck, database: DatabaseSettings, timeout_seconds: int) -> str:
    """Why the check does not hold, or an empty text.

    A connection for each, so that none changes what the next one sees.
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
            "columns, one of one is needed"
        )
    return "" if rows[0][0] is True else f"it returns {rows[0][0]!r}"
