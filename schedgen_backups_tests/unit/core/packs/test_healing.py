"""Damaged packs, and what of them lies elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.formats.recipe import Segment, StatedPack
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.healing import heal_pack, put_back
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_writer import Piece
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups_tests.support.artifacts import damage, make_noise

FIRST, SECOND = (RecoveryPointId(text) for text in ("20261101_020000", "20261102_020000"))
PIECES = [make_noise(1000, seed=seed) for seed in range(5)]


@pytest.fixture
def packs(tmp_path: Path) -> LocalPacks:
    packs = LocalPacks(tmp_path)
    packs.prepare()
    return packs


@pytest.fixture
def index(packs: LocalPacks) -> Iterator[PieceIndex]:
    with packs.open_index() as index:
        yield index


def write(packs: LocalPacks, index: PieceIndex, point_id: RecoveryPointId, pieces: list[bytes]) -> StatedPack:
    """Write a pack of the pieces that no usable pack has."""
    with packs.open_writer(index, point_id, pack_bytes=1 << 20) as writer:
        for piece in pieces:
            writer.place(Piece(piece))
        writer.finish_artifact()
        [pack] = writer.new_packs
    return StatedPack(pack.name, pack.size_bytes, pack.sha256)


@pytest.mark.parametrize("how", ["a bit", "cut", "longer", "removed", "all of it"])
def test_a_pack_whose_pieces_were_placed_again_is_made_whole(
    packs: LocalPacks, index: PieceIndex, how: str
) -> None:
    pack = write(packs, index, FIRST, PIECES)
    path = packs.folder / pack.name
    data = path.read_bytes()
    changed = {"a bit": damage(data, 8 * 2500), "cut": data[:-1], "longer": data + b"x"}
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(changed.get(how, bytes(len(data))))
    index.set_aside(pack.name)
    assert index.find(hashlib.sha256(PIECES[0]).digest()) is None
    write(packs, index, SECOND, PIECES)
    assert heal_pack(packs, index, pack)
    assert path.read_bytes() == data
    assert index.find_set_aside() == frozenset()
    assert [file.name for file in packs.folder.glob(".*.tmp")] == []


def test_only_the_damaged_piece_must_be_known_elsewhere(packs: LocalPacks, index: PieceIndex) -> None:
    pack = write(packs, index, FIRST, PIECES)
    path = packs.folder / pack.name
    data = path.read_bytes()
    path.write_bytes(damage(data, 8 * 2500))
    index.set_aside(pack.name)
    assert not heal_pack(packs, index, pack)
    assert path.read_bytes() == damage(data, 8 * 2500), "nothing is written that is not whole"
    write(packs, index, SECOND, [PIECES[2]])
    assert heal_pack(packs, index, pack)
    assert path.read_bytes() == data


def test_a_piece_that_is_damaged_elsewhere_too_is_not_used(packs: LocalPacks, index: PieceIndex) -> None:
    pack = write(packs, index, FIRST, PIECES)
    path = packs.folder / pack.name
    path.write_bytes(damage(path.read_bytes(), 8 * 2500))
    index.set_aside(pack.name)
    other = packs.folder / write(packs, index, SECOND, [PIECES[2]]).name
    other.write_bytes(damage(other.read_bytes(), 8 * 10))
    before = path.read_bytes()
    assert not heal_pack(packs, index, pack)
    assert path.read_bytes() == before
    other.unlink()
    assert not heal_pack(packs, index, pack)


@pytest.mark.parametrize("is_older", [True, False])
def test_a_piece_that_lies_in_two_packs_heals_either(
    packs: LocalPacks, index: PieceIndex, *, is_older: bool
) -> None:
    older = write(packs, index, FIRST, PIECES)
    index.choose_usable([])
    newer = write(packs, index, SECOND, PIECES[1:4])
    pack = older if is_older else newer
    path = packs.folder / pack.name
    data = path.read_bytes()
    path.write_bytes(damage(data, 8 * 1500))
    index.set_aside(pack.name)
    assert heal_pack(packs, index, pack)
    assert path.read_bytes() == data
    index.forget([newer.name])
    assert index.list_places(hashlib.sha256(PIECES[2]).digest()) == ([Segment(older.name, 2000, 1000)])


def test_without_an_index_a_pack_stays_as_it_is(packs: LocalPacks, index: PieceIndex) -> None:
    pack = write(packs, index, FIRST, PIECES)
    index.forget([pack.name])
    path = packs.folder / pack.name
    path.write_bytes(damage(path.read_bytes(), 8 * 2500))
    index.set_aside(pack.name)
    write(packs, index, SECOND, PIECES)
    assert not heal_pack(packs, index, pack)


def test_a_pack_of_a_size_that_none_has_is_not_even_read(packs: LocalPacks, index: PieceIndex) -> None:
    pack = write(packs, index, FIRST, PIECES)
    assert not heal_pack(packs, index, StatedPack(pack.name, 1 << 50, pack.sha256))


def test_only_the_stated_bytes_are_put_back(packs: LocalPacks, index: PieceIndex) -> None:
    pack = write(packs, index, FIRST, PIECES)
    path = packs.folder / pack.name
    data = path.read_bytes()
    path.unlink()
    index.set_aside(pack.name)
    assert not put_back(packs, index, pack, damage(data, 0))
    assert not path.exists()
    assert put_back(packs, index, pack, data)
    assert path.read_bytes() == data
    segment = index.find(hashlib.sha256(PIECES[1]).digest())
    assert segment is not None
    assert (segment.pack, segment.offset) == (pack.name, 1000), "its pieces are used again"
