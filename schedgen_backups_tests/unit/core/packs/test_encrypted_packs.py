"""Encrypted packs of a backup directory: what they reveal, who can read them, and what damage looks like."""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from schedgen_backups.core.errors import ConfigurationError, PackKeyError, VerificationError
from schedgen_backups.core.formats.gzip_members import compress_member
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.packed_file import PackedFile
from schedgen_backups.core.formats.recipe import Recipe, Segments, StatedPack, read_recipe, write_recipe
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import Decryptor, KeyPair, make_key_pair
from schedgen_backups.core.packs.healing import heal_pack
from schedgen_backups.core.packs.identity_file import IdentityFile
from schedgen_backups.core.packs.local_encryption import LocalEncryption, make_local_encryption
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_shelf import PackShelf
from schedgen_backups.core.packs.pack_writer import Piece
from schedgen_backups_tests.support.artifacts import damage, make_noise

FIRST = RecoveryPointId.parse("20261130_020000")
SECOND = RecoveryPointId.parse("20261130_030000")
HOST: KeyPair = make_key_pair()
KEYS = Decryptor([HOST.private])
PIECES = [make_noise(70_000, number) for number in range(12)]


def encrypt(*others: KeyPair) -> LocalEncryption:
    encryption = make_local_encryption([HOST.public, *(pair.public for pair in others)], KEYS)
    assert encryption is not None
    return encryption


def take(
    directory: Path,
    point_id: RecoveryPointId,
    *newest: Recipe,
    encryption: LocalEncryption | None = None,
    pieces: list[bytes] = PIECES,
    pack_bytes: int = 300_000,
) -> Recipe:
    """Place the pieces as a capture does, after the newest recipes."""
    packs = LocalPacks(directory, KEYS)
    directory.mkdir(exist_ok=True)
    packs.prepare()
    with packs.open_index() as index:
        shelf = PackShelf(packs, index, newest, others=(), suspects=(), reread_days=30, encryption=encryption)
        with shelf.open_writer(point_id, pack_bytes=pack_bytes) as writer:
            segments = Segments()
            for piece in pieces:
                segments.join(writer.place(Piece(piece)))
            writer.finish_artifact()
            recipe = shelf.make_recipe(segments, writer.new_packs)
        assert shelf.read_due(recipe) == {}
    return read_recipe("x", write_recipe(recipe))


def read(directory: Path, recipe: Recipe, keys: PackKeys = KEYS) -> bytes:
    return PackedFile(recipe, directory / "packs", keys).open_reader().read()


def test_what_is_written_is_read_and_lies_nowhere_in_plain(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    assert read(tmp_path, recipe) == b"".join(PIECES)
    assert {pack.name.endswith(".age") for pack in recipe.stated_packs} == {True}
    known = {data for piece in PIECES for data in (piece[:64], hashlib.sha256(piece).digest())}
    for path in (tmp_path / "packs").iterdir():
        data = path.read_bytes()
        assert not [each for each in known if each in data], path


def test_ranges_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    packed = PackedFile(recipe, tmp_path / "packs", KEYS)
    whole = b"".join(PIECES)
    source = Random(7)  # noqa: S311 - reproducible test data
    ranges = [(source.randrange(len(whole)), source.randrange(1, 200_000)) for _number in range(60)]

    def read_range(place: tuple[int, int]) -> bytes:
        reader = packed.open_reader()
        reader.seek(place[0])
        return reader.read(place[1])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_range, ranges))
    assert found == [whole[offset : offset + length] for offset, length in ranges]


def test_a_reader_holds_little_of_a_pack(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt(), pieces=[bytes(1 << 20)] * 16, pack_bytes=16 << 20)
    reader = PackedFile(recipe, tmp_path / "packs", KEYS).open_reader()
    tracemalloc.start()
    try:
        while reader.read(64 << 10):
            pass
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_equal_packs_have_other_digests_in_a_recipe(tmp_path: Path) -> None:
    """A digest of plain bytes would confirm a guess."""
    encryption = encrypt()
    recipes = [take(tmp_path / name, FIRST, encryption=encryption) for name in ("one", "two")]
    plain = [{pack.plain_sha256 for pack in recipe.stated_packs} for recipe in recipes]
    assert plain[0].isdisjoint(plain[1])


def test_a_pack_unpacks_by_itself(tmp_path: Path) -> None:
    recipe = take(
        tmp_path, FIRST, encryption=encrypt(), pieces=[compress_member(b"a"), compress_member(b"b")]
    )
    [pack] = recipe.stated_packs
    assert gzip.decompress(LocalPacks(tmp_path, KEYS).read_pack(pack)) == b"ab"


