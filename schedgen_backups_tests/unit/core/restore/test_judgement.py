"""The judgement of a comparison: what counts as restored, as equal and as unknown. How both sides are read is tested with real servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.formats.dump_text import DumpFacts, TableFacts
from schedgen_backups.core.formats.records import DumpRecord, TableEntry
from schedgen_backups.core.restore.comparison import ComparedRows, DumpedBy, add_up_rows, judge_bucket, judge_database
from schedgen_backups_tests.support.artifacts import TableText, cut, write_dump

SAME = DumpedBy("18.6", 18)
EQUAL = ComparedRows()


class Captured:
    """A dump, and the facts of a second one that is equal."""

    def __init__(self, path: Path) -> None:
        dump = write_dump(path, [TableText("jobs", (b"1", b"2")), TableText("users", (b"1",))])
        self.record: DumpRecord = dump.record
        self.tables: tuple[TableEntry, ...] = dump.tables
        self.facts = [TableFacts(table.schema_name, table.name, table.columns, table.rows, table.size_bytes, table.sha256) for table in dump.tables]

    def judge(
        self, rows: ComparedRows = EQUAL, *, text_sha256: str | None = None, dumped_by: DumpedBy = SAME
    ) -> tuple[CheckStatus, CheckStatus, str]:
        comparable_sha256 = text_sha256 or self.record.comparable_sha256
        facts = DumpFacts(tuple(self.facts), text_sha256 or self.record.text_sha256, 0, is_complete=True, comparable_sha256=comparable_sha256)
        restored, equal = judge_database(self.record, self.tables, facts, rows, dumped_by)
        return restored.status, equal.status, f"{restored.summary}; {equal.summary}"


@pytest.fixture
def captured(tmp_path: Path) -> Captured:
    return Captured(tmp_path / "dump.sql.gz")


def test_the_same_rows_and_text_are_equal(captured: Captured) -> None:
    restored, equal, said = captured.judge()
    assert (restored, equal) == (CheckStatus.PASSED, CheckStatus.PASSED)
    assert said == "2 tables with 3 rows are there; 2 tables, 3 rows and the schema are equal"


def test_a_table_that_is_missing_or_has_other_rows_fails_both(captured: Captured) -> None:
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
def test_another_text_by_other_programs_is_unknown_and_never_passed(captured: Captured, dumped_by: DumpedBy) -> None:
    assert captured.judge(text_sha256="0" * 64, dumped_by=dumped_by)[1] is CheckStatus.UNKNOWN
    assert captured.judge(ComparedRows(("public.jobs",)), text_sha256="0" * 64, dumped_by=dumped_by)[1] is CheckStatus.FAILED


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
def test_objects_are_restored_when_they_are_there_and_equal_when_nothing_differs(
    differences: dict[str, str], restored: CheckStatus, equal: CheckStatus
) -> None:
    found = judge_bucket(2, 20, differences, listed_count=5)
    assert tuple(result.status for result in found) == (restored, equal)
    assert {result.figures["other_objects"] for result in found} == {3}
    assert all(f"{key} ({what})" in found[1].summary for key, what in differences.items())


@pytest.mark.parametrize(("differences", "status"), [({}, CheckStatus.UNKNOWN), ({"a": "bytes"}, CheckStatus.FAILED)])
def test_objects_whose_tags_were_never_read_are_not_known_to_be_equal(differences: dict[str, str], status: CheckStatus) -> None:
    restored, equal = judge_bucket(2, 20, differences, listed_count=2, unread_tags_count=1, tags_note="the server refuses access")
    assert (restored.status, equal.status) == (CheckStatus.PASSED, status)
    assert differences or "those of 1 could not be read when they were captured: the server refuses access" in equal.summary


@given(st.lists(st.binary(max_size=9).filter(lambda row: b"\n" not in row), max_size=20), st.randoms(), st.data())
def test_rows_add_up_to_the_same_in_any_order_and_in_any_pieces(rows: list[bytes], random: object, data: st.DataObject) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    text, other = (b"".join(row + b"\n" for row in some) for some in (rows, shuffled))
    borders = data.draw(st.lists(st.integers(0, len(other)), max_size=5).map(sorted))
    assert add_up_rows([text]) == add_up_rows(cut(other, borders))
    assert add_up_rows([text])[0] == len(rows)
    assert add_up_rows([text]) != add_up_rows([text + b"one more\n"])
