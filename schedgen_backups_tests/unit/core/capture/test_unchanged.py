"""What is reused from an older archive; damage in it never reaches a new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import BinaryIO, cast

import pytest

from schedgen_backups.core.capture.unchanged import (
    PreviousObject,
    PreviousObjects,
    split_into_runs,
)
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.resume import JOURNAL_NAME
from schedgen_backups.core.errors import ReadBackError, StorageError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.archive_writer import COPY_BYTES, ArchiveFileWriter, CapturedArchive
from schedgen_backups.core.formats.gzip_members import compress_member, read_members
from schedgen_backups.core.formats.gzip_writer import DigestedMemberWriter
from schedgen_backups.core.formats.records import ArchiveRecord, ArtifactFile, ObjectEntry
from schedgen_backups.core.s3.listing_page import ListedObject
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    POINT,
    TAKEN_AT,
    damage,
    make_entry,
    make_noise,
    write_archive,
)

BUCKET = BucketSettings("127.0.0.1:9000", "key", "secret", "schedgen-pdfs")
BODIES = {f"{number:02}.pdf": make_noise(200 + 40 * number, number) for number in range(20)}


def make_earlier_entry(key: str, data: bytes, **fields: object) -> ObjectEntry:
    values: dict[str, object] = {"read_at": datetime.now(timezone.utc) - timedelta(hours=1), **fields}
    return make_entry(key, data, **values)


def list_entry(entry: ObjectEntry) -> ListedObject:
    """Return the listing's line that shows this object unchanged."""
    return ListedObject(
        entry.key, entry.size_bytes, entry.etag, None, entry.modified_at + timedelta(milliseconds=400)
    )


def find(objects: PreviousObjects, listed: ListedObject, member_name: str) -> PreviousObject | None:
    (found,) = objects.find([(listed, member_name)])
    return found


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [(make_earlier_entry(key, data), data) for key, data in BODIES.items()])
    return path


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[PreviousObjects]:
    with PreviousObjects(tmp_path, BUCKET, reread_days=30) as objects:
        yield objects


def read_entries(path: Path) -> dict[str, ObjectEntry]:
    with open_archive(path) as archive:
        return {entry.key: entry for entry in archive.read_entries()}


def test_an_unchanged_object_is_found_with_its_bytes(archive: Path, objects: PreviousObjects) -> None:
    assert objects.add_archive(archive)
    for key, entry in read_entries(archive).items():
        found = find(objects, list_entry(entry), key)
        assert found is not None
        assert (found.entry, found.file.path) == (entry, archive)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other.pdf"},
        {"size_bytes": 1},
        {"etag": "0" * 32},
        {"etag": ""},
        {"version_id": "7"},
        {"modified_at": TAKEN_AT + timedelta(seconds=1)},
        {"modified_at": TAKEN_AT - timedelta(milliseconds=1)},
        {"modified_at": None},
    ],
    ids=str,
)
def test_an_object_with_another_listing_entry_is_not_reused(
    archive: Path, objects: PreviousObjects, change: dict[str, object]
) -> None:
    objects.add_archive(archive)
    listed = list_entry(read_entries(archive)["07.pdf"])
    assert find(objects, listed, "07.pdf") is not None
    assert find(objects, listed._replace(**change), "07.pdf") is None  # type: ignore[arg-type]


def test_an_object_with_another_name_in_the_tar_is_not_reused(
    archive: Path, objects: PreviousObjects
) -> None:
    objects.add_archive(archive)
    assert find(objects, list_entry(read_entries(archive)["07.pdf"]), ".schedgen-backups/keys/07") is None


def test_an_object_read_in_the_second_of_its_write_is_not_reused(
    tmp_path: Path, objects: PreviousObjects
) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    ages = {"just.pdf": timedelta(seconds=1), "settled.pdf": timedelta(seconds=2)}
    entries = [make_earlier_entry(key, b"x", modified_at=now - age, read_at=now) for key, age in ages.items()]
    write_archive(tmp_path / ARCHIVE_NAME, [(entry, b"x") for entry in entries])
    objects.add_archive(tmp_path / ARCHIVE_NAME)
    assert [find(objects, list_entry(entry), entry.key) is not None for entry in entries] == [False, True]


