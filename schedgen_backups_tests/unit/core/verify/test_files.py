"""The record of an archive is compared with its content, on small files made without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter
from schedgen_backups.core.formats.dump_file import DumpFileWriter
from schedgen_backups.core.formats.dump_text import TableFacts
from schedgen_backups.core.formats.gzip_members import packed_footer_member, read_footer
from schedgen_backups.core.formats.records import ExcludedTable, MissedObject
from schedgen_backups.core.formats.tar_member import pack_object
from schedgen_backups.core.verify.files import (
    verify_archive,
    verify_dump,
    verify_dump_against_snapshot,
    verify_every_object,
)
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    TableText,
    get_status,
    get_summary,
    make_dump_text,
    make_entry,
    make_record,
    write_dump,
    write_dump_text,
)


def write_archive(path: Path, **more: int) -> None:
    """Write an archive of two objects whose record counts this many more.

    One object is unproven and has unknown tags.
    """
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer,
    ):
        writer.add_packed(pack_object(make_entry("a", b"1"), b"1"))
        writer.add_packed(
            pack_object(make_entry("b", b"22", unproven="no checksum", tags_note="refused"), b"22")
        )
        record = make_record(writer)
        writer.finish(
            record.model_copy(update={name: getattr(record, name) + count for name, count in more.items()})
        )


def test_an_archive_that_matches_its_record_is_readable(tmp_path: Path) -> None:
    write_archive(tmp_path / ARCHIVE_NAME)
    results = verify_archive(tmp_path / ARCHIVE_NAME)
    assert [result.status for result in results] == [CheckStatus.PASSED, CheckStatus.PASSED]
    assert get_summary(results, Check.ARCHIVE_IS_READABLE) == "2 objects with 3 bytes, each as captured"
    assert get_summary(results, Check.ARCHIVE_IS_STORED) == f"{ARCHIVE_NAME} is unchanged"
    every = verify_every_object(tmp_path / ARCHIVE_NAME)
    assert every.is_passed
    assert (
        every.summary
        == "2 of 2 listed objects, 0 deleted meanwhile; 1 could not be compared with a checksum of the "
        "server; the tags of 1 could not be read"
    )


@pytest.mark.parametrize("count", [-1, 1])
@pytest.mark.parametrize("name", ["object_count", "size_bytes", "unproven_count", "unread_tags_count"])
def test_an_archive_that_does_not_match_its_record_fails(tmp_path: Path, name: str, count: int) -> None:
    """Its bytes are as they were written: only the count is wrong."""
    write_archive(tmp_path / ARCHIVE_NAME, **{name: count})
    results = verify_archive(tmp_path / ARCHIVE_NAME)
    assert get_status(results, Check.ARCHIVE_IS_READABLE) is CheckStatus.FAILED
    said = (
        "1 object whose tags"
        if name == "unread_tags_count"
        else "2 objects with 3 bytes, 1 of them unproven, but the record states other numbers"
    )
    assert said in get_summary(results, Check.ARCHIVE_IS_READABLE)
    assert get_status(results, Check.ARCHIVE_IS_STORED) is CheckStatus.PASSED


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"listed_count": 1}, CheckStatus.FAILED),
        ({"listed_count": -1}, CheckStatus.FAILED),
        ({"deleted_count": 1}, CheckStatus.FAILED),
        ({"failed_count": 1}, CheckStatus.FAILED),
        ({"listed_count": 1, "deleted_count": 1}, CheckStatus.PASSED),
    ],
    ids=["one more listed", "one fewer listed", "one more deleted", "one not read", "one listed and deleted"],
)
def test_every_listed_object_is_archived_or_was_deleted(
    tmp_path: Path, more: dict[str, int], status: CheckStatus
) -> None:
    write_archive(tmp_path / ARCHIVE_NAME, **more)
    assert verify_every_object(tmp_path / ARCHIVE_NAME).status is status


def test_figures_of_an_archive_are_those_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path)
    stored, readable = verify_archive(path)
    assert (stored.figures, readable.figures) == (
        {"file_bytes": path.stat().st_size},
        {"objects": 2, "size_bytes": 3},
    )
    assert verify_every_object(path).figures == {
        "objects": 2,
        "changed": 0,
        "deleted": 0,
        "reused": 0,
        "unproven": 1,
        "unread_tags": 1,
    }


@pytest.mark.parametrize("name", ["20261121_020000", "another"])
@pytest.mark.parametrize("kind", ["dump", "archive"])
def test_a_file_named_for_another_point_or_source_fails(tmp_path: Path, kind: str, name: str) -> None:
    point_id, source = (name, "schedgen") if name[0] == "2" else ("20261122_020000", name)
    if kind == "dump":
        path = tmp_path / f"db_{source}_{point_id}.sql.gz"
        write_dump(path, [TableText("jobs", (b"1",))])
        results, check = verify_dump(path), Check.DUMP_IS_COMPLETE
    else:
        path = tmp_path / f"minio_{source}_{point_id}.tar.gz"
        write_archive(path)
        results, check = verify_archive(path), Check.ARCHIVE_IS_READABLE
    assert get_status(results, check) is CheckStatus.FAILED
    assert get_summary(results, check).endswith("the file was exchanged or renamed")


TABLES = [TableText("jobs", (b"1", b"2")), TableText("users", (b"3",))]
TEXT = make_dump_text(TABLES)


Positions = list[tuple[TableFacts, Any]]


def write_crafted_dump(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Positions], object], **record: object
) -> None:
    """Write a dump whose index or record contradicts its content.

    Creating it takes the ability to write a footer.
    """
    finish = DumpFileWriter.finish

    def craft(writer: DumpFileWriter, *arguments: Any) -> Any:
        change(writer._positions)
        return finish(writer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DumpFileWriter, "finish", craft)
        write_dump_text(path, TEXT, **record)  # type: ignore[arg-type]


def find_complaint(path: Path) -> str:
    """Return the error found in a dump with intact bytes; empty if there is none."""
    results = verify_dump(path)
    assert get_status(results, Check.DUMP_IS_STORED) is CheckStatus.PASSED
    is_complete = get_status(results, Check.DUMP_IS_COMPLETE) is CheckStatus.PASSED
    return "" if is_complete else get_summary(results, Check.DUMP_IS_COMPLETE)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "change",
    [{"schema_name": "other"}, {"name": "other"}, {"rows": 7}, {"size_bytes": 1}, {"sha256": "0" * 64}],
    ids=str,
)
def test_a_table_that_does_not_match_the_index_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, change: dict[str, Any]
) -> None:
    def alter(positions: Positions) -> None:
        facts, position = positions[number]
        positions[number] = replace(facts, **change), position

    path = tmp_path / DUMP_NAME
    write_crafted_dump(path, monkeypatch, alter)
    named = {"schema_name": f"other.{TABLES[number].name}", "name": "public.other"}.get(
        next(iter(change)), f"public.{TABLES[number].name}"
    )
    assert find_complaint(path).endswith(f"tables differ from the index: {named}")


def test_a_table_missing_in_the_index_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / DUMP_NAME
    write_crafted_dump(path, monkeypatch, lambda positions: positions.pop())
    assert find_complaint(path).endswith("tables differ from the index: their number differs")


@pytest.mark.parametrize(
    "record", [{"text_sha256": "0" * 64}, {"size_bytes": len(TEXT) + 1}], ids=["text", "size"]
)
def test_a_schema_that_does_not_match_the_record_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, object]
) -> None:
    path = tmp_path / DUMP_NAME
    write_crafted_dump(path, monkeypatch, lambda _positions: None, **record)
    assert find_complaint(path).endswith("the schema differs from what was captured")


@pytest.mark.parametrize(
    ("number", "move", "is_right"),
    [
        (0, {}, True),
        (1, {"offset": -100, "end": -100}, False),
        (0, {"end": 100}, False),
        (1, {"end": 1000}, False),
        (1, {"offset": 1000, "end": 1000}, False),
    ],
    ids=["right", "within the one before", "beyond the next one", "beyond the dump", "behind the dump"],
)
def test_tables_are_adjacent_within_the_dump(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    move: dict[str, int],
    is_right: bool,
) -> None:
    def misplace(positions: Positions) -> None:
        _facts, position = positions[number]
        position.offset += move.get("offset", 0)
        position.end += move.get("end", 0)

    path = tmp_path / DUMP_NAME
    write_crafted_dump(path, monkeypatch, misplace)
    assert (find_complaint(path) == "") is is_right
    assert is_right or find_complaint(path).endswith("is not where the index says")


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        ({"jobs": 2, "users": 1}, "2 tables with 3 rows as counted in the snapshot"),
        ({"jobs": 2}, "1 table with 2 rows as counted in the snapshot"),
        (
            {"jobs": 3, "users": 2},
            "tables have other row counts than the snapshot: public.jobs (2 of 3), public.users (1 of 2)",
        ),
        ({"jobs": 2, "users": 1, "gone": 0}, "tables of the snapshot are missing: public.gone"),
    ],
)
def test_a_dump_has_the_row_counts_of_the_snapshot(
    tmp_path: Path, counted: dict[str, int], said: str
) -> None:
    """A table that was not counted, such as an extension's, is not checked."""
    path = tmp_path / DUMP_NAME
    write_dump_text(path, TEXT, {("public", name): count for name, count in counted.items()})
    result = verify_dump_against_snapshot(path)
    assert result.summary.endswith(said)
    assert result.is_passed is ("as counted" in said)
    assert result.figures == (
        {"tables": len(counted), "rows": sum(counted.values())} if result.is_passed else {}
    )


