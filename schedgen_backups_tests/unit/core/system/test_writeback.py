"""A growing file is synced while it is written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from schedgen_backups.core.formats.gzip_writer import MemberWriter
from schedgen_backups.core.system import writeback as write_back
from schedgen_backups.core.system.writeback import WriteBack
from schedgen_backups_tests.support.artifacts import (
    TableText,
    make_entry,
    make_noise,
    write_archive,
    write_dump,
)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes that the file had when it was synced."""
    monkeypatch.setattr(write_back, "_STEP_BYTES", 1000)
    sizes: list[int] = []

    def fsync(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    return sizes


def test_what_was_written_is_synced_in_steps(tmp_path: Path, synced: list[int]) -> None:
    with (tmp_path / "file").open("w+b") as file:
        back = WriteBack(cast("BinaryIO", file))
        with MemberWriter(cast("BinaryIO", file), threads=1, written=back.note) as writer:
            for number in range(20):
                writer.write_member(make_noise(500, number))
        back.close()
    assert synced
    assert synced == sorted(synced)
    assert synced[0] >= 1000


def test_a_disk_that_lost_data_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "_STEP_BYTES", 1)

    def fsync(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with (tmp_path / "file").open("w+b") as file:
        back = WriteBack(cast("BinaryIO", file))
        back.note(1)
        back.close()
        with pytest.raises(OSError, match="Input/output error"):
            back.note(1)
        with pytest.raises(OSError, match="Input/output error"):
            back.finish()


def test_an_artifact_whose_last_sync_failed_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "_STEP_BYTES", 1)

    def fsync(_descriptor: int) -> None:
        # Until everything is written: the last sync fails.
        time.sleep(0.3)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_archive(tmp_path / "minio_x_20261122_020000.tar.gz", [(make_entry("a.pdf", b"x"), b"x")])
    with pytest.raises(OSError, match="Input/output error"):
        write_dump(tmp_path / "db_x_20261122_020000.sql.gz", [TableText("jobs", (b"1",))])
