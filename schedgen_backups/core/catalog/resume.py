"""Archives that a killed capture left in its staging directory, with a journal of their objects.

File names and the recorded source make such a directory recognizable. `unchanged` decides which objects are
reused; `capture` and `catalog` remove the directory. A truncated dump cannot be resumed.

Of an archive in packs, a second journal has the places of its bytes: lines `PACK OFFSET LENGTH`, and `= SIZE`
where what lies behind this size of the archive was given up.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from schedgen_backups.core.catalog.small_files import translate_storage_errors
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.index_lines import place_lines
from schedgen_backups.core.formats.packed_file import PACKS_NAME
from schedgen_backups.core.formats.recipe import Recipe, Segment, Segments, write_recipe
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.system.files import open_regular, read_small_file

JOURNAL_NAME = "entries.jsonl"
PLACES_NAME = "places.txt"
_SOURCE_NAME = "source.json"
_PLACE_LINE = re.compile(rb"([0-9]{8}_[0-9]{6}-[0-9]{4,9}(?:\.age)?) ([0-9]{1,18}) ([0-9]{1,18})\n")
_CUT_LINE = re.compile(rb"= ([0-9]{1,18})\n")
_KEPT_SECONDS = 7 * 24 * 3600
"""Most objects of an older archive are also in newer archives."""


class _Source(FrozenModel):
    """The source bucket of an unfinished archive, and the file's name."""

    endpoint: str
    bucket: str
    file_name: str


def write_source(folder: Path, settings: BucketSettings, file_name: str) -> None:
    """Record in the staging directory which bucket its archive is from."""
    source = _Source(endpoint=settings.endpoint, bucket=settings.bucket, file_name=file_name)
    (folder / _SOURCE_NAME).write_text(source.model_dump_json(), "utf-8")


def find_resumable(staging: Path) -> tuple[Path, ...]:
    """Return directories in `staging`, at most a week old, that have a journal; the newest first."""
    limit = time.time() - _KEPT_SECONDS
    found: list[Path] = []
    for path in staging.glob(f"*/{JOURNAL_NAME}"):
        with suppress(FileNotFoundError):  # its capture has just ended
            if not path.parent.is_symlink() and path.lstat().st_mtime > limit:
                found.append(path.parent)
    return tuple(sorted(found, reverse=True))


def find_archive(folder: Path, settings: BucketSettings) -> Path | None:
    """Return the unfinished archive in this directory; None when its bucket is another or unknown."""
    try:
        source = _Source.model_validate_json(read_small_file(folder / _SOURCE_NAME))
    except (OSError, ValidationError):  # killed before it was written: nothing to resume
        return None
    is_same = (source.endpoint, source.bucket) == (settings.endpoint, settings.bucket)
    return folder / Path(source.file_name).name if is_same else None


def read_journal(folder: Path) -> Iterator[ObjectEntry]:
    """Yield the objects in the unfinished archive, up to the first incomplete line.

    OSError when the disk fails.
    """
    with open_regular(folder / JOURNAL_NAME) as file:
        yield from _read_entries(file)


def read_packed_journal(folder: Path, size_bytes: int) -> Iterator[ObjectEntry]:
    """Yield the objects in the first bytes of an unfinished archive in packs; OSError when the disk fails."""
    with open_regular(folder / JOURNAL_NAME) as file, suppress(VerificationError):
        for entry in _read_entries(place_lines(file)):
            if entry.offset + entry.length > size_bytes:
                return
            yield entry


def _read_entries(lines: Iterable[bytes]) -> Iterator[ObjectEntry]:
    for line in lines:
        try:
            entry = ObjectEntry.model_validate_json(line)
        except ValidationError:
            return
        if entry.is_etag_verified is False:  # of format 1: when copied, it would count as proven
            return
        yield entry


def read_places(folder: Path) -> Segments:
    """Return where the bytes of an unfinished archive in packs lie, up to the first incomplete line.

    The packs may be incomplete or missing. Nothing for an archive that is a file.
    """
    segments = Segments()
    with suppress(OSError), open_regular(folder / PLACES_NAME) as file:
        for line in file:
            if (place := _PLACE_LINE.fullmatch(line)) is not None:
                segments.join(Segment(place[1].decode("ascii"), int(place[2]), int(place[3])))
            elif (cut := _CUT_LINE.fullmatch(line)) is not None:
                segments.cut(int(cut[1]))
            else:
                break
    return segments


def restore_recipe(folder: Path, path: Path, packs: LocalPacks, index: PieceIndex) -> Recipe | None:
    """Write the recipe of an unfinished archive to `path`, as far as its packs are complete; return it.

    None if nothing of it is. StorageError when it cannot be written.
    """
    sizes = packs.find_sizes()
    names = (pack.name for pack in index.list_packs() if sizes.get(pack.name) == pack.size_bytes)
    known = {name: pack for name in names if (pack := index.state_pack(name)) is not None}
    segments = Segments(takewhile(lambda segment: segment.pack in known, read_places(folder)))
    if not segments.packs:
        return None
    recipe = Recipe(segments, stated_packs=tuple(known[name] for name in segments.packs))
    with translate_storage_errors(folder):
        path.write_bytes(write_recipe(recipe))
        link = folder / PACKS_NAME
        link.unlink(missing_ok=True)
        link.symlink_to(packs.folder.absolute())
    return recipe
