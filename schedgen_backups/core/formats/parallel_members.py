"""Unpacks a file's gzip members on several threads, in order: verification is held up by nothing else.

Where a member ends is known only once it was unpacked, so the file is cut where one seems to begin. Where none did, where something is damaged, or
where members would fill the memory, `gzip_members` reads on, one byte after the other, and says what is wrong.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import BinaryIO

from isal import isal_zlib

from schedgen_backups.core.formats.gzip_members import BLOCK_BYTES, GZIP_WINDOW, MEMBER_HEADER, read_members

_READ_BYTES = BLOCK_BYTES // 2
"""A member of a dump's rows takes about as much."""
_PIECE_LIMIT_BYTES = 4 * BLOCK_BYTES
_PLAIN_LIMIT_BYTES = 16 * BLOCK_BYTES


def read_members_side_by_side(
    file: BinaryIO, offset: int, length: int, *, observe: Callable[[bytes], object] = lambda _data: None
) -> Iterator[bytes]:
    """Yields what `read_members` yields, in other blocks, and raises what it raises; on up to four cores.

    At most six pieces of the file are in memory, each with up to 16 MiB of what it unpacks to.
    """
    threads = min(4, os.cpu_count() or 1)
    waiting: deque[tuple[bytes, Future[list[bytes] | None]]] = deque()
    done_bytes = 0
    pieces = _cut_at_members(file, offset, length)
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="unpack") as pool:
        while True:
            for piece in islice(pieces, threads + 1 - len(waiting)):
                waiting.append((piece, pool.submit(_unpack, piece)))
            if not waiting:
                break
            piece, unpacking = waiting.popleft()
            blocks = unpacking.result()
            if blocks is None:
                break
            observe(piece)
            done_bytes += len(piece)
            yield from blocks
    # Nothing where all of it was unpacked; the word for what is missing where the file ends between two members.
    yield from read_members(file, offset + done_bytes, length - done_bytes, observe=observe)


def _cut_at_members(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Yields the range in pieces that seem to begin and to end where a member does."""
    file.seek(offset)
    remaining = length
    piece = b""
    while remaining and (data := file.read(min(_READ_BYTES, remaining))):
        remaining -= len(data)
        piece += data
        cut = piece.rfind(MEMBER_HEADER, 1)
        if cut < 0 and len(piece) > _PIECE_LIMIT_BYTES:
            cut = len(piece)
        if cut > 0:
            yield piece[:cut]
            piece = piece[cut:]
    if piece:
        yield piece


def _unpack(piece: bytes) -> list[bytes] | None:
    """What whole members unpack to; None when this is something else, or too much."""
    blocks: list[bytes] = []
    limit = _PLAIN_LIMIT_BYTES
    rest = piece
    while rest:
        decompressor = isal_zlib.decompressobj(GZIP_WINDOW)
        try:
            block = decompressor.decompress(rest, limit)
        except isal_zlib.error:
            return None
        limit -= len(block)
        if not decompressor.eof or limit <= 0:
            return None
        rest = decompressor.unused_data
        blocks.append(block)
    return blocks
