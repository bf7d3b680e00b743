"""Collects pieces of text into blocks that are worth a gzip member of their own.

Used by whoever writes a dump's text. Which blocks begin where a table begins is the caller's decision, what a member is that of `member_writer`.
"""

from __future__ import annotations

from schedgen_backups.core.formats.gzip_members import BLOCK_BYTES
from schedgen_backups.core.formats.member_writer import MemberWriter


class BlockWriter:
    """Pieces that were appended reach the member writer in order, in blocks of at least `BLOCK_BYTES`, and at each `end_block`."""

    def __init__(self, members: MemberWriter) -> None:
        self._members = members
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def append(self, data: bytes) -> None:
        """Takes one piece in."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= BLOCK_BYTES:
            self.end_block()

    def end_block(self) -> None:
        """The next piece starts a member of its own."""
        if self._pending_bytes:
            self._members.write_block(b"".join(self._pending))
            self._pending = []
            self._pending_bytes = 0
