"""Gzip files of many members: create and read members, in order or on several threads, and the footer."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Protocol

from isal import isal_zlib

from schedgen_backups.core.errors import VerificationError

BLOCK_BYTES = 1 << 20
"""Plain bytes per member: many times deflate's 32 KiB window, so that the ratio hardly suffers, and small
enough to spread over threads."""
_SAMPLES = 4
_SAMPLE_BYTES = 4096
GZIP_WINDOW = 31
_STORED_LIMIT = 0xFFFF
_PIECE_BYTES = 4 * BLOCK_BYTES
MEMBER_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_EXTRA_HEADER = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
_EXTRA_ID = b"SB"
_FILLER_ID = b"SF"
_SALT_ID = b"SR"
_SALT_BYTES = 32
_EMPTY_BODY = b"\x03\x00" + b"\x00" * 8
_PAYLOAD = struct.Struct("<BQ32sI")
_WHOLE_VERSION, _INDEX_VERSION = 1, 2
_LENGTH_LIMIT = 1 << 62
"""The limit of a seek."""
SMALLEST_FILLER_BYTES = len(_EXTRA_HEADER) + 2 + 4 + len(_EMPTY_BODY)
FOOTER_BYTES = len(_EXTRA_HEADER) + 2 + 4 + _PAYLOAD.size + len(_EMPTY_BODY)


def compress_member(data: bytes | bytearray | memoryview) -> bytes:
    """Return one gzip member that unpacks to `data`.

    isal level 1: 300 MB/s and more on one core, measured 2026-11-22.
    """
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, GZIP_WINDOW)
    return compressor.compress(data) + compressor.flush()


def store_member(data: bytes | bytearray | memoryview, end: bytes = b"", *, before: bytes = b"") -> bytes:
    """Return one gzip member that stores `data` and `end` uncompressed, for incompressible bytes.

    `before` are members that precede it; including them here saves another copy of `data`.
    """
    view = memoryview(data)
    total = len(view) + len(end)
    parts: list[bytes | memoryview] = [before, MEMBER_HEADER]
    for start in range(0, total, _STORED_LIMIT):
        stop = min(start + _STORED_LIMIT, total)
        parts.append(struct.pack("<BHH", int(stop == total), stop - start, (stop - start) ^ 0xFFFF))
        parts.append(view[start:stop])
        if stop > len(view):
            parts.append(end[max(0, start - len(view)) : stop - len(view)])
    if not total:
        parts.append(b"\x03\x00")
    parts.append(struct.pack("<II", isal_zlib.crc32(end, isal_zlib.crc32(view)), total & 0xFFFFFFFF))
    return b"".join(parts)


def filler_member(size_bytes: int) -> bytes:
    """Return a gzip member of exactly `size_bytes` that unpacks to nothing.

    `size_bytes` is from `SMALLEST_FILLER_BYTES` to 65,000.
    """
    zeros = size_bytes - SMALLEST_FILLER_BYTES
    extra = _FILLER_ID + struct.pack("<H", zeros) + bytes(zeros)
    return _EXTRA_HEADER + struct.pack("<H", len(extra)) + extra + _EMPTY_BODY


def salt_member() -> bytes:
    """Return a gzip member of random bytes that unpacks to nothing: a digest over it confirms no guess."""
    extra = _SALT_ID + struct.pack("<H", _SALT_BYTES) + os.urandom(_SALT_BYTES)
    return _EXTRA_HEADER + struct.pack("<H", len(extra)) + extra + _EMPTY_BODY


def measure_filler(data: bytes | memoryview) -> int:
    """Return the size of the filler at the beginning of these bytes; 0 when there is none.

    The first `SMALLEST_FILLER_BYTES` are enough.
    """
    head = bytes(data[:SMALLEST_FILLER_BYTES])
    place = len(_EXTRA_HEADER)
    if (
        len(head) < SMALLEST_FILLER_BYTES
        or not head.startswith(_EXTRA_HEADER)
        or head[place + 2 : place + 4] != _FILLER_ID
    ):
        return 0
    return place + 2 + int.from_bytes(head[place : place + 2], "little") + len(_EMPTY_BODY)


def is_compressible(data: bytes | bytearray | memoryview) -> bool:
    """Return whether compression saves more than a twentieth, judged by up to four samples of 4 KiB.

    Compressing incompressible bytes costs ten times as much as storing them. The samples are taken from the
    inside: the beginning and end of a PDF are always text.
    """
    step = len(data) // _SAMPLES
    if step <= _SAMPLE_BYTES:
        sample = bytes(data)
    else:
        starts = range((step - _SAMPLE_BYTES) // 2, len(data) - _SAMPLE_BYTES, step)
        sample = b"".join(data[start : start + _SAMPLE_BYTES] for start in starts)
    return len(isal_zlib.compress(sample, 1)) < 0.95 * len(sample)


@dataclass(frozen=True)
class Footer:
    """Content of the footer of an artifact."""

    index_offset: int
    """Offset of the first gzip member of the index."""
    content_sha256: str
    """Digest of all bytes before the footer; empty for an artifact in packs."""
    footer_offset: int
    index_sha256: str = ""
    """Digest of the index of an artifact in packs, otherwise empty. The digests of its entries and of its
    packs prove the other bytes."""


def footer_member(index_offset: int, content_digest: bytes) -> bytes:
    """Return the empty gzip member that ends an artifact.

    Its extra field contains the index's offset, the digest of all bytes before it, and a CRC of both.
    """
    return _make_footer(_WHOLE_VERSION, index_offset, content_digest)


def packed_footer_member(index_offset: int, index_digest: bytes) -> bytes:
    """Return the empty gzip member that ends an artifact in packs, with the digest of its index."""
    return _make_footer(_INDEX_VERSION, index_offset, index_digest)


def _make_footer(version: int, index_offset: int, digest: bytes) -> bytes:
    # The CRC shows whether the offset itself was altered.
    checksum = isal_zlib.crc32(struct.pack("<BQ", version, index_offset) + digest)
    payload = _PAYLOAD.pack(version, index_offset, digest, checksum)
    extra = _EXTRA_ID + struct.pack("<H", len(payload)) + payload
    return _EXTRA_HEADER + struct.pack("<H", len(extra)) + extra + _EMPTY_BODY


def read_footer(file: BinaryIO) -> Footer:
    """Return the footer of this artifact.

    VerificationError (permanent) when the file does not end with one.
    """
    size_bytes = file.seek(0, 2)
    footer_offset = size_bytes - FOOTER_BYTES
    if footer_offset >= 0:
        file.seek(footer_offset)
        tail = file.read(FOOTER_BYTES)
        prefix_length = len(_EXTRA_HEADER) + 2
        payload = tail[prefix_length + 4 : prefix_length + 4 + _PAYLOAD.size]
        version, index_offset, digest, _checksum = _PAYLOAD.unpack(payload)
        expected = _make_footer(version, index_offset, digest)
        if tail == expected and index_offset < footer_offset:
            if version == _WHOLE_VERSION:
                return Footer(index_offset, digest.hex(), footer_offset)
            if version == _INDEX_VERSION:
                return Footer(index_offset, "", footer_offset, digest.hex())
    raise VerificationError(
        "the file does not end with the footer of a schedgen_backups artifact: it was truncated, altered, "
        "or written by another program",
        hint="Use another copy or another recovery point. `gunzip -t FILE` shows whether it is a gzip file.",
    )


class Digest(Protocol):
    """A running digest of hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Add the data."""
        ...

    def digest(self) -> bytes:
        """Return the digest so far."""
        ...

    def hexdigest(self) -> str:
        """Return the digest so far as text."""
        ...

    def copy(self) -> Digest:
        """Return an independent copy."""
        ...


def read_members(
    file: BinaryIO, offset: int, length: int, *, on_progress: Callable[[bytes], object] | None = None
) -> Iterator[bytes]:
    """Yield the plain bytes of the members that fill exactly this range, in blocks of at most 4 MiB.

    Those of a member of up to 4 MiB, such as a piece of an index, only after its checksum was right: what
    reads them line by line must not act upon a damaged one.

    `on_progress` gets every compressed byte once, in order. VerificationError (permanent) when the range is
    truncated, is not gzip, fails a member's checksum, or ends inside a member.
    """
    if not (0 <= offset <= _LENGTH_LIMIT and 0 <= length <= _LENGTH_LIMIT):
        raise VerificationError(
            "a position in the file is out of range", hint="Use another copy or another recovery point."
        )
    file.seek(offset)
    remaining = length
    decompressor = isal_zlib.decompressobj(GZIP_WINDOW)
    is_inside = False
    held: list[bytes] = []
    held_bytes = 0
    while remaining:
        chunk = file.read(min(remaining, BLOCK_BYTES // 4))
        if not chunk:
            raise VerificationError(
                "the file ends too early", hint="Use another copy or another recovery point."
            )
        remaining -= len(chunk)
        if on_progress is not None:
            on_progress(chunk)
        plain = b""
        while chunk or len(plain) == _PIECE_BYTES:
            try:
                plain = decompressor.decompress(chunk, _PIECE_BYTES)
            except isal_zlib.error as error:
                raise VerificationError(
                    f"the compressed data is damaged near byte {offset + length - remaining}: {error}",
                    hint="Use another copy or another recovery point.",
                ) from error
            is_inside = True
            held.append(plain)
            held_bytes += len(plain)
            if decompressor.eof or held_bytes >= _PIECE_BYTES:
                yield from filter(None, held)
                held.clear()
                held_bytes = 0 if decompressor.eof else _PIECE_BYTES
            if not decompressor.eof:
                chunk = decompressor.unconsumed_tail
                continue
            chunk = decompressor.unused_data
            plain = b""
            decompressor = isal_zlib.decompressobj(GZIP_WINDOW)
            is_inside = False
    if is_inside:
        raise VerificationError(
            "the file ends inside a gzip member", hint="Use another copy or another recovery point."
        )


_READ_BYTES = BLOCK_BYTES // 2
"""About the size of a member of a dump's rows."""
_PIECE_LIMIT_BYTES = 4 * BLOCK_BYTES
_PLAIN_LIMIT_BYTES = 16 * BLOCK_BYTES


def read_members_concurrently(
    file: BinaryIO, offset: int, length: int, *, on_progress: Callable[[bytes], object] = lambda _data: None
) -> Iterator[bytes]:
    """Yield the same bytes as `read_members`, in other blocks, using up to four cores; raise the same errors.

    At most six pieces of the file are in memory, each with up to 16 MiB of unpacked data.
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
            on_progress(piece)
            done_bytes += len(piece)
            yield from blocks
    # Yields nothing when everything was unpacked; otherwise raises the error for what is missing or damaged.
    yield from read_members(file, offset + done_bytes, length - done_bytes, on_progress=on_progress)


def _cut_at_members(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Yield the range in pieces that probably begin and end at members."""
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
    """Return the unpacked data of whole members; None when it is anything else, or too much."""
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
