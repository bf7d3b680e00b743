r"""Sections of pg_dump's text: large objects, the part after the rows, and `\restrict` around all of it.

The part after the rows contains indexes, constraints and triggers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schedgen_backups.core.formats.dump_text import IDENTIFIER, Segment, Text, unquote_identifier
from schedgen_backups.core.formats.sql_quotes import (
    EDGE_BYTES,
    QUOTE_EDGES,
    LineQuotes,
    QuoteState,
    find_outside,
)

_SECTION = re.compile(rb"-- (?:Data for )?Name: .*; Type: (?P<kind>[A-Z ]+); Schema: ")
_LARGE_OBJECT_KINDS = frozenset({b"BLOBS"})
_LEFT_OUT = frozenset({b"BEGIN;", b"COMMIT;"})


class LargeObjectFilter:
    """Removes the transactions around large objects from text in pieces of any size."""

    def __init__(self) -> None:
        self._unfinished = b""
        self._quotes = LineQuotes()
        self._is_inside = False

    def filter_text(self, text: bytes) -> bytes:
        """Return the complete lines received so far, without those to remove."""
        *lines, self._unfinished = (self._unfinished + text).split(b"\n")
        return b"".join(line + b"\n" for line in lines if self._is_kept(line))

    def flush(self) -> bytes:
        """Return the rest of an unfinished line: before rows, and at the end."""
        rest, self._unfinished = self._unfinished, b""
        return rest

    def _is_kept(self, line: bytes) -> bool:
        if not self._quotes.begins_outside(line + b"\n"):
            return True
        if line.startswith(b"-- "):
            section = _SECTION.match(line)
            if section is not None:
                self._is_inside = section["kind"] in _LARGE_OBJECT_KINDS
        return not (self._is_inside and line in _LEFT_OUT)


_LEADING_RESTRICT = re.compile(rb"\A(?P<before>(?:--[^\n]*\n|\s)*)\\restrict [A-Za-z0-9]+\n")
_TRAILING_UNRESTRICT = re.compile(rb"\n\\unrestrict [A-Za-z0-9]+\s*\Z")
_ROW_SECURITY = re.compile(rb"^SET row_security = off;\n", re.MULTILINE)
_UNRESTRICT_BYTES = 256
"""More than the line and the whitespace after it take (pg_dump.c: a key of 63 characters)."""


_PSQL_WORD_OR_EDGE = re.compile(
    rb"(?P<begin>(?<![A-Za-z0-9_$\x80-\xff])begin(?![A-Za-z0-9_$\x80-\xff]))|(?P<colon>(?<!:):(?=[\"']))|"
    + QUOTE_EDGES
)
_FOR_PSQL = {"begin": b'"begin"', "colon": b": "}
_LOOK_BEHIND_BYTES = 2


class PsqlQuoter:
    r"""Rewrites text that psql would read differently from the server; text comes in pieces of any size.

    `:"HOST"`, the end of an array's slice, becomes `: "HOST"`: psql would insert a variable's value. The name
    `begin` becomes `"begin"`: in CREATE FUNCTION, psql takes the bare word for the start of a body and sends
    nothing before its END (psqlscan.l since PostgreSQL 14). The server needs no quotes there and pg_dump
    writes none. pg_dump writes the keyword in capitals.
    """

    def __init__(self) -> None:
        self._quotes = QuoteState()
        self._held = b""
        self._position = 0
        """Up to where the held text was read."""

    def feed(self, text: bytes) -> bytes:
        """Return the text that can be decided so far."""
        return self._quote(text, is_last=False)

    def flush(self, text: bytes = b"") -> bytes:
        """Return the rest, with `text` at its end: before rows, and at the end."""
        return self._quote(text, is_last=True)

    def _quote(self, text: bytes, *, is_last: bool) -> bytes:
        buffer, position, copied = self._held + text, self._position, 0
        passed: list[bytes] = []
        while position < len(buffer):
            if self._quotes.is_inside:
                position = self._quotes.leave(buffer, position, is_last=is_last)
                if self._quotes.is_inside:
                    break
                continue
            edge = _PSQL_WORD_OR_EDGE.search(buffer, position)
            if edge is None or (not is_last and edge.start() + EDGE_BYTES > len(buffer)):
                position = max(position, edge.start() if edge is not None else len(buffer) - EDGE_BYTES)
                break
            position = edge.end()
            if edge.lastgroup in _FOR_PSQL:
                passed += [buffer[copied : edge.start()], _FOR_PSQL[edge.lastgroup]]
                copied = position
            else:
                self._quotes.enter(edge)
        end = len(buffer) if is_last else max(copied, min(position, len(buffer)) - _LOOK_BEHIND_BYTES)
        passed.append(buffer[copied:end])
        self._held, self._position = buffer[end:], max(position - end, 0)
        return b"".join(passed)


def make_loadable(segments: Iterable[Segment]) -> Iterator[Segment]:
    r"""Yield the segments as they are loaded.

    Removes pg_dump's own `\restrict` and `\unrestrict`, around which the loader puts its own key. Also
    removes `SET row_security = off` from the head: policies come after the rows, so that no load needs it. It
    would make the refresh of a materialized view fail when its owner is subject to policies (PostgreSQL
    manual, "row_security"). psql reads the result as the server does.
    """
    held, is_first = b"", True
    quoter = PsqlQuoter()
    for segment in segments:
        if not isinstance(segment, Text):
            yield Text(quoter.flush(held))
            held = b""
            yield segment
            continue
        data = held + segment.data
        if is_first:
            data = _ROW_SECURITY.sub(b"", _LEADING_RESTRICT.sub(rb"\g<before>", data, count=1), count=1)
            is_first = False
        yield Text(quoter.feed(data[:-_UNRESTRICT_BYTES]))
        held = data[-_UNRESTRICT_BYTES:]
    yield Text(quoter.flush(_TRAILING_UNRESTRICT.sub(b"\n", held)))


_ITEM = re.compile(rb"--\n-- (?:Data for )?Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+); Schema: .*\n--\n")
_SETTING = re.compile(
    rb"SET (?P<name>default_tablespace|default_table_access_method|default_with_oids) = .*;\n"
)
_BUILDS = (b"INDEX", b"CONSTRAINT")
_TABLE = re.compile(
    rb"^(?:CREATE (?:UNIQUE )?INDEX " + IDENTIFIER + rb" ON |ALTER TABLE )(?:ONLY )?"
    rb"(?P<schema>" + IDENTIFIER + rb")\.(?P<name>" + IDENTIFIER + rb")\s",
    re.MULTILINE,
)


@dataclass(frozen=True)
class PostDataItem:
    """One item: a comment of pg_dump and the statements after it."""

    kind: str
    """pg_dump's word, for example `INDEX`, `FK CONSTRAINT` or `TRIGGER`; empty for text before the first
    item."""
    text: bytes
    settings: bytes = b""
    """The preceding SET statements that still apply: pg_dump writes one only when its value changes."""

    @property
    def is_build(self) -> bool:
        """Whether it builds an index of one table and needs no other item.

        True for indexes, primary keys, unique and other constraints, but not for foreign keys.
        """
        return self.kind.encode() in _BUILDS

    @property
    def table(self) -> tuple[str, str] | None:
        """Schema and name of the table of the index or constraint; None when the text does not contain it."""
        found = _TABLE.search(self.text)
        return (unquote_identifier(found["schema"]), unquote_identifier(found["name"])) if found else None


def split_post_data(schema: bytes, text: bytes) -> tuple[PostDataItem, ...]:
    """Return the items of `text` in order; their joined texts are the input.

    `schema` is the text before the rows.
    """
    marks = list(find_outside(_ITEM, text))
    starts = [mark.start() for mark in marks]
    kinds = [mark["kind"].decode() for mark in marks]
    if not starts or starts[0] > 0:
        starts, kinds = [0, *starts], ["", *kinds]
    held = _find_settings(schema)
    items: list[PostDataItem] = []
    for kind, start, end in zip(kinds, starts, [*starts[1:], len(text)], strict=True):
        items.append(PostDataItem(kind, text[start:end], b"".join(held.values())))
        held |= _find_settings(text[start:end])
    return tuple(item for item in items if item.text)


def _find_settings(text: bytes) -> dict[bytes, bytes]:
    """Return the last SET statement for each setting by name.

    Ignores lines within strings.
    """
    if b"\nSET default_" not in text and not text.startswith(b"SET default_"):
        return {}
    quotes = LineQuotes()
    lines = (line for line in text.splitlines(keepends=True) if quotes.begins_outside(line))
    return {match["name"]: match[0] for line in lines if (match := _SETTING.fullmatch(line)) is not None}
