"""A digest of pg_dump's text that does not depend on the order of its items.

pg_dump sorts some items by the names of roles (pg_dump_sort.c: default privileges, user mappings). A drill on
a server that already has a role of the dump loads it under another name.
"""

from __future__ import annotations

import hashlib
import re

_BORDER = b"--\n-- "
"""The start of each item and of pg_dump's last comment. It may also occur in a user's text: it then counts as
a border in both dumps."""
_BORDERS = re.compile(rb"^" + _BORDER, re.MULTILINE)
_MODULUS = 1 << 256


class ItemDigest:
    """Adds up the digests of the items. Takes whole lines of text in pieces of any size."""

    def __init__(self) -> None:
        self._sum = self._count = 0
        self._item = hashlib.sha256()
        self._held = b""

    def add(self, lines: bytes) -> None:
        """Add these lines."""
        lines = self._held + lines
        # The second line of a border may be in the next piece.
        self._held = b"--\n" if lines == b"--\n" or lines.endswith(b"\n--\n") else b""
        lines = lines[: len(lines) - len(self._held)]
        start = 0
        for border in _BORDERS.finditer(lines):
            self._item.update(lines[start : border.start()])
            self._end_item()
            start = border.start()
        self._item.update(lines[start:])

    def _end_item(self) -> None:
        self._sum = (self._sum + int.from_bytes(self._item.digest(), "big")) % _MODULUS
        self._count += 1
        self._item = hashlib.sha256()

    def result(self) -> tuple[int, int]:
        """End the last item; return the number of items and the sum of their digests."""
        self._item.update(self._held)
        self._held = b""
        self._end_item()
        return self._count, self._sum
