"""Single objects: read alone out of an archive, compared with a bucket first, and written whole or not at all.

Whole archives are tested in `test_restore`, the words of the command line in `edge/test_restore_commands`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.objects import (
    ObjectStanding,
    check_archive_belongs,
    compare_objects,
    extract_objects,
    restore_objects,
    select_keys,
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

BODIES = {"a.pdf": b"a" * 1000, "jobs/1.pdf": b"one", "jobs/2.pdf": b"two", "jobs/deep/3.pdf": b"three", "x[1].pdf": b"bracket"}


class Archived:
    """An archive of a bucket that goes on living, and an empty bucket."""

    def __init__(self, path: Path, settings: TransferSettings, source: BucketSettings, target: BucketSettings) -> None:
        self.path, self.settings, self.source, self.target = path, settings, source, target

    def select(self, *patterns: str) -> tuple[ObjectEntry, ...]:
        with open_archive(self.path) as archive:
            return select_objects(archive, patterns)


@pytest.fixture
def archived(bucket: BucketSettings, second_bucket: BucketSettings, tmp_path: Path) -> Archived:
    for key, body in BODIES.items():
        put(bucket, key, body, owner="somebody")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return Archived(publish_archive(catalog, bucket), make_transfer(), bucket, second_bucket)


def read(bucket: BucketSettings, key: str) -> bytes:
    response = client_of(bucket).get_object(bucket.bucket, key)
    try:
        return response.data
    finally:
        response.close()
        response.release_conn()


@pytest.mark.parametrize(
    ("patterns", "keys"),
    [
        (("a.pdf",), ["a.pdf"]),
        (("jobs/",), ["jobs/1.pdf", "jobs/2.pdf", "jobs/deep/3.pdf"]),
        (("jobs/?.pdf", "a.pdf"), ["a.pdf", "jobs/1.pdf", "jobs/2.pdf"]),
        (("*.pdf",), sorted(BODIES)),
        (("x[1].pdf",), ["x[1].pdf"]),
    ],
)
def test_objects_are_chosen_by_key_prefix_and_glob(archived: Archived, patterns: tuple[str, ...], keys: list[str]) -> None:
    assert sorted(entry.key for entry in archived.select(*patterns)) == keys


def test_a_pattern_that_names_nothing_is_told(archived: Archived) -> None:
    with pytest.raises(RestoreError, match=r"no object for 'b\.pdf', 'job/'"):
        archived.select("a.pdf", "b.pdf", "job/")


def test_keys_are_chosen_as_they_are(archived: Archived) -> None:
    with open_archive(archived.path) as archive:
        chosen, lost = select_keys(archive, ("x[1].pdf", "*", "a.pdf"))
    assert ({entry.key for entry in chosen}, lost) == ({"x[1].pdf", "a.pdf"}, ("*",))


def test_what_is_missing_comes_back_and_what_differs_is_shown_first(archived: Archived) -> None:
    client_of(archived.source).remove_object(archived.source.bucket, "jobs/1.pdf")
    put(archived.source, "jobs/2.pdf", b"owt", owner="somebody")
    put(archived.source, "a.pdf", BODIES["a.pdf"], owner="another")
    entries = archived.select("a.pdf", "jobs/")
    differences = compare_objects(entries, archived.source, archived.settings)
    seen = {difference.entry.key: (difference.standing, difference.what) for difference in differences}
    assert seen == {
        "a.pdf": (ObjectStanding.DIFFERENT, "metadata"),
        "jobs/1.pdf": (ObjectStanding.MISSING, ""),
        "jobs/2.pdf": (ObjectStanding.DIFFERENT, "bytes"),
        "jobs/deep/3.pdf": (ObjectStanding.SAME, ""),
    }
    with pytest.raises(TargetNotEmptyError, match="nothing was written"):
        restore_objects(archived.path, differences, archived.source, archived.settings, overwrite=False)
    assert client_of(archived.source).stat_object(archived.source.bucket, "a.pdf").metadata["x-amz-meta-owner"] == "another"
    written = restore_objects(archived.path, differences, archived.source, archived.settings, overwrite=True)
    assert {entry.key for entry in written} == {"a.pdf", "jobs/1.pdf", "jobs/2.pdf"}
    assert all(found.standing is ObjectStanding.SAME for found in compare_objects(entries, archived.source, archived.settings))


def test_objects_go_into_another_bucket_with_their_metadata(archived: Archived) -> None:
    entries = archived.select("jobs/1.pdf")
    differences = compare_objects(entries, archived.target, archived.settings)
    restore_objects(archived.path, differences, archived.target, archived.settings, overwrite=False)
    found = client_of(archived.target).stat_object(archived.target.bucket, "jobs/1.pdf")
    assert (found.content_type, found.metadata["x-amz-meta-owner"]) == ("application/pdf", "somebody")
    assert [entry.object_name for entry in client_of(archived.target).list_objects(archived.target.bucket, recursive=True)] == ["jobs/1.pdf"]


def test_files_in_a_folder_have_the_bytes_and_are_not_written_over(archived: Archived, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    paths = extract_objects(archived.path, archived.select("jobs/", "a.pdf"), folder, overwrite=False)
    assert {str(path.relative_to(folder)): path.read_bytes() for path in paths} == {key: BODIES[key] for key in BODIES if key != "x[1].pdf"}
    (folder / "a.pdf").write_bytes(b"mine")
    with pytest.raises(TargetNotEmptyError):
        extract_objects(archived.path, archived.select("a.pdf"), folder, overwrite=False)
    assert (folder / "a.pdf").read_bytes() == b"mine"
    extract_objects(archived.path, archived.select("a.pdf"), folder, overwrite=True)
    assert (folder / "a.pdf").read_bytes() == BODIES["a.pdf"]


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "link/outside"])
def test_an_archive_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.tar.gz"
    write_archive(path, [(make_entry("key", b"x"), b"x")])
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with open_archive(path) as archive:
        entries = tuple(entry.model_copy(update={"member_name": name}) for entry in archive.read_entries())
    with pytest.raises(VerificationError, match="unsafe name"):
        extract_objects(path, entries, folder, overwrite=False)
    assert not (tmp_path / "outside").exists()


def test_a_damaged_object_is_neither_a_file_nor_an_object(archived: Archived, tmp_path: Path) -> None:
    [entry] = archived.select("a.pdf")
    good = archived.path.read_bytes()
    damaged = [damage(good, (entry.offset + offset) * 8 + 3) for offset in range(12, entry.length, max(1, entry.length // 25))]
    refused = 0
    for data in damaged:
        archived.path.write_bytes(data)
        differences = compare_objects((entry,), archived.target, archived.settings)
        try:
            restore_objects(archived.path, differences, archived.target, archived.settings, overwrite=False)
        except BackupError:
            refused += 1
            assert list(client_of(archived.target).list_objects(archived.target.bucket)) == []
            with pytest.raises(VerificationError):
                extract_objects(archived.path, (entry,), tmp_path / "out", overwrite=False)
            assert list((tmp_path / "out").iterdir()) == []
        else:  # a bit that gzip does not use, such as its operating system's name
            assert read(archived.target, "a.pdf") == BODIES["a.pdf"]
            client_of(archived.target).remove_object(archived.target.bucket, "a.pdf")
    assert refused > len(damaged) / 2


def test_an_archive_of_another_point_is_refused(archived: Archived) -> None:
    with open_archive(archived.path) as archive:
        check_archive_belongs(archive, RecoveryPointId(POINT))
        with pytest.raises(VerificationError, match="exchanged"):
            check_archive_belongs(archive, RecoveryPointId("20261123_020000"))


def test_one_object_is_read_by_reading_less_than_a_hundredth_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made.tar.gz"
    write_archive(path, [(make_entry(f"{number}.pdf", body), body) for number in range(300) for body in [make_noise(100_000, number)]])
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        archive = ArchiveFile(file)  # type: ignore[arg-type]
        entry = next(entry for entry in archive.read_entries() if entry.key == "150.pdf")
        seen: list[int] = []
        body = b"".join(archive.read_object(entry, on_progress=lambda block: seen.append(len(block))))
    assert body == make_noise(100_000, 150)
    index_bytes = archive.footer.footer_offset - archive.footer.index_offset
    assert sum(seen) + index_bytes < path.stat().st_size / 100
