"""An artifact in packs is read like a file, and a recipe that was altered is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from pathlib import Path

import pytest

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.packed_file import PACKS_NAME, open_packed_file
from schedgen_backups.core.formats.recipe import (
    Recipe,
    Segment,
    Segments,
    StatedPack,
    read_recipe,
    write_recipe,
)

NAME = "minio_pdfs_20261130_020000.tar.gz.recipe.gz"


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of an artifact whose recipe is `NAME` in `tmp_path`: 40 segments of three packs."""
    source = random.Random(5)  # noqa: S311 - reproducible test data
    (tmp_path / PACKS_NAME).mkdir()
    packs = {f"20261130_02000{number}-0000": source.randbytes(20_000) for number in range(3)}
    for name, data in packs.items():
        (tmp_path / PACKS_NAME / name).write_bytes(data)
    segments, parts = Segments(), list[bytes]()
    for _number in range(40):
        pack = source.choice(sorted(packs))
        offset = source.randrange(19_000)
        length = source.randrange(1, 1000)
        segments.append(Segment(pack, offset, length))
        parts.append(packs[pack][offset : offset + length])
    stated = tuple(
        StatedPack(name, len(packs[name]), hashlib.sha256(packs[name]).hexdigest()) for name in segments.packs
    )
    (tmp_path / NAME).write_bytes(write_recipe(Recipe(segments, stated_packs=stated)))
    return b"".join(parts)


def test_a_packed_file_reads_like_a_file(tmp_path: Path, whole: bytes) -> None:
    packed = open_packed_file(tmp_path / NAME)
    assert packed.size_bytes == len(whole)
    reader, other = packed.open_reader(), packed.open_reader()
    assert reader.read() == whole
    assert reader.read(1) == b""
    source = random.Random(6)  # noqa: S311 - reproducible test data
    for _number in range(200):
        offset, length = source.randrange(len(whole) + 10), source.randrange(3000)
        assert other.seek(offset) == offset
        assert other.read(length) == whole[offset : offset + length]
    assert other.seek(-7, 2) == len(whole) - 7
    assert (other.read(), other.tell()) == (whole[-7:], len(whole))


def test_segments_of_a_range_are_its_bytes(tmp_path: Path, whole: bytes) -> None:
    packed = open_packed_file(tmp_path / NAME)
    source = random.Random(7)  # noqa: S311 - reproducible test data
    for _number in range(100):
        offset = source.randrange(len(whole))
        length = source.randrange(1, len(whole) - offset + 1)
        parts = [
            (tmp_path / PACKS_NAME / segment.pack).read_bytes()[segment.offset :][: segment.length]
            for segment in packed.find_segments(offset, length)
        ]
        assert b"".join(parts) == whole[offset : offset + length]


def test_a_missing_and_a_short_pack_are_named(tmp_path: Path, whole: bytes) -> None:
    packed = open_packed_file(tmp_path / NAME)
    pack = tmp_path / PACKS_NAME / packed.recipe.stated_packs[0].name
    pack.write_bytes(b"short")
    with pytest.raises(VerificationError, match=f"{pack.name} is too short"):
        packed.open_reader().read(len(whole))
    pack.unlink()
    with pytest.raises(VerificationError, match=f"{pack.name} is missing"):
        packed.open_reader().read(len(whole))


def test_a_fifo_in_place_of_a_pack_does_not_block(tmp_path: Path, whole: bytes) -> None:

    packed = open_packed_file(tmp_path / NAME)
    pack = tmp_path / PACKS_NAME / packed.recipe.stated_packs[0].name
    pack.unlink()
    os.mkfifo(pack)
    with pytest.raises(VerificationError, match="cannot read the pack"):
        packed.open_reader().read(len(whole))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"# bytes ", b"# bytes 1"),
        (b"# bytes ", b"# sha256 "),
        (b"# pack 20261130_020000", b"# pack 20261130_020009"),
        (b" 20000 ", b" 1 "),
        (b"# pack", b"# kcap"),
    ],
)
def test_a_recipe_whose_lines_do_not_agree_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / NAME
    text = gzip.decompress(path.read_bytes())
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1)))
    with pytest.raises(VerificationError, match="is not a recipe"):
        open_packed_file(path)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_recipe_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / NAME
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text[:-cut]))
    with pytest.raises(VerificationError, match="is not a recipe"):
        open_packed_file(path)


def test_the_recipe_of_a_store_is_not_one_of_the_directory(tmp_path: Path) -> None:
    segments = Segments([Segment("20261130_020000-0000", 0, 5)])
    data = write_recipe(Recipe(segments, "ab" * 32))
    assert read_recipe("x", data).sha256 == "ab" * 32
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(VerificationError, match="recipe of a store"):
        open_packed_file(tmp_path / NAME)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 1 << 62), (1 << 62, 1), (5, -3)])
def test_a_range_that_the_artifact_does_not_have_is_refused(
    tmp_path: Path, whole: bytes, offset: int, length: int
) -> None:
    packed = open_packed_file(tmp_path / NAME)
    assert list(packed.find_segments(len(whole), 0)) == []
    with pytest.raises(VerificationError, match="out of range"):
        list(packed.find_segments(offset, length))