def test_every_object_is_reread_within_the_allowed_days_and_not_all_in_one_night(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    written = now.replace(microsecond=0) - timedelta(days=60)
    counts: dict[int, int] = {}
    for days in (0, 14, 22, 30):
        folder = tmp_path / str(days)
        folder.mkdir()
        entries = [
            make_earlier_entry(f"{number}.pdf", b"x", modified_at=written, read_at=now - timedelta(days=days))
            for number in range(64)
        ]
        write_archive(folder / ARCHIVE_NAME, [(entry, b"x") for entry in entries])
        with PreviousObjects(folder, BUCKET, reread_days=30) as objects:
            objects.add_archive(folder / ARCHIVE_NAME)
            counts[days] = sum(find(objects, list_entry(entry), entry.key) is not None for entry in entries)
    assert (counts[0], counts[14], counts[30]) == (64, 64, 0)
    assert 8 < counts[22] < 56


def test_with_no_days_allowed_nothing_is_reused(archive: Path, tmp_path: Path) -> None:
    with PreviousObjects(tmp_path, BUCKET, reread_days=0) as objects:
        objects.add_archive(archive)
        assert find(objects, list_entry(read_entries(archive)["07.pdf"]), "07.pdf") is None


@pytest.mark.parametrize(
    "other",
    [replace(BUCKET, bucket="other"), replace(BUCKET, endpoint="127.0.0.1:9999")],
    ids=["bucket", "server"],
)
def test_an_archive_of_another_bucket_is_not_reused(
    archive: Path, tmp_path: Path, other: BucketSettings
) -> None:
    with PreviousObjects(tmp_path, other, reread_days=30) as objects:
        assert not objects.add_archive(archive)
        assert find(objects, list_entry(read_entries(archive)["07.pdf"]), "07.pdf") is None


@pytest.mark.takes_seconds
def test_no_flipped_bit_of_an_older_archive_reaches_a_new_one(archive: Path, tmp_path: Path) -> None:
    """Wherever the damage is, what passes the reading back unpacks to the captured objects."""
    entries = read_entries(archive)
    record = open_record(archive)
    whole = archive.read_bytes()
    random = Random(5)  # noqa: S311 - nothing secret
    used = refused = 0
    for _round in range(150):
        archive.write_bytes(damage(whole, random.randrange(8 * len(whole))))
        with PreviousObjects(tmp_path, BUCKET, reread_days=30) as objects:
            objects.add_archive(archive)
            found = objects.find([(list_entry(entry), key) for key, entry in entries.items()])
            copied = [previous for previous in found if previous is not None]
            path = tmp_path / "new.tar.gz"
            try:
                copy_objects(path, copied, record)
            except ReadBackError:
                refused += 1
                continue
        used += len(copied)
        with open_archive(path) as new:
            for entry in new.read_entries():
                assert b"".join(new.read_object(entry)) == BODIES[entry.key]
                assert entry.model_dump(exclude={"offset", "length", "read_at"}) == entries[
                    entry.key
                ].model_dump(exclude={"offset", "length", "read_at"})
    assert used > 0
    assert refused > 100


def copy_objects(path: Path, found: Sequence[PreviousObject], record: ArchiveRecord) -> CapturedArchive:
    """Write an archive of copies, in runs."""
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer,
    ):
        counts = list(split_into_runs(found))
        for end, count in zip(accumulate(counts), counts, strict=True):
            run = found[end - count : end]
            writer.add_copies([previous.entry for previous in run], run[0].file)
        return writer.finish(record)


def test_a_truncated_or_missing_archive_is_skipped(
    archive: Path, objects: PreviousObjects, tmp_path: Path
) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    assert not objects.add_archive(archive)
    assert not objects.add_archive(tmp_path / "gone.tar.gz")


def test_a_read_error_of_the_disk_counts_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with ArtifactFile(path) as file, path.open("ab") as unreadable:
        os.dup2(unreadable.fileno(), file.open_descriptor())
        with pytest.raises(VerificationError):
            file.open_reader().read(1)


def test_a_full_disk_during_the_lookup_is_a_storage_error(archive: Path) -> None:
    folder = archive.parent / "gone"
    with pytest.raises(StorageError, match=r"previous\.sqlite"):
        PreviousObjects(folder, BUCKET, reread_days=30)


def test_copied_objects_lie_in_the_new_archive_as_in_the_old(
    archive: Path, objects: PreviousObjects, tmp_path: Path
) -> None:
    objects.add_archive(archive)
    path = tmp_path / "new.tar.gz"
    # Without the tenth: two runs.
    entries = {key: entry for key, entry in read_entries(archive).items() if key != "10.pdf"}
    found = objects.find([(list_entry(entry), key) for key, entry in entries.items()])
    copy_objects(path, [previous for previous in found if previous is not None], open_record(archive))
    with open_archive(path) as copied:
        assert {entry.key: b"".join(copied.read_object(entry)) for entry in copied.read_entries()} == {
            key: BODIES[key] for key in entries
        }


def test_a_run_ends_where_the_next_object_is_not_adjacent(archive: Path) -> None:
    with ArtifactFile(archive) as file, ArtifactFile(archive) as other:
        one, two, three, four, *_rest = [
            PreviousObject(entry, file) for entry in read_entries(archive).values()
        ]
        assert list(split_into_runs([one, two, None, three, four])) == [2, 1, 2]
        assert list(split_into_runs([None, None, one])) == [1, 1, 1]
        assert list(split_into_runs([one, three, four])) == [1, 2]
        assert list(split_into_runs([one, PreviousObject(two.entry, other), three])) == [1, 1, 1]
        large = PreviousObject(two.entry.model_copy(update={"length": COPY_BYTES}), file)
        assert list(split_into_runs([one, large])) == [1, 1]
    assert list(split_into_runs([])) == []


