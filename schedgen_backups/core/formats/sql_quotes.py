r"""Track quotes in SQL text that comes in pieces: strings, quoted names, dollar quotes and comments.

Quoted text comes from users, not from pg_dump. The rules are psql's (psqlscan.l of PostgreSQL 18). In all
server encodings, ASCII bytes are distinct from the bytes of other characters, so the text is read as bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD_START = rb"[A-Za-z_\x80-\xff]"
QUOTE_EDGES = (
    rb"(?P<quote>')|(?P<name>\")|(?P<line>--)|(?P<block>/\*)"
    rb"|(?P<dollar>(?<![A-Za-z0-9_$\x80-\xff])\$(?:" + WORD_START + rb"[A-Za-z0-9_\x80-\xff]*)?\$)"
)
"""Starts of quoted parts; a dollar within a word is not one."""
EDGE_BYTES = 128
"""An edge closer to the end of a piece may continue in the next one (a dollar quote's tag has at most 63
bytes)."""
_EDGE = re.compile(QUOTE_EDGES)
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_ESCAPED_QUOTE = re.compile(rb"['\\]")
_WORD_CHARACTER = re.compile(rb"[A-Za-z0-9_$\x80-\xff]")


class QuoteState:
    """The kind of quoted part at a position of the text; none at the beginning."""

    def __init__(self) -> None:
        self._closing = b""
        """The end of the current string, quoted name, dollar quote or line comment."""
        self._is_escaped = False
        self._comment_depth = 0

    @property
    def is_inside(self) -> bool:
        """Whether the position is in a quoted part."""
        return bool(self._closing) or self._comment_depth > 0

    def enter(self, edge: re.Match[bytes]) -> None:
        """Enter the quoted part that a match of QUOTE_EDGES starts."""
        kind = edge.lastgroup
        self._is_escaped = False
        if kind == "block":
            self._comment_depth = 1
        elif kind == "line":
            self._closing = b"\n"
        else:
            self._closing = edge[0]
            before = edge.string[max(edge.start() - 2, 0) : edge.start()]
            self._is_escaped = (
                kind == "quote" and before[-1:] in {b"e", b"E"} and not _WORD_CHARACTER.match(before[:-1])
            )

    def leave(self, buffer: bytes, position: int, *, is_last: bool) -> int:
        """Return the position after the quoted part, or where to continue when its end is not available yet.

        `is_inside` distinguishes the two cases. With `is_last` no more text follows.
        """
        if self._comment_depth:
            return self._leave_block(buffer, position, is_last=is_last)
        if self._is_escaped:
            return self._leave_escaped(buffer, position, is_last=is_last)
        found = buffer.find(self._closing, position)
        if found < 0:
            return max(position, len(buffer) - len(self._closing) + 1)
        # A doubled quote ends one string and starts the next: together they are read like one string.
        position = found + len(self._closing)
        self._closing = b""
        return position

    def _leave_block(self, buffer: bytes, position: int, *, is_last: bool) -> int:
        while self._comment_depth:
            edge = _BLOCK_EDGE.search(buffer, position)
            if edge is None:
                return len(buffer) if is_last else max(position, len(buffer) - 1)
            self._comment_depth += 1 if edge[0] == b"/*" else -1
            position = edge.end()
        return position

    def _leave_escaped(self, buffer: bytes, position: int, *, is_last: bool) -> int:
        while (found := _ESCAPED_QUOTE.search(buffer, position)) is not None:
            following = buffer[found.end() : found.end() + 1]
            if not following and not is_last:
                return found.start()
            if found[0] == b"'" and following != b"'":
                self._closing, self._is_escaped = b"", False
                return found.end()
            position = found.end() + 1
        return max(position, len(buffer))


class LineQuotes:
    """Determines for each line of a text whether it starts outside of all quoted parts."""

    def __init__(self) -> None:
        self._state = QuoteState()

    def begins_outside(self, line: bytes) -> bool:
        """Return whether the next line, given with its newline, starts outside."""
        is_outside = not self._state.is_inside
        position = 0
        while position < len(line):
            if self._state.is_inside:
                position = self._state.leave(line, position, is_last=True)
                if self._state.is_inside:
                    break
                continue
            edge = _EDGE.search(line, position)
            if edge is None:
                break
            self._state.enter(edge)
            position = edge.end()
        return is_outside


def find_outside(pattern: re.Pattern[bytes], text: bytes) -> Iterator[re.Match[bytes]]:
    """Yield the pattern's matches at the beginning of a line and outside of quoted parts.

    The pattern must start with a line comment.
    """
    state = QuoteState()
    position = 0
    while (edge := _EDGE.search(text, position)) is not None:
        is_line_start = edge.start() == 0 or text[edge.start() - 1 : edge.start()] == b"\n"
        found = pattern.match(text, edge.start()) if edge.lastgroup == "line" and is_line_start else None
        if found is not None:
            yield found
            position = found.end()
            continue
        state.enter(edge)
        position = state.leave(text, edge.end(), is_last=True)
        if state.is_inside:
            return


def has_comment_or_dollar_quote(text: bytes) -> bool:
    """Return whether the text contains a comment or a dollar quote outside of strings and quoted names."""
    state = QuoteState()
    position = 0
    while (edge := _EDGE.search(text, position)) is not None:
        if edge.lastgroup not in {"quote", "name"}:
            return True
        state.enter(edge)
        position = state.leave(text, edge.end(), is_last=True)
    return False
