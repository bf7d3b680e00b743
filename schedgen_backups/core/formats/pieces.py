"""Cut text into pieces by its content, so that equal lines end up in equal pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, count, repeat
from operator import lt, mul

from isal import isal_zlib

LARGEST_ROW_BYTES = 128 << 10
"""A longer line is a piece of its own."""
LARGEST_ROW_PIECE_BYTES = 1 << 20
"""Where such a line is split, from its start."""


@dataclass(frozen=True)
class PieceSizes:
    """How long pieces are. A piece begins and ends at a line."""

    skipped_bytes: int
    """No piece is shorter, but the last one and those next to a long line. The longer this is, the fewer
    lines are examined."""
    expected_bytes: int
    """Mean distance from there to the end of the piece."""
    largest_bytes: int

    @property
    def scale(self) -> int:
        """By which a line's length is multiplied to become its chance, in 2**32, to end the piece."""
        return (1 << 32) // self.expected_bytes


LARGE_PIECES = PieceSizes(640 << 10, 128 << 10, 2 << 20)
"""For rows of tables, which are long and compress well in large pieces."""
SMALL_PIECES = PieceSizes(6 << 10, 4 << 10, 64 << 10)
"""For the index of an archive in packs: a changed object costs one piece each time, some 6 kB of digests."""


def find_piece_end(data: bytes, start: int, sizes: PieceSizes = LARGE_PIECES, *, is_last: bool) -> int | None:
    """Return where the piece that begins at `start`, the start of a line, ends; None if more data is needed.

    `start` itself is returned where a line longer than `LARGEST_ROW_BYTES` begins there. A piece of at least
    `skipped_bytes` ends behind a line with a probability of its length in `expected_bytes`, decided by its
    CRC, so that the expected size does not depend on the length of lines; at `largest_bytes` it ends in any
    case. With `is_last`,
    nothing follows the data.
    """
    rest = (len(data) if start < len(data) else None) if is_last else None
    position = start
    while position < start + sizes.skipped_bytes:
        newline = data.rfind(b"\n", position, min(position + LARGEST_ROW_BYTES, start + sizes.skipped_bytes))
        if newline < 0:
            newline = data.find(b"\n", position, position + LARGEST_ROW_BYTES)
        if newline < 0:
            return position if len(data) - position >= LARGEST_ROW_BYTES else rest
        position = newline + 1
    limit = start + sizes.largest_bytes
    while True:
        stop = data.rfind(b"\n", position, min(position + LARGEST_ROW_BYTES, limit))
        if stop < 0:
            is_row_whole = data.find(b"\n", position, position + LARGEST_ROW_BYTES) >= 0
            return position if is_row_whole or len(data) - position >= LARGEST_ROW_BYTES else rest
        lines = data[position:stop].split(b"\n")
        index = next(_find_ends(lines, sizes.scale), None)
        if index is not None:
            return position + sum(map(len, lines[: index + 1])) + index + 1
        position = stop + 1


def _find_ends(lines: list[bytes], scale: int) -> Iterator[int]:
    """Yield the indexes of lines that end a piece."""
    # Without a loop in Python: 0.3 us a line on one core, and half of that on a quiet machine (2026-11-29).
    checksums = map(isal_zlib.crc32, lines)
    chances = map(mul, map(len, lines), repeat(scale))
    return compress(count(), map(lt, checksums, chances))
