r"""Cuts the SQL text that pg_dump writes into single statements, knowing strings, quoted names, dollar quotes, comments and function bodies.

The rules are psql's (psqlscan.l of PostgreSQL 18): a semicolon ends a statement outside of quotes, comments, parentheses and `BEGIN … END` bodies.
All server encodings keep ASCII bytes apart from the bytes of other characters, so the text is read as bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from schedgen_backups.core.errors import VerificationError

_WORD_START = rb"[A-Za-z_\x80-\xff]"
_TOKEN = re.compile(
    rb"(?P<word>" + _WORD_START + rb"[A-Za-z0-9_$\x80-\xff]*)"
    rb"|(?P<number>[0-9][0-9A-Za-z_.]*)"
    rb"|(?P<dollar>\$(?:" + _WORD_START + rb"[A-Za-z0-9_\x80-\xff]*)?\$)"
    rb"|(?P<quote>')|(?P<name>\")|(?P<line>--)|(?P<block>/\*)|(?P<open>\()|(?P<close>\))|(?P<end>;)|(?P<backslash>\\)"
    rb"|(?P<other>[^\s])"
)
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_RESTRICT = re.compile(rb"\\(?:un)?restrict [A-Za-z0-9]{1,100}(?:\n|\Z)")
_ESCAPED_QUOTE = re.compile(rb"['\\]")
_OPEN_ENDED = frozenset({"word", "number", "backslash", "other"})
_HELD_BYTES = 128
"""A token of these kinds that stands closer to a piece's end may go on in the next one (a name and a dollar quote's tag have at most 63 bytes)."""
_BODY_WORDS = frozenset({b"function", b"procedure", b"rule"})


@dataclass(frozen=True)
class Statement:
    """One statement, without the comments and blanks before it, with its semicolon."""

    text: bytes


class StatementSplitter:
    r"""Takes text in any pieces and yields whole statements.

    `\restrict` and `\unrestrict`, which pg_dump writes around its text, are left out. Any other psql command is a VerificationError (permanent):
    it runs programs or reads files on the machine that restores.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._position: int = 0
        self._start: int | None = None
        """Where the present statement's first token stands, None between statements."""
        self._closing = b""
        """What ends the present string, quoted name or comment; empty outside of them."""
        self._is_escaped = False
        self._comment_depth = 0
        self._depth = 0
        self._body_depth = 0
        self._words: list[bytes] = []

    @property
    def is_between(self) -> bool:
        """Whether everything so far was whole statements, comments and blanks."""
        return self._start is None and not self._closing and not self._comment_depth and not self._buffer[self._position :].strip()

    def feed(self, text: bytes) -> Iterator[Statement]:
        """Yield the statements that end within this piece. VerificationError for a psql command."""
        self._buffer = self._buffer[self._keep_from() :] + text
        yield from self._scan(is_last=False)

    def flush(self) -> Iterator[Statement]:
        """Yield the statements that end within what came so far; the last piece ended with a whole line."""
        yield from self._scan(is_last=True)

    def finish(self) -> Iterator[Statement]:
        """Yield what is left at the text's end. VerificationError when it is no whole statement."""
        yield from self._scan(is_last=True)
        if not self.is_between:
            raise VerificationError("the dump's text ends within a statement")

    def _keep_from(self) -> int:
        # What was read and belongs to no statement is dropped; positions count from the buffer's beginning.
        kept = self._position if self._start is None else self._start
        self._position -= kept
        if self._start is not None:
            self._start = 0
        return kept

    def _scan(self, *, is_last: bool) -> Iterator[Statement]:
        while self._position < len(self._buffer):
            if self._closing or self._comment_depth:
                if not self._skip_quoted(is_last=is_last):
                    return
                continue
            token = _TOKEN.search(self._buffer, self._position)
            if token is None:
                self._position = len(self._buffer)
                return
            if not is_last and token.lastgroup in _OPEN_ENDED and token.start() + _HELD_BYTES > len(self._buffer):
                self._position = token.start()
                return
            if token.lastgroup == "end" and not self._depth and not self._body_depth:
                start = token.start() if self._start is None else self._start
                self._position = token.end()
                yield Statement(self._buffer[start : token.end()])
                self._start = None
                self._words.clear()
            else:
                self._take(token)

    def _take(self, token: re.Match[bytes]) -> None:
        kind = token.lastgroup
        if kind == "backslash":
            self._take_command(token.start())
            return
        self._position = token.end()
        if kind == "line":
            self._closing = b"\n"
        elif kind == "block":
            self._comment_depth = 1
        else:
            if self._start is None:
                self._start = token.start()
            self._take_within(token, kind)

    def _take_within(self, token: re.Match[bytes], kind: str | None) -> None:
        if kind == "word":
            self._take_word(token[0].lower())
        elif kind == "quote":
            before = self._buffer[max(token.start() - 2, 0) : token.start()].lower()
            self._is_escaped = before[-1:] == b"e" and not re.match(rb"[a-z0-9_$\x80-\xff]", before[:-1])
            self._closing = b"'"
        elif kind == "name":
            self._closing = b'"'
        elif kind == "dollar":
            self._closing = token[0]
        elif kind == "open":
            self._depth += 1
        elif kind == "close":
            self._depth = max(self._depth - 1, 0)

    def _take_word(self, word: bytes) -> None:
        if len(self._words) < 4:  # noqa: PLR2004 - CREATE OR REPLACE FUNCTION
            self._words.append(word)
        if self._words[:1] != [b"create"] or _BODY_WORDS.isdisjoint(self._words):
            return
        if word == b"begin" or (word == b"case" and self._body_depth):
            self._body_depth += 1
        elif word == b"end" and self._body_depth:
            self._body_depth -= 1

    def _take_command(self, start: int) -> None:
        command = _RESTRICT.match(self._buffer, start) if self._start is None else None
        if command is not None:
            self._position = command.end()
            return
        raise VerificationError(
            "the dump's text holds a psql command, which pg_dump never writes; nothing of it was run",
            hint="Somebody changed the file, or another program wrote it. Restore another recovery point, and find out who could write this file.",
        )

    def _skip_quoted(self, *, is_last: bool) -> bool:
        """Go behind the string, name or comment; return whether its end was found."""
        if self._comment_depth:
            edge = _BLOCK_EDGE.search(self._buffer, self._position)
            if edge is None:
                self._position = len(self._buffer) if is_last else max(self._position, len(self._buffer) - 1)
                return False
            self._comment_depth += 1 if edge[0] == b"/*" else -1
            self._position = edge.end()
            return True
        if self._closing == b"'" and self._is_escaped:
            return self._skip_escaped(is_last=is_last)
        found = self._buffer.find(self._closing, self._position)
        if found < 0:
            self._position = max(self._position, len(self._buffer) - len(self._closing) + 1)
            return False
        # A doubled quote ends one string and begins the next: the two together are read like one.
        self._position = found + len(self._closing)
        self._closing = b""
        return True

    def _skip_escaped(self, *, is_last: bool) -> bool:
        while (found := _ESCAPED_QUOTE.search(self._buffer, self._position)) is not None:
            self._position = found.start()
            following = self._buffer[found.end() : found.end() + 1]
            if not following and not is_last:
                return False
            if found[0] == b"'" and following != b"'":
                self._position = found.end()
                self._closing, self._is_escaped = b"", False
                return True
            self._position = found.end() + 1
        self._position = max(self._position, len(self._buffer))
        return False
