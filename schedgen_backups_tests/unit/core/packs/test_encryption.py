"""Keys, whole files and ranges of encrypted files."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest

from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.core.packs.encryption import AgeEncryptor, Decryptor, make_key_pair
from schedgen_backups_tests.support.artifacts import damage, make_noise, spoken_by

PAIR = make_key_pair()
OTHER = make_key_pair()
CHUNK = 64 << 10


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 200_000])
def test_any_range_is_what_the_whole_file_holds_there(size_bytes: int) -> None:
    data = make_noise(size_bytes)
    stored = AgeEncryptor([OTHER.public, PAIR.public]).encrypt(data)
    decryptor = Decryptor([PAIR.private])
    assert decryptor.decrypt("x.age", stored) == data
    read = decryptor.open_ranges("x.age", len(stored), lambda start, length: stored[start : start + length])
    assert read is not None
    borders = (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK, max(size_bytes - 1, 0), size_bytes, size_bytes + 100_000)
    for offset, length in product(borders, (1, 20, CHUNK, 2 * CHUNK + 3)):
        assert read(offset, length) == data[offset : offset + length]


def test_a_range_reads_little_of_a_large_file() -> None:
    data = make_noise(4 << 20)
    stored = AgeEncryptor([PAIR.public]).encrypt(data)
    asked: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        part = stored[offset : offset + length]
        asked.append(len(part))
        return part

    read = Decryptor([PAIR.private]).open_ranges("x.age", len(stored), fetch)
    assert read is not None
    assert read(2_000_000, 30_000) == data[2_000_000:2_030_000]
    assert sum(asked) < 30_000 + 3 * CHUNK


def test_an_altered_file_is_refused_whole_and_in_ranges() -> None:
    stored = damage(AgeEncryptor([PAIR.public]).encrypt(make_noise(300_000)), 8 * 150_000)
    decryptor = Decryptor([PAIR.private])
    with pytest.raises(VerificationError, match="cannot be decrypted"):
        decryptor.decrypt("x.age", stored)
    read = decryptor.open_ranges("x.age", len(stored), lambda start, length: stored[start : start + length])
    assert read is not None
    with pytest.raises(VerificationError, match="was altered"):
        read(140_000, 20_000)


def test_a_shortened_file_is_refused_in_ranges() -> None:
    whole = AgeEncryptor([PAIR.public]).encrypt(make_noise(3 * CHUNK))
    stored = whole[: -CHUNK - 16]
    read = Decryptor([PAIR.private]).open_ranges(
        "x.age", len(stored), lambda start, length: stored[start : start + length]
    )
    assert read is not None
    with pytest.raises(VerificationError, match="was altered"):
        read(CHUNK, 2 * CHUNK)


def test_a_wrong_key_opens_nothing() -> None:
    stored = AgeEncryptor([PAIR.public]).encrypt(b"body")
    decryptor = Decryptor([OTHER.private])
    with pytest.raises(VerificationError, match="cannot be decrypted") as caught:
        decryptor.decrypt("x.age", stored)
    assert "private key of one of the store's recipients" in caught.value.hint
    assert decryptor.open_ranges("x.age", len(stored), lambda o, n: stored[o : o + n]) is None


@pytest.mark.parametrize(
    "text",
    [PAIR.private, PAIR.private.lower(), "-----BEGIN OPENSSH PRIVATE KEY-----\nabc", f" {PAIR.private} "],
    ids=["age", "small letters", "ssh", "with spaces"],
)
def test_a_private_key_is_refused_as_recipient_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="a private key stands among the recipients") as caught:
        AgeEncryptor([PAIR.public, text])
    assert PAIR.private[20:40].lower() not in spoken_by(caught.value).lower()


@pytest.mark.parametrize("text", ["", "age1abc", "ssh-ed25519 AAAA", "ssh-dss AAAA x", "hello"])
def test_what_is_not_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a public key"):
        AgeEncryptor([text])


def test_without_recipients_nothing_is_encrypted() -> None:
    with pytest.raises(ConfigurationError, match="has no recipients"):
        AgeEncryptor([])


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "hello", PAIR.public], ids=["empty", "comment", "word", "public key"]
)
def test_what_is_not_a_private_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="identity"):
        Decryptor([text])


def test_the_file_of_age_keygen_is_an_identity() -> None:
    text = f"# created: 2026-11-30T02:00:00Z\n# public key: {PAIR.public}\n{PAIR.private}\n"
    stored = AgeEncryptor([PAIR.public]).encrypt(b"body")
    assert Decryptor([text]).decrypt("x.age", stored) == b"body"


def test_without_a_key_an_encrypted_copy_asks_for_one() -> None:
    with pytest.raises(ConfigurationError, match="no private key was given"):
        Decryptor([]).decrypt("x.age", b"")
    assert Decryptor([]).decrypt("x", b"plain") == b"plain"


def test_every_altered_bit_of_the_header_is_refused() -> None:
    """Ranges are read by code of our own, and whole files by pyrage."""
    decryptor = Decryptor([PAIR.private])
    stored = AgeEncryptor([PAIR.public]).encrypt(b"plain bytes")
    header_bytes = stored.index(b"\n--- ") + len("\n--- ") + 43 + len("\n")
    for bit in range(8 * header_bytes):
        altered = bytearray(stored)
        altered[bit // 8] ^= 1 << bit % 8

        def read(offset: int, length: int, data: bytes = bytes(altered)) -> bytes:
            return data[offset : offset + length]

        with suppress(VerificationError):
            assert decryptor.open_ranges("pack.age", len(altered), read) is None, bit
        with pytest.raises(VerificationError):
            decryptor.decrypt("pack.age", bytes(altered))
