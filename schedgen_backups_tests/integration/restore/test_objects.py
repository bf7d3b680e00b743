"""Single objects: read alone from an archive, compared with a bucket first, and written whole or not at all.

Whole archives are tested in `test_point`, the command line in `edge/cli/test_restore`.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import BackupError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.objects import (
    ObjectStanding,
    PreparedObjects,
    prepare_files,
    prepare_objects,
    select_objects,
)
from schedgen_backups.core.settings import BucketSettings, TransferSettings
from schedgen_backups_tests.support.artifacts import (
    POINT,
    damage,
    make_entry,
    make_noise,
    make_transfer,
    publish_archive,
    write_archive,
)
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

BODIES = {
    "a.pdf": b"a" * 1000,
    "jobs/1.pdf": b"one",
    "jobs/2.pdf": b"two",
    "jobs/deep/3.pdf": b"three",
    "x[1].pdf": b"bracket",
}


class Archived:
    """An archive of a bucket that changes afterwards, and an empty bucket."""

    def __init__(
        self, catalog: Catalog, settings: TransferSettings, source: BucketSettings, target: BucketSettings
    ) -> None:
        self.path = publish_archive(catalog, source)
        self.catalog, self.settings, self.source, self.target = catalog, settings, source, target

    @property
    def point(self) -> PointListing:
        return self.catalog.get_point(RecoveryPointId(POINT))

    def prepare(self, target: BucketSettings, *patterns: str) -> AbstractContextManager[PreparedObjects]:
        return prepare_objects(self.point, patterns, target, self.settings)

    def write(
        self, target: BucketSettings, *patterns: str, overwrite: bool = False
    ) -> tuple[ObjectEntry, ...]:
        with self.prepare(target, *patterns) as prepared:
            written = prepared.execute(overwrite=overwrite)
            prepared.compare(written)
            return written

    def extract(self, folder: Path, *patterns: str, overwrite: bool = False) -> tuple[Path, ...]:
        with prepare_files(self.point, patterns, folder) as prepared:
            paths = prepared.execute(overwrite=overwrite)
            prepared.compare()
            return paths

    def select(self, *patterns: str) -> tuple[ObjectEntry, ...]:
        with open_archive(self.path) as archive:
            return select_objects(archive, patterns)


@pytest.fixture
def archived(bucket: BucketSettings, second_bucket: BucketSettings, tmp_path: Path) -> Archived:
    for key, body in BODIES.items():
        put(bucket, key, body, owner="somebody")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return Archived(catalog, make_transfer(), bucket, second_bucket)


def read(bucket: BucketSettings, key: str) -> bytes:
    response = client_of(bucket).get_object(bucket.bucket, key)
    try:
        return response.data
    finally:
        response.close()
        response.release_conn()


def test_missing_objects_are_restored_and_differences_are_shown_first(archived: Archived) -> None:
    client_of(archived.source).remove_object(archived.source.bucket, "jobs/1.pdf")
    put(archived.source, "jobs/2.pdf", b"owt", owner="somebody")
    put(archived.source, "a.pdf", BODIES["a.pdf"], owner="another")
    with archived.prepare(archived.source, "a.pdf", "jobs/") as prepared:
        seen = {
            difference.entry.key: (difference.standing, difference.what) for difference in prepared.describe()
        }
        assert seen == {
            "a.pdf": (ObjectStanding.DIFFERENT, "metadata"),
            "jobs/1.pdf": (ObjectStanding.MISSING, ""),
            "jobs/2.pdf": (ObjectStanding.DIFFERENT, "bytes"),
            "jobs/deep/3.pdf": (ObjectStanding.SAME, ""),
        }
        with pytest.raises(TargetNotEmptyError, match="nothing was written"):
            prepared.execute(overwrite=False)
        assert (
            client_of(archived.source)
            .stat_object(archived.source.bucket, "a.pdf")
            .metadata["x-amz-meta-owner"]
            == "another"
        )
        written = prepared.execute(overwrite=True)
        assert {entry.key for entry in written} == {"a.pdf", "jobs/1.pdf", "jobs/2.pdf"}
    with archived.prepare(archived.source, "a.pdf", "jobs/") as prepared:
        assert all(found.standing is ObjectStanding.SAME for found in prepared.describe())


def test_objects_go_into_another_bucket_with_their_metadata(archived: Archived) -> None:
    archived.write(archived.target, "jobs/1.pdf")
    found = client_of(archived.target).stat_object(archived.target.bucket, "jobs/1.pdf")
    assert (found.content_type, found.metadata["x-amz-meta-owner"]) == ("application/pdf", "somebody")
    assert [
        entry.object_name
        for entry in client_of(archived.target).list_objects(archived.target.bucket, recursive=True)
    ] == ["jobs/1.pdf"]


def test_files_in_a_folder_have_the_bytes_and_are_not_overwritten(archived: Archived, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    paths = archived.extract(folder, "jobs/", "a.pdf")
    assert {str(path.relative_to(folder)): path.read_bytes() for path in paths} == {
        key: BODIES[key] for key in BODIES if key != "x[1].pdf"
    }
    (folder / "a.pdf").write_bytes(b"mine")
    with pytest.raises(TargetNotEmptyError):
        archived.extract(folder, "a.pdf")
    assert (folder / "a.pdf").read_bytes() == b"mine"
    archived.extract(folder, "a.pdf", overwrite=True)
    assert (folder / "a.pdf").read_bytes() == BODIES["a.pdf"]


def test_an_index_maps_files_to_keys_that_are_not_valid_names(archived: Archived, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    archived.extract(folder, "a.pdf")
    assert [path.name for path in folder.iterdir()] == ["a.pdf"]
    put(archived.source, "C:/odd.pdf", b"odd")
    archived.path.unlink()
    again = Archived(archived.catalog, archived.settings, archived.source, archived.target)
    [path] = again.extract(folder, "C:/odd.pdf")
    again.extract(folder, "C:/odd.pdf", overwrite=True)
    lines = [
        json.loads(line) for line in (folder / ".schedgen-backups" / "renamed.jsonl").read_text().splitlines()
    ]
    assert lines == [{"file": str(path.relative_to(folder)), "key": "C:/odd.pdf"}] * 2
    assert (folder / lines[0]["file"]).read_bytes() == b"odd"


def test_a_damaged_object_becomes_neither_a_file_nor_an_object(archived: Archived, tmp_path: Path) -> None:
    [entry] = archived.select("a.pdf")
    good = archived.path.read_bytes()
    damaged = [
        damage(good, (entry.offset + offset) * 8 + 3)
        for offset in range(12, entry.length, max(1, entry.length // 25))
    ]
    refused = 0
    for data in damaged:
        archived.path.write_bytes(data)
        try:
            archived.write(archived.target, "a.pdf")
        except BackupError:
            refused += 1
            assert list(client_of(archived.target).list_objects(archived.target.bucket)) == []
            with pytest.raises(VerificationError):
                archived.extract(tmp_path / "out", "a.pdf")
            assert list((tmp_path / "out").iterdir()) == []
        else:  # a bit that gzip ignores, such as one of its operating-system field
            assert read(archived.target, "a.pdf") == BODIES["a.pdf"]
            client_of(archived.target).remove_object(archived.target.bucket, "a.pdf")
    assert refused > len(damaged) / 2


def test_one_object_is_read_from_less_than_a_hundredth_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made.tar.gz"
    write_archive(
        path,
        [
            (make_entry(f"{number}.pdf", body), body)
            for number in range(300)
            for body in [make_noise(100_000, number)]
        ],
    )
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        archive = ArchiveFile(file)  # type: ignore[arg-type]
        entry = next(entry for entry in archive.read_entries() if entry.key == "150.pdf")
        seen: list[int] = []
        body = b"".join(archive.read_object(entry, on_progress=lambda block: seen.append(len(block))))
    assert body == make_noise(100_000, 150)
    index_bytes = archive.footer.footer_offset - archive.footer.index_offset
    assert sum(seen) + index_bytes < path.stat().st_size / 100
