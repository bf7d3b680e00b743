"""How a file of checks is split into statements and names; a real server tests their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.drill.sql_checks import SqlCheck, read_sql_checks, split_sql_checks
from schedgen_backups.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT true", [("SELECT true", "SELECT true")]),
        (
            "SELECT 1 = 1;\n\nSELECT 2 = 2;\n",
            [("SELECT 1 = 1", "SELECT 1 = 1"), ("SELECT 2 = 2", "SELECT 2 = 2")],
        ),
        ("-- a name\nSELECT true;", [("a name", "SELECT true")]),
        (
            "-- about the file\n-- a name\nSELECT true; -- after\nSELECT false",
            [("a name", "SELECT true"), ("after", "SELECT false")],
        ),
        ("/* a; name */ SELECT ';' = ';';", [("a; name", "SELECT ';' = ';'")]),
        ("SELECT 'it''s;' = \"a;b\"", [("SELECT 'it''s;' = \"a;b\"", "SELECT 'it''s;' = \"a;b\"")]),
        (
            r"SELECT E'\';' = ''; SELECT 2",
            [(r"SELECT E'\';' = ''", r"SELECT E'\';' = ''"), ("SELECT 2", "SELECT 2")],
        ),
        ("SELECT $$;$$ = $a$;$$;$a$", [("SELECT $$;$$ = $a$;$$;$a$", "SELECT $$;$$ = $a$;$$;$a$")]),
        ("SELECT -- inside;\n true", [("SELECT true", "SELECT  \n true")]),
        ("SELECT $1 - 1;", [("SELECT $1 - 1", "SELECT $1 - 1")]),
        (";;\n -- nothing\n;", []),
    ],
)
def test_statements_end_at_semicolons_and_are_named_by_the_comment_before(
    text: str, expected: list[tuple[str, str]]
) -> None:
    assert split_sql_checks(text) == tuple(SqlCheck(name, statement) for name, statement in expected)


@pytest.mark.parametrize("content", [None, b"-- nothing\n", b"\xff\xfe"])
def test_a_file_without_a_check_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "checks.sql"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="DRILL_SQL_CHECKS"):
        read_sql_checks(path)
