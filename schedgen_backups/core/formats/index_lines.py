"""Lines of an archive's index: one object each, as JSON, whose fields have the order of `ObjectEntry`.

Parsing a line takes some microseconds, and an hour of a million objects reads each several times. What needs
only a key or a place reads only that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from schedgen_backups.core.formats.records import make_format_error

_KEY_START, _KEY_END = b'{"key":"', b'","size_bytes":'


def to_line(text: str) -> bytes:
    """Return a line of the index; keys that are not valid Unicode keep their bytes."""
    return f"{text}\n".encode("utf-8", "surrogateescape")


def place_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Add the offsets, which the index of an archive in packs leaves out: equal objects have equal lines."""
    for offset, _end, line in locate_lines(lines):
        yield place_line(line, offset)


def place_line(line: bytes, offset: int) -> bytes:
    """Add the offset to a line."""
    return b'%s,"offset":%d}' % (line.rstrip()[:-1], offset)


def locate_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield where each object of an archive in packs begins and ends, with its line.

    VerificationError (permanent) at a line that states no length.
    """
    offset = 0
    for line in lines:
        _before, found, length = line.rpartition(b'"length":')
        try:
            end = offset + int(length.strip(b"} \n"))
        except ValueError as error:
            raise make_format_error("a line of its index states no length") from error
        if not found or end < offset:
            raise make_format_error("a line of its index states no length")
        yield offset, end, line
        offset = end


def move_line(line: bytes, *, length: int, offset: int | None = None) -> bytes:
    """Return the line of an object that was copied: with another place, and the same otherwise.

    The index of an archive in packs has no offsets. ValueError if the line does not end with its place.
    """
    before, _found, place = line.rstrip().rpartition(b',"length":')
    former = place.removesuffix(b"}").replace(b',"offset":', b"", 1)
    if not place.endswith(b"}") or not former.isdigit():
        raise ValueError
    head, found, digits = before.rpartition(b',"offset":')
    if found and digits.isdigit():
        before = head
    if offset is None:
        return b'%s,"length":%d}\n' % (before, length)
    return b'%s,"offset":%d,"length":%d}\n' % (before, offset, length)


def read_object_key(line: bytes) -> str:
    """Return the key in a line; VerificationError (permanent) when it has none."""
    if line.startswith(_KEY_START):
        # A quote within the key is escaped.
        escaped, found, _rest = line[len(_KEY_START) :].partition(_KEY_END)
        if found and b"\\" not in escaped:
            try:
                return escaped.decode("utf-8")
            except UnicodeDecodeError as error:
                raise make_format_error("a line of its index is damaged") from error
    try:
        return str(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise make_format_error("a line of its index is damaged") from error