def test_rows_that_should_be_excluded_fail_the_dump(tmp_path: Path) -> None:
    """A pg_dump that ignores the option might write them."""
    path = tmp_path / DUMP_NAME
    jobs, gone = (ExcludedTable(schema_name="public", name=name) for name in ("jobs", "log"))
    write_dump_text(path, TEXT, {("public", "users"): 1}, excluded_tables=(jobs, gone))
    result = verify_dump_against_snapshot(path)
    assert (result.status, "rows that should be excluded: public.jobs" in result.summary) == (
        CheckStatus.FAILED,
        True,
    )
    write_dump_text(path, TEXT, {("public", "users"): 1}, excluded_tables=(gone,))
    assert verify_dump_against_snapshot(path).summary.endswith("left out: the rows of public.log")


def test_objects_that_could_not_be_read_are_named_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=1, folder=tmp_path) as writer,
    ):
        failed = (MissedObject(key="a.pdf", reason="denied"), MissedObject(key="b.pdf", reason="timed out"))
        writer.finish(make_record(writer).model_copy(update={"failed_count": 2, "failed": failed}))
    result = verify_every_object(path)
    assert (result.status, result.summary.partition(": ")[2]) == (
        CheckStatus.FAILED,
        "2 objects could not be read: a.pdf: denied; b.pdf: timed out",
    )


