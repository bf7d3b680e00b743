"""Which tables and objects a selection names, and which files of a point they are read from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.objects import (
    ObjectDifference,
    ObjectStanding,
    check_archive_belongs,
    objects_to_json,
    select_keys,
    select_objects,
)
from schedgen_backups.core.restore.tables import check_dump_belongs, list_texts, select_tables
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_HEAD,
    DUMP_NAME,
    POINT,
    TableText,
    make_entry,
    write_archive,
    write_dump,
)

KEYS = ("a.pdf", "jobs/1.pdf", "jobs/2.pdf", "jobs/deep/3.pdf", "x[1].pdf")
OTHER = RecoveryPointId.from_time(datetime(2026, 11, 23, 2, tzinfo=timezone.utc))


@pytest.fixture
def dump(tmp_path: Path) -> Iterator[DumpFile]:
    tables = [
        TableText("jobs", (b"1", b"2")),
        TableText("users", (b"3",)),
        TableText("jobs", (b"4",), schema_name="archive"),
    ]
    write_dump(tmp_path / DUMP_NAME, tables)
    with open_dump(tmp_path / DUMP_NAME) as dump:
        yield dump


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[ArchiveFile]:
    write_archive(tmp_path / ARCHIVE_NAME, [(make_entry(key, b"body"), b"body") for key in KEYS])
    with open_archive(tmp_path / ARCHIVE_NAME) as archive:
        yield archive


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("users",), ["public.users"]),
        (("jobs",), ["public.jobs", "archive.jobs"]),
        (("archive.jobs",), ["archive.jobs"]),
        (("users", "jobs"), ["public.jobs", "public.users", "archive.jobs"]),
        (("public.*",), ["public.jobs", "public.users"]),
        (("*",), ["public.jobs", "public.users", "archive.jobs"]),
        (("public.jobs", "jobs"), ["public.jobs", "archive.jobs"]),
    ],
)
def test_tables_are_selected_by_name_schema_and_glob_in_dump_order(
    dump: DumpFile, names: tuple[str, ...], chosen: list[str]
) -> None:
    assert [table.qualified_name for table in select_tables(dump, names)] == chosen


def test_every_name_that_matches_no_table_is_reported(dump: DumpFile) -> None:
    with pytest.raises(RestoreError, match=r"no rows of JOBS, logs$"):
        select_tables(dump, ("users", "logs", "JOBS", "public.*"))


@pytest.mark.parametrize(
    ("patterns", "keys"),
    [
        (("a.pdf",), ["a.pdf"]),
        (("jobs/",), ["jobs/1.pdf", "jobs/2.pdf", "jobs/deep/3.pdf"]),
        (("jobs/?.pdf", "a.pdf"), ["a.pdf", "jobs/1.pdf", "jobs/2.pdf"]),
        (("jobs/deep/", "jobs/1.pdf"), ["jobs/1.pdf", "jobs/deep/3.pdf"]),
        (("*.pdf",), list(KEYS)),
        (("x[1].pdf",), ["x[1].pdf"]),
        (("x[[]1].pdf",), ["x[1].pdf"]),
    ],
)
def test_objects_are_selected_by_key_prefix_and_glob_in_archive_order(
    archive: ArchiveFile, patterns: tuple[str, ...], keys: list[str]
) -> None:
    assert [entry.key for entry in select_objects(archive, patterns)] == keys


def test_every_pattern_that_matches_no_object_is_reported(archive: ArchiveFile) -> None:
    """The beginning of a key is not a prefix without its slash, and upper case is another key."""
    with pytest.raises(RestoreError, match=r"no object for 'A\.pdf', 'b\.pdf', 'jobs', 'jobs/1'$"):
        select_objects(archive, ("a.pdf", "jobs", "b.pdf", "jobs/1", "A.pdf"))


def test_keys_of_rows_are_not_patterns(archive: ArchiveFile) -> None:
    chosen, lost = select_keys(archive, ("x[1].pdf", "*", "jobs/", "a.pdf"))
    assert ([entry.key for entry in chosen], lost) == (["a.pdf", "x[1].pdf"], ("*", "jobs/"))


def test_files_of_another_point_are_refused(archive: ArchiveFile, dump: DumpFile) -> None:
    check_archive_belongs(archive, RecoveryPointId(POINT))
    check_dump_belongs(dump, RecoveryPointId(POINT))
    with pytest.raises(VerificationError, match=f"recovery point {POINT}, not to 20261123_020000"):
        check_archive_belongs(archive, OTHER)
    with pytest.raises(VerificationError, match=f"recovery point {POINT}, not to 20261123_020000"):
        check_dump_belongs(dump, OTHER)


def test_only_the_schema_and_the_selected_rows_are_loaded_in_one_transaction(dump: DumpFile) -> None:
    text = b"".join(list_texts(dump, select_tables(dump, ("users",))))
    assert text.startswith(b"BEGIN;\n--\n-- PostgreSQL database dump\n")
    assert b"SET statement_timeout = 0;" in DUMP_HEAD
    assert b"SET statement_timeout = 0;" in text
    assert b"restrict" not in text
    assert text.endswith(b'COPY "public"."users" ("a") FROM stdin;\n3\n\\.\nCOMMIT;\n')
    assert text.count(b"FROM stdin;") == 1


def test_rows_that_differ_from_the_capture_are_not_committed(dump: DumpFile) -> None:
    """The damage is found after the last row, before the COMMIT."""
    tables = tuple(table.model_copy(update={"sha256": "0" * 64}) for table in select_tables(dump, ("users",)))
    sent: list[bytes] = []
    with pytest.raises(VerificationError, match=r"the rows of public\.users differ from what was captured"):
        sent.extend(list_texts(dump, tables))
    assert not any(b"COMMIT" in part for part in sent)


def test_the_state_of_objects_is_reported_in_json() -> None:
    different = ObjectDifference(make_entry("a.pdf", b"abc"), ObjectStanding.DIFFERENT, "bytes")
    assert objects_to_json([different]) == [
        {"key": "a.pdf", "size_bytes": 3, "standing": "different", "difference": "bytes"}
    ]
