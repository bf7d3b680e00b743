"""Write gzip members to a file: blocks are compressed on several threads and written in the order given."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from typing_extensions import Self

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.gzip_members import Digest, compress_member, footer_member
from schedgen_backups.core.formats.pieces import (
    LARGE_PIECES,
    LARGEST_ROW_PIECE_BYTES,
    PieceSizes,
    find_piece_end,
)
from schedgen_backups.core.system.reflink import measure_gap, split_at_blocks

_CUT_BYTES = 4 << 20
"""Text that is collected before it is cut: several pieces, so that little is examined twice."""
_COPY_BYTES = 1 << 20


class PieceWriter:
    """Hands appended text to the member writer in pieces that depend on its content only.

    Equal text gives equal pieces however it arrives, and a change moves no border but those near it. See
    `find_piece_end` for where a piece ends.
    """

    def __init__(self, members: MemberQueue, sizes: PieceSizes = LARGE_PIECES) -> None:
        self._members = members
        self._sizes = sizes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._is_inside_row = False

    def append(self, data: bytes) -> None:
        """Take in the next part of the text."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _CUT_BYTES:
            self._write_pieces(is_last=False)

    def end_piece(self) -> None:
        """Write what is pending; the next part starts a piece of its own."""
        self._write_pieces(is_last=True)
        self._is_inside_row = False

    def _write_pieces(self, *, is_last: bool) -> None:
        data = b"".join(self._pending)
        start = 0
        while (end := self._find_end(data, start, is_last=is_last)) is not None:
            self._members.write_block(data[start:end])
            start = end
        self._pending = [data[start:]]
        self._pending_bytes = len(data) - start

    def _find_end(self, data: bytes, start: int, *, is_last: bool) -> int | None:
        if not self._is_inside_row:
            end = find_piece_end(data, start, self._sizes, is_last=is_last)
            if end != start:
                return end
            self._is_inside_row = True
        newline = data.find(b"\n", start, start + LARGEST_ROW_PIECE_BYTES)
        if newline >= 0:
            self._is_inside_row = False
            return newline + 1
        if len(data) - start >= LARGEST_ROW_PIECE_BYTES:
            return start + LARGEST_ROW_PIECE_BYTES
        return len(data) if is_last and start < len(data) else None


@dataclass(frozen=True)
class _Mark:
    receive: Callable[[int], None]


class MemberQueue(ABC):
    """Takes blocks in order, compresses them on several threads, and appends each as a gzip member.

    Not thread-safe. At most `2 * threads + 2` blocks wait at a time, which limits the memory.
    """

    def __init__(self, *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="compress")
        self._waiting: deque[Future[bytes] | bytes | _Mark] = deque()
        self._limit = 2 * threads + 2
        self._offset = 0

    def write_block(
        self, data: bytes | bytearray | memoryview, compress: Callable[..., bytes] = compress_member
    ) -> None:
        """Append `data` as one member; `compress` is `compress_member` or `store_member`."""
        self._waiting.append(self._pool.submit(compress, data))
        self._drain(self._limit)

    def write_member(self, member: bytes) -> None:
        """Append one or several members that are already compressed."""
        self._waiting.append(member)
        self._drain(self._limit)

    def call_at_position(self, receive: Callable[[int], None]) -> None:
        """Call `receive` with the offset at which the next member starts, once it is known."""
        self._waiting.append(_Mark(receive))

    def flush(self) -> int:
        """Wait until everything given so far is appended; return the offset of its end."""
        self._drain(0)
        return self._offset

    def close(self) -> None:
        """End the threads and drop what was not flushed. Safe to call twice."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drain(self, limit: int) -> None:
        while self._waiting and (len(self._waiting) > limit or not isinstance(self._waiting[0], Future)):
            entry = self._waiting.popleft()
            if isinstance(entry, _Mark):
                entry.receive(self._offset)
            else:
                self._append(entry if isinstance(entry, bytes) else entry.result())

    @abstractmethod
    def rollback(self, offset: int) -> None:
        """Remove everything behind this offset, which an earlier `flush` returned."""

    @abstractmethod
    def _append(self, member: bytes) -> None:
        """Append the members and move the offset."""


class MemberWriter(MemberQueue):
    """Writes members to a file; `written` gets the size of what was written."""

    def __init__(
        self, file: BinaryIO, *, threads: int, written: Callable[[int], object] = lambda _size_bytes: None
    ) -> None:
        super().__init__(threads=threads)
        self._file = file
        self._written = written

    def copy_range(self, source: int, offset: int, length: int) -> None:
        """Append whole members from this range of the open file `source`, without reading them.

        The kernel copies them where it can. Files whose blocks are aligned then share the blocks if the file
        system supports that. VerificationError when the source ends early or its disk cannot read it: then
        return to a checkpoint.
        """
        self.flush()
        if not self._copy_in_kernel(source, offset, length):
            self._file.seek(self._offset)
            for start in range(offset, offset + length, _COPY_BYTES):
                self._file.write(_read_source(source, start, min(_COPY_BYTES, offset + length - start)))
        self._offset += length
        self._written(length)

    def rollback(self, offset: int) -> None:
        """Cut the file there."""
        self.flush()
        self._file.seek(offset)
        self._file.truncate()
        self._offset = offset

    def _copy_in_kernel(self, source: int, offset: int, length: int) -> bool:
        if not hasattr(os, "copy_file_range"):
            return False
        self._file.flush()
        is_aligned = measure_gap(offset, self._offset) == 0
        done = 0
        try:
            for part in split_at_blocks(offset, length) if is_aligned else (length,):
                end = done + part
                while done < end:
                    copied = os.copy_file_range(
                        source, self._file.fileno(), end - done, offset + done, self._offset + done
                    )
                    if copied == 0:
                        return False
                    done += copied
        except OSError:
            # Another file system, or one without support. A full disk is reported when the bytes are written.
            return False
        self._file.seek(self._offset + length)
        return True

    def _append(self, member: bytes) -> None:
        self._file.write(member)
        self._offset += len(member)
        self._written(len(member))


class DigestedMemberWriter(MemberWriter):
    """A writer of members that also digests what it writes; nothing can be taken back."""

    def __init__(
        self, file: BinaryIO, *, threads: int, written: Callable[[int], object] = lambda _size_bytes: None
    ) -> None:
        super().__init__(file, threads=threads, written=written)
        self._digest: Digest = hashlib.sha256()

    def copy_members(self, source: int, offset: int, data: bytes | memoryview) -> None:
        """Append whole members from `offset` of the open file `source`, whose bytes are in `data`.

        The kernel copies them where it can. The digest is taken of `data`: a source that changes in the
        meantime is detected when the file is verified.
        """
        self.flush()
        digesting = self._pool.submit(self._digest.update, data)
        try:
            if not self._copy_in_kernel(source, offset, len(data)):
                self._file.seek(self._offset)
                self._file.write(data)
        finally:
            digesting.result()
        self._offset += len(data)
        self._written(len(data))

    def finish(self, index_offset: int) -> str:
        """Append the footer and return the SHA-256 of the whole file."""
        self.flush()
        self._append(footer_member(index_offset, self._digest.digest()))
        return self._digest.hexdigest()

    def _append(self, member: bytes) -> None:
        super()._append(member)
        self._digest.update(member)


def _read_source(source: int, offset: int, length: int) -> bytes:
    try:
        data = os.pread(source, length, offset)
    except OSError as error:
        raise VerificationError(
            f"the file cannot be read: {error.strerror}", hint="Check the disk."
        ) from error
    if len(data) != length:
        raise VerificationError("the file ends too early", hint="Use another copy or another recovery point.")
    return data
