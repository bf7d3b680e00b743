"""Which tables are dumped separately, and where their rows are inserted into the text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.capture.dump_plan import (
    LARGE_TABLE_BYTES,
    choose_separate_tables,
    place_separate_tables,
)
from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_text import Segment, TableEnd, TableStart, Text, split_dump
from schedgen_backups.core.postgres.pg_dump import leave_out_rows, make_pattern
from schedgen_backups.core.postgres.snapshot import TableName
from schedgen_backups_tests.support.artifacts import TableText, cut, make_dump_text

NAMES = tuple(TableName("public", letter) for letter in "abcdef")
SIZES = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 20 * LARGE_TABLE_BYTES), max_size=6)


def flatten(groups: tuple[tuple[TableName, ...], ...]) -> list[TableName]:
    return sorted((table for group in groups for table in group), key=lambda table: table.name)


@given(SIZES, st.integers(1, 5))
def test_separate_tables_are_the_last_large_ones_and_never_all(
    sizes: dict[TableName, int], jobs: int
) -> None:
    large = [table for table in NAMES if sizes.get(table, 0) >= LARGE_TABLE_BYTES]
    groups = choose_separate_tables(sizes, jobs)
    chosen = flatten(groups)
    assert chosen == large[len(large) - len(chosen) :]
    assert len(chosen) < max(1, len(large))
    assert (not chosen) == (jobs == 1 or len(large) <= 1)
    assert len(groups) <= jobs - 1
    assert all(groups)


@given(SIZES)
def test_with_two_jobs_no_other_choice_finishes_earlier(sizes: dict[TableName, int]) -> None:
    chosen = flatten(choose_separate_tables(sizes, 2))
    large = [table for table in NAMES if sizes.get(table, 0) >= LARGE_TABLE_BYTES]
    if not chosen:
        return
    beside = [sum(sizes[table] for table in large[first:]) for first in range(1, len(large))]
    assert max(sum(sizes[t] for t in chosen), sum(sizes.values()) - sum(sizes[t] for t in chosen)) == min(
        max(size, sum(sizes.values()) - size) for size in beside
    )


def test_a_table_named_in_another_alphabet_stays_with_the_rest() -> None:
    sizes = {TableName("public", "a"): LARGE_TABLE_BYTES, TableName("public", "課程"): LARGE_TABLE_BYTES}
    assert choose_separate_tables(sizes, 2) == ()


def test_a_pattern_quotes_the_name() -> None:
    assert make_pattern("two words", 'x".y') == '"two words"."x"".y"'
    assert leave_out_rows([("a", "b")]) == ['--exclude-table-data="a"."b"']


def place(text: bytes, tables: str, beside: str, borders: list[int]) -> bytes:
    """Return the text with each separate table's letter in place of its section."""
    names = [TableName("public", letter) for letter in tables]
    side = [TableName("public", letter) for letter in beside]
    placed = place_separate_tables(split_dump(cut(text, borders)), names, side)
    return b"".join(
        f"<{item.name}>".encode() if isinstance(item, TableName) else item.data for item in placed
    )


@pytest.mark.parametrize(
    "beside", ["".join(names) for size in range(1, 4) for names in itertools.combinations("bcd", size)]
)
def test_each_section_is_where_pg_dump_would_write_it(beside: str) -> None:
    rows = (b"1", b"2")
    whole = make_dump_text([TableText(letter, rows) for letter in "abcd"])
    rest = make_dump_text([TableText(letter, rows) for letter in "abcd" if letter not in beside])
    expected = whole
    for letter in beside:
        start = expected.index(f"--\n-- Data for Name: {letter};".encode())
        end = expected.index(b"\\.\n\n\n", start) + len(b"\\.\n\n\n")
        expected = expected[:start] + f"<{letter}>".encode() + expected[end:]
    for step in (1, 7, len(rest)):
        assert place(rest, "abcd", beside, list(range(step, len(rest), step))) == expected


def test_a_table_whose_neighbor_is_not_in_the_dump_is_an_error() -> None:
    with pytest.raises(DumpError, match=r"no place for the rows of public\.c"):
        place(make_dump_text([TableText("a", (b"1",))]), "abc", "c", [])


def test_text_with_an_unknown_section_end_is_an_error() -> None:
    segments: list[Segment] = [TableStart(b"COPY", "public", "a", ""), TableEnd(b"\\.\n"), Text(b"\n--\n")]
    with pytest.raises(DumpError, match=r"no place for the rows of public\.b") as caught:
        list(place_separate_tables(segments, NAMES[:2], NAMES[1:2]))
    assert "BACKUP_DUMP_JOBS=1" in caught.value.hint
