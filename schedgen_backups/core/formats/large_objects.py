"""Takes pg_dump's own transactions around large objects out of a dump's text, so that a load stays one transaction.

pg_dump writes `BEGIN;` and `COMMIT;` around the contents of large objects (pg_backup_archiver.c, StartRestoreLOs): within a transaction of ours that
COMMIT would end it half-way. Only those two lines, only in a section of large objects. What else the text means is `dump_text`'s business.
"""

from __future__ import annotations

import re

_SECTION = re.compile(rb"-- (?:Data for )?Name: .*; Type: (?P<kind>[A-Z ]+); Schema: ")
_LARGE_OBJECT_KINDS = frozenset({b"BLOBS"})
_LEFT_OUT = frozenset({b"BEGIN;", b"COMMIT;"})


class LargeObjectFilter:
    """Passes on text without the transactions around large objects; text comes in any pieces."""

    def __init__(self) -> None:
        self._unfinished = b""
        self._is_inside = False

    def filter_text(self, text: bytes) -> bytes:
        """The whole lines among what came so far, without those that are left out."""
        *lines, self._unfinished = (self._unfinished + text).split(b"\n")
        return b"".join(line + b"\n" for line in lines if self._is_kept(line))

    def flush(self) -> bytes:
        """What is left of a line that has not ended: before rows, and at the end."""
        rest, self._unfinished = self._unfinished, b""
        return rest

    def _is_kept(self, line: bytes) -> bool:
        if line.startswith(b"-- "):
            section = _SECTION.match(line)
            if section is not None:
                self._is_inside = section["kind"] in _LARGE_OBJECT_KINDS
        return not (self._is_inside and line in _LEFT_OUT)
