"""Which rows are restored and in which order, as decided before anything is written.

The integration tests write rows on real servers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.restore.table_diff import TableShape, as_condition
from schedgen_backups.core.restore.table_write import WriteMode, check_shape, make_insert, sort_parents_first

KEYED = TableShape(columns=("id", "a", "number"), key=("id",), is_there=True, generated_always=("number",))
INSERT = (
    'INSERT INTO "public"."Jobs" AS live ("id", "a", "number") OVERRIDING SYSTEM VALUE'
    ' SELECT "rows"."id", "rows"."a", "rows"."number" FROM schedgen_backups_rows AS rows'
)


def make_table(name: str) -> TableEntry:
    return TableEntry(
        schema_name="public",
        name=name,
        columns="",
        expected_rows=1,
        rows=1,
        size_bytes=1,
        sha256="",
        offset=0,
        length=1,
    )


def write(shape: TableShape, mode: WriteMode) -> str:
    return make_insert(make_table("Jobs"), shape, mode).as_string()


def test_missing_rows_are_inserted_without_touching_existing_ones() -> None:
    assert write(KEYED, WriteMode.MISSING) == f'{INSERT} ON CONFLICT ("id") DO NOTHING'


def test_changed_rows_get_every_settable_column_and_only_where_they_differ() -> None:
    """Neither the key nor a column that PostgreSQL numbers itself can be set."""
    live, captured = (
        '"live"."id", "live"."a", "live"."number"',
        '"excluded"."id", "excluded"."a", "excluded"."number"',
    )
    assert write(KEYED, WriteMode.CHANGED) == (
        f'{INSERT} ON CONFLICT ("id") DO UPDATE SET "a" = EXCLUDED."a" WHERE ROW({live})::text IS DISTINCT '
        f"FROM ROW({captured})::text"
    )
    several = write(replace(KEYED, generated_always=()), WriteMode.CHANGED)
    assert 'DO UPDATE SET "a" = EXCLUDED."a", "number" = EXCLUDED."number" WHERE' in several


def test_a_row_of_only_its_key_cannot_have_changed() -> None:
    shape = TableShape(columns=("id", "kind"), key=("id", "kind"), is_there=True)
    assert write(shape, WriteMode.CHANGED).endswith(' ON CONFLICT ("id", "kind") DO NOTHING')


def test_without_a_key_a_row_is_missing_if_no_equal_one_exists() -> None:
    there, row = '"other"."id", "other"."a", "other"."number"', '"rows"."id", "rows"."a", "rows"."number"'
    assert write(replace(KEYED, key=()), WriteMode.MISSING) == (
        f'{INSERT} WHERE NOT EXISTS (SELECT FROM "public"."Jobs" AS other WHERE ROW({there})::text = '
        f"ROW({row})::text)"
    )


@pytest.mark.parametrize(
    ("shape", "mode", "refusal"),
    [
        (KEYED, WriteMode.CHANGED, ""),
        (KEYED, WriteMode.MISSING, ""),
        (replace(KEYED, key=()), WriteMode.MISSING, ""),
        (replace(KEYED, key=()), WriteMode.CHANGED, "public.Jobs has no primary key in the live database"),
        (replace(KEYED, is_there=False), WriteMode.MISSING, "the live database has no table public.Jobs"),
    ],
    ids=["changed", "missing", "missing without key", "changed without key", "no table"],
)
def test_a_table_that_cannot_take_the_rows_is_refused_before_anything_is_written(
    shape: TableShape, mode: WriteMode, refusal: str
) -> None:
    if not refusal:
        check_shape(make_table("Jobs"), shape, mode)
        return
    with pytest.raises(RestoreError, match=refusal):
        check_shape(make_table("Jobs"), shape, mode)


def name(table: str, schema: str = "public") -> tuple[str, str]:
    return schema, table


def test_parents_come_before_their_children() -> None:
    tables = [make_table(each) for each in ("items", "orders", "customers", "log")]
    pairs = [
        (name("items"), name("orders")),
        (name("orders"), name("customers")),
        (name("customers"), name("customers")),
    ]
    order = [
        table.name
        for table in sort_parents_first(
            tables, [*pairs, (name("orders", "other"), name("log")), (name("items"), name("gone"))]
        )
    ]
    assert sorted(order) == ["customers", "items", "log", "orders"]
    assert order.index("customers") < order.index("orders") < order.index("items")


def test_a_foreign_key_of_another_schema_orders_nothing() -> None:
    tables = [make_table("a"), make_table("b")]
    assert [table.name for table in sort_parents_first(tables, [(name("a", "x"), name("b", "x"))])] == [
        "a",
        "b",
    ]


def test_tables_in_a_circle_stay_in_the_order_of_the_dump() -> None:
    tables = [make_table(each) for each in ("b", "a", "c")]
    circle = [(name("a"), name("b")), (name("b"), name("a"))]
    assert sort_parents_first(tables, circle) == tables


def test_a_condition_is_used_as_written_and_none_selects_every_row() -> None:
    assert as_condition("a > 1 AND b = '%'").as_string() == "a > 1 AND b = '%'"
    assert as_condition("").as_string() == "true"
