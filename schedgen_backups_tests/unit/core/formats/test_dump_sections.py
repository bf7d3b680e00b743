"""The sections of pg_dump's text.

Its transactions around large objects are left out, and the text after the rows is split into items.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.dump_sections import (
    LargeObjectFilter,
    PsqlQuoter,
    make_loadable,
    split_post_data,
)
from schedgen_backups.core.formats.dump_text import Rows, Segment, TableEnd, TableStart, Text
from schedgen_backups.recover import quote_for_psql
from schedgen_backups_tests.support.artifacts import cut

FUNCTION = b"CREATE FUNCTION f() AS $$\nBEGIN;\nCOMMIT;\n$$;\n"
LARGE = (
    b"-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -\n--\n\nBEGIN;\n\n"
    b"SELECT pg_catalog.lo_open('70001', 131072);\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n\n--\n"
)
CONSTRAINT = b"-- Name: jobs jobs_pkey; Type: CONSTRAINT; Schema: public; Owner: x\n--\n"
TEXT = FUNCTION + LARGE + CONSTRAINT + FUNCTION + b"-- no newline"


@given(st.lists(st.integers(0, len(TEXT)), max_size=12).map(sorted))
def test_only_the_transactions_around_large_objects_are_left_out(borders: list[int]) -> None:
    passed = LargeObjectFilter()
    result = b"".join(passed.filter_text(piece) for piece in cut(TEXT, borders)) + passed.flush()
    assert (
        result
        == FUNCTION
        + LARGE.replace(b"BEGIN;\n", b"").replace(b"COMMIT;\n", b"")
        + CONSTRAINT
        + FUNCTION
        + b"-- no newline"
    )


def test_text_that_imitates_large_objects_leaves_nothing_out() -> None:
    comment = b"COMMENT ON TABLE t IS '\n" + LARGE + b"';\n"
    passed = LargeObjectFilter()
    assert passed.filter_text(comment + FUNCTION) + passed.flush() == comment + FUNCTION


BEGINS = (
    b"CREATE FUNCTION s.begin(begin integer) RETURNS s.begin LANGUAGE plpgsql AS $$begin begin; end$$;\n-- "
    b"begin it's\n"
    b"/* begin ' */ COMMENT ON FUNCTION begin IS E'begin\\' begin' || 'begin'; BEGIN ATOMIC SELECT 1 AS "
    b"begin; END;\n"
    b"SELECT \"begin\", a$begin, begins, _begin, \xc3\xa4begin, (begin), U&'begin', begin"
    b' a[1:"ERROR"], a[1:\'2\'], a[b:c], \'a:"x"\'::"T", ":"":", \'1\'::int'
)
QUOTED_BEGINS = (
    b'CREATE FUNCTION s."begin"("begin" integer) RETURNS s."begin" LANGUAGE plpgsql AS $$begin begin; '
    b"end$$;\n-- begin it's\n"
    b"/* begin ' */ COMMENT ON FUNCTION \"begin\" IS E'begin\\' begin' || 'begin'; BEGIN ATOMIC SELECT 1 "
    b'AS "begin"; END;\n'
    b'SELECT "begin", a$begin, begins, _begin, \xc3\xa4begin, ("begin"), U&\'begin\', "begin"'
    b' a[1: "ERROR"], a[1: \'2\'], a[b:c], \'a:"x"\'::"T", ":"":", \'1\'::int'
)


@given(st.lists(st.integers(0, len(BEGINS)), max_size=12).map(sorted))
def test_only_what_psql_parses_differently_is_quoted(borders: list[int]) -> None:
    quoter = PsqlQuoter()
    assert b"".join(quoter.feed(piece) for piece in cut(BEGINS, borders)) + quoter.flush() == QUOTED_BEGINS
    assert b"".join(quote_for_psql(cut(BEGINS, borders))) == QUOTED_BEGINS


def test_much_text_between_names_is_passed_on() -> None:
    quoter = PsqlQuoter()
    text = b"SELECT 1 AS begin, 'x';\n" * 10_000
    passed = quoter.feed(text)
    assert len(passed) > len(text)
    assert passed + quoter.flush() == text.replace(b"begin", b'"begin"')


HEAD = (
    b"--\n-- PostgreSQL database dump\n--\n\n\\restrict abc123\n\nSET row_security = off;\nSET "
    b"xmloption = content;\n"
)
BODY = b"COMMENT ON TABLE t IS '\n\\restrict abc\nSET row_security = off;\n\\unrestrict abc\n';\n"
END = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc123\n\n"
LOADED_HEAD = b"--\n-- PostgreSQL database dump\n--\n\n\nSET xmloption = content;\n"
LOADED_END = b"--\n-- PostgreSQL database dump complete\n--\n\n"


def load(segments: list[Segment]) -> bytes:
    return b"".join(segment.data for segment in make_loadable(segments))


@given(st.lists(st.integers(len(HEAD + BODY), len(HEAD + BODY + END)), max_size=4).map(sorted))
def test_a_dump_is_loaded_without_its_own_restrict_and_row_security(borders: list[int]) -> None:
    """Only those at the beginning and the end; similar text in between is data."""
    assert load([Text(piece) for piece in cut(HEAD + BODY + END, borders)]) == LOADED_HEAD + BODY + LOADED_END


def test_a_dump_without_restrict_is_loaded_as_it_is() -> None:
    text = LOADED_HEAD + b"CREATE TABLE t ();\n" + LOADED_END
    assert load([Text(text)]) == text


def test_rows_pass_unchanged_and_in_their_place() -> None:
    """A row may hold text that psql would parse differently in a statement."""
    start, rows, end = (
        TableStart(b"COPY t FROM stdin;\n", "public", "t", ""),
        Rows(b"begin\n\\\\unrestrict abc\n"),
        TableEnd(b"\\.\n"),
    )
    loaded = list(make_loadable([Text(HEAD + b"SELECT begin"), start, rows, end, Text(BODY + END)]))
    assert [segment for segment in loaded if not isinstance(segment, Text)] == [start, rows, end]
    before, behind = (
        b"".join(segment.data for segment in part)
        for part in (loaded[: loaded.index(start)], loaded[loaded.index(end) + 1 :])
    )
    assert before == LOADED_HEAD + b'SELECT "begin"'
    assert behind == BODY + LOADED_END


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("CREATE INDEX i ON public.event USING btree (at);", ("public", "event")),
        ('CREATE UNIQUE INDEX "i ON x.y" ON ONLY "a b"."c""d" USING btree (lower(e));', ("a b", 'c"d')),
        (
            "ALTER TABLE ONLY public.event\n    ADD CONSTRAINT event_pkey PRIMARY KEY (id);",
            ("public", "event"),
        ),
        (
            "ALTER TABLE public.event\n    ADD CONSTRAINT positive CHECK ((id > 0)) NOT VALID;",
            ("public", "event"),
        ),
        ("CREATE INDEX CONCURRENTLY i ON event (at);", None),
    ],
)
def test_an_item_names_the_table_it_depends_on(statement: str, table: tuple[str, str] | None) -> None:
    text = f"--\n-- Name: event i; Type: INDEX; Schema: public; Owner: x\n--\n\n{statement}\n\n\n".encode()
    (item,) = split_post_data(b"", text)
    assert item.table == table


def test_items_keep_the_settings_that_hold_before_them() -> None:
    schema = (
        b"SET default_tablespace = '';\n\nSET default_table_access_method = heap;\n\nCREATE TABLE a "
        b"(b int);\n"
    )
    first = b"SET default_tablespace = fast;\n\n"
    index = (
        b"--\n-- Name: i; Type: INDEX; Schema: public; Owner: x; Tablespace: fast\n--\n\nCREATE INDEX "
        b"i ON a (b);\n\n\n"
    )
    foreign = (
        b"--\n-- Name: a f; Type: FK CONSTRAINT; Schema: public; Owner: x\n--\n\nALTER TABLE a ADD "
        b"FOREIGN KEY (b) REFERENCES c;\n\n\n"
    )
    items = split_post_data(schema, first + index + foreign)
    assert b"".join(item.text for item in items) == first + index + foreign
    assert [(item.kind, item.is_build) for item in items] == [
        ("", False),
        ("INDEX", True),
        ("FK CONSTRAINT", False),
    ]
    assert items[1].settings == b"SET default_tablespace = fast;\nSET default_table_access_method = heap;\n"


HOSTILE = (
    b"--\n-- Name: x; Type: INDEX; Schema: public; Owner: x\n--\n\nALTER ROLE me SUPERUSER;\nSET "
    b"default_tablespace = a; ALTER ROLE me SUPERUSER;\n"
)
QUOTINGS = [
    b"COMMENT ON INDEX i IS 'it''s\n" + HOSTILE + b"';\n",
    b"COMMENT ON INDEX i IS E'\\'\n" + HOSTILE + b"';\n",
    b"CREATE RULE r AS ON UPDATE TO t DO INSTEAD SELECT 'a\n" + HOSTILE + b"';\n",
    b'CREATE INDEX "\n' + HOSTILE + b'" ON public.t USING btree (a);\n',
    b"CREATE EVENT TRIGGER e EXECUTE FUNCTION f($x$\n" + HOSTILE + b"$x$);\n",
]


@pytest.mark.parametrize("statement", QUOTINGS, ids=["comment", "escapes", "rule", "name", "dollars"])
def test_text_of_an_owner_begins_no_item_and_sets_nothing(statement: bytes) -> None:
    """An item runs by itself: text within a string must not become a statement of the restoring role."""
    first = b"--\n-- Name: i; Type: INDEX; Schema: public; Owner: x\n--\n\n" + statement + b"\n\n"
    second = (
        b"--\n-- Name: k; Type: INDEX; Schema: public; Owner: x\n--\n\nCREATE INDEX k ON public.t (a);\n\n\n"
    )
    items = split_post_data(b"SET default_tablespace = '';\n" + statement, first + second)
    assert [item.text for item in items] == [first, second]
    assert [item.settings for item in items] == [b"SET default_tablespace = '';\n"] * 2