def test_damage_in_a_run_is_named_when_the_copy_is_read_back(archive: Path) -> None:
    entries = list(read_entries(archive).values())
    record = open_record(archive)
    whole = archive.read_bytes()
    for number in (7, 12):
        whole = damage(whole, 8 * (entries[number].offset + entries[number].length // 2))
    archive.write_bytes(whole)
    path = archive.with_name("new.tar.gz")
    with ArtifactFile(archive) as file, pytest.raises(ReadBackError) as raised:
        copy_objects(path, [PreviousObject(entry, file) for entry in entries], record)
    assert raised.value.keys == (entries[7].key, entries[12].key)
    with pytest.raises(VerificationError), open_archive(path):
        pass


def test_a_key_that_was_found_damaged_is_not_found_again(archive: Path, tmp_path: Path) -> None:
    with PreviousObjects(tmp_path, BUCKET, reread_days=30, distrusted={"07.pdf"}) as objects:
        objects.add_archive(archive)
        found = {key: find(objects, list_entry(entry), key) for key, entry in read_entries(archive).items()}
        assert [key for key, previous in found.items() if previous is None] == ["07.pdf"]
        assert objects.find_sources(["07.pdf", "08.pdf"]) == (archive,)
        assert objects.find_sources(["other"]) == ()


def open_record(path: Path) -> ArchiveRecord:
    with open_archive(path) as archive:
        return archive.record


@pytest.mark.takes_seconds
def test_a_large_object_is_copied_and_every_byte_read_back(tmp_path: Path) -> None:
    data = make_noise(20_000_003)
    path, new = tmp_path / ARCHIVE_NAME, tmp_path / "new.tar.gz"
    write_archive(path, [(make_entry("large", data), data)])
    (entry,) = read_entries(path).values()
    record = open_record(path)
    with ArtifactFile(path) as source:
        copy_objects(new, [PreviousObject(entry, source)], record)
    with open_archive(new) as copied:
        assert b"".join(copied.read_object(next(copied.read_entries()))) == data
    for position in (0, entry.length // 2, entry.length - 1):
        whole = path.read_bytes()
        path.write_bytes(damage(whole, 8 * (entry.offset + position)))
        with ArtifactFile(path) as source, pytest.raises(ReadBackError, match="large"):
            copy_objects(new, [PreviousObject(entry, source)], record)
        path.write_bytes(whole)


@pytest.mark.parametrize("kernel", ["copies", "cannot"])
def test_a_source_that_ends_too_early_is_an_error(
    archive: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    if kernel == "cannot":
        monkeypatch.delattr(os, "copy_file_range")
    entries = list(read_entries(archive).values())
    record = open_record(archive)
    archive.write_bytes(archive.read_bytes()[: entries[3].offset + 10])
    path = archive.with_name("new.tar.gz")
    with (
        ArtifactFile(archive) as source,
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer,
    ):
        writer.add_copies(entries[:2], source)
        with pytest.raises(VerificationError, match="ends too early"):
            writer.add_copies(entries[2:5], source)
        writer.add_copies(entries[2:3], source)
        writer.finish(record)
    assert list(read_entries(path)) == [entry.key for entry in entries[:3]]


def test_members_are_copied_where_the_kernel_cannot(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    entries, record = read_entries(archive), open_record(archive)
    with ArtifactFile(archive) as source:
        found = [PreviousObject(entry, source) for entry in entries.values()]
        by_kernel = copy_objects(tmp_path / "kernel", found, record)
        monkeypatch.setattr(os, "copy_file_range", refuse)
        by_reading = copy_objects(tmp_path / "reading", found, record)
    assert (tmp_path / "kernel").read_bytes() == (tmp_path / "reading").read_bytes()
    assert by_kernel.sha256 == by_reading.sha256


def test_members_of_a_dump_are_copied_where_the_kernel_cannot(tmp_path: Path) -> None:
    """A descriptor that is not a file gives the same error as another file system."""
    data = compress_member(b"one") + compress_member(b"two")
    path = tmp_path / "file.gz"
    with path.open("w+b") as file, DigestedMemberWriter(cast("BinaryIO", file), threads=2) as writer:
        writer.write_block(b"zero")
        writer.copy_members(-1, 0, data)
        writer.write_block(b"three")
        length = writer.flush()
    with path.open("rb") as file:
        assert b"".join(read_members(file, 0, length)) == b"zeroonetwothree"


def test_sweeping_keeps_an_unfinished_archive_for_a_week_and_no_dump(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    staging = tmp_path / STAGING_NAME
    for name, age in (("new", 6), ("old", 8)):
        folder = staging / name
        folder.mkdir(parents=True)
        journal = folder / JOURNAL_NAME
        journal.write_bytes(b"")
        set_age(journal, days=age)
    (staging / f"{POINT}-database").mkdir()
    assert catalog.sweep_staging() == (f"{POINT}-database", "old")
    assert [path.name for path in staging.iterdir()] == ["new"]


def set_age(path: Path, *, days: int) -> None:
    then = datetime.now(timezone.utc).timestamp() - days * 24 * 3600
    os.utime(path, (then, then))
