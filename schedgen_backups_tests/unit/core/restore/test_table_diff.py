"""How the rows of two tables differ, from both sides' rows in key order, and how that is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.restore.table_diff import (
    TableDiff,
    TableShape,
    describe_rows,
    diffs_to_json,
    merge_rows,
)

TABLE = TableEntry(
    schema_name="public",
    name="jobs",
    columns="(id, a)",
    expected_rows=1,
    rows=1,
    size_bytes=1,
    sha256="",
    offset=0,
    length=1,
)
KEYED = TableShape(columns=("id", "a"), key=("id",), is_there=True)
KEYLESS = replace(KEYED, key=())
Rows = list[tuple[str, str]]


def merge(left: Rows, right: Rows, shape: TableShape = KEYED) -> TableDiff:
    return merge_rows(TABLE, shape, iter(left), iter(right))


def count(diff: TableDiff) -> tuple[int, int, int, int]:
    return diff.only_captured, diff.only_live, diff.changed, diff.same


def test_rows_are_paired_by_their_keys() -> None:
    diff = merge(
        [("[1]", "a"), ("[2]", "b"), ("[4]", "d"), ("[5]", "e")],
        [("[2]", "b"), ("[3]", "c"), ("[5]", "x"), ("[6]", "f")],
    )
    assert (diff.table, diff.shape, count(diff)) == (TABLE, KEYED, (2, 2, 1, 1))
    assert (diff.only_captured_keys, diff.only_live_keys, diff.changed_keys) == (
        ("[1]", "[4]"),
        ("[3]", "[6]"),
        ("[5]",),
    )
    assert not diff.is_equal


def test_rows_without_a_key_are_counted_as_wholes() -> None:
    diff = merge(
        [("a", "a"), ("a", "a"), ("a", "a"), ("b", "b")],
        [("a", "a"), ("b", "b"), ("b", "b"), ("c", "c")],
        KEYLESS,
    )
    assert count(diff) == (2, 2, 0, 2)
    assert (diff.only_captured_keys, diff.only_live_keys, diff.changed_keys) == ((), (), ())


@pytest.mark.parametrize("shape", [KEYED, KEYLESS], ids=["keyed", "keyless"])
@pytest.mark.parametrize(
    ("left", "right", "counts"),
    [(1, 0, (1, 0, 0, 0)), (0, 1, (0, 1, 0, 0)), (1, 1, (0, 0, 0, 1)), (0, 0, (0, 0, 0, 0))],
)
def test_one_row_on_either_side_makes_a_difference(
    shape: TableShape, left: int, right: int, counts: tuple[int, int, int, int]
) -> None:
    diff = merge([("[1]", "a")] * left, [("[1]", "a")] * right, shape)
    assert count(diff) == counts
    assert diff.is_equal is (left == right)


def test_a_changed_row_is_a_difference_though_none_is_missing() -> None:
    diff = merge([("[1]", "a")], [("[1]", "b")])
    assert (count(diff), diff.is_equal) == ((0, 0, 1, 0), False)


def test_ten_keys_of_each_kind_are_named_and_all_are_counted() -> None:
    keys = [f"[{number}]" for number in range(10, 22)]
    diff = merge([(key, "a") for key in keys], [(key, "b") for key in keys])
    assert (diff.changed, diff.changed_keys) == (12, tuple(keys[:10]))
    assert describe_rows(diff) == f"changed: {', '.join(keys[:10])} …"


@given(
    st.dictionaries(st.text("ab<\U0001f600", max_size=3), st.sampled_from("xy")),
    st.dictionaries(st.text("ab<\U0001f600", max_size=3), st.sampled_from("xy")),
)
def test_every_row_of_both_sides_counts_once(left: dict[str, str], right: dict[str, str]) -> None:
    diff = merge(sorted(left.items()), sorted(right.items()))
    both = left.keys() & right.keys()
    assert count(diff) == (
        len(left) - len(both),
        len(right) - len(both),
        sum(left[key] != right[key] for key in both),
        sum(left[key] == right[key] for key in both),
    )


def test_differences_are_named_in_words_and_counted_in_json() -> None:
    diff = merge([("[1]", "a"), ("[2]", "b"), ("[3]", "c")], [("[2]", "x"), ("[3]", "c"), ("[4]", "d")])
    said = "only in backup: [1]; only live: [4]; changed: [2]"
    assert describe_rows(diff) == said
    assert diffs_to_json([diff]) == [
        {
            "table": "public.jobs",
            "only_in_backup": 1,
            "only_live": 1,
            "changed": 1,
            "same": 1,
            "changed_rows": [],
            "note": said,
        }
    ]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (KEYED, ""),
        (KEYLESS, "no primary key: complete rows are compared"),
        (replace(KEYLESS, is_there=False, only_captured=("id", "a")), "the live database has no such table"),
        (
            replace(KEYED, only_captured=("b", "c"), only_live=("d",)),
            (
                "columns that only the backup has are not compared: b, c; columns that only the live table "
                "has are not compared: d"
            ),
        ),
    ],
    ids=["equal", "no key", "no table", "columns"],
)
def test_limits_of_the_comparison_are_reported(shape: TableShape, said: str) -> None:
    assert describe_rows(merge([], [], shape)) == said
