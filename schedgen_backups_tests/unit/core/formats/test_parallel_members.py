"""Unpacking members on several threads gives the same bytes and errors as sequential reading."""

from __future__ import annotations

import gzip
import io
from collections import deque
from itertools import cycle, islice

import pytest

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.gzip_members import (
    BLOCK_BYTES,
    MEMBER_HEADER,
    compress_member,
    read_members,
    read_members_concurrently,
    store_member,
)
from schedgen_backups_tests.support.artifacts import make_noise

_WORDS = [b"lecture", b"exam", b"Monday", b"venue", b"group", b"\n"]
_NOISE = make_noise(40_000)
_SENTENCES = [
    b" ".join(_WORDS[place % len(_WORDS)] for place in _NOISE[start : start + 1000]).ljust(6000)
    for start in range(0, 40_000, 1000)
]


def _make_text(size_bytes: int) -> bytes:
    """Return words in an order that repeats late."""
    return b"".join(islice(cycle(_SENTENCES), size_bytes // len(_SENTENCES[0]) + 1))[:size_bytes]


SHAPES = {
    "nothing": [],
    "one small member": [compress_member(b"a")],
    "many small members": [compress_member(_make_text(size)) for size in range(300)],
    "many large members": [compress_member(_make_text(BLOCK_BYTES + size)) for size in range(40)],
    "members that unpack to much": [compress_member(b"0" * (9 * BLOCK_BYTES))] * 12,
    "one member larger than what is read ahead": [
        store_member(make_noise(6 * BLOCK_BYTES)),
        compress_member(b"end"),
    ],
    "gzip files within members": [
        store_member(MEMBER_HEADER + gzip.compress(make_noise(9000)) * 30) for _ in range(40)
    ],
    "headers only": [store_member(MEMBER_HEADER * 200_000)] * 3,
}


@pytest.mark.takes_seconds
@pytest.mark.parametrize("name", SHAPES)
def test_the_bytes_equal_those_of_sequential_reading(name: str) -> None:
    data = b"".join(SHAPES[name])
    file = io.BytesIO(b"before" + data + b"behind")
    observed: list[bytes] = []
    plain = b"".join(read_members_concurrently(file, 6, len(data), on_progress=observed.append))
    assert plain == b"".join(read_members(file, 6, len(data)))
    assert b"".join(observed) == data


def test_unpacking_works_on_whole_members() -> None:
    """In sequential reading, pieces may begin anywhere."""
    data = b"".join(SHAPES["many large members"])
    pieces: list[bytes] = []
    deque(read_members_concurrently(io.BytesIO(data), 0, len(data), on_progress=pieces.append), maxlen=0)
    assert len(pieces) > 10
    assert all(piece.startswith(MEMBER_HEADER) for piece in pieces)


class CountedFile(io.BytesIO):
    """Counts the bytes read."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


def test_only_a_few_pieces_are_prefetched() -> None:
    members = [store_member(make_noise(500_000, number)) for number in range(30)]
    file = CountedFile(b"".join(members))
    done = 0

    def note(piece: bytes) -> None:
        nonlocal done
        # Six pieces, and one that is cut off the file.
        assert file.read_bytes - done <= 7 * (BLOCK_BYTES // 2 + len(members[0]))
        done += len(piece)

    deque(read_members_concurrently(file, 0, len(file.getvalue()), on_progress=note), maxlen=0)
    assert done == len(file.getvalue())


def _find_error(data: bytes, length: int, *, is_side_by_side: bool) -> str:
    read = read_members_concurrently if is_side_by_side else read_members
    with pytest.raises(VerificationError) as caught:
        deque(read(io.BytesIO(data), 0, length), maxlen=0)
    return str(caught.value)


@pytest.mark.parametrize("cut", [1, 9, BLOCK_BYTES // 3, 3 * BLOCK_BYTES])
def test_a_truncated_range_gives_the_same_error(cut: int) -> None:
    data = b"".join(SHAPES["many large members"])
    for bytes_there, length in ((data[:-cut], len(data)), (data, len(data) - cut)):
        found = _find_error(bytes_there, length, is_side_by_side=True)
        assert found == _find_error(bytes_there, length, is_side_by_side=False)


@pytest.mark.parametrize("count", [0, 1, 39])
def test_a_range_truncated_between_two_members_is_reported_too(count: int) -> None:
    members = SHAPES["many large members"]
    found = _find_error(b"".join(members[:count]), len(b"".join(members)), is_side_by_side=True)
    assert found == _find_error(b"".join(members[:count]), len(b"".join(members)), is_side_by_side=False)


@pytest.mark.parametrize("place", [0, 1, 5000, 700_000, -3, -200_000])
def test_a_flipped_byte_is_found(place: int) -> None:
    data = bytearray(b"".join(SHAPES["many large members"]))
    data[place] ^= 0x10
    assert _find_error(bytes(data), len(data), is_side_by_side=True)


def test_what_precedes_the_damage_is_returned_once() -> None:
    members = SHAPES["many large members"]
    data = bytearray(b"".join(members))
    data[len(b"".join(members[:30])) + 5000] ^= 1
    given = bytearray()
    blocks = read_members_concurrently(io.BytesIO(bytes(data)), 0, len(data))
    with pytest.raises(VerificationError):
        deque(map(given.extend, blocks), maxlen=0)
    whole = b"".join(read_members(io.BytesIO(b"".join(members)), 0, len(data)))
    assert len(given) >= len(b"".join(gzip.decompress(member) for member in members[:30]))
    assert whole.startswith(given[: 30 * BLOCK_BYTES])
