"""Keeps one incident per key: the first alert at once, repetitions after 1, 6 and 24 hours, one message when
it is over.

A small state machine, and the file that keeps its state beside the recovery points, where hooks, sensors and
the command line all find it. What an alert says belongs to `alerts`. An alert counts as announced only when a
channel accepted it, so one that nobody got is due again.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.system.lock import LOCK_NAME, FileLock

REMINDERS = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
"""After the first alert; from then on once a day."""
_DAY = timedelta(hours=23)
"""Short of 24 hours, so that tonight's failure is told although it came some seconds sooner than last
night's."""
FOLDER_NAME = ".alerts"
_STATE_NAME = "incidents.json"


@dataclass(frozen=True)
class IncidentKey:
    """What an incident is about, the same for each repetition."""

    area: str
    """What it belongs to, such as backups, ticks or checks."""
    subject: str
    """What happened there, such as `database_dump failed`."""

    def __str__(self) -> str:
        return f"{self.area}: {self.subject}"


class Incident(FrozenModel):
    """What is wrong under one key, from its first alert until it is over."""

    key: IncidentKey
    began_at: AwareDatetime
    announced_at: AwareDatetime
    """When the last alert of it was accepted."""
    announced_count: int
    occurrence_count: int

    def is_due(self, now: datetime) -> bool:
        """Whether one more occurrence deserves an alert."""
        if self.announced_count > len(REMINDERS):
            return now >= self.announced_at + _DAY
        return now >= self.began_at + REMINDERS[self.announced_count - 1] and now > self.announced_at


class IncidentState(FrozenModel):
    """All open incidents."""

    incidents: tuple[Incident, ...] = ()

    def find(self, key: IncidentKey) -> Incident | None:
        """Return the open incident of this key, or None."""
        return next((incident for incident in self.incidents if incident.key == key), None)

    def is_due(self, key: IncidentKey, now: datetime) -> bool:
        """Return whether an occurrence under this key deserves an alert now."""
        incident = self.find(key)
        return incident is None or incident.is_due(now)

    def with_occurrence(self, key: IncidentKey, now: datetime, *, is_announced: bool) -> IncidentState:
        """Return the state after one more occurrence; an incident opens with its first announced one."""
        incident = self.find(key)
        if incident is None:
            if not is_announced:
                return self
            opened = Incident(key=key, began_at=now, announced_at=now, announced_count=1, occurrence_count=1)
            return IncidentState(incidents=(*self.incidents, opened))
        changes: dict[str, object] = {"occurrence_count": incident.occurrence_count + 1}
        if is_announced:
            changes |= {"announced_at": now, "announced_count": incident.announced_count + 1}
        kept = tuple(other for other in self.incidents if other.key != key)
        return IncidentState(incidents=(*kept, incident.model_copy(update=changes)))

    def without(self, keys: frozenset[IncidentKey]) -> IncidentState:
        """Return the state without the incidents of these keys."""
        return IncidentState(
            incidents=tuple(incident for incident in self.incidents if incident.key not in keys)
        )


class IncidentStore:
    """The state's file in a folder of the backup directory; one process at a time changes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _STATE_NAME

    def read(self) -> IncidentState:
        """The open incidents; none when the file is missing or damaged, so that a damaged file can only make
        an alert too many.
        """
        try:
            return IncidentState.model_validate_json(read_small_file(self._path))
        except (FileNotFoundError, ValidationError):
            return IncidentState()

    def write(self, state: IncidentState) -> None:
        """The file holds this state. OSError when the folder cannot be written."""
        write_atomically(self._path, state.model_dump_json(indent=1).encode())

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Nobody else changes the state within the block; waits for whoever does.

        OSError or StorageError when the folder cannot be written.
        """
        # Not only `parents=True`: that makes the backup directory as the umask likes.
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(self._folder / LOCK_NAME).waited_for():
            yield
