"""Objects of an archive as files: complete or absent, never overwriting unasked, never outside the folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import Verification
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.model import ArtifactName, RecoveryPointId
from schedgen_backups.core.restore.objects import PreparedFiles, prepare_files
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    POINT,
    list_files,
    make_entry,
    make_noise,
    write_archive,
)

BODIES = {"a.pdf": make_noise(20_000), "jobs/1.pdf": b"one", "jobs/deep/2.pdf": b"two"}
MODIFIED = datetime(2026, 11, 20, 12, 30, tzinfo=timezone.utc)


class Archived:
    """A point with its own archive, and the folder for its objects."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "new" / "out"
        path = directory / ARCHIVE_NAME
        write_archive(
            path, [(make_entry(key, body, modified_at=MODIFIED), body) for key, body in BODIES.items()]
        )
        name = ArtifactName.from_file_name(ARCHIVE_NAME)
        assert name is not None
        self.point = PointListing(
            RecoveryPointId(POINT),
            (FoundArtifact(name, path, path.stat().st_size),),
            None,
            Verification(point_id=POINT),
        )

    def prepare(self, *patterns: str) -> AbstractContextManager[PreparedFiles]:
        return prepare_files(self.point, patterns, self.folder)


@pytest.fixture
def archived(tmp_path: Path) -> Archived:
    return Archived(tmp_path)


def test_objects_become_files_with_their_bytes_and_times(archived: Archived) -> None:
    with archived.prepare("*") as files:
        assert files.describe() == tuple(f"write {archived.folder / key}" for key in BODIES)
        paths = files.execute(overwrite=False)
        files.compare()
    assert paths == tuple(archived.folder / key for key in BODIES)
    assert [path.read_bytes() for path in paths] == list(BODIES.values())
    assert {path.stat().st_mtime for path in paths} == {MODIFIED.timestamp()}
    assert list_files(archived.folder) == sorted(BODIES)


def test_an_existing_file_is_not_overwritten_unasked(archived: Archived) -> None:
    (archived.folder / "jobs").mkdir(parents=True)
    mine = archived.folder / "jobs/1.pdf"
    mine.write_bytes(b"mine")
    with archived.prepare("*") as files:
        assert [line.partition(" ")[0] for line in files.describe()] == ["write", "overwrite", "write"]
        with pytest.raises(TargetNotEmptyError, match=r"jobs/1\.pdf exists already; nothing was written"):
            files.execute(overwrite=False)
        assert list_files(archived.folder) == ["jobs/1.pdf"]
        assert mine.read_bytes() == b"mine"
        files.execute(overwrite=True)
    assert mine.read_bytes() == b"one"


def test_a_dangling_link_counts_as_an_existing_file(archived: Archived) -> None:
    archived.folder.mkdir(parents=True)
    (archived.folder / "a.pdf").symlink_to(archived.folder / "nowhere")
    with archived.prepare("a.pdf") as files, pytest.raises(TargetNotEmptyError):
        files.execute(overwrite=False)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "link/outside", "jobs/../../outside"])
def test_an_archive_cannot_lead_out_of_the_folder(archived: Archived, name: str) -> None:
    archived.folder.mkdir(parents=True)
    (archived.folder / "link").symlink_to(archived.folder.parent)
    with archived.prepare("a.pdf") as files:
        entries = tuple(entry.model_copy(update={"member_name": name}) for entry in files.entries)
        with pytest.raises(VerificationError, match="unsafe file name"):
            replace(files, entries=entries).execute(overwrite=False)
    assert list_files(archived.folder.parent.parent) == [ARCHIVE_NAME]


def test_a_damaged_object_leaves_no_file(archived: Archived) -> None:
    with archived.prepare("a.pdf") as files:
        entries = tuple(entry.model_copy(update={"sha256": "0" * 64}) for entry in files.entries)
        with pytest.raises(VerificationError, match="other bytes than were captured"):
            replace(files, entries=entries).execute(overwrite=False)
    assert list_files(archived.folder) == []


def test_a_file_changed_since_it_was_written_is_named(archived: Archived) -> None:
    with archived.prepare("*") as files:
        _first, second, _third = files.execute(overwrite=False)
        second.write_bytes(b"two")
        with pytest.raises(RestoreError, match=r"jobs/1\.pdf was written but differs from what was captured"):
            files.compare()


def test_an_archive_of_another_point_is_refused_before_anything_is_written(archived: Archived) -> None:
    other = replace(archived.point, point_id=RecoveryPointId("20261123_020000"))
    with (
        pytest.raises(VerificationError, match="not to 20261123_020000"),
        prepare_files(other, ("*",), archived.folder),
    ):
        pytest.fail("it was prepared")
    assert not archived.folder.exists()
