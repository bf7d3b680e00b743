"""Offsets at which file systems can share copied blocks; archives with such gaps stay readable for all tools.

The tests claim that this machine's file system can share; real ones are in the integration tests.
"""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups import recover
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats import archive_writer
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter
from schedgen_backups.core.formats.gzip_members import SMALLEST_FILLER_BYTES, filler_member, read_members
from schedgen_backups.core.formats.records import ArtifactFile, ObjectEntry
from schedgen_backups.core.formats.tar_member import pack_object
from schedgen_backups.core.system.reflink import (
    SHARED_BLOCK_BYTES,
    can_share_blocks,
    measure_gap,
    split_at_blocks,
)
from schedgen_backups.core.verify.files import verify_archive
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    make_entry,
    make_noise,
    make_record,
    run_tool,
    write_archive,
)

READERS = {
    "gzip": ("gzip", "-t"),
    "tar": ("tar", "-tzf"),
    **({"bsdtar": ("bsdtar", "-tzf")} if shutil.which("bsdtar") else {}),
    **({"busybox": ("busybox", "tar", "-tzf")} if shutil.which("busybox") else {}),
    **({"pigz": ("pigz", "-t")} if shutil.which("pigz") else {}),
}
OFFSETS = st.integers(0, 1 << 45)


@given(OFFSETS, OFFSETS)
def test_what_follows_the_gap_has_the_sources_offset_in_its_block(
    source_offset: int, target_offset: int
) -> None:
    gap_bytes = measure_gap(source_offset, target_offset)
    assert 0 <= gap_bytes < SHARED_BLOCK_BYTES
    assert (target_offset + gap_bytes - source_offset) % SHARED_BLOCK_BYTES == 0


