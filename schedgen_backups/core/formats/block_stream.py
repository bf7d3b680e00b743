"""A stream of blocks as a file that can only be read on, for libraries that want a file.

Used where an archive's bytes are parsed and where they go to the S3 SDK. Nothing is held but what one read
asks for.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from schedgen_backups.core.errors import VerificationError

LINE_LIMIT_BYTES = 16 << 20
"""For a line of an index. The longest that are written are a record's: two thousand keys of 1 KiB, each with
its reason."""


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines without their ends.

    VerificationError when one is longer than `LINE_LIMIT_BYTES`, or the last has no end.
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
    """Reads on through the blocks of an iterator; what the iterator raises comes out of the reads."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._buffer = bytearray()

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as asked for; fewer only at the end."""
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
        """Yields that many bytes; VerificationError when the stream ends before."""
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
        """Yields what is left."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        yield rest
        yield from self._blocks
