"""Unchanged objects that lie one behind the other in an older archive: read in one go, looked at one by one, copied in one go.

What makes an object unchanged is `reuse`'s business, how one object lies in an archive that of `archive_member`. Objects that do not fit into memory
are copied by `archive_file` alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from schedgen_backups.core.capture.reuse import EarlierFile, EarlierObject
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import COPY_BYTES
from schedgen_backups.core.formats.archive_member import check_members
from schedgen_backups.core.formats.gzip_members import read_members
from schedgen_backups.core.formats.records import ObjectEntry


@dataclass(frozen=True)
class CheckedRun:
    """Objects that are unchanged to the byte, one behind the other."""

    entries: tuple[ObjectEntry, ...]
    file: EarlierFile
    data: memoryview
    """Their members."""


def split_into_runs(found: Iterable[EarlierObject | None]) -> Iterator[int]:
    """Yields how many of the objects make up the next run, each with its neighbours in the file, at most `COPY_BYTES` long; each None is alone."""
    count = size_bytes = 0
    last: EarlierObject | None = None
    for earlier in found:
        is_next = (
            last is not None
            and earlier is not None
            and last.file is earlier.file
            and last.entry.offset + last.entry.length == earlier.entry.offset
            and size_bytes + earlier.entry.length <= COPY_BYTES
        )
        if count and not is_next:
            yield count
            count = size_bytes = 0
        count += 1
        size_bytes += earlier.entry.length if earlier is not None else 0
        last = earlier
    if count:
        yield count


def check_run(run: Sequence[EarlierObject]) -> Iterator[CheckedRun | None]:
    """Yields the objects of a run in order, as many together as are these objects to the byte; None for each that is not. May run in any thread."""
    start = run[0].entry.offset
    file = run[0].file
    try:
        data = file.read_range(start, run[-1].entry.offset + run[-1].entry.length - start)
    except VerificationError:  # the bucket has the objects; the checks of that archive tell what is wrong with it
        data = b""
    opened = io.BytesIO(data)
    good: list[ObjectEntry] = []

    def gather() -> CheckedRun:
        first, last = good[0], good[-1]
        return CheckedRun(tuple(good), file, memoryview(data)[first.offset - start : last.offset + last.length - start])

    for earlier in run:
        entry = earlier.entry
        try:
            check_members(entry, read_members(opened, entry.offset - start, entry.length))
        except VerificationError:  # as above
            if good:
                yield gather()
            good = []
            yield None
        else:
            good.append(entry)
    if good:
        yield gather()
