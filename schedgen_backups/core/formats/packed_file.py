"""An artifact whose bytes lie in packs, read as if it were one file.

The recipe stands in the artifact's place (`NAME.recipe.gz`), the packs beside it in `packs`.
"""

from __future__ import annotations

import io
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast

from typing_extensions import Buffer

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.pack_reader import NO_KEYS, OpenPack, PackKeys
from schedgen_backups.core.formats.recipe import Recipe, Segment, StatedPack, read_recipe
from schedgen_backups.core.system.files import read_small_file

PACKS_NAME = "packs"
RECIPE_SUFFIX = ".recipe.gz"
_HINT = "Use another recovery point. `schedgen-backups verify --all` shows which are intact."


def is_recipe_name(file_name: str) -> bool:
    """Return whether a file of this name is a recipe."""
    return file_name.endswith(RECIPE_SUFFIX)


class PackedFile:
    """An artifact in packs, which lie in `folder`; for any number of readers, each in one thread."""

    def __init__(self, recipe: Recipe, folder: Path, keys: PackKeys = NO_KEYS) -> None:
        self.recipe = recipe
        self._folder = folder
        self._keys = keys
        self._packs = {pack.name: pack for pack in recipe.stated_packs}
        self._segments = tuple(recipe.segments)
        self._starts = array("Q", (0, *accumulate(each.length for each in self._segments)))

    @property
    def size_bytes(self) -> int:
        """Size of the artifact."""
        return self._starts[-1]

    def open_reader(self) -> BinaryIO:
        """Return a new reader at the beginning of the artifact, for one thread."""
        return cast("BinaryIO", io.BufferedReader(_PackReader(self)))

    def find_segments(self, offset: int, length: int) -> Iterator[Segment]:
        """Yield where these bytes lie, in order; they may lie in several packs.

        VerificationError (permanent) when the artifact does not have them: an index can state anything.
        """
        number = bisect_right(self._starts, offset) - 1
        end = offset + length
        if not 0 <= offset <= end <= self.size_bytes:
            raise VerificationError("a position in the artifact is out of range", hint=_HINT)
        while offset < end:
            segment = self._segments[number]
            skipped = offset - self._starts[number]
            taken = min(segment.length - skipped, end - offset)
            yield Segment(segment.pack, segment.offset + skipped, taken)
            offset += taken
            number += 1

    def find_part(self, offset: int) -> tuple[StatedPack, int, int] | None:
        """Return the pack at this offset of the artifact, the place in it, and for how many bytes.

        None at the end of the artifact.
        """
        if offset >= self.size_bytes:
            return None
        number = bisect_right(self._starts, offset) - 1
        segment = self._segments[number]
        skipped = offset - self._starts[number]
        return self._packs[segment.pack], segment.offset + skipped, segment.length - skipped

    def open_pack(self, pack: StatedPack) -> OpenPack:
        """Return a new reader of the pack, for one thread; errors as in `OpenPack`."""
        return OpenPack(self._folder, pack, self._keys)


def open_packed_file(path: Path, keys: PackKeys = NO_KEYS) -> PackedFile:
    """Return the artifact of this recipe; VerificationError (permanent) when it cannot be read.

    The `keys` are needed to read it, if its packs are encrypted.
    """
    return PackedFile(read_local_recipe(path), path.parent / PACKS_NAME, keys)


def read_local_recipe(path: Path) -> Recipe:
    """Return the recipe in a backup directory; VerificationError (permanent) when it cannot be read."""
    try:
        data = read_small_file(path)
    except OSError as error:
        raise VerificationError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from error
    return parse_local_recipe(path.name, data)


def parse_local_recipe(name: str, data: bytes) -> Recipe:
    """Return the recipe; VerificationError (permanent) when it is damaged or does not describe its packs."""
    recipe = read_recipe(name, data)
    if recipe.sha256 or len(recipe.stated_packs) < len(recipe.packs):
        raise VerificationError(f"{name} is the recipe of a store", hint=_HINT)
    return recipe


class _PackReader(io.RawIOBase):
    """Reads a packed file from its own position."""

    def __init__(self, packed: PackedFile) -> None:
        super().__init__()
        self._packed, self._position = packed, 0
        self._pack: OpenPack | None = None

    def readinto(self, buffer: Buffer, /) -> int:
        part = self._packed.find_part(self._position)
        if part is None:
            return 0
        pack, offset, length = part
        view = memoryview(buffer)[:length]
        count = self._open(pack).read_into(view, offset)
        if not count and len(view):
            raise VerificationError(f"the pack {pack.name} is too short", hint=_HINT)
        self._position += count
        return count

    def _open(self, pack: StatedPack) -> OpenPack:
        if self._pack is None or self._pack.pack.name != pack.name:
            self._close_pack()
            self._pack = self._packed.open_pack(pack)
        return self._pack

    def _close_pack(self) -> None:
        if self._pack is not None:
            self._pack.close()
            self._pack = None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._packed.size_bytes
        self._position = offset
        return self._position

    def close(self) -> None:
        self._close_pack()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
