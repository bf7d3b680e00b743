"""The record of an archive is held against what is in it, on small files made without a server."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import pytest

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.formats.archive_file import ArchiveFileWriter
from schedgen_backups.core.formats.tar_member import pack_object
from schedgen_backups.core.verify.files import verify_archive, verify_dump, verify_every_object
from schedgen_backups_tests.support.artifacts import ARCHIVE_NAME, TableText, get_status, get_summary, make_entry, make_record, write_dump


def write_archive(path: Path, **more: int) -> None:
    """Write an archive of two objects, one of them unproven and with unknown tags, whose record counts so many more than there are."""
    with path.open("w+b") as file, ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer:
        writer.add_packed(pack_object(make_entry("a", b"1"), b"1"))
        writer.add_packed(pack_object(make_entry("b", b"22", unproven="no checksum", tags_note="refused"), b"22"))
        record = make_record(writer)
        writer.finish(record.model_copy(update={name: getattr(record, name) + count for name, count in more.items()}))


def test_an_archive_that_holds_what_its_record_says_is_readable(tmp_path: Path) -> None:
    write_archive(tmp_path / ARCHIVE_NAME)
    results = verify_archive(tmp_path / ARCHIVE_NAME)
    assert [result.status for result in results] == [CheckStatus.PASSED, CheckStatus.PASSED]
    assert get_summary(results, Check.ARCHIVE_IS_READABLE) == "2 objects with 3 bytes, each as captured"
    assert verify_every_object(tmp_path / ARCHIVE_NAME).is_passed


@pytest.mark.parametrize("count", [-1, 1])
@pytest.mark.parametrize("name", ["object_count", "size_bytes", "unproven_count", "unread_tags_count"])
def test_an_archive_that_holds_something_else_than_its_record_says_fails(tmp_path: Path, name: str, count: int) -> None:
    """Its bytes are as they were written: only the count is wrong."""
    write_archive(tmp_path / ARCHIVE_NAME, **{name: count})
    results = verify_archive(tmp_path / ARCHIVE_NAME)
    assert get_status(results, Check.ARCHIVE_IS_READABLE) is CheckStatus.FAILED
    said = "1 objects whose tags" if name == "unread_tags_count" else "2 objects with 3 bytes, 1 of them unproven, the record says otherwise"
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
def test_every_listed_object_is_archived_or_was_deleted(tmp_path: Path, more: dict[str, int], status: CheckStatus) -> None:
    write_archive(tmp_path / ARCHIVE_NAME, **more)
    assert verify_every_object(tmp_path / ARCHIVE_NAME).status is status


def test_figures_of_an_archive_are_those_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path)
    stored, readable = verify_archive(path)
    assert (stored.figures, readable.figures) == ({"file_bytes": path.stat().st_size}, {"objects": 2, "size_bytes": 3})
    assert verify_every_object(path).figures == {"objects": 2, "changed": 0, "deleted": 0, "reused": 0, "unproven": 1, "unread_tags": 1}


@pytest.mark.parametrize("name", ["20261121_020000", "another"])
@pytest.mark.parametrize("kind", ["dump", "archive"])
def test_a_file_under_the_name_of_another_point_or_source_fails(tmp_path: Path, kind: str, name: str) -> None:
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