def test_pieces_are_used_again_by_their_readers_only(tmp_path: Path) -> None:
    plain = take(tmp_path, FIRST)
    host = take(tmp_path, RecoveryPointId.parse("20261130_021000"), plain, encryption=encrypt())
    assert set(host.packs).isdisjoint(plain.packs)
    again = take(tmp_path, RecoveryPointId.parse("20261130_022000"), host, plain, encryption=encrypt())
    assert set(again.packs) == set(host.packs)
    others = take(
        tmp_path,
        RecoveryPointId.parse("20261130_023000"),
        again,
        host,
        plain,
        encryption=encrypt(make_key_pair()),
    )
    assert set(others.packs).isdisjoint({*plain.packs, *host.packs})
    last = take(tmp_path, RecoveryPointId.parse("20261130_024000"), others, again, plain)
    assert set(last.packs) == set(plain.packs)
    for recipe in (plain, host, others, last):
        assert read(tmp_path, recipe) == b"".join(PIECES)


def test_the_order_of_recipients_changes_nothing(tmp_path: Path) -> None:
    other = make_key_pair()
    first = take(tmp_path, FIRST, encryption=encrypt(other))
    swapped = make_local_encryption([other.public, HOST.public], KEYS)
    assert set(take(tmp_path, SECOND, first, encryption=swapped).packs) == set(first.packs)


def test_a_small_pack_is_used_again(tmp_path: Path) -> None:
    """The header of age is larger than what a quiet night writes."""
    first = take(tmp_path, FIRST, encryption=encrypt(), pieces=[b"x" * 80])
    assert take(tmp_path, SECOND, first, encryption=encrypt(), pieces=[b"x" * 80]).packs == first.packs


