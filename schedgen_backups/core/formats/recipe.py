"""Recipes: where in the packs the pieces of an artifact lie, as text that a shell script can read.

Lines `PACK OFFSET LENGTH`, neighbours joined. OFFSET and LENGTH count plain bytes of the pack, once it is
decrypted. In a store, the last line is `# sha256 DIGEST` of the artifact. In the backup directory, where
nobody reads the whole artifact at once, the first lines are `# pack NAME SIZE SHA256`, one for each pack, and
the last one is `# bytes SIZE` of the artifact; that is also the last line of its recipe in a store. The line
of an encrypted pack goes on with PLAIN_SIZE PLAIN_SHA256 READERS.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from schedgen_backups.core.errors import VerificationError

_LINE_PATTERN = re.compile(rb"([0-9A-Za-z_.-]{1,100}) ([0-9]{1,18}) ([0-9]{1,18})\n")
_LARGEST_RECIPE_BYTES = 256 << 20
"""Lines of about eight million pieces that do not lie side by side. More is not unpacked: a store can hold
anything."""
_PACK_PATTERN = re.compile(
    rb"# pack ([0-9]{8}_[0-9]{6}-[0-9]{4,9}) ([0-9]{1,18}) ([0-9a-f]{64})\n"
    rb"|# pack ([0-9]{8}_[0-9]{6}-[0-9]{4,9}\.age) ([0-9]{1,18}) ([0-9a-f]{64})"
    rb" ([0-9]{1,18}) ([0-9a-f]{64}) ([0-9a-f]{64})\n"
)
"""Of a copy, a pack of this name is written: no other file of the folder `packs` may be meant."""
_LARGEST_PACK_BYTES = 256 << 20
"""More than any pack has. Packs are held in memory, and a forged size makes a file of holes."""
_BYTES_PATTERN = re.compile(rb"# bytes ([0-9]{1,19})\n")
_DIGEST_PATTERN = re.compile(rb"# sha256 ([0-9a-f]{64})\n")
_LINE_LIMIT_BYTES = 400
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


PLAIN_READERS = "everybody"
"""Who can read a pack that is not encrypted."""
ENCRYPTED_SUFFIX = ".age"


@dataclass(frozen=True, slots=True)
class Encryption:
    """What an encrypted pack holds, and for whom."""

    plain_bytes: int
    plain_sha256: str
    """It reveals nothing of the contents: the plain bytes begin with random ones."""
    readers: str
    """A text that is another one for other public keys."""


@dataclass(frozen=True, slots=True)
class StatedPack:
    """A pack as a recipe of the backup directory states it."""

    name: str
    size_bytes: int
    sha256: str
    """Digest of the bytes as they lie there."""
    encryption: Encryption | None = None

    @property
    def plain_bytes(self) -> int:
        """Size of what segments refer to."""
        return self.encryption.plain_bytes if self.encryption is not None else self.size_bytes

    @property
    def plain_sha256(self) -> str:
        """Digest of what segments refer to."""
        return self.encryption.plain_sha256 if self.encryption is not None else self.sha256

    @property
    def readers(self) -> str:
        """Who can read it, as in `Encryption`."""
        return self.encryption.readers if self.encryption is not None else PLAIN_READERS

    @property
    def plain_name(self) -> str:
        """The name of its plain form, as it comes out of a store with other recipients."""
        return self.name.removesuffix(ENCRYPTED_SUFFIX)

    def to_line(self) -> str:
        """Return its line in a recipe."""
        inside = self.encryption
        more = f" {inside.plain_bytes} {inside.plain_sha256} {inside.readers}" if inside is not None else ""
        return f"# pack {self.name} {self.size_bytes} {self.sha256}{more}\n"


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
    def used_packs(self) -> tuple[str, ...]:
        """Names of the packs that are still used after a cut."""
        used = set(self._pack_numbers)
        return tuple(name for name, number in self._numbers.items() if number in used)

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

    def cut(self, size_bytes: int) -> None:
        """Keep the first bytes only."""
        surplus = self.size_bytes - size_bytes
        while surplus > 0:
            last = self._lengths[-1]
            if last > surplus:
                self._lengths[-1] = last - surplus
                return
            for column in (self._pack_numbers, self._offsets, self._lengths):
                column.pop()
            surplus -= last

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Segment]:
        names = self.packs
        for number, offset, length in zip(self._pack_numbers, self._offsets, self._lengths, strict=True):
            yield Segment(names[number], offset, length)


@dataclass(frozen=True)
class Recipe:
    """The segments that make up an artifact, in order, and what is known of the artifact and the packs."""

    segments: Segments
    sha256: str = ""
    """Digest of the artifact; empty if that lies in packs in the backup directory."""
    stated_packs: tuple[StatedPack, ...] = ()
    """In the backup directory, every pack that the segments name; none in a store."""

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
    lines = [each.to_line() for each in recipe.stated_packs]
    for each in recipe.segments:
        lines.append(f"{each.pack} {each.offset} {each.length}\n")
        if len(lines) >= _WRITTEN_LINES:
            parts.append(compressor.compress("".join(lines).encode()))
            lines.clear()
    lines.append(f"# sha256 {recipe.sha256}\n" if recipe.sha256 else f"# bytes {recipe.size_bytes}\n")
    return b"".join((*parts, compressor.compress("".join(lines).encode()), compressor.flush()))


def read_recipe(name: str, data: bytes) -> Recipe:
    """Return the recipe that these bytes hold; VerificationError (permanent) when they hold none."""
    reading = _Reading()
    size_bytes = 0
    try:
        with gzip.open(BytesIO(data)) as file:
            while line := file.readline(_LINE_LIMIT_BYTES):
                size_bytes += len(line)
                if size_bytes > _LARGEST_RECIPE_BYTES or not reading.take(line):
                    raise _make_error(name)
    except (OSError, EOFError, zlib.error) as error:
        raise _make_error(name) from error
    recipe = reading.finish()
    if recipe is None:
        raise _make_error(name)
    return recipe


class _Reading:
    """The lines of a recipe so far."""

    def __init__(self) -> None:
        self._segments = Segments()
        self._packs: dict[str, StatedPack] = {}
        self._digest: str | None = None
        self._size_bytes: int | None = None

    def take(self, line: bytes) -> bool:
        """Take in the next line; return whether it may stand there."""
        if self._digest is not None or self._size_bytes is not None:
            return False
        if (match := _LINE_PATTERN.fullmatch(line)) is not None:
            segment = Segment(match[1].decode("ascii"), int(match[2]), int(match[3]))
            pack = self._packs.get(segment.pack)
            self._segments.append(segment)
            return pack is None or segment.offset + segment.length <= pack.plain_bytes
        if (match := _PACK_PATTERN.fullmatch(line)) is not None:
            pack = _state_pack(*(word.decode("ascii") for word in match.groups() if word is not None))
            is_new = pack.name not in self._packs
            self._packs[pack.name] = pack
            largest_bytes = max(pack.size_bytes, pack.plain_bytes)
            return is_new and not self._segments.packs and largest_bytes <= _LARGEST_PACK_BYTES
        if (match := _DIGEST_PATTERN.fullmatch(line)) is not None:
            self._digest = match[1].decode("ascii")
        elif (match := _BYTES_PATTERN.fullmatch(line)) is not None:
            self._size_bytes = int(match[1])
        else:
            return False
        return True

    def finish(self) -> Recipe | None:
        """Return the recipe; None if a line is missing or what they state does not agree."""
        size_bytes = self._segments.size_bytes
        if size_bytes > _LARGEST_ARTIFACT_BYTES:
            return None
        if self._digest is not None:
            return Recipe(self._segments, self._digest) if not self._packs else None
        if size_bytes != self._size_bytes or (self._packs and set(self._segments.packs) != set(self._packs)):
            return None
        return Recipe(self._segments, stated_packs=tuple(self._packs.values()))


# The same value for the same pack: a daemon holds the packs of every point.
@lru_cache(maxsize=1 << 16)
def _state_pack(
    name: str, size: str, sha256: str, plain_size: str = "", plain_sha256: str = "", readers: str = ""
) -> StatedPack:
    encryption = Encryption(int(plain_size), plain_sha256, readers) if readers else None
    return StatedPack(name, int(size), sha256, encryption)


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
