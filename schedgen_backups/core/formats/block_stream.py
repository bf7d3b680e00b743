"""A stream of blocks as a forward-only file, for libraries that need a file.

Holds only what one read requests.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from schedgen_backups.core.errors import VerificationError

LINE_LIMIT_BYTES = 16 << 20
"""Limit for a line of an index. The longest lines written are records with two thousand keys of 1 KiB, each
with its reason."""


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines without their line ends.

    VerificationError when a line is longer than `LINE_LIMIT_BYTES`, or the last one has no end.
    """
    pending = bytearray()
    for block in blocks:
        first, *others = block.split(b"\n")
        pending += first
        if len(pending) > LINE_LIMIT_BYTES:
            raise VerificationError(
                "a line of its index is too long", hint="Use another copy or another recovery point."
            )
        for other in others:
            yield bytes(pending)
            pending = bytearray(other)
    if pending:
        raise VerificationError(
            "its index ends inside a line", hint="Use another copy or another recovery point."
        )


class BlockReader(io.BytesIO):
    """Reads the blocks of an iterator; reads raise what the iterator raises."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._buffer = bytearray()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return as many bytes as requested; fewer only at the end."""
        wanted = -1 if size is None else size
        while wanted < 0 or len(self._buffer) < wanted:
            block = next(self._blocks, None)
            if block is None:
                break
            self._buffer += block
        end = len(self._buffer) if wanted < 0 else wanted
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        return data

    def read_exactly(self, size_bytes: int) -> Iterator[bytes]:
        """Yield this many bytes; VerificationError when the stream ends earlier."""
        remaining = size_bytes
        while remaining:
            block = bytes(self._buffer) or next(self._blocks, None)
            if block is None:
                raise VerificationError(
                    "an entry ends too early", hint="Use another copy or another recovery point."
                )
            self._buffer = bytearray(block[remaining:])
            yield block[:remaining]
            remaining -= min(remaining, len(block))

    def read_all(self) -> Iterator[bytes]:
        """Yield the rest."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        yield rest
        yield from self._blocks
