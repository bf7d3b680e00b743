"""pg_dump's plain text, split at tables: no byte is lost, and text that imitates a table stays text.

Texts here are hand-made in pg_dump's form; the real pg_dump's are in the integration tests. Add a case for
every oddity that a real dump showed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedgen_backups.core.formats.dump_text import (
    DumpDigest,
    Rows,
    TableStart,
    Text,
    split_dump,
    split_table,
)
from schedgen_backups_tests.support.artifacts import (
    DUMP_HEAD,
    DUMP_TAIL,
    TableText,
    cut,
    make_dump_text,
    read_facts,
)

ROWS_LIKE_STATEMENTS = (
    b"COPY public.x (a) FROM stdin;",
    b"-- PostgreSQL database dump complete",
    b"--",
    b"",
    b"\\\\.",
    b"\\\\.\\n",
    b"x\\\\.",
    b"\\N",
    b"-- Data for Name: x; Type: TABLE DATA; Schema: public; Owner: x",
    b"\\\\unrestrict abc123",
)
names = st.one_of(
    st.sampled_from(
        [
            "jobs",
            "Jobs",
            "two words",
            "a.b",
            'a"b',
            "zeilen\numbruch",
            "課程",
            "select",
            "(a)",
            "x) FROM stdin;",
            ";",
            "--",
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12),
)
rows = st.one_of(
    st.sampled_from(ROWS_LIKE_STATEMENTS),
    st.text(st.characters(exclude_characters="\0\n\r\\", exclude_categories=("Cs",)), max_size=30).map(
        str.encode
    ),
)
tables_strategy = st.lists(
    st.builds(
        TableText,
        name=names,
        schema_name=names,
        columns=st.lists(names, max_size=3).map(tuple),
        rows=st.lists(rows, max_size=6).map(tuple),
    ),
    max_size=4,
)


@given(tables_strategy, st.data())
@settings(deadline=None)
def test_tables_and_bytes_do_not_depend_on_the_chunks(tables: list[TableText], data: st.DataObject) -> None:
    text = make_dump_text(tables)
    borders = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    chunks = cut(text, borders)
    assert b"".join(segment.data for segment in split_dump(chunks)) == text
    facts = read_facts(chunks)
    assert [(table.schema_name, table.name, table.rows, table.sha256) for table in facts.tables] == [
        (table.schema_name, table.name, len(table.rows), hashlib.sha256(table.row_data).hexdigest())
        for table in tables
    ]
    assert facts == read_facts([text])
    assert facts.size_bytes == len(text)
    assert facts.is_complete


@given(tables_strategy)
@settings(max_examples=20, deadline=None)
def test_a_stream_of_single_bytes_is_split_like_one_block(tables: list[TableText]) -> None:
    text = make_dump_text(tables)
    single = [text[position : position + 1] for position in range(len(text))]
    assert b"".join(segment.data for segment in split_dump(single)) == text
    assert read_facts(single) == read_facts([text])


@given(tables_strategy, st.data())
@settings(deadline=None)
def test_any_other_row_gives_another_digest(tables: list[TableText], data: st.DataObject) -> None:
    text = make_dump_text([*tables, TableText("last", (b"1\tone", b"2\ttwo"))])
    changed = make_dump_text(
        [*tables, TableText("last", (b"1\tone", data.draw(rows.filter(lambda row: row != b"2\ttwo"))))]
    )
    assert read_facts([text]).tables[-1].sha256 != read_facts([changed]).tables[-1].sha256
    assert read_facts([text]).text_sha256 == read_facts([changed]).text_sha256


def test_a_table_without_columns_has_its_rows() -> None:
    facts = read_facts([make_dump_text([TableText("nothing", (b"", b"", b""), columns=())])])
    assert [(table.name, table.columns, table.rows, table.size_bytes) for table in facts.tables] == [
        ("nothing", "", 3, 3)
    ]


def test_a_table_without_rows_is_a_table() -> None:
    facts = read_facts([make_dump_text([TableText("empty", ()), TableText("full", (b"1",))])])
    assert [(table.name, table.rows) for table in facts.tables] == [("empty", 0), ("full", 1)]


@pytest.mark.parametrize(
    "name",
    ["two\nlines", "dotted.name", 'quo"te', "a\n\nCOPY public.x (a) FROM stdin;\n", 'x" (a) FROM stdin;'],
)
def test_odd_names_are_read_as_in_the_catalog(name: str) -> None:
    start = next(
        segment
        for segment in split_dump(
            [make_dump_text([TableText(name, (b"1",), schema_name=name, columns=(name,))])]
        )
        if isinstance(segment, TableStart)
    )
    assert (start.schema_name, start.name) == (name, name)


def encode_dump(encoding: str, codec: str, *, root: bool) -> bytes:
    text = DUMP_HEAD.decode() + f"SET client_encoding = '{encoding}';\n\n"
    text += "--\n-- Data for Name: größe_1; Type: TABLE DATA; Schema: öl; Owner: x\n--\n\n"
    text += "-- load via partition root öl.größe\n\n" if root else ""
    return (text + f'COPY "öl"."{"größe" if root else "größe_1"}" ("ä") FROM stdin;\n1\n\\.\n\n\n').encode(
        codec
    ) + DUMP_TAIL


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [("UTF8", "utf-8"), ("LATIN1", "latin-1"), ("WIN1252", "cp1252"), ("LATIN9", "iso8859-15")],
)
def test_names_are_read_in_the_dumps_encoding(encoding: str, codec: str) -> None:
    text = encode_dump(encoding, codec, root=False)
    for size_bytes in (len(text), 7):
        [table] = read_facts(cut(text, range(size_bytes, len(text), size_bytes))).tables
        assert (table.schema_name, table.name, table.columns, table.root) == ("öl", "größe_1", '("ä")', "")


@pytest.mark.parametrize(("encoding", "codec"), [("UTF8", "utf-8"), ("LATIN1", "latin-1")])
def test_a_partition_loaded_through_its_root_is_known_by_its_own_name(encoding: str, codec: str) -> None:
    [table] = read_facts([encode_dump(encoding, codec, root=True)]).tables
    assert (table.schema_name, table.name, table.root, table.rows) == ("öl", "größe_1", "öl.größe", 1)


def test_a_table_read_alone_has_the_same_digest() -> None:
    table = TableText("jobs", (b"1", b"2"))
    [expected] = read_facts([make_dump_text([table])]).tables
    alone = table.text[table.text.index(b"COPY ") :].removesuffix(b"\n\n")
    for root, found_root in (("", ""), ("public.log", "public.jobs")):
        digest = DumpDigest()
        segments = list(split_table(cut(alone, [5, 50]), root=root))
        for segment in segments:
            digest.add(segment)
        [found] = digest.facts().tables
        assert b"".join(segment.data for segment in segments) == alone
        assert (found.rows, found.sha256, found.root) == (2, expected.sha256, found_root)


@pytest.mark.parametrize(
    "body",
    [
        b"COPY public.x (a) FROM stdin;\n",
        b"\n\nCOPY public.x (a) FROM stdin;\n1\n\\.\n",
        b"--\n\nCOPY public.x (a) FROM stdin;\n1\n",
        b"-- Data for Name: x\n--\n\nCOPY public.x (a) FROM stdin;\n",
        b"\n\nCOPY (SELECT 1) TO STDOUT;\n",
    ],
)
def test_a_function_that_mentions_copy_is_not_a_table(body: bytes) -> None:
    function = b"CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $$\n" + body + b"$$;\n\n\n"
    facts = read_facts([make_dump_text([TableText("jobs", (b"1", b"2"))], head=DUMP_HEAD + function)])
    assert [(table.name, table.rows) for table in facts.tables] == [("jobs", 2)]
    assert facts.is_complete


LOOKALIKE = TableText("evil", (b"1",)).text
QUOTINGS = {
    "comment": b"COMMENT ON TABLE public.jobs IS 'a''b" + LOOKALIKE + b"';\n",
    "unended comment": b"COMMENT ON TABLE public.jobs IS '" + LOOKALIKE.removesuffix(b"\\.\n\n\n") + b"';\n",
    "escape string": b"COMMENT ON TABLE public.jobs IS E'\\'" + LOOKALIKE.replace(b"\\", b"\\\\") + b"';\n",
    "name": b'CREATE VIEW public."' + LOOKALIKE.replace(b'"', b'""') + b'" AS\n SELECT 1;\n',
    "body": b"CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $_$" + LOOKALIKE + b"$_$;\n",
    "body with other quotes in it": b"CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $_$'$$\"--/*"
    + LOOKALIKE
    + b"$_$;\n",
    "body behind a dollar in a name": b"CREATE FUNCTION public.a$b$c() RETURNS void LANGUAGE sql AS $$"
    + LOOKALIKE
    + b"$$;\n",
    "string behind an odd line comment": b"-- Name: it's $$ odd \"; Type: TABLE\nCOMMENT ON TABLE "
    b"public.jobs IS '" + LOOKALIKE + b"';\n",
}


@pytest.mark.parametrize("text", QUOTINGS.values(), ids=QUOTINGS.keys())
def test_text_of_an_owner_is_never_taken_for_a_table(text: bytes) -> None:
    dump = make_dump_text([TableText("jobs", (b"1", b"2"))], head=DUMP_HEAD + text + b"\n\n")
    expected = read_facts([dump])
    assert [(table.name, table.rows) for table in expected.tables] == [("jobs", 2)]
    assert expected.is_complete
    for border in range(len(DUMP_HEAD), len(DUMP_HEAD) + len(text) + 200):
        assert read_facts(cut(dump, [border])) == expected
    behind = make_dump_text([TableText("jobs", (b"1", b"2"))], tail=b"\n" + text + DUMP_TAIL)
    assert [table.name for table in read_facts([behind]).tables] == ["jobs"]


def test_text_announced_like_a_table_hides_the_next_one_and_is_detected() -> None:
    """pg_dump writes none. The table after it is then missing from what the snapshot has."""
    body = TableText("x", ()).text.removesuffix(b"\\.\n\n\n")
    facts = read_facts([make_dump_text([TableText("jobs", (b"1",))], head=DUMP_HEAD + body)])
    assert "jobs" not in [table.name for table in facts.tables]


@pytest.mark.timeout(30)
def test_a_truncated_statement_is_parsed_quickly() -> None:
    """Some patterns for a list of columns take forever on a truncated one."""
    columns = ", ".join(f"a_column_of_some_length_{number}" for number in range(100))
    before, behind = make_dump_text([TableText("jobs", (b"1",), columns=("COLUMNS",))]).split(b'"COLUMNS"')
    text = before + columns.encode() + behind
    expected = read_facts([text])
    assert [(table.name, table.columns, table.rows) for table in expected.tables] == [
        ("jobs", f"({columns})", 1)
    ]
    for border in range(len(before) - 20, len(text) - len(behind) + 20, 7):
        assert read_facts(cut(text, [border])) == expected


def test_a_very_long_row_is_not_held_in_memory() -> None:
    fed = 0

    def blocks() -> Iterator[bytes]:
        nonlocal fed
        whole = make_dump_text([TableText("jobs", (b"ROW",))])
        head, tail = whole.split(b"ROW")
        for block in (head, *[b"x" * (1 << 20)] * 64, tail):
            fed += len(block)
            yield block

    passed = 0
    longest = 0
    for segment in split_dump(blocks()):
        passed += len(segment.data)
        if isinstance(segment, Rows):
            assert fed - passed < 1024
            longest = max(longest, len(segment.data))
    assert longest <= (1 << 20) + 64
    assert passed == fed


def test_a_statement_of_another_form_is_passed_on_at_once() -> None:
    """pg_dump writes none after an announcement; the text after it must not fill the memory."""
    odd = TableText("jobs", ()).text.partition(b"COPY ")[0] + b"COPY (SELECT 1) FROM stdin;\n"
    fed = passed = 0

    def blocks() -> Iterator[bytes]:
        nonlocal fed
        for block in (DUMP_HEAD, odd, *[b"SELECT 1;\n" * 1000] * 30, DUMP_TAIL):
            fed += len(block)
            yield block

    for segment in split_dump(blocks()):
        assert isinstance(segment, Text)
        passed += len(segment.data)
        assert fed - passed <= 64 << 10
    assert passed == fed


def test_a_very_long_text_is_not_held_in_memory() -> None:
    """Large objects are statements of megabytes without a newline."""
    fed = 0

    def blocks() -> Iterator[bytes]:
        nonlocal fed
        for block in (
            DUMP_HEAD,
            b"SELECT pg_catalog.lowrite(0, '\\x",
            *[b"ab" * (1 << 19)] * 32,
            b"');\n",
            DUMP_TAIL,
        ):
            fed += len(block)
            yield block

    passed = 0
    for segment in split_dump(blocks()):
        assert isinstance(segment, Text)
        passed += len(segment.data)
        assert fed - passed <= (1 << 20) + (32 << 10)
    assert passed == fed


def test_a_dump_truncated_before_its_last_line_is_not_complete() -> None:
    text = make_dump_text([TableText("jobs", (b"1", b"2"))])
    end = text.index(b"dump complete\n") + len(b"dump complete\n")
    for length in range(end):
        assert not read_facts([text[:length]]).is_complete, length
    assert read_facts([text]).is_complete


@pytest.mark.parametrize("tail", [b"", b"\nCREATE INDEX half", b"\n--\n-- Name: jobs; Type: TABLE\n--\n\n"])
def test_a_last_line_inside_the_dump_does_not_end_it(tail: bytes) -> None:
    """A comment on a table may quote it; a dump truncated after that is still truncated."""
    quoted = (
        b"COMMENT ON TABLE public.jobs IS 'from a file:\n--\n-- PostgreSQL database dump complete\n--\n';\n"
    )
    assert not read_facts([make_dump_text([TableText("jobs", (b"1",))], tail=quoted + tail)]).is_complete


def test_rows_that_imitate_the_last_line_do_not_end_the_dump() -> None:
    text = make_dump_text(
        [TableText("jobs", (b"--", b"-- PostgreSQL database dump complete", b"--", b""))], tail=b""
    )
    assert not read_facts([text]).is_complete


def test_a_dump_that_ends_inside_a_table_is_not_complete() -> None:
    assert not read_facts(
        [DUMP_TAIL + make_dump_text([TableText("jobs", (b"1",))]).partition(b"\\.\n")[0]]
    ).is_complete


def test_the_end_line_of_older_programs_without_a_restrict_key_counts() -> None:
    assert read_facts(
        [make_dump_text([], tail=b"--\n-- PostgreSQL database dump complete\n--\n\n")]
    ).is_complete


def test_the_random_key_and_versions_do_not_change_the_digest_and_all_else_does() -> None:
    text = make_dump_text([TableText("jobs", (b"1",))])
    expected = read_facts([text]).text_sha256
    other_key = text.replace(b"abc123", b"Zz9")
    other_version = text.replace(b"version 18.6", b"version 18.7 (Debian 18.7-1.pgdg)")
    other_setting = text.replace(b"statement_timeout = 0", b"statement_timeout = 1")
    assert read_facts([other_key]).text_sha256 == expected
    assert read_facts([other_version]).text_sha256 == expected
    assert read_facts([other_setting]).text_sha256 != expected


@given(st.integers(1, 200))
def test_unstable_lines_are_left_out_whatever_the_chunks(size_bytes: int) -> None:
    text = make_dump_text([TableText("jobs", (b"1",))])
    pieces = [text[start : start + size_bytes] for start in range(0, len(text), size_bytes)]
    assert read_facts(pieces).text_sha256 == read_facts([text.replace(b"abc123", b"other")]).text_sha256


def test_an_empty_dump_has_nothing() -> None:
    facts = DumpDigest().facts()
    assert (facts.tables, facts.size_bytes, facts.is_complete) == ((), 0, False)
    assert list(split_dump([])) == []


@pytest.mark.parametrize("size", [1, 7, 40, 4096])
def test_the_comparable_digest_leaves_out_tablespaces_and_the_system_owner(size: int) -> None:
    text = b"SET default_tablespace = fast;\n\nCREATE TABLE t ();\n\nSET default_tablespace = '';\n\n--\n"
    text += (
        b"-- Name: FUNCTION f(); Type: ACL; Schema: pg_catalog; Owner: one\n--\n\nGRANT ALL ON "
        b"FUNCTION f() TO app;\nSET default_tablespace = x;\n"
    )
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    elsewhere = (
        text.replace(b"SET default_tablespace = fast;\n\n", b"")
        .replace(b"Owner: one", b"Owner: another")
        .replace(b"; Tablespace: fast", b"")
    )
    assert read_facts(pieces).comparable_sha256 == read_facts([elsewhere]).comparable_sha256
    assert read_facts(pieces).text_sha256 != read_facts([elsewhere]).text_sha256
    assert (
        read_facts([text.replace(b"TO app", b"TO other")]).comparable_sha256
        != read_facts(pieces).comparable_sha256
    )


_LONG_LINES = """
from schedgen_backups.core.formats.dump_text import DumpDigest, Text, split_dump
words = {
    b"-- Name: ": (b"; Type: ACL; Schema: ", b"; Owner: "), b"SELECT pg_catalog.setval('": (b"', 1, ",),
        b"-- Data for Name: ": (b"; Owner: ",),
}
for head in words:
    for word in words[head]:
        text = b"\\n" + head + word * (1_000_000 // len(word)) + b"\\n"
        digest = DumpDigest()
        for segment in split_dump(text[start : start + 65536] for start in range(0, len(text), 65536)):
            digest.add(segment)
        digest.facts()
"""


@pytest.mark.takes_seconds
def test_no_line_of_a_dump_takes_its_reader_forever() -> None:
    """A table owner's comment may have a gigabyte: quadratic time never ends there."""
    done = subprocess.run(
        [sys.executable, "-c", _LONG_LINES], timeout=120, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


_ANNOUNCING_LINES = """
from schedgen_backups.core.formats.dump_text import split_dump
typed, owned = b"; Type: TABLE DATA; Schema: ", b"; Owner: "
for words in ((typed + owned) * 400, typed * 540, typed * 270 + owned * 800, owned * 1600):
    line = b"-- Data for Name: " + words[:15900] + b"\\n--\\nx\\n\\nCOPY x y;\\n"
    for _segment in split_dump([b"SELECT 1;\\n\\n" + line * 300]):
        pass
"""


def test_no_comment_of_a_dump_takes_its_reader_forever() -> None:
    """It precedes a COPY statement.

    A pattern that tries many ways to read the line takes minutes for these 19 MB.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ANNOUNCING_LINES], timeout=30, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


ANNOUNCED = {
    "all": (b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--", True),
    "twice": (
        (
            b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o; Type: TABLE DATA; Schema: s; "
            b"Owner: o\n--"
        ),
        True,
    ),
    "no owner": (b"-- Data for Name: t; Type: TABLE DATA; Schema: s\n--", False),
    "no schema": (b"-- Data for Name: t; Owner: o\n--", False),
    "the owner first": (b"-- Data for Name: t; Owner: o; Type: TABLE DATA; Schema: s\n--", False),
    "a line between": (b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n-- x\n--", False),
    "no end": (b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o", False),
    "another comment": (b"-- Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--", False),
    "through its root": (
        b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--\n\n-- load via partition root r",
        True,
    ),
    "a root behind no empty line": (
        b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--\n-- load via partition root r",
        False,
    ),
    "a root behind nothing": (b"-- load via partition root r", False),
    "two roots": (
        b"-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--\n\n"
        + b"-- load via partition root r\n" * 2,
        False,
    ),
}


@pytest.mark.parametrize(("comment", "is_announced"), ANNOUNCED.values(), ids=ANNOUNCED)
def test_only_what_its_preceding_comment_announces_is_a_table(comment: bytes, is_announced: bool) -> None:
    text = b"SELECT 1;\n\n--\n" + comment + b"\n\nCOPY public.t (i) FROM stdin;\n1\n\\.\n\n"
    found = [segment for segment in split_dump([text]) if isinstance(segment, TableStart)]
    assert bool(found) == is_announced
    if found:
        assert (found[0].schema_name, found[0].root) == (
            ("s", "public.t") if b"root" in comment else ("public", "")
        )
