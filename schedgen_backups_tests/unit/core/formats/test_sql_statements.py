"""pg_dump's text is split into statements as psql splits it, in any chunks, and psql commands are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.sql_statements import StatementSplitter, split_roles

STATEMENTS = (
    b"SET standard_conforming_strings = on;",
    b"CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $_$ SELECT 1; $_$;",
    (
        b"CREATE OR REPLACE FUNCTION g() RETURNS int LANGUAGE sql\n    BEGIN ATOMIC\n SELECT CASE WHEN true "
        b"THEN 1 ELSE 2 END;\n SELECT 2;\nEND;"
    ),
    b"COMMENT ON TABLE x IS 'it''s; a \"thing\" -- no';",
    b"COMMENT ON TABLE x IS E'it\\'s; \\\\';",
    b"COMMENT ON TABLE x IS E'it''\\';s; \\\\';",
    b"COMMENT ON TABLE x IS 'ends with a backslash\\';",
    b"CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2;);",
    b"SELECT \"a;b\" /* ; /* nested ; */ ; */, date'2020;', $1;",
    b'CREATE TABLE "o""d;d" (x int DEFAULT -1, y text DEFAULT $a$;$b$;$a$);',
    b"SELECT a$b$c;",
    "COMMENT ON TABLE x IS 'é;課程';".encode(),
    b"CREATE TABLE begin_end (begin_at int);",
    b"CREATE TABLE rule (begin int, case_ int);",
    b"CREATE TABLE public.function (begin timestamp, atomic int);",
    b"CREATE FUNCTION begin.atomic() RETURNS integer LANGUAGE sql AS 'SELECT 1';",
    b"CREATE FUNCTION public.begin(atomic integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';",
    (
        b"CREATE PROCEDURE begin.atomic() LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 "
        b"END; END;"
    ),
    b"CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql BEGIN /* here */ ATOMIC SELECT 1; END;",
    b"CREATE FUNCTION f(begin int, procedure int) RETURNS int LANGUAGE sql AS $$ SELECT 1; $$;",
    b"CREATE TRIGGER function BEFORE UPDATE OF begin ON t FOR EACH ROW EXECUTE FUNCTION g();",
    (
        b"CREATE FUNCTION begin() RETURNS int BEGIN ATOMIC\n SELECT max(t.begin) AS begin FROM t;\n SELECT "
        b"CASE 1 WHEN 2 THEN 3 END;\nEND;"
    ),
    b"CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC END;",
    b"CREATE RULE rule AS ON UPDATE TO t DO INSTEAD SELECT old.begin;",
    b";",
)
BETWEEN = b"\n\n--\n-- Name: x; Type: y; 'quote\n--\n\n/* a ; comment ' */ "
TEXT = b"\\restrict abc123\n\n" + BETWEEN.join(STATEMENTS) + b"\n\n\\unrestrict abc123\n\n"


def split(text: bytes, cuts: Sequence[int] = ()) -> list[bytes]:
    splitter = StatementSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += [statement.text for statement in splitter.feed(text[start:end])]
    return found + [statement.text for statement in splitter.finish()]


def test_statements_end_where_psql_ends_them() -> None:
    assert split(TEXT) == list(STATEMENTS)


def test_single_bytes_give_the_same_statements() -> None:
    assert split(TEXT, range(1, len(TEXT))) == list(STATEMENTS)


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_any_chunks_give_the_same_statements(cuts: list[int]) -> None:
    assert split(TEXT, sorted(cuts)) == list(STATEMENTS)


@pytest.mark.parametrize(
    "text",
    [
        b"\\! id\n",
        b"SELECT 1; \\! id\n",
        b"SELECT 1 \\gexec\n",
        b"\\restrict a b\n",
        b"\\i /etc/passwd\n",
        b"\\restrict x\\! id\n",
    ],
)
def test_a_psql_command_is_refused(text: bytes) -> None:
    with pytest.raises(VerificationError, match="psql command"):
        split(b"SET a = 1;\n" + text)


@pytest.mark.parametrize(
    "text",
    [b"SELECT '\\! id\n';", b"SELECT $$\n\\! id\n$$;", b"-- \\! id\nSELECT 1;", b'SELECT "\n\\! id\n";'],
)
def test_text_that_imitates_a_psql_command_is_text(text: bytes) -> None:
    assert len(split(text)) == 1


@pytest.mark.parametrize(
    "text", [b"SELECT 'x;", b"SELECT $a$;", b"SELECT (1;", b"SELECT 1", b"/* open", b'SELECT "x;']
)
def test_a_text_that_ends_within_a_statement_is_refused(text: bytes) -> None:
    with pytest.raises(VerificationError, match="ends within"):
        split(text)


def test_rows_are_between_statements() -> None:
    splitter = StatementSplitter()
    assert [
        statement.text for statement in splitter.feed(b"SET a = 1;\n\n--\n-- Data for Name: x\n--\n\n")
    ] == []
    assert [statement.text for statement in splitter.flush()] == [b"SET a = 1;"]
    assert splitter.is_between
    assert list(splitter.feed(b"SELECT '\n\n")) == []
    assert list(splitter.flush()) == []
    assert not splitter.is_between


def test_statements_about_roles_are_told_apart_from_settings_and_comments() -> None:
    text = (
        "--\n-- Roles\n--\n\nSET default_transaction_read_only = off;\nCREATE ROLE a;\nALTER ROLE a SET "
        "x TO 'SET y;\nz';\n-- end\n"
    )
    assert split_roles(text) == ["CREATE ROLE a;", "ALTER ROLE a SET x TO 'SET y;\nz';"]
    with pytest.raises(VerificationError):
        split_roles("CREATE ROLE a;\nALTER ROLE a SET x TO 'y;\n")


_LONG_STATEMENTS = """
from schedgen_backups.core.formats.sql_statements import StatementSplitter
words = b"a" * (16 << 20)
string, body = b"COMMENT ON TABLE t IS '" + words + b"';", b"SELECT $$" + words + b"$$;"
numbers = b"SELECT " + b"1, " * (1 << 18) + b"1;"
for text in (string, body, numbers, b"/*" + words + b"*/;"):
    splitter, found = StatementSplitter(), 0
    for start in range(0, len(text), 64):
        found += sum(1 for _statement in splitter.feed(text[start : start + 64]))
    assert found + sum(1 for _statement in splitter.finish()) == 1
"""


@pytest.mark.takes_seconds
def test_a_long_statement_is_not_copied_for_each_of_its_chunks() -> None:
    """Quadratic copying would move terabytes here, which takes minutes.

    In chunks of a megabyte, a statement of a gigabyte has as many.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LONG_STATEMENTS], timeout=60, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_a_flush_yields_every_complete_statement(cuts: list[int]) -> None:
    splitter = StatementSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(TEXT)], strict=True):
        found += [statement.text for statement in splitter.feed(TEXT[start:end])]
    found += [statement.text for statement in splitter.flush()]
    assert (found, splitter.is_between) == (list(STATEMENTS), True)
