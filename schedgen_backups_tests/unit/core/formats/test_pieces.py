"""Text is cut where its lines say so: equal text gives equal pieces, and a change moves few of them."""

from __future__ import annotations

import random

import pytest

from schedgen_backups.core.formats.gzip_writer import MemberWriter, PieceWriter
from schedgen_backups.core.formats.pieces import LARGEST_ROW_BYTES, LARGEST_ROW_PIECE_BYTES

ROW_BYTES = [5, 60, 200, 3000, LARGEST_ROW_BYTES - 1, LARGEST_ROW_BYTES, 240_000, 3_000_000]


class RecordedPieces(MemberWriter):
    """Keeps the pieces instead of writing them."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write_block(self, data: bytes | bytearray | memoryview, *_compress: object) -> None:
        self.pieces.append(bytes(data))


def make_rows(row_bytes: int, size_bytes: int = 8_000_000) -> list[bytes]:
    generator = random.Random(row_bytes)  # noqa: S311
    return [
        generator.randbytes(row_bytes // 2 + 1).hex().encode()[: row_bytes - 1] + b"\n"
        for _ in range(max(3, size_bytes // row_bytes))
    ]


def cut(text: bytes, *part_bytes: int) -> list[bytes]:
    recorded = RecordedPieces()
    writer = PieceWriter(recorded)
    start = number = 0
    while start < len(text):
        end = start + part_bytes[number % len(part_bytes)]
        writer.append(text[start:end])
        start, number = end, number + 1
    writer.end_piece()
    assert b"".join(recorded.pieces) == text
    return recorded.pieces


@pytest.mark.parametrize("row_bytes", ROW_BYTES)
def test_pieces_do_not_depend_on_how_the_text_arrives(row_bytes: int) -> None:
    text = b"".join(make_rows(row_bytes))
    whole = cut(text, len(text))
    assert cut(text, 65_536) == whole
    assert cut(text, 1_000_003, 7, 4_194_304, 300_001) == whole


@pytest.mark.parametrize("row_bytes", [5, 60, 200, 3000])
def test_pieces_have_about_the_same_size_whatever_the_length_of_rows(row_bytes: int) -> None:
    pieces = cut(b"".join(make_rows(row_bytes, 32_000_000)), 65_536)
    assert 600_000 < sum(map(len, pieces)) / len(pieces) < 1_200_000 or row_bytes == 5
    assert max(map(len, pieces)) <= 2 << 20


def test_a_piece_begins_and_ends_at_the_border_of_a_row() -> None:
    assert all(piece.endswith(b"\n") for piece in cut(b"".join(make_rows(200)), 65_536))


@pytest.mark.parametrize("row_bytes", [LARGEST_ROW_BYTES + 1, 240_000])
def test_a_long_row_is_a_piece_of_its_own(row_bytes: int) -> None:
    rows = make_rows(row_bytes)
    assert cut(b"".join(rows), 65_536) == rows


def test_a_very_long_row_is_split_at_fixed_offsets() -> None:
    rows = [b"short\n", b"x" * 2_500_000 + b"\n", b"short again\n"]
    assert [len(piece) for piece in cut(b"".join(rows), 65_536)] == [
        6,
        LARGEST_ROW_PIECE_BYTES,
        LARGEST_ROW_PIECE_BYTES,
        2_500_001 - 2 * LARGEST_ROW_PIECE_BYTES,
        12,
    ]


@pytest.mark.parametrize("row_bytes", [60, 200, 3000, 240_000])
def test_a_changed_row_changes_the_pieces_next_to_it_only(row_bytes: int) -> None:
    rows = make_rows(row_bytes, 24_000_000)
    before = cut(b"".join(rows), 65_536)
    changed = [*rows]
    changed[len(rows) // 2] = b"changed" + changed[len(rows) // 2]
    changed.insert(len(rows) // 5, b"a new row\n")
    del changed[-len(rows) // 5]
    new = set(cut(b"".join(changed), 65_536)) - set(before)
    assert 1 <= len(new) <= 9, len(before)


def test_equal_rows_are_cut_at_the_largest_size() -> None:
    pieces = cut(b"\n" * 5_000_000, 65_536)
    assert [len(piece) for piece in pieces[:-1]] == [2 << 20] * 2