def test_a_pack_that_holds_something_else_than_its_recipe_states_is_not_handed_out(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    pack = recipe.stated_packs[0]
    assert pack.encryption is not None
    wrong = replace(pack, encryption=replace(pack.encryption, plain_sha256="0" * 64))
    with pytest.raises(VerificationError, match="does not hold what its recipe states"):
        LocalPacks(tmp_path, KEYS).read_pack(wrong)


def cut(data: bytes) -> bytes:
    return data[:-20_000]


def flip_header(data: bytes) -> bytes:
    return damage(data, 8 * 60)


def flip_payload(data: bytes) -> bytes:
    return damage(data, 8 * (len(data) // 2))


@pytest.mark.parametrize("spoil", [cut, flip_header, flip_payload])
def test_damage_is_never_taken_for_a_wrong_key(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    pack = recipe.stated_packs[1]
    path = tmp_path / "packs" / pack.name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(VerificationError, match=r"altered|not those that were written"):
        read(tmp_path, recipe)
    assert pack.name in LocalPacks(tmp_path).read_again(pack)
    assert LocalPacks(tmp_path, KEYS).read_again(recipe.stated_packs[0]) == ""


def test_exchanged_packs_are_found_without_a_key(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt(), pieces=PIECES[:8])
    first, second = (tmp_path / "packs" / pack.name for pack in recipe.stated_packs)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    packs = LocalPacks(tmp_path)
    assert all(packs.read_again(pack) for pack in recipe.stated_packs)
    with pytest.raises(VerificationError, match=r"not those that were written|bytes instead of"):
        packs.read_pack(recipe.stated_packs[0])


@pytest.mark.parametrize("keys", [NO_KEYS, Decryptor([make_key_pair().private])], ids=["none", "wrong"])
def test_without_the_key_the_contents_are_unknown(tmp_path: Path, keys: PackKeys) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    with pytest.raises(PackKeyError):
        read(tmp_path, recipe, keys)
    assert [LocalPacks(tmp_path, keys).read_again(pack) for pack in recipe.stated_packs] == [""] * 3


def test_the_plain_form_of_a_pack_is_read_instead(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    packs = LocalPacks(tmp_path, KEYS)
    for pack in recipe.stated_packs:
        (tmp_path / "packs" / pack.plain_name).write_bytes(packs.read_pack(pack))
        (tmp_path / "packs" / pack.name).unlink()
    assert read(tmp_path, recipe, NO_KEYS) == b"".join(PIECES)
    assert [packs.read_again(pack) for pack in recipe.stated_packs] == [""] * 3
    assert packs.remove_unused([recipe]) == ((), 0)
    # What a disk that is to reveal nothing does not hold is not used by new points.
    assert set(take(tmp_path, SECOND, recipe, encryption=encrypt()).packs).isdisjoint(recipe.packs)
    path = tmp_path / "packs" / recipe.stated_packs[0].plain_name
    path.write_bytes(damage(path.read_bytes(), 8 * 1000))
    assert "not those that were written" in packs.read_again(recipe.stated_packs[0])


def test_a_damaged_encrypted_pack_is_not_healed(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    pack = recipe.stated_packs[0]
    path = tmp_path / "packs" / pack.name
    spoilt = flip_payload(path.read_bytes())
    path.write_bytes(spoilt)
    packs = LocalPacks(tmp_path, KEYS)
    later = take(tmp_path, SECOND, encryption=encrypt())
    assert read(tmp_path, later) == b"".join(PIECES)
    with packs.open_index() as index:
        index.set_aside(pack.name)
        assert not heal_pack(packs, index, pack)
    assert path.read_bytes() == spoilt


def test_a_recipe_states_whether_a_pack_is_encrypted(tmp_path: Path) -> None:
    encrypted, plain = take(tmp_path, FIRST, encryption=encrypt()), take(tmp_path / "plain", FIRST)
    lines = gzip.decompress(write_recipe(encrypted)).decode()
    assert read_recipe("x", gzip.compress(lines.encode())).stated_packs == encrypted.stated_packs
    first, *_rest = lines.splitlines(keepends=True)
    words = first.split()
    wrong = [
        lines.replace(".age", ""),
        lines.replace(first, " ".join(words[:5]) + "\n", 1),
        lines.replace(first, " ".join(words[:7]) + "\n", 1),
        gzip.decompress(write_recipe(plain)).decode().replace("-0000", "-0000.age"),
    ]
    for text in wrong:
        with pytest.raises(VerificationError, match="not a recipe"):
            read_recipe("x", gzip.compress(text.encode()))
    # A place behind the end of what the pack holds, but not of its stored bytes.
    [pack] = take(tmp_path / "small", FIRST, encryption=encrypt(), pieces=[b"x" * 200]).stated_packs
    longer = f"{pack.to_line()}{pack.name} 0 {pack.plain_bytes + 1}\n# bytes {pack.plain_bytes + 1}\n"
    with pytest.raises(VerificationError, match="not a recipe"):
        read_recipe("x", gzip.compress(longer.encode()))


def test_a_lost_index_of_pieces_costs_space_only(tmp_path: Path) -> None:
    first = take(tmp_path, FIRST, encryption=encrypt())
    (tmp_path / "packs" / ".pieces.sqlite").unlink()
    second = take(tmp_path, SECOND, first, encryption=encrypt())
    assert read(tmp_path, second) == b"".join(PIECES)
    assert read(tmp_path, first) == b"".join(PIECES)


def test_a_pack_of_which_the_index_lost_what_it_holds_is_not_stated(tmp_path: Path) -> None:
    take(tmp_path, FIRST, encryption=encrypt())
    with closing(sqlite3.connect(tmp_path / "packs" / ".pieces.sqlite")) as database:
        database.execute("DELETE FROM encryptions")
        database.commit()
    with LocalPacks(tmp_path).open_index() as index:
        assert {index.state_pack(pack.name) for pack in index.list_packs()} == {None}


# --- the file of keys


def write_key(path: Path, *texts: str, mode: int = 0o600) -> IdentityFile:
    path.touch(mode=0o600)
    path.write_text("\n".join(texts))
    path.chmod(mode)
    return IdentityFile(path)


def test_several_keys_in_the_file_open_older_packs(tmp_path: Path) -> None:
    recipe = take(tmp_path, FIRST, encryption=encrypt())
    keys = write_key(tmp_path / "key", "# new", make_key_pair().private, "", "# old", HOST.private)
    assert read(tmp_path, recipe, keys) == b"".join(PIECES)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o601])
def test_a_file_of_keys_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    keys = write_key(tmp_path / "key", HOST.private, mode=mode)
    with pytest.raises(PackKeyError, match="can be read by others") as raised:
        keys.load()
    assert HOST.private not in f"{raised.value.message} {raised.value.hint}"
    keys.path.chmod(0o440)
    assert keys.load()


@pytest.mark.parametrize(
    "text", ["", "# nothing", "AGE-SECRET-KEY-1CANARY", "age1canary", "-----BEGIN CANARY"]
)
def test_a_file_without_a_key_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    keys = write_key(tmp_path / "key", text)
    with pytest.raises(PackKeyError, match="BACKUP_PACK_IDENTITY_FILE") as raised:
        keys.load()
    assert "CANARY" not in f"{raised.value.message} {raised.value.hint}".upper()


def test_a_missing_file_of_keys_is_looked_for_again(tmp_path: Path) -> None:
    keys = IdentityFile(tmp_path / "key")
    with pytest.raises(PackKeyError, match="cannot be read"):
        keys.load()
    write_key(tmp_path / "key", HOST.private)
    assert keys.load()
    assert HOST.private not in repr(keys)


def test_keys_that_do_not_open_what_is_encrypted_are_a_problem_of_configuration(tmp_path: Path) -> None:
    other = make_key_pair()
    for keys in (NO_KEYS, Decryptor([other.private]), write_key(tmp_path / "key", other.private)):
        with pytest.raises(ConfigurationError, match="could not be read by this host"):
            make_local_encryption([HOST.public], keys)
    assert make_local_encryption([], NO_KEYS) is None
    assert HOST.private not in repr(encrypt())


def test_the_digests_of_pieces_are_keyed(tmp_path: Path) -> None:
    _ = tmp_path
    assert encrypt().digest_key == encrypt(make_key_pair()).digest_key
    assert KEYS.derive_digest_key() != Decryptor([make_key_pair().private]).derive_digest_key()
    assert StatedPack("a", 1, "b").readers == "everybody"
