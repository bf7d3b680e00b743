"""A killed capture's archive is recognized by its bucket and its journal, and is used for nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.resume import (
    JOURNAL_NAME,
    find_archive,
    find_resumable,
    read_journal,
    write_source,
)
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.artifacts import make_entry

BUCKET = BucketSettings(endpoint="127.0.0.1:9000", bucket="pdfs", access_key="a", secret_key="s")


def make_bucket(endpoint: str = BUCKET.endpoint, bucket: str = BUCKET.bucket) -> BucketSettings:
    return BucketSettings(endpoint=endpoint, bucket=bucket, access_key="other", secret_key="other")


def test_an_archive_is_found_for_its_own_bucket_only(tmp_path: Path) -> None:
    write_source(tmp_path, BUCKET, "a ä.tar.gz")
    assert find_archive(tmp_path, make_bucket()) == tmp_path / "a ä.tar.gz"
    assert find_archive(tmp_path, make_bucket(endpoint="127.0.0.1:9001")) is None
    assert find_archive(tmp_path, make_bucket(bucket="others")) is None


def test_a_file_name_cannot_lead_out_of_a_folder(tmp_path: Path) -> None:
    write_source(tmp_path, BUCKET, "../../etc/passwd")
    assert find_archive(tmp_path, BUCKET) == tmp_path / "passwd"


@pytest.mark.parametrize("contents", [None, b"", b"{}", b"\xff"])
def test_a_folder_without_a_description_holds_no_archive(tmp_path: Path, contents: bytes | None) -> None:
    if contents is not None:
        (tmp_path / "source.json").write_bytes(contents)
    assert find_archive(tmp_path, BUCKET) is None


def test_a_journal_is_read_up_to_its_truncated_line(tmp_path: Path) -> None:
    entries = [make_entry("a", b"1"), make_entry("ä", b"2")]
    lines = [entry.model_dump_json() for entry in entries]
    (tmp_path / JOURNAL_NAME).write_text("\n".join([*lines, lines[0][:20], lines[0], ""]))
    assert list(read_journal(tmp_path)) == entries


def test_folders_of_the_last_week_are_found_newest_first(tmp_path: Path) -> None:
    for name, age_days in (("1", 1), ("2", 6), ("3", 8), ("4", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / JOURNAL_NAME).touch()
        os.utime(tmp_path / name / JOURNAL_NAME, (time.time() - age_days * 86400,) * 2)
    (tmp_path / "5").symlink_to(tmp_path / "1")
    (tmp_path / "6").mkdir()
    assert [folder.name for folder in find_resumable(tmp_path)] == ["4", "2", "1"]
