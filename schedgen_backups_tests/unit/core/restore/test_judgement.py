"""The judgment of a comparison: what counts as restored, as equal and as unknown.

Tests with real servers cover how both sides are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_text import DumpFacts, TableFacts
from schedgen_backups.core.formats.records import DumpRecord, TableEntry
from schedgen_backups.core.restore.comparison import (
    ComparedRows,
    DumpedBy,
    add_up_rows,
    compare_rows,
    describe_collation,
    describe_properties,
    judge_bucket,
    judge_database,
)
from schedgen_backups_tests.support.artifacts import TableText, cut, write_dump

SAME = DumpedBy("18.6", 18)
EQUAL = ComparedRows()


class Captured:
    """A dump, and the facts of a second one that is equal."""

    def __init__(self, path: Path) -> None:
        dump = write_dump(path, [TableText("jobs", (b"1", b"2")), TableText("users", (b"1",))])
        self.record: DumpRecord = dump.record
        self.tables: tuple[TableEntry, ...] = dump.tables
        self.facts = [
            TableFacts(
                table.schema_name, table.name, table.columns, table.rows, table.size_bytes, table.sha256
            )
            for table in dump.tables
        ]

    def judge(
        self, rows: ComparedRows = EQUAL, *, text_sha256: str | None = None, dumped_by: DumpedBy = SAME
    ) -> tuple[CheckStatus, CheckStatus, str]:
        comparable_sha256 = text_sha256 or self.record.comparable_sha256
        facts = DumpFacts(
            tuple(self.facts),
            text_sha256 or self.record.text_sha256,
            0,
            is_complete=True,
            comparable_sha256=comparable_sha256,
        )
        restored, equal = judge_database(self.record, self.tables, facts, rows, dumped_by)
        return restored.status, equal.status, f"{restored.summary}; {equal.summary}"


@pytest.fixture
def captured(tmp_path: Path) -> Captured:
    return Captured(tmp_path / "dump.sql.gz")


def test_the_same_rows_and_text_are_equal(captured: Captured) -> None:
    restored, equal, said = captured.judge()
    assert (restored, equal) == (CheckStatus.PASSED, CheckStatus.PASSED)
    assert said == "2 tables with 3 rows are there; 2 tables, 3 rows and the schema are equal"


def test_a_missing_table_or_missing_rows_fail_both(captured: Captured) -> None:
    captured.facts = [replace(captured.facts[0], rows=1)]
    restored, equal, said = captured.judge()
    assert (restored, equal) == (CheckStatus.FAILED, CheckStatus.FAILED)
    assert "public.jobs (1 instead of 2), public.users (missing instead of 1)" in said


def test_rows_that_differ_fail_equality_alone(captured: Captured) -> None:
    restored, equal, said = captured.judge(ComparedRows(("public.jobs",)))
    assert (restored, equal) == (CheckStatus.PASSED, CheckStatus.FAILED)
    assert "rows differ: public.jobs" in said


def test_another_text_by_the_same_programs_fails(captured: Captured) -> None:
    _restored, equal, said = captured.judge(text_sha256="0" * 64)
    assert equal is CheckStatus.FAILED
    assert "the schema, a sequence or a large object differs" in said


@pytest.mark.parametrize("dumped_by", [DumpedBy("17.10", 18), DumpedBy("18.6", 19)])
def test_another_text_by_other_programs_is_unknown_and_never_passed(
    captured: Captured, dumped_by: DumpedBy
) -> None:
    assert captured.judge(text_sha256="0" * 64, dumped_by=dumped_by)[1] is CheckStatus.UNKNOWN
    assert (
        captured.judge(ComparedRows(("public.jobs",)), text_sha256="0" * 64, dumped_by=dumped_by)[1]
        is CheckStatus.FAILED
    )


@pytest.mark.parametrize(
    ("differences", "restored", "equal"),
    [
        ({}, CheckStatus.PASSED, CheckStatus.PASSED),
        ({"a": "missing"}, CheckStatus.FAILED, CheckStatus.FAILED),
        ({"a": "size"}, CheckStatus.FAILED, CheckStatus.FAILED),
        ({"a": "metadata"}, CheckStatus.PASSED, CheckStatus.FAILED),
        ({"a": "bytes"}, CheckStatus.PASSED, CheckStatus.FAILED),
    ],
)
def test_objects_are_restored_when_present_and_equal_when_nothing_differs(
    differences: dict[str, str], restored: CheckStatus, equal: CheckStatus
) -> None:
    found = judge_bucket(2, 20, differences, listed_count=5)
    assert tuple(result.status for result in found) == (restored, equal)
    assert {result.figures["other_objects"] for result in found} == {3}
    if differences:
        [(key, what)] = differences.items()
        assert found[1].summary == f"1 object different: {key} ({what})"
    else:
        assert found[1].summary == "2 objects are equal in bytes, content type, metadata and tags"


@pytest.mark.parametrize(
    ("differences", "status"), [({}, CheckStatus.UNKNOWN), ({"a": "bytes"}, CheckStatus.FAILED)]
)
def test_objects_with_unread_tags_are_not_known_to_be_equal(
    differences: dict[str, str], status: CheckStatus
) -> None:
    restored, equal = judge_bucket(
        2, 20, differences, listed_count=2, unread_tags_count=1, tags_note="the server refuses access"
    )
    assert (restored.status, equal.status) == (CheckStatus.PASSED, status)
    assert (
        differences
        or "those of 1 could not be read when they were captured: the server refuses access" in equal.summary
    )


@given(
    st.lists(st.binary(max_size=9).filter(lambda row: b"\n" not in row), max_size=20), st.randoms(), st.data()
)
def test_rows_have_the_same_sum_in_any_order_and_any_chunks(
    rows: list[bytes], random: object, data: st.DataObject
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    text, other = (b"".join(row + b"\n" for row in some) for some in (rows, shuffled))
    borders = data.draw(st.lists(st.integers(0, len(other)), max_size=5).map(sorted))
    assert add_up_rows([text]) == add_up_rows(cut(other, borders))
    assert add_up_rows([text])[0] == len(rows)
    assert add_up_rows([text]) != add_up_rows([text + b"one more\n"])


def test_results_say_what_was_counted_and_when(captured: Captured) -> None:
    facts = DumpFacts(tuple(captured.facts), captured.record.text_sha256, 0, is_complete=True)
    before = datetime.now(timezone.utc)
    restored, equal = judge_database(
        captured.record, captured.tables, facts, ComparedRows(reordered_count=1), SAME
    )
    assert (restored.check, restored.figures) == (Check.DATABASE_IS_RESTORED, {"tables": 2, "rows": 3})
    assert (equal.check, equal.figures) == (
        Check.DATABASE_IS_EQUAL,
        {"tables": 2, "rows": 3, "reordered_tables": 1},
    )
    assert before <= restored.checked_at <= datetime.now(timezone.utc)
    there, same = judge_bucket(2, 20, {}, listed_count=1)
    assert (there.check, same.check) == (Check.BUCKET_IS_RESTORED, Check.BUCKET_IS_EQUAL)
    assert there.figures == same.figures == {"objects": 2, "size_bytes": 20, "other_objects": 0}


def test_what_a_dump_does_not_hold_is_reported_and_changes_no_judgment(captured: Captured) -> None:
    record = captured.record
    facts = DumpFacts(
        tuple(captured.facts),
        record.text_sha256,
        0,
        is_complete=True,
        comparable_sha256=record.comparable_sha256,
    )
    _restored, equal = judge_database(record, captured.tables, facts, EQUAL, SAME, apart="the owner differs")
    assert (equal.status, equal.summary) == (
        CheckStatus.PASSED,
        "2 tables, 3 rows and the schema are equal; the owner differs",
    )


def test_a_file_without_a_comparable_digest_is_compared_by_its_whole_text(captured: Captured) -> None:
    record = captured.record.model_copy(update={"comparable_sha256": ""})
    for text_sha256, status in ((record.text_sha256, CheckStatus.PASSED), ("0" * 64, CheckStatus.FAILED)):
        facts = DumpFacts(tuple(captured.facts), text_sha256, 0, is_complete=True, comparable_sha256="1" * 64)
        assert judge_database(record, captured.tables, facts, EQUAL, SAME)[1].status is status


def test_a_text_that_cannot_be_equal_is_unknown_and_its_rows_still_count(captured: Captured) -> None:
    facts = DumpFacts(tuple(captured.facts), "0" * 64, 0, is_complete=True)
    _restored, equal = judge_database(
        captured.record, captured.tables, facts, EQUAL, SAME, uncompared="2 objects belong to the loader"
    )
    assert (equal.status, equal.summary) == (
        CheckStatus.UNKNOWN,
        "every row is equal; the schema's text is not comparable: 2 objects belong to the loader",
    )
    _restored, equal = judge_database(
        captured.record, captured.tables, facts, ComparedRows(("public.jobs",)), SAME, uncompared="2 objects"
    )
    assert equal.status is CheckStatus.FAILED


def make_table(name: str, rows: int, sha256: str, root: str = "") -> TableEntry:
    return TableEntry(
        schema_name="public",
        name=name,
        columns="(a)",
        expected_rows=rows,
        rows=rows,
        size_bytes=1,
        sha256=sha256,
        root=root,
        offset=0,
        length=1,
    )


def make_facts(*tables: TableEntry, **changes: object) -> list[TableFacts]:
    """Return what a second dump shows of these tables; `changes` apply to each."""
    facts = [
        TableFacts(table.schema_name, table.name, table.columns, table.rows, table.size_bytes, table.sha256)
        for table in tables
    ]
    return [replace(each, **changes) for each in facts]  # type: ignore[arg-type]


class Reader:
    """Answers whether tables hold the same rows in another order, and records the requests."""

    def __init__(self, *, has_same_rows: bool) -> None:
        self.has_same_rows = has_same_rows
        self.asked: list[list[str]] = []

    def __call__(self, tables: Sequence[TableEntry]) -> bool:
        self.asked.append([table.name for table in tables])
        return self.has_same_rows


PLAIN = make_table("jobs", 2, "aa")
HALVES = (make_table("even", 2, "bb", "public.log"), make_table("odd", 3, "cc", "public.log"))


def test_tables_with_equal_digests_are_not_read_again() -> None:
    reader = Reader(has_same_rows=False)
    assert compare_rows([PLAIN, *HALVES], make_facts(PLAIN, *HALVES), reader) == ComparedRows()
    assert reader.asked == []


@pytest.mark.parametrize("is_same", [True, False])
def test_a_table_with_another_digest_is_read_again_as_a_set_of_rows(is_same: bool) -> None:
    reader = Reader(has_same_rows=is_same)
    found = [*make_facts(HALVES[0], HALVES[1]), *make_facts(PLAIN, sha256="dd")]
    assert compare_rows([PLAIN, *HALVES], found, reader) == (
        ComparedRows(reordered_count=1) if is_same else ComparedRows(("public.jobs",))
    )
    assert reader.asked == [["jobs"]]


@pytest.mark.parametrize("is_same", [True, False])
def test_hash_partitions_are_read_again_together(is_same: bool) -> None:
    """On another server, a row may belong to another partition of the same table."""
    reader = Reader(has_same_rows=is_same)
    found = [*make_facts(PLAIN, HALVES[0]), *make_facts(HALVES[1], sha256="dd")]
    assert compare_rows([PLAIN, *HALVES], found, reader) == (
        ComparedRows(reordered_count=2) if is_same else ComparedRows(("public.log",))
    )
    assert reader.asked == [["even", "odd"]]


def test_several_reordered_tables_are_all_counted() -> None:
    other = make_table("users", 1, "ee")
    found = make_facts(PLAIN, other, *HALVES, sha256="dd")
    assert compare_rows([PLAIN, other, *HALVES], found, Reader(has_same_rows=True)) == ComparedRows(
        reordered_count=4
    )


def test_a_table_with_other_columns_differs_whatever_its_rows() -> None:
    reader = Reader(has_same_rows=True)
    assert compare_rows([PLAIN], make_facts(PLAIN, sha256="dd", columns="(b)"), reader) == ComparedRows(
        ("public.jobs",)
    )
    assert reader.asked == []


def test_tables_that_are_missing_or_were_not_captured_differ() -> None:
    extra = make_table("extra", 0, "")
    rows = compare_rows([PLAIN, *HALVES], make_facts(*HALVES, extra), Reader(has_same_rows=True))
    assert rows.differing == ("public.jobs", "public.extra (not in the dump)")


def test_rows_of_hash_partitions_are_counted_together(captured: Captured) -> None:
    moved = [
        replace(facts, rows=facts.rows + change)
        for facts, change in zip(make_facts(*HALVES), (1, -1), strict=True)
    ]
    restored, _equal = judge_database(
        captured.record, HALVES, DumpFacts(tuple(moved), "", 0, is_complete=True), EQUAL, SAME
    )
    assert (restored.status, restored.summary) == (CheckStatus.PASSED, "2 tables with 5 rows are there")
    moved[0] = replace(moved[0], rows=9)
    restored, _equal = judge_database(
        captured.record, HALVES, DumpFacts(tuple(moved), "", 0, is_complete=True), EQUAL, SAME
    )
    assert (restored.status, restored.summary) == (
        CheckStatus.FAILED,
        "row counts differ: public.log (11 instead of 5)",
    )


CAPTURED = DatabaseProperties(owner="app", collate="C.UTF-8", ctype="C.UTF-8")


def test_different_properties_of_the_database_are_named() -> None:
    assert describe_properties(CAPTURED, CAPTURED) == ""
    present = CAPTURED.model_copy(update={"owner": "postgres", "connection_limit": 5})
    assert (
        describe_properties(present, CAPTURED)
        == "the database itself differs: owner postgres instead of app, connection limit 5 instead of -1"
    )


def test_only_the_collation_of_a_drills_database_is_compared() -> None:
    present = CAPTURED.model_copy(update={"owner": "loader"})
    assert (
        describe_collation(present, CAPTURED)
        == "unknown: owner, privileges and settings of the database itself"
    )
    other = CAPTURED.model_copy(update={"collate": "de_DE.UTF-8"})
    assert describe_collation(other, CAPTURED).endswith(
        ", and the order of libc C.UTF-8: it was libc de_DE.UTF-8/C.UTF-8 here"
    )


def test_the_number_of_rows_and_each_of_them_count() -> None:
    assert add_up_rows([]) == (0, 0)
    assert add_up_rows([b"a\n", b"b\n"]) == add_up_rows([b"b", b"\na\n"])
    assert add_up_rows([b"a\na\n"]) != add_up_rows([b"a\n"])
    assert [add_up_rows([b"x\n" * count])[0] for count in (1, 2, 300)] == [1, 2, 300]
