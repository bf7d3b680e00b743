"""Archives that a killed capture left in its staging directory, with a journal of their objects.

File names and the recorded source make such a directory recognizable. `unchanged` decides which objects are
reused; `capture` and `catalog` remove the directory. A truncated dump cannot be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.system.files import open_regular, read_small_file

JOURNAL_NAME = "entries.jsonl"
_SOURCE_NAME = "source.json"
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
        for line in file:
            try:
                entry = ObjectEntry.model_validate_json(line)
            except ValidationError:
                return
            if entry.is_etag_verified is False:  # of format 1: when copied, it would count as proven
                return
            yield entry