@given(OFFSETS, st.integers(1, 50_000))
def test_a_range_is_cut_to_whole_blocks(offset: int, length: int) -> None:
    parts = split_at_blocks(offset, length)
    assert sum(parts) == length
    assert all(parts)
    whole_blocks = max(0, (offset + length) // SHARED_BLOCK_BYTES - -(-offset // SHARED_BLOCK_BYTES))
    found = [part for part in parts if part >= SHARED_BLOCK_BYTES]
    assert found == ([whole_blocks * SHARED_BLOCK_BYTES] if whole_blocks else [])


@pytest.mark.parametrize(
    "size_bytes",
    [
        SMALLEST_FILLER_BYTES,
        SMALLEST_FILLER_BYTES + 1,
        4096,
        SHARED_BLOCK_BYTES + SMALLEST_FILLER_BYTES,
        65_000,
    ],
)
def test_a_filler_has_its_size_and_unpacks_to_nothing(size_bytes: int) -> None:
    member = filler_member(size_bytes)
    assert len(member) == size_bytes
    assert gzip.decompress(member + gzip.compress(b"text") + member) == b"text"
    assert b"".join(read_members(io.BytesIO(member), 0, size_bytes)) == b""


def test_a_file_shorter_than_a_block_and_one_elsewhere_are_not_shared(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x")
    with short.open("rb") as file:
        assert not can_share_blocks(file.fileno(), tmp_path)
    with Path("/proc/self/status").open("rb") as file:
        assert not can_share_blocks(file.fileno(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


class Nights:
    """Archives of one bucket, each made from the previous one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = {f"{number:02}.pdf": make_noise(70_000 + 331 * number, number) for number in range(8)}

    def write_first(self) -> Path:
        path = self.folder / "first" / ARCHIVE_NAME
        path.parent.mkdir()
        write_archive(path, [(make_entry(key, data), data) for key, data in self.objects.items()])
        return path

    def write_next(self, previous: Path, changed: dict[str, bytes]) -> Path:
        """Unchanged objects are copied."""
        self.objects |= changed
        path = self.folder / f"after-{previous.parent.name}" / ARCHIVE_NAME
        path.parent.mkdir()
        with (
            open_archive(previous) as archive,
            ArtifactFile(previous) as source,
            path.open("w+b") as file,
            ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer,
        ):
            for entry in archive.read_entries():
                if entry.key in changed:
                    new = make_entry(entry.key, changed[entry.key]).model_copy(
                        update={"member_name": entry.member_name}
                    )
                    writer.add_packed(pack_object(new, changed[entry.key]))
                else:
                    writer.add_copies([entry], source)
            writer.finish(make_record(writer))
        return path


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    """Claim that the file system can share blocks."""
    monkeypatch.setattr(archive_writer, "can_share_blocks", lambda _source, _folder: True)
    return Nights(tmp_path)


def read_entries(path: Path) -> list[ObjectEntry]:
    with open_archive(path) as archive:
        return list(archive.read_entries())


def assert_holds(path: Path, objects: dict[str, bytes]) -> None:
    assert {result.status for result in verify_archive(path)} == {CheckStatus.PASSED}
    with open_archive(path) as archive:
        assert {
            entry.key: b"".join(archive.read_object(entry)) for entry in archive.read_entries()
        } == objects
    recover.Archive(path).check()


@pytest.mark.parametrize("size_bytes", [1, 70_000, 74_075, *range(70_331, 70_360)])
def test_copies_after_a_changed_object_end_at_the_same_offset_in_their_block(
    nights: Nights, size_bytes: int
) -> None:
    """Their end: the first member of an object may be a filler, which precedes the first copied byte."""
    first = nights.write_first()
    second = nights.write_next(
        first, {"00.pdf": make_noise(size_bytes, 99), "05.pdf": make_noise(size_bytes, 98)}
    )
    assert_holds(second, nights.objects)
    for old, new in zip(read_entries(first), read_entries(second), strict=True):
        if old.key not in {"00.pdf", "05.pdf"}:
            assert measure_gap(old.offset + old.length, new.offset + new.length) == 0
            assert new.length - old.length < SHARED_BLOCK_BYTES + SMALLEST_FILLER_BYTES


def test_fillers_do_not_accumulate_after_an_object_that_changes_every_night(
    nights: Nights,
) -> None:
    path = nights.write_first()
    lengths = [entry.length for entry in read_entries(path)]
    for number in range(6):
        path = nights.write_next(path, {"02.pdf": make_noise(12_345 + 600 * number, number)})
        entries = read_entries(path)
        assert 0 <= entries[3].length - lengths[3] < SHARED_BLOCK_BYTES + SMALLEST_FILLER_BYTES
        assert [entry.length for entry in entries[4:]] == lengths[4:]
    assert_holds(path, nights.objects)


def test_small_runs_and_file_systems_that_do_not_share_get_no_filler(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.objects = {key: data[:3000] for key, data in nights.objects.items()}
    first = nights.write_first()
    second = nights.write_next(first, {"00.pdf": b"shorter"})
    assert [entry.length for entry in read_entries(second)][1:] == [
        entry.length for entry in read_entries(first)
    ][1:]
    monkeypatch.setattr(archive_writer, "can_share_blocks", lambda _source, _folder: False)
    nights.objects = {key: make_noise(90_000, number) for number, key in enumerate(nights.objects)}
    nights.folder /= "large"
    nights.folder.mkdir()
    first = nights.write_first()
    second = nights.write_next(first, {"00.pdf": b"shorter"})
    assert [entry.length for entry in read_entries(second)][1:] == [
        entry.length for entry in read_entries(first)
    ][1:]


@pytest.mark.parametrize("reader", sorted(READERS))
def test_stock_tools_read_an_archive_with_fillers_without_a_warning(
    nights: Nights, reader: str, tmp_path: Path
) -> None:
    path = nights.write_next(nights.write_first(), {"00.pdf": b"shorter", "04.pdf": b"shorter"})
    code, listed, stderr = run_tool(*READERS[reader], path, cwd=tmp_path)
    assert (code, stderr) == (0, "")
    if "tar" in reader or reader == "busybox":
        assert len(listed.splitlines()) == len(nights.objects) + 1


def test_every_flipped_byte_of_a_filler_is_found(nights: Nights) -> None:
    first = nights.write_first()
    path = nights.write_next(first, {"00.pdf": b"shorter"})
    grown = read_entries(path)[1]
    filler_bytes = grown.length - read_entries(first)[1].length
    assert filler_bytes >= SMALLEST_FILLER_BYTES
    good = path.read_bytes()
    for place in (*range(SMALLEST_FILLER_BYTES), filler_bytes // 2, filler_bytes - 1):
        bad = bytearray(good)
        bad[grown.offset + place] ^= 1
        path.write_bytes(bad)
        assert CheckStatus.FAILED in {result.status for result in verify_archive(path)}


def test_a_copy_that_fails_leaves_no_filler_behind(nights: Nights) -> None:
    first = nights.write_first()
    entry = read_entries(first)[3]
    path, source_path = nights.folder / "new.tar.gz", nights.folder / "source"
    source_path.write_bytes(first.read_bytes()[: entry.offset + entry.length - 1])
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=nights.folder) as writer,
        ArtifactFile(source_path) as source,
    ):
        writer.add_packed(pack_object(make_entry("a", b"a"), b"a"))
        file.flush()
        before = path.stat().st_size
        with pytest.raises(VerificationError, match="ends too early"):
            writer.add_copies([entry], source)
        file.flush()
        assert path.stat().st_size == before
