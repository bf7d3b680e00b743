"""What two tables share, by their columns alone: compared columns, their key, and notes on the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.restore.table_diff import Column, ColumnKind, derive_shape

A, B, C = (Column(name) for name in "abc")
COLUMNS = st.lists(
    st.builds(Column, st.sampled_from("abcdef"), st.sampled_from(ColumnKind)),
    max_size=6,
    unique_by=lambda column: column.name,
)


def test_shared_columns_are_compared_in_the_captured_order() -> None:
    shape = derive_shape([B, A, C], [A, B, C], ["a"], is_there=True)
    assert (shape.columns, shape.key, shape.only_captured, shape.only_live) == (
        ("b", "a", "c"),
        ("a",),
        (),
        (),
    )


def test_columns_of_one_side_are_named_and_not_compared() -> None:
    shape = derive_shape([A, B], [A, C], ["a"], is_there=True)
    assert (shape.columns, shape.only_captured, shape.only_live) == (("a",), ("b",), ("c",))


def test_a_column_that_is_generated_on_either_side_is_not_compared() -> None:
    generated = Column("b", ColumnKind.GENERATED)
    assert derive_shape([A, B], [A, generated], [], is_there=True).columns == ("a",)
    assert derive_shape([A, generated], [A, B], [], is_there=True).columns == ("a",)
    assert derive_shape([A, generated], [A, B], [], is_there=True).only_captured == ()


def test_a_partly_captured_key_is_not_a_key() -> None:
    assert derive_shape([A, B], [A, B, C], ["a", "c"], is_there=True).key == ()
    assert derive_shape([A, B], [A, B, C], ["b", "a"], is_there=True).key == ("b", "a")


def test_identity_columns_of_the_live_table_are_named() -> None:
    always = Column("a", ColumnKind.ALWAYS)
    assert derive_shape([A], [always], ["a"], is_there=True).generated_always == ("a",)
    assert derive_shape([always], [A], ["a"], is_there=True).generated_always == ()


def test_a_dropped_table_shares_nothing() -> None:
    shape = derive_shape([A, B], [], [], is_there=False)
    assert (shape.is_there, shape.columns, shape.only_captured) == (False, (), ("a", "b"))


@given(COLUMNS, COLUMNS, st.lists(st.sampled_from("abcdef"), max_size=3, unique=True))
def test_every_column_is_compared_generated_or_named(
    captured: list[Column], current: list[Column], key: list[str]
) -> None:
    shape = derive_shape(captured, current, key, is_there=True)
    generated = {column.name for column in (*captured, *current) if column.kind is ColumnKind.GENERATED}
    assert set(shape.columns) | set(shape.only_captured) | generated >= {column.name for column in captured}
    assert set(shape.columns) | set(shape.only_live) | generated >= {column.name for column in current}
    assert not set(shape.columns) & (generated | set(shape.only_captured) | set(shape.only_live))
    assert set(shape.key) <= set(shape.columns)
