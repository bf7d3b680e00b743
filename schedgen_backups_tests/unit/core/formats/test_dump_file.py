"""The dump file's parts, each read separately: schema, table, text after the rows, roles and index."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from schedgen_backups.core.formats.dump_file import DumpFile, DumpFileWriter, SeparateTable, open_dump
from schedgen_backups.core.formats.dump_text import split_dump
from schedgen_backups.core.formats.gzip_members import FOOTER_BYTES, compress_member
from schedgen_backups_tests.support.artifacts import (
    DUMP_HEAD,
    DUMP_NAME,
    DUMP_TAIL,
    TableText,
    make_dump_text,
    make_noise,
    read_facts,
    write_dump_text,
)

TABLES = (
    TableText("jobs", (b"1", b"2")),
    TableText("empty", ()),
    TableText("users", (b"3",), columns=("a", "b")),
)
SETTINGS = b"SELECT pg_catalog.setval('public.jobs_id_seq', 2, true);\n\n"
ROLES = 'CREATE ROLE "schedgen";\nALTER ROLE "schedgen" WITH LOGIN;\n'
TEXT = DUMP_HEAD + TABLES[0].text + SETTINGS + TABLES[1].text + TABLES[2].text + DUMP_TAIL
COUNTED = {("public", "jobs"): 2, ("public", "empty"): 0, ("public", "gone"): 7}


@pytest.fixture
def dump(tmp_path: Path) -> Iterator[DumpFile]:
    write_dump_text(tmp_path / DUMP_NAME, TEXT, COUNTED, roles=ROLES, references=["a.pdf", "b.pdf"])
    with open_dump(tmp_path / DUMP_NAME) as dump:
        yield dump


def split_comment(table: TableText) -> tuple[bytes, bytes, bytes]:
    """Return the text before a table, its rows with statement and end line, and the text after it."""
    before, copy, rest = table.text.partition(b"COPY ")
    rows, end, behind = rest.partition(b"\\.\n")
    return before, copy + rows + end, behind


def test_each_part_is_read_without_the_others(dump: DumpFile) -> None:
    (first, jobs, gap), (second, empty, _end), (third, users, end) = map(split_comment, TABLES)
    assert b"".join(dump.read_schema()) == DUMP_HEAD + first
    assert [b"".join(dump.read_table(table)) for table in dump.tables] == [jobs, empty, users]
    assert b"".join(dump.read_rest_of_text()) == gap + SETTINGS + second + gap + third + end + DUMP_TAIL
    assert b"".join(dump.read_contents()) == TEXT
    assert dump.roles == ROLES
    assert list(dump.read_references()) == [["a.pdf", "b.pdf"]]


def test_the_index_has_each_tables_rows_and_those_that_the_snapshot_counted(dump: DumpFile) -> None:
    facts = read_facts([TEXT])
    assert [
        (table.qualified_name, table.columns, table.rows, table.expected_rows, table.sha256)
        for table in dump.tables
    ] == [
        (f"public.{found.name}", found.columns, found.rows, COUNTED.get(("public", found.name)), found.sha256)
        for found in facts.tables
    ]
    assert [table.expected_rows for table in dump.tables] == [2, 0, None]
    assert dump.record.missing_tables == ("public.gone",)


def test_a_dump_without_tables_is_only_schema(tmp_path: Path) -> None:
    write_dump_text(tmp_path / DUMP_NAME, DUMP_HEAD + DUMP_TAIL, roles="")
    with open_dump(tmp_path / DUMP_NAME) as dump:
        assert b"".join(dump.read_schema()) == DUMP_HEAD + DUMP_TAIL
        assert (dump.tables, dump.roles) == ((), "")


def test_the_bytes_between_the_dump_and_the_footer_are_read_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / DUMP_NAME
    write_dump_text(path, TEXT, references=[make_noise(1_200_000).hex()])
    passed: list[bytes] = []
    with open_dump(path) as dump:
        dump.read_rest(passed.append)
        start = dump.record.content_length
    assert len(passed) > 1
    assert b"".join(passed) == path.read_bytes()[start:-FOOTER_BYTES]


def test_a_partition_loaded_through_its_root_keeps_both_names(tmp_path: Path) -> None:
    text = make_dump_text([TableText("log", (b"1",))])
    marked = text.replace(b"Name: log;", b"Name: log_1;").replace(
        b"Schema: x; Owner: x\n--\n",
        b"Schema: parts; Owner: x\n--\n\n-- load via partition root public.log\n",
    )
    write_dump_text(tmp_path / DUMP_NAME, marked, {("parts", "log_1"): 1})
    with open_dump(tmp_path / DUMP_NAME) as dump:
        [table] = dump.tables
        assert (table.qualified_name, table.root, table.expected_rows, table.rows) == (
            "parts.log_1",
            "public.log",
            1,
            1,
        )


def test_a_separately_dumped_table_is_stored_like_any_other(tmp_path: Path) -> None:
    before, copy, _behind = split_comment(TABLES[0])
    [facts] = read_facts([make_dump_text([TABLES[0]])]).tables
    path = tmp_path / DUMP_NAME
    apart = (tmp_path / "apart").open("w+b")
    apart.write(compress_member(copy[:30]) + compress_member(copy[30:]))
    with path.open("wb") as file, DumpFileWriter(cast("BinaryIO", file), threads=1) as writer:
        for segment in split_dump([DUMP_HEAD]):
            writer.add(segment)
        writer.add_separate_table(SeparateTable(before, facts, len(copy), apart, apart.tell()))
        for segment in split_dump([make_dump_text([TABLES[2]], head=b"")]):
            writer.add(segment)
        whole = make_dump_text([TABLES[0], TABLES[2]])
        assert writer.facts() == read_facts([whole])
        length = writer.content_length
    assert apart.closed
    assert gzip.decompress(path.read_bytes()[:length]) == whole
