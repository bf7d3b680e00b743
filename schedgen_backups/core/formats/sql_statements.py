r"""Split the SQL text of pg_dump into single statements.

The rules are psql's (psqlscan.l of PostgreSQL 18): a semicolon ends a statement outside of quotes, comments,
parentheses and `BEGIN … END` bodies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.sql_quotes import EDGE_BYTES, QUOTE_EDGES, WORD_START, QuoteState

_TOKEN = re.compile(
    rb"(?P<word>" + WORD_START + rb"[A-Za-z0-9_$\x80-\xff]*)"
    rb"|(?P<number>[0-9][0-9A-Za-z_.]*)"
    rb"|" + QUOTE_EDGES + rb"|(?P<open>\()|(?P<close>\))|(?P<end>;)|(?P<backslash>\\)"
    rb"|(?P<other>[^\s])"
)
_RESTRICT = re.compile(rb"\\(?:un)?restrict [A-Za-z0-9]{1,100}(?:\n|\Z)")
_OPEN_ENDED = frozenset({"word", "number", "backslash", "other"})
_QUOTES = frozenset({"quote", "name", "line", "block", "dollar"})
_BODY_KINDS = frozenset({b"function", b"procedure"})
_KIND_WORDS = 4
"""CREATE OR REPLACE FUNCTION"""


@dataclass(frozen=True)
class Statement:
    """One statement with its semicolon, without the comments and whitespace before it."""

    text: bytes


class StatementSplitter:
    r"""Takes text in pieces of any size and yields complete statements.

    `\restrict` and `\unrestrict`, which pg_dump writes around its text, are removed. Any other psql command
    is a VerificationError (permanent): it could run programs or read files on the restoring machine.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._position: int = 0
        self._start: int | None = None
        """Position of the current statement's first token; None between statements."""
        self._quotes = QuoteState()
        self._depth = 0
        self._body_depth = 0
        self._words: list[bytes] = []
        self._last_word = b""

    @property
    def is_between(self) -> bool:
        """Whether everything so far was complete statements, comments and whitespace."""
        rest = (self._buffer[self._position :], *self._unread)
        return self._start is None and not self._quotes.is_inside and not any(piece.strip() for piece in rest)

    def feed(self, text: bytes) -> Iterator[Statement]:
        """Yield the statements that end within this piece, or that ended earlier and were not yielded yet.

        VerificationError for a psql command.
        """
        self._unread.append(text)
        self._unread_bytes += len(text)
        # A statement may be as long as the whole text: joining each piece would copy the text as often as
        # there are pieces.
        if self._unread_bytes >= len(self._buffer) - self._kept_from:
            self._join()
            yield from self._scan(is_last=False)

    def flush(self) -> Iterator[Statement]:
        """Yield the statements that end within the text so far; its last piece ended with a complete line."""
        self._join()
        yield from self._scan(is_last=True)

    def finish(self) -> Iterator[Statement]:
        """Yield the rest at the end of the text; VerificationError when it is not a complete statement."""
        self._join()
        yield from self._scan(is_last=True)
        if not self.is_between:
            raise VerificationError("the dump's text ends within a statement")

    @property
    def _kept_from(self) -> int:
        return self._position if self._start is None else self._start

    def _join(self) -> None:
        # What was read and belongs to no statement is dropped; positions are relative to the buffer.
        kept_from = self._kept_from
        self._buffer = b"".join((self._buffer[kept_from:], *self._unread))
        self._unread.clear()
        self._unread_bytes = 0
        self._position -= kept_from
        if self._start is not None:
            self._start = 0

    def _scan(self, *, is_last: bool) -> Iterator[Statement]:
        while self._position < len(self._buffer):
            if self._quotes.is_inside:
                self._position = self._quotes.leave(self._buffer, self._position, is_last=is_last)
                if self._quotes.is_inside:
                    return
                continue
            token = _TOKEN.search(self._buffer, self._position)
            if token is None:
                self._position = len(self._buffer)
                return
            if (
                not is_last
                and token.lastgroup in _OPEN_ENDED
                and token.start() + EDGE_BYTES > len(self._buffer)
            ):
                self._position = token.start()
                return
            if token.lastgroup == "end" and not self._depth and not self._body_depth:
                start = token.start() if self._start is None else self._start
                self._position = token.end()
                yield Statement(self._buffer[start : token.end()])
                self._start = None
                self._words.clear()
                self._last_word = b""
            else:
                self._take(token)

    def _take(self, token: re.Match[bytes]) -> None:
        kind = token.lastgroup
        if kind == "backslash":
            self._take_command(token.start())
            return
        self._position = token.end()
        if kind in _QUOTES:
            self._quotes.enter(token)
        if kind in {"line", "block"}:
            return
        if self._start is None:
            self._start = token.start()
        if kind == "word":
            self._take_word(token[0].lower())
            return
        # `begin.atomic` is the name of a function in a schema.
        self._last_word = b""
        if kind == "open":
            self._depth += 1
        elif kind == "close":
            self._depth = max(self._depth - 1, 0)

    def _take_word(self, word: bytes) -> None:
        # Only SQL bodies contain statements: CREATE [OR REPLACE] FUNCTION or PROCEDURE ... BEGIN ATOMIC ...
        # END. Names may also be `begin`.
        words = self._words
        if len(words) < _KIND_WORDS and not self._depth:
            words.append(word)
        kind = (
            next((each for each in words[1:] if each not in {b"or", b"replace"}), b"")
            if words[:1] == [b"create"]
            else b""
        )
        if kind in _BODY_KINDS:
            if self._body_depth:
                self._body_depth += 1 if word == b"case" else -1 if word == b"end" else 0
            elif word == b"atomic" and self._last_word == b"begin" and not self._depth:
                self._body_depth = 1
        self._last_word = word

    def _take_command(self, start: int) -> None:
        command = _RESTRICT.match(self._buffer, start) if self._start is None else None
        if command is not None:
            self._position = command.end()
            return
        raise VerificationError(
            "the dump contains a psql command, which pg_dump never writes; it was not run",
            hint="The file was altered or written by another program. Restore another recovery point, and "
            "find out who could write this file.",
        )


LINE_BREAK = re.compile("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
"""Characters that some program treats as the end of a line."""


def split_roles(text: str) -> list[str]:
    """Return the statements about roles in pg_dumpall's output, without its SET statements.

    VerificationError for anything but complete statements.
    """
    splitter = StatementSplitter()
    statements = [*splitter.feed(text.encode()), *splitter.finish()]
    return [statement.text.decode() for statement in statements if not statement.text.startswith(b"SET ")]
