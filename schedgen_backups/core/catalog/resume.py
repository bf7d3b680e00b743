"""Archives that a killed capture left in its staging folder, with a journal of the objects that are in them.

Here lives what makes such a folder known again: its files' names, and whose bucket it is. What of it is used
is decided by `reuse`, when it is removed by `capture` and `catalog`. A dump that was cut short is worth
nothing and has no place here.
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
"""So old, most of what it holds is in newer archives too."""


class _Source(FrozenModel):
    """The bucket that an unfinished archive is of, and the file's name."""

    endpoint: str
    bucket: str
    file_name: str


def write_source(folder: Path, settings: BucketSettings, file_name: str) -> None:
    """The staging folder says whose bucket the file in it is of."""
    source = _Source(endpoint=settings.endpoint, bucket=settings.bucket, file_name=file_name)
    (folder / _SOURCE_NAME).write_text(source.model_dump_json(), "utf-8")


def find_resumable(staging: Path) -> tuple[Path, ...]:
    """Folders below `staging`, at most a week old, that hold an archive and its journal; the newest first."""
    limit = time.time() - _KEPT_SECONDS
    found: list[Path] = []
    for path in staging.glob(f"*/{JOURNAL_NAME}"):
        with suppress(FileNotFoundError):  # its capture ended just now
            if not path.parent.is_symlink() and path.lstat().st_mtime > limit:
                found.append(path.parent)
    return tuple(sorted(found, reverse=True))


def find_archive(folder: Path, settings: BucketSettings) -> Path | None:
    """The unfinished archive in this folder, or None when it is of another bucket or the folder does not
    tell.
    """
    try:
        source = _Source.model_validate_json(read_small_file(folder / _SOURCE_NAME))
    except (OSError, ValidationError):  # killed before it was written: nothing to take over
        return None
    is_same = (source.endpoint, source.bucket) == (settings.endpoint, settings.bucket)
    return folder / Path(source.file_name).name if is_same else None


def read_journal(folder: Path) -> Iterator[ObjectEntry]:
    """Yields the objects that the unfinished archive holds, up to the first line that is not whole.

    OSError when the disk fails.
    """
    with open_regular(folder / JOURNAL_NAME) as file:
        for line in file:
            try:
                entry = ObjectEntry.model_validate_json(line)
            except ValidationError:
                return
            if entry.is_etag_verified is False:  # of format 1: taken over it would count as proven
                return
            yield entry
