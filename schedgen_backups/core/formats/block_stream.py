"""A stream of blocks as a file that can only be read on, for libraries that want a file.

Used where an archive's bytes are parsed and where they go to the S3 SDK. Nothing is held but what one read asks for.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from schedgen_backups.core.errors import VerificationError


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
                raise VerificationError("an entry ends too early", hint="Use another copy or another recovery point.")
            self._buffer = bytearray(block[remaining:])
            yield block[:remaining]
            remaining -= min(remaining, len(block))

    def read_all(self) -> Iterator[bytes]:
        """Yields what is left."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        yield rest
        yield from self._blocks
