"""Tables in the UI: complete, in order, and with all text escaped for Markdown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import COMMIT_CHECKS, CheckStatus, Verification
from schedgen_backups.core.catalog.pins import Pin, remove_pin, write_pin
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.monitoring.markdown import (
    describe_points,
    make_levels_table,
    make_list,
    make_overview,
    make_tables_table,
)
from schedgen_backups_tests.support.artifacts import DUMP_NAME, TAKEN_AT, TableText, make_result, write_dump
from schedgen_backups_tests.support.histories import add_point, name_night

NOW = TAKEN_AT + timedelta(days=60)


def read_rows(table: str) -> list[list[str]]:
    """Return the cells below the header and its rule."""
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()[2:]]


def make_catalog(folder: Path) -> Catalog:
    catalog = Catalog(folder / "backups")
    catalog.prepare()
    return catalog


def test_points_are_listed_newest_first_with_their_details(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    for day, state in ((0, PointState.VERIFIED), (1, PointState.FAILED), (2, PointState.PARTIAL)):
        add_point(catalog, name_night(day), state)
    write_pin(catalog, Pin(point_id=name_night(0).text, reason="<b>asked|for</b>", pinned_at=TAKEN_AT))
    rows = read_rows(make_overview(catalog, NOW))
    assert [row[0].replace("\\", "") for row in rows] == [name_night(day).text for day in (2, 1, 0)]
    assert [row[1] for row in rows] == ["partial", "failed", "verified"]
    assert [row[3] for row in rows] == [
        f"{days}\N{NO-BREAK SPACE}d\N{NO-BREAK SPACE}0\N{NO-BREAK SPACE}h" for days in (58, 59, 60)
    ]
    assert "pinned: \\<b\\>asked\\|for\\</b\\>" in rows[2][5]
    assert "read 60 d 0 h ago" in rows[2][5]


def test_only_the_newest_fifty_of_many_points_are_listed(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    for day in range(52):
        add_point(catalog, name_night(day), PointState.PARTIAL)
    rows = read_rows(make_overview(catalog, NOW))
    assert (len(rows), rows[-1][0], rows[0][0].replace("\\", "")) == (51, "2 more", name_night(51).text)


def test_an_empty_or_missing_directory_is_an_empty_table(tmp_path: Path) -> None:
    assert read_rows(make_overview(Catalog(tmp_path / "missing"), NOW)) == []
    assert describe_points(Catalog(tmp_path / "missing")) == describe_points(make_catalog(tmp_path))


def test_a_changed_line_of_the_overview_is_noticed(tmp_path: Path) -> None:
    """Changed ages do not count: they change at every evaluation."""
    catalog = make_catalog(tmp_path)
    seen = {describe_points(catalog)}
    add_point(catalog, name_night(0))
    seen.add(describe_points(catalog))
    assert describe_points(catalog) in seen
    write_pin(catalog, Pin(point_id=name_night(0).text, reason="x", pinned_at=TAKEN_AT))
    seen.add(describe_points(catalog))
    remove_pin(catalog, name_night(0))
    catalog.record_results(name_night(0), (make_result(COMMIT_CHECKS[0], CheckStatus.FAILED),))
    seen.add(describe_points(catalog))
    assert len(seen) == 4


def test_levels_are_listed_lowest_first() -> None:
    verification = Verification(point_id="x", results=tuple(make_result(check) for check in COMMIT_CHECKS))
    assert read_rows(make_levels_table(verification)) == [
        *(
            ["stored", "passed", "2026-11-22 02:00:00"],
            ["parsed", "passed", "2026-11-22 02:00:00"],
            ["coherent", "passed", "2026-11-22 02:00:00"],
        ),
        *(["restored", "unknown", "-"], ["equal", "unknown", "-"]),
    ]


def test_the_largest_tables_are_first_and_names_are_text(tmp_path: Path) -> None:
    path = tmp_path / DUMP_NAME
    write_dump(path, [TableText("small", (b"1",)), TableText("[x](http://y) | `z`", (b"1" * 50, b"2" * 50))])
    with open_dump(path) as dump:
        rows = read_rows(make_tables_table(dump.tables))
    assert rows == [["public.\\[x\\]\\(http://y\\) \\| \\`z\\`", "2", "102 B"], ["public.small", "1", "2 B"]]


def test_a_list_entry_stays_one_line() -> None:
    assert make_list(["a\n- b", "*c*"]) == "- a - b\n- \\*c\\*"
