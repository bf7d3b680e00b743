"""Fillers let copied objects share blocks with an older archive.

They unpack to nothing and are not copied again.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from schedgen_backups.core.errors import ReadBackError
from schedgen_backups.core.formats import archive_writer
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter
from schedgen_backups.core.formats.gzip_members import (
    SMALLEST_FILLER_BYTES,
    compress_member,
    filler_member,
    measure_filler,
    store_member,
)
from schedgen_backups.core.formats.records import ArtifactFile, ObjectEntry
from schedgen_backups.core.formats.tar_member import pack_object
from schedgen_backups.core.system.reflink import SHARED_BLOCK_BYTES
from schedgen_backups_tests.support.artifacts import ARCHIVE_NAME, make_entry, make_noise, make_record

BODY = make_noise(5000)


@pytest.mark.parametrize("size_bytes", [SMALLEST_FILLER_BYTES, SMALLEST_FILLER_BYTES + 1, 300, 4096, 65_000])
def test_a_filler_has_the_requested_size_and_unpacks_to_nothing(size_bytes: int) -> None:
    filler = filler_member(size_bytes)
    assert (len(filler), gzip.decompress(filler)) == (size_bytes, b"")
    assert gzip.decompress(filler + compress_member(b"abc")) == b"abc"
    assert (
        measure_filler(filler + b"behind")
        == measure_filler(memoryview(filler)[:SMALLEST_FILLER_BYTES])
        == size_bytes
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        compress_member(BODY),
        store_member(BODY),
        filler_member(300)[1:],
        filler_member(300)[: SMALLEST_FILLER_BYTES - 1],
    ],
    ids=["nothing", "compressed", "stored", "no beginning", "too short"],
)
def test_other_bytes_are_not_measured_as_a_filler(data: bytes) -> None:
    assert measure_filler(data) == 0


def copy_one(writer: ArchiveFileWriter, entry: ObjectEntry, path: Path) -> None:
    with ArtifactFile(path) as source:
        writer.add_copies([entry], source)


@pytest.mark.parametrize("filler_bytes", [0, SMALLEST_FILLER_BYTES, 3000])
def test_a_copy_leaves_out_the_older_archives_filler(tmp_path: Path, filler_bytes: int) -> None:
    packed = pack_object(make_entry("a.pdf", BODY), BODY)
    filler = filler_member(filler_bytes) if filler_bytes else b""
    older = tmp_path / "older"
    older.write_bytes(b"before" + filler + packed.members + b"behind")
    entry = packed.entry.model_copy(
        update={"offset": len(b"before"), "length": len(filler) + len(packed.members)}
    )
    path = tmp_path / ARCHIVE_NAME
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=1, folder=tmp_path) as writer,
    ):
        copy_one(writer, entry, older)
        writer.finish(make_record(writer))
    with open_archive(path) as archive:
        [copied] = archive.read_entries()
        assert (copied.offset, copied.length) == (0, len(packed.members))
        assert b"".join(archive.read_object(copied)) == BODY
    assert path.read_bytes().startswith(packed.members)


@pytest.mark.parametrize(
    "gap_bytes",
    [
        0,
        1,
        SMALLEST_FILLER_BYTES - 1,
        SMALLEST_FILLER_BYTES,
        SMALLEST_FILLER_BYTES + 1,
        SHARED_BLOCK_BYTES - 1,
    ],
)
def test_copies_lie_in_their_blocks_as_in_the_older_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap_bytes: int
) -> None:
    """This holds where the file system can share blocks, which the test machine need not."""
    monkeypatch.setattr(
        archive_writer,
        "can_share_blocks",
        lambda source, folder: os.fstat(source).st_size > 0 and folder == tmp_path,
    )
    body = make_noise(100_000)
    packed = pack_object(make_entry("a.pdf", body), body)
    older = tmp_path / "older"
    older.write_bytes(bytes(gap_bytes) + packed.members)
    path = tmp_path / ARCHIVE_NAME
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=1, folder=tmp_path) as writer,
    ):
        copy_one(
            writer,
            packed.entry.model_copy(update={"offset": gap_bytes, "length": len(packed.members)}),
            older,
        )
        writer.finish(make_record(writer))
    place = path.read_bytes().index(packed.members)
    assert (place - gap_bytes) % SHARED_BLOCK_BYTES == 0
    assert place == gap_bytes + (SHARED_BLOCK_BYTES if 0 < gap_bytes < SMALLEST_FILLER_BYTES else 0)
    with open_archive(path) as archive:
        [copied] = archive.read_entries()
        assert (copied.offset, copied.length) == (0, place + len(packed.members))
        assert b"".join(archive.read_object(copied)) == body


def test_a_filler_that_is_a_whole_object_is_not_a_filler(tmp_path: Path) -> None:
    """A crafted index may claim this: then nothing would be left to copy, so nothing is left out."""
    older = tmp_path / "older"
    older.write_bytes(filler_member(300))
    with (
        (tmp_path / ARCHIVE_NAME).open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=1, folder=tmp_path) as writer,
    ):
        copy_one(writer, make_entry("a.pdf", BODY, length=300), older)
        with pytest.raises(ReadBackError) as raised:
            writer.finish(make_record(writer))
    assert raised.value.keys == ("a.pdf",)
    assert (tmp_path / ARCHIVE_NAME).read_bytes().startswith(filler_member(300))