def put_packed_footer(path: Path) -> None:
    """End the archive as one in packs does: with a digest of its index only."""
    data = path.read_bytes()
    with path.open("rb") as file:
        footer = read_footer(file)
    index = data[footer.index_offset : footer.footer_offset]
    end = packed_footer_member(footer.index_offset, hashlib.sha256(index).digest())
    path.write_bytes(data[: footer.footer_offset] + end)


def test_a_footer_of_packs_spares_no_file_the_comparison_with_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path)
    committed = hashlib.sha256(path.read_bytes()).hexdigest()
    put_packed_footer(path)
    assert [result.status for result in verify_archive(path)] == [CheckStatus.PASSED, CheckStatus.PASSED]
    results = verify_archive(path, expected_sha256=committed)
    assert get_status(results, Check.ARCHIVE_IS_STORED) is CheckStatus.FAILED
    assert "it was exchanged" in get_summary(results, Check.ARCHIVE_IS_STORED)


def test_an_altered_index_of_packs_is_found(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path)
    with path.open("rb") as file:
        place = read_footer(file).index_offset
    put_packed_footer(path)
    data = bytearray(path.read_bytes())
    # The time in the header of a gzip member: it unpacks to the same.
    data[place + 4] ^= 1
    path.write_bytes(data)
    results = verify_archive(path)
    assert get_status(results, Check.ARCHIVE_IS_READABLE) is CheckStatus.PASSED
    assert "the index of" in get_summary(results, Check.ARCHIVE_IS_STORED)
