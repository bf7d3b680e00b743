"""Recipes: where in the packs the pieces of an artifact lie, as text that a shell script can read.

Lines `PACK OFFSET LENGTH`, neighbours joined; the last line is `# sha256 DIGEST` of the artifact. OFFSET and
LENGTH count plain bytes of the pack, once it is decrypted.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from schedgen_backups.core.errors import VerificationError

_LINE_PATTERN = re.compile(rb"([0-9A-Za-z_.-]{1,100}) ([0-9]{1,18}) ([0-9]{1,18})\n")
_LARGEST_RECIPE_BYTES = 256 << 20
"""Lines of about eight million pieces that do not lie side by side. More is not unpacked: a store can hold
anything."""
_DIGEST_PATTERN = re.compile(rb"# sha256 ([0-9a-f]{64})\n")
_LINE_LIMIT_BYTES = 200
_LARGEST_ARTIFACT_BYTES = 1 << 62
"""A file cannot have a larger size."""
_WRITTEN_LINES = 10_000
_GZIP = 16 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive bytes of a pack."""

    pack: str
    offset: int
    length: int


class Segments:
    """Segments in order, in 20 bytes each: a recipe can have millions."""

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._pack_numbers = array("I")
        self._offsets = array("Q")
        self._lengths = array("Q")
        for segment in segments:
            self.append(segment)

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs, each once, in the order of their first use."""
        return tuple(self._numbers)

    @property
    def size_bytes(self) -> int:
        """Sum of the lengths."""
        return sum(self._lengths)

    def append(self, segment: Segment) -> None:
        """Append the segment."""
        self._pack_numbers.append(self._numbers.setdefault(segment.pack, len(self._numbers)))
        self._offsets.append(segment.offset)
        self._lengths.append(segment.length)

    def join(self, segment: Segment) -> None:
        """Append the segment, joined with the last one where it continues that."""
        if (
            self._lengths
            and self._pack_numbers[-1] == self._numbers.get(segment.pack)
            and self._offsets[-1] + self._lengths[-1] == segment.offset
        ):
            self._lengths[-1] += segment.length
        else:
            self.append(segment)

    def __iter__(self) -> Iterator[Segment]:
        names = self.packs
        for number, offset, length in zip(self._pack_numbers, self._offsets, self._lengths, strict=True):
            yield Segment(names[number], offset, length)


@dataclass(frozen=True)
class Recipe:
    """The segments that make up an artifact, in order, and the digest of the artifact."""

    segments: Segments
    sha256: str

    @property
    def size_bytes(self) -> int:
        """Size of the artifact."""
        return self.segments.size_bytes

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs that it needs, each once, in the order of their first use."""
        return self.segments.packs


def write_recipe(recipe: Recipe) -> bytes:
    """Return the recipe as gzip-compressed text."""
    compressor = zlib.compressobj(zlib.Z_BEST_COMPRESSION, wbits=_GZIP)
    parts: list[bytes] = []
    lines: list[str] = []
    for each in recipe.segments:
        lines.append(f"{each.pack} {each.offset} {each.length}\n")
        if len(lines) == _WRITTEN_LINES:
            parts.append(compressor.compress("".join(lines).encode()))
            lines.clear()
    lines.append(f"# sha256 {recipe.sha256}\n")
    return b"".join((*parts, compressor.compress("".join(lines).encode()), compressor.flush()))


def read_recipe(name: str, data: bytes) -> Recipe:
    """Return the recipe that these bytes hold; VerificationError (permanent) when they hold none."""
    segments = Segments()
    digest: bytes | None = None
    size_bytes = 0
    try:
        with gzip.open(BytesIO(data)) as file:
            while line := file.readline(_LINE_LIMIT_BYTES):
                size_bytes += len(line)
                match = _LINE_PATTERN.fullmatch(line)
                last = _DIGEST_PATTERN.fullmatch(line) if match is None else None
                if (
                    digest is not None
                    or size_bytes > _LARGEST_RECIPE_BYTES
                    or (match is None and last is None)
                ):
                    raise _make_error(name)
                if match is not None:
                    segments.append(Segment(match[1].decode("ascii"), int(match[2]), int(match[3])))
                elif last is not None:
                    digest = last[1]
    except (OSError, EOFError, zlib.error) as error:
        raise _make_error(name) from error
    if digest is None or segments.size_bytes > _LARGEST_ARTIFACT_BYTES:
        raise _make_error(name)
    return Recipe(segments, digest.decode("ascii"))


def slice_segments(
    segments: Iterable[Segment], ranges: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Segment]]:
    """Yield the parts of the segments that cover these ranges (offset, length) of the artifact.

    Each with its offset in the artifact, in order. The ranges are in order and do not overlap.
    """
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
                yield first, Segment(segment.pack, segment.offset + first - start, last - first)
        start = end


def _make_error(name: str) -> VerificationError:
    return VerificationError(f"{name} is not a recipe: it is damaged", hint="Use another copy.")
