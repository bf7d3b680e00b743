"""One incident per key: an alert at once, reminders after 1, 6 and 24 hours, one message when it is resolved.

A small state machine, and the file with its state next to the recovery points, where hooks, sensors and the
command line find it. `alerts` writes the texts. An alert counts as announced only if a channel accepted it;
otherwise it is due again.
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
"""Reminders after the first alert; from the last one on, one per day."""
_DAY = timedelta(hours=23)
"""Less than 24 hours, so that tonight's failure is announced even if it occurs some seconds earlier than last
night's."""
FOLDER_NAME = ".alerts"
_STATE_NAME = "incidents.json"


@dataclass(frozen=True)
class IncidentKey:
    """The identity of an incident, the same for each occurrence."""

    area: str
    """The area, such as backups, ticks or checks."""
    subject: str
    """The failure, such as `database_dump failed`."""

    def __str__(self) -> str:
        return f"{self.area}: {self.subject}"


class Incident(FrozenModel):
    """The failures under one key, from the first alert until resolved."""

    key: IncidentKey
    began_at: AwareDatetime
    announced_at: AwareDatetime
    """Time of the last accepted alert."""
    announced_count: int
    occurrence_count: int

    def is_due(self, now: datetime) -> bool:
        """Return whether the next occurrence is due for an alert."""
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
        """Return whether an occurrence under this key is due for an alert now."""
        incident = self.find(key)
        return incident is None or incident.is_due(now)

    def with_occurrence(self, key: IncidentKey, now: datetime, *, is_announced: bool) -> IncidentState:
        """Return the state after another occurrence; an incident opens when its first alert is accepted."""
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
    """The state file in a subdirectory of the backup directory; a lock serializes changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _STATE_NAME

    def read(self) -> IncidentState:
        """Return the open incidents; none if the file is missing or damaged.

        A damaged file can therefore only cause an extra alert.
        """
        try:
            return IncidentState.model_validate_json(read_small_file(self._path))
        except (FileNotFoundError, ValidationError):
            return IncidentState()

    def write(self, state: IncidentState) -> None:
        """Replace the stored state. OSError if the directory is not writable."""
        write_atomically(self._path, state.model_dump_json(indent=1).encode())

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the state's lock within the block; wait for another holder first.

        OSError or StorageError if the directory is not writable.
        """
        # Not only `parents=True`, which would create the backup directory with the umask's permissions.
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(self._folder / LOCK_NAME).waited_for():
            yield
