"""Packs of a backup directory: written once, found, read again, and removed when nothing needs them."""

from __future__ import annotations

import hashlib
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.errors import CopyChangedError
from schedgen_backups.core.formats.recipe import Recipe, Segment, Segments, StatedPack
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_shelf import find_worth_keeping
from schedgen_backups.core.packs.pack_writer import Piece

POINT = RecoveryPointId.parse("20261130_020000")
LATER = RecoveryPointId.parse("20261130_030000")


@pytest.fixture
def packs(tmp_path: Path) -> LocalPacks:
    made = LocalPacks(tmp_path)
    made.prepare()
    return made


def write(
    packs: LocalPacks, point_id: RecoveryPointId, *pieces: bytes, pack_bytes: int = 100
) -> tuple[list[Segment], list[StatedPack]]:
    with packs.open_index() as index:
        index.choose_usable(packs.find_sizes())
        with packs.open_writer(index, point_id, pack_bytes=pack_bytes) as writer:
            segments = [writer.place(Piece(piece)) for piece in pieces]
            writer.finish_artifact()
            return segments, [
                StatedPack(each.name, each.size_bytes, each.sha256) for each in writer.new_packs
            ]


def test_only_new_pieces_are_written(packs: LocalPacks) -> None:
    first, _stated = write(packs, POINT, b"a" * 60, b"b" * 60, b"a" * 60)
    assert packs.find_sizes() == {"20261130_020000-0000": 60, "20261130_020000-0001": 60}
    assert first[2] == first[0]
    second, stated = write(packs, LATER, b"b" * 60, b"c" * 60)
    assert second[0] == first[1]
    assert [pack.name for pack in stated] == ["20261130_030000-0000"]
    data = (packs.folder / stated[0].name).read_bytes()
    assert (data, stated[0].sha256) == (b"c" * 60, hashlib.sha256(data).hexdigest())


def test_in_a_copy_of_the_folder_no_pack_was_read(packs: LocalPacks, tmp_path: Path) -> None:
    _segments, [pack] = write(packs, POINT, b"a" * 60)
    read_at = datetime(2026, 11, 30, tzinfo=timezone.utc)
    with packs.open_index() as index:
        index.record_reread(pack.name, read_at)
    shutil.copytree(packs.folder, tmp_path / "copy" / "packs")
    packs.folder.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(packs.folder)
    with packs.open_index() as index, LocalPacks(tmp_path / "copy").open_index() as copied:
        assert index.find_rereads() == {pack.name: read_at}
        assert copied.find_rereads() == {pack.name: None}
        digest = hashlib.sha256(b"a" * 60).digest()
        assert copied.find(digest) == index.find(digest) is not None


def test_packs_are_private_and_leave_no_temporary_file(packs: LocalPacks) -> None:
    write(packs, POINT, b"a" * 60)
    modes = {path.name: path.stat().st_mode & 0o777 for path in packs.folder.iterdir()}
    assert modes == {"20261130_020000-0000": 0o600, ".pieces.sqlite": 0o600}
    assert packs.folder.stat().st_mode & 0o777 == 0o700


def test_numbers_go_on_and_a_pack_is_never_overwritten(packs: LocalPacks) -> None:
    write(packs, POINT, b"a" * 60)
    segments, _stated = write(packs, POINT, b"z" * 60)
    assert segments[0].pack == "20261130_020000-0001"
    with packs.open_index() as index, packs.open_writer(index, POINT, pack_bytes=100) as writer:
        (packs.folder / "20261130_020000-0002").write_bytes(b"of another run")
        writer.place(Piece(b"new" * 20))
        with pytest.raises(CopyChangedError):
            writer.finish_artifact()
    assert (packs.folder / "20261130_020000-0002").read_bytes() == b"of another run"


def test_a_lost_index_costs_space_and_nothing_else(packs: LocalPacks) -> None:
    write(packs, POINT, b"a" * 60)
    (packs.folder / ".pieces.sqlite").unlink()
    segments, _stated = write(packs, LATER, b"a" * 60)
    assert segments[0].pack == "20261130_030000-0000"


def test_every_damage_of_a_pack_is_named(packs: LocalPacks) -> None:
    _segments, [pack] = write(packs, POINT, b"a" * 60)
    path = packs.folder / pack.name
    assert packs.read_again(pack) == ""
    path.write_bytes(b"b" + b"a" * 59)
    assert "are not those that were written" in packs.read_again(pack)
    path.write_bytes(b"a" * 59)
    assert "has 59 bytes instead of 60" in packs.read_again(pack)
    path.unlink()
    assert "is missing" in packs.read_again(pack)


def test_what_no_recipe_names_is_removed_and_not_offered_again(packs: LocalPacks) -> None:
    kept, stated = write(packs, POINT, b"a" * 60)
    write(packs, LATER, b"b" * 60)
    (packs.folder / "notes.txt").write_text("not ours")
    recipe = Recipe(Segments(kept), stated_packs=tuple(stated))
    assert packs.remove_unused([recipe]) == (("20261130_030000-0000",), 60)
    assert packs.find_sizes() == {"20261130_020000-0000": 60}
    assert (packs.folder / "notes.txt").exists()
    again, _stated = write(packs, LATER, b"b" * 60)
    assert again[0].pack in packs.find_sizes()


def test_a_pack_of_which_less_than_half_is_used_is_not_used_any_more() -> None:
    sizes = {"a": 100, "b": 100, "c": 100}
    used = [Segments([Segment("a", 0, 49), Segment("b", 0, 25), Segment("b", 75, 25)])]
    others = [Segments([Segment("a", 0, 49), Segment("gone", 0, 9)])]
    assert find_worth_keeping(sizes, [*used, *others]) == {"b"}
