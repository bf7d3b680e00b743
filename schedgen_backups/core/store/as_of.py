"""A store as it was at some time: what was hidden, replaced or deleted since can still be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from schedgen_backups.core.errors import KeyMissingError, StoreError
from schedgen_backups.core.store.protocol import Store, StoredObject


class StoreAsOf:
    """A store as it was at an aware time, by the store's own clock; read-only.

    Of each key, the newest version not after that time counts, and none if that is a deletion marker. Only
    for stores that keep versions; without them, objects newer than that time are left out.
    """

    def __init__(self, store: Store, time: datetime) -> None:
        self._store = store
        self._time = time
        self._versions: dict[str, StoredObject | None] = {}

    @property
    def label(self) -> str:
        """Where the store is, and the time."""
        return f"{self._store.label} as of {self._time.isoformat()}"

    def put_new(self, key: str, data: bytes) -> None:
        """Refuse: raise StoreError."""
        raise self._refuse()

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Return bytes of the version of that time."""
        if not version_id:
            version_id = self._find(key).version_id
        return self._store.get_range(key, offset, length, version_id=version_id)

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return the version of that time; None if there was none."""
        try:
            version_id = version_id or self._find(key).version_id
        except KeyMissingError:
            return None
        return self._store.head(key, version_id=version_id)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the version of that time of every object that existed."""
        key = None
        for stored in self._store.list(prefix):
            if stored.key == key or stored.modified_at > self._time:
                continue
            key = stored.key
            if not stored.is_marker:
                yield replace(stored, is_newest=True)

    def delete(self, stored: StoredObject) -> None:
        """Refuse: raise StoreError."""
        raise self._refuse()

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Refuse: raise StoreError."""
        raise self._refuse()

    def _find(self, key: str) -> StoredObject:
        if key not in self._versions:
            self._versions[key] = next((each for each in self.list(key) if each.key == key), None)
        stored = self._versions[key]
        if stored is None:
            raise KeyMissingError(f"{self.label} did not hold {key}")
        return stored

    def _refuse(self) -> StoreError:
        return StoreError(f"{self.label} is read-only", hint="Leave out the time to write to the store.")
