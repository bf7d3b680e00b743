"""The file of a site's history: appended to by several processes, rotated by year, read as a whole.

`history.jsonl` holds the current year (UTC), `history-2026.jsonl` an earlier one. Each line is a JSON object.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.history.events import EVENT_ADAPTER, HistoryEvent
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.system.files import open_regular
from schedgen_backups.core.system.line_file import append_line, hold_line_file, write_line

HISTORY_NAME = "history.jsonl"
_YEAR_PATTERN = re.compile(r"history-(?P<year>[0-9]{4})\.jsonl")
_FIRST_YEAR_PATTERN = re.compile(rb'\{"event":"[a-z ]+","at":"(?P<year>[0-9]{4})-')
_MAX_LINE_BYTES = 1 << 20
_COPIED_BYTES = 1 << 20
_TAIL_BYTES = 256 << 10
"""Some thousand events: what is raised again is raised within minutes."""
_Event = TypeVar("_Event", bound=FrozenModel)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HistoryPart:
    """The events of a time, oldest first, and how many lines of these years cannot be read."""

    events: tuple[HistoryEvent, ...]
    unreadable_count: int = 0
    """Lines that a crash has cut short, that were altered, or that a newer version wrote."""


class History:
    """The history of one backup directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / HISTORY_NAME

    def record(self, event: HistoryEvent) -> None:
        """Append the event.

        Best effort: a backup that cannot be recorded is still a backup. If the file cannot be written, a
        warning is logged; a missing backup directory is not created.
        """
        if not self._directory.is_dir():
            return
        line = event.model_dump_json().encode()
        try:
            self._append(line, event.at.astimezone(timezone.utc).year)
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", self._path, error.strerror or error)

    def record_once(self, event: HistoryEvent) -> None:
        """Append the event unless one that differs only in its time is among the last ones."""
        try:
            known = any(
                _parse(line) == event.model_copy(update={"at": found.at})
                for line in _read_tail(self._path)
                if (found := _parse(line)) is not None
            )
        except OSError:
            known = False
        if not known:
            self.record(event)

    def read(self, begin: datetime | None = None, end: datetime | None = None) -> HistoryPart:
        """Return the events from `begin` on and before `end`, oldest first.

        StorageError if a file of the history cannot be read.
        """
        found: list[HistoryEvent] = []
        unreadable_count = 0
        for path in self._list_files(begin, end):
            for line in _read_lines(path):
                event = _parse(line)
                if event is None:
                    unreadable_count += 1
                elif (begin is None or event.at >= begin) and (end is None or event.at < end):
                    found.append(event)
        return HistoryPart(tuple(sorted(found, key=lambda event: event.at)), unreadable_count)

    def find_last(
        self, kind: type[_Event], accepts: Callable[[_Event], bool] = lambda _event: True
    ) -> _Event | None:
        """Return the last event of this kind that is accepted, of this year's file and the one before.

        None if there is none, or the history cannot be read.
        """
        begin = f'{{"event":"{kind.model_fields["event"].default}",'.encode()
        for path in self._list_recent():
            with suppress(OSError):
                for line in _read_backwards(path):
                    event = _parse(line) if line.startswith(begin) else None
                    if isinstance(event, kind) and accepts(event):
                        return event
        return None

    def _list_recent(self) -> Iterator[Path]:
        yield self._path
        # Most events are of this year: the directory is listed for others only.
        with suppress(OSError):
            names = os.listdir(self._directory)  # noqa: PTH208 - paths of all files are what takes long
            previous = [name for name in names if _YEAR_PATTERN.fullmatch(name)]
            if previous:
                yield self._directory / max(previous)

    def _append(self, line: bytes, year: int) -> None:
        while True:
            with hold_line_file(self._path) as descriptor:
                begun = _read_year(descriptor)
                if begun is None or begun >= year:
                    write_line(descriptor, line)
                    return
                self._put_aside(descriptor, begun)

    def _put_aside(self, descriptor: int, year: int) -> None:
        """Rename the held file; if the year has a file already, as after a wrong clock, append to that."""
        target = self._path.with_name(f"history-{year:04d}.jsonl")
        if not target.exists():
            self._path.rename(target)
            return
        offset = 0
        while lines := os.pread(descriptor, _COPIED_BYTES, offset):
            # Up to the last whole line; what has none at all is a torn one.
            whole = lines[: lines.rfind(b"\n") + 1] or lines
            append_line(target, whole.rstrip(b"\n"))
            offset += len(whole)
        self._path.unlink()

    def _list_files(self, begin: datetime | None, end: datetime | None) -> list[Path]:
        years: dict[int, Path] = {}
        try:
            for path in self._directory.iterdir():
                if (found := _YEAR_PATTERN.fullmatch(path.name)) is not None:
                    years[int(found["year"])] = path
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _explain(self._directory, error) from error
        first = begin.astimezone(timezone.utc).year if begin is not None else 0
        last = end.astimezone(timezone.utc).year if end is not None else 9999
        older = [path for year, path in sorted(years.items()) if first <= year <= last]
        return [*older, self._path]


def _read_year(descriptor: int) -> int | None:
    """Return the year of the first event; None if there is none or it cannot be read."""
    found = _FIRST_YEAR_PATTERN.match(os.pread(descriptor, 100, 0))
    return int(found["year"]) if found is not None else None


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if line.strip():
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explain(path, error) from error


def _read_backwards(path: Path) -> Iterator[bytes]:
    """Yield the lines of the file, the last one first."""
    with open_regular(path) as file:
        position = file.seek(0, os.SEEK_END)
        rest = b""
        while position > 0:
            size_bytes = min(_COPIED_BYTES, position)
            position -= size_bytes
            file.seek(position)
            first, *lines = (file.read(size_bytes) + rest).split(b"\n")
            yield from reversed(lines)
            rest = first
        yield rest


def _read_tail(path: Path) -> list[bytes]:
    """Return the last whole lines of the file."""
    with open_regular(path) as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _TAIL_BYTES))
        return file.read().splitlines()[0 if size_bytes <= _TAIL_BYTES else 1 :]


def _parse(line: bytes) -> HistoryEvent | None:
    try:
        return EVENT_ADAPTER.validate_json(line)
    except ValidationError:
        return None


def _explain(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be read: {error.strerror}", hint="Check the disk and the permissions of the file."
    )
