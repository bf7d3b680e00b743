"""Recipes: where in the packs the pieces of an artifact lie, as text that a shell script can read.

Lines `PACK OFFSET LENGTH`, neighbours joined; the last line is `# sha256 DIGEST` of the artifact. OFFSET and
LENGTH count plain bytes of the pack, once it is decrypted.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from schedgen_backups.core.errors import VerificationError

_LINE_PATTERN = re.compile(r"([0-9A-Za-z_.-]{1,100}) ([0-9]{1,18}) ([0-9]{1,18})")
_LARGEST_RECIPE_BYTES = 256 << 20
"""Lines of about eight million pieces that do not lie side by side. More is not unpacked: a store can hold
anything."""
_DIGEST_PATTERN = re.compile(r"# sha256 ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive bytes of a pack."""

    pack: str
    offset: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """The segments that make up an artifact, in order, and the digest of the artifact."""

    segments: tuple[Segment, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        """Size of the artifact."""
        return sum(segment.length for segment in self.segments)

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs that it needs, each once, in the order of their first use."""
        return tuple(dict.fromkeys(segment.pack for segment in self.segments))


def write_recipe(recipe: Recipe) -> bytes:
    """Return the recipe as gzip-compressed text."""
    lines = [f"{each.pack} {each.offset} {each.length}\n" for each in recipe.segments]
    return gzip.compress("".join((*lines, f"# sha256 {recipe.sha256}\n")).encode(), mtime=0)


def read_recipe(name: str, data: bytes) -> Recipe:
    """Return the recipe that these bytes hold; VerificationError (permanent) when they hold none."""
    try:
        with gzip.open(BytesIO(data)) as file:
            # Cut off here, it lacks its last line.
            text = file.read(_LARGEST_RECIPE_BYTES)
        *lines, last = text.decode("ascii").splitlines()
        matches = [_LINE_PATTERN.fullmatch(line) for line in lines]
        digest = _DIGEST_PATTERN.fullmatch(last)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _make_error(name) from error
    if digest is None or None in matches:
        raise _make_error(name)
    segments = tuple(
        Segment(match[1], int(match[2]), int(match[3])) for match in matches if match is not None
    )
    return Recipe(segments, digest[1])


def append_segment(joined: list[Segment], segment: Segment) -> None:
    """Append the segment, joined with the last one where it continues that."""
    if joined:
        last = joined[-1]
        if last.pack == segment.pack and last.offset + last.length == segment.offset:
            joined[-1] = Segment(last.pack, last.offset, last.length + segment.length)
            return
    joined.append(segment)


def slice_segments(
    segments: Sequence[Segment], ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, Segment]]:
    """Return the parts of the segments that cover these ranges (offset, length) of the artifact.

    Each with its offset in the artifact, in order. The ranges are in order and do not overlap.
    """
    found: list[tuple[int, Segment]] = []
    start = 0
    index = 0
    for segment in segments:
        end = start + segment.length
        while index < len(ranges) and sum(ranges[index]) <= start:
            index += 1
        for offset, length in ranges[index:]:
            if offset >= end:
                break
            first, last = max(offset, start), min(offset + length, end)
            if first < last:
                found.append((first, Segment(segment.pack, segment.offset + first - start, last - first)))
        start = end
    return found


def _make_error(name: str) -> VerificationError:
    return VerificationError(f"{name} is not a recipe: it is damaged", hint="Use another copy.")
