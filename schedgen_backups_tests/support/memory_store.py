"""A store in memory, with a clock that a test sets: for property tests of copying and pruning.

It passes the contract of every store (integration/store/test_contract.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import count

from schedgen_backups.core.errors import KeyExistsError, KeyMissingError, LockedError, StoreError
from schedgen_backups.core.store.keys import check_key
from schedgen_backups.core.store.protocol import Capabilities, StoredObject


def now_utc() -> datetime:
    """Return the time of this machine."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class _Version:
    stored: StoredObject
    data: bytes


class MemoryStore:
    """Objects in a dict; see `Store`.

    With `has_versions`, overwritten and hidden objects stay as versions, and `delete` of an object without
    a version id leaves a marker, as S3 does. With `lock_duration`, every new object is locked for that long
    from `now()` on. Both need versions, as object lock does.
    """

    label = "memory"

    def __init__(
        self,
        *,
        has_versions: bool = False,
        lock_duration: timedelta | None = None,
        now: Callable[[], datetime] = now_utc,
    ) -> None:
        self._has_versions = has_versions or lock_duration is not None
        self._lock_duration = lock_duration
        self._now = now
        self._versions: dict[str, list[_Version]] = {}
        """Oldest first; never an empty list."""
        self._numbers = count(1)
        self._mutex = threading.RLock()

    def put_new(self, key: str, data: bytes) -> None:
        """Store the bytes."""
        check_key(key)
        with self._mutex:
            if self._find(key, "") is not None:
                raise KeyExistsError(f"{self.label} already holds {key}")
            self._add(key, bytes(data))

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Return a part of the bytes."""
        check_key(key)
        with self._mutex:
            version = self._find(key, version_id)
        if version is None:
            raise KeyMissingError(f"{self.label} holds no {key}")
        return version.data[offset : offset + length]

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return the version with its digest and lock."""
        check_key(key)
        with self._mutex:
            version = self._find(key, version_id)
            return version and version.stored

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield what was there when the iteration began, without digests and locks."""
        with self._mutex:
            found = [
                replace(self._describe(version), sha256="", locked_until=None)
                for key in sorted(self._versions)
                if key.startswith(prefix)
                for version in reversed(self._versions[key])
            ]
        yield from found

    def delete(self, stored: StoredObject) -> None:
        """Delete the version, or the object of a store without versions; hide it without a version id."""
        with self._mutex:
            versions = self._versions.get(stored.key, [])
            if self._has_versions and not stored.version_id:
                self._add(stored.key, b"", is_marker=True)
                return
            for version in [each for each in versions if each.stored.version_id == stored.version_id]:
                until = version.stored.locked_until
                if until is not None and until > self._now():
                    raise LockedError(
                        f"{self.label} keeps {stored.key} locked until {until.isoformat()}", until=until
                    )
                versions.remove(version)
            if not versions:
                self._versions.pop(stored.key, None)

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Lock the version; StoreError if it is locked for longer already."""
        with self._mutex:
            if self._lock_duration is None:
                raise StoreError(f"{self.label} has no locks")
            version = self._find(stored.key, stored.version_id)
            if version is None:
                raise KeyMissingError(f"{self.label} holds no {stored.key}")
            before = version.stored.locked_until
            if before is not None and before > until:
                raise StoreError(f"{self.label} keeps {stored.key} locked until {before.isoformat()}")
            versions = self._versions[stored.key]
            versions[versions.index(version)] = replace(
                version, stored=replace(version.stored, locked_until=until)
            )

    def probe(self, key: str) -> Capabilities:
        """Return what this store was made to do."""
        self.put_new(key, b"first")
        return Capabilities(
            has_conditional_put=True,
            has_checksums=True,
            has_versions=self._has_versions,
            has_lock=self._lock_duration is not None,
        )

    def overwrite(self, key: str, data: bytes) -> None:
        """Put the object whatever is there, as another client of the store can."""
        check_key(key)
        with self._mutex:
            if not self._has_versions:
                self._versions.pop(key, None)
            self._add(key, bytes(data))

    def hide(self, key: str) -> None:
        """Delete the object without naming a version, as another client of the store can."""
        with self._mutex:
            if self._has_versions:
                self._add(key, b"", is_marker=True)
            else:
                self._versions.pop(key, None)

    def snapshot(self) -> dict[str, bytes]:
        """Return the readable objects: what a reader without version ids sees."""
        with self._mutex:
            return {
                key: versions[-1].data
                for key, versions in sorted(self._versions.items())
                if not versions[-1].stored.is_marker
            }

    def _add(self, key: str, data: bytes, *, is_marker: bool = False) -> None:
        now = self._now()
        locked_until = now + self._lock_duration if self._lock_duration and not is_marker else None
        stored = StoredObject(
            key,
            len(data),
            now,
            version_id=f"v{next(self._numbers)}" if self._has_versions else "",
            is_marker=is_marker,
            sha256="" if is_marker else hashlib.sha256(data).hexdigest(),
            locked_until=locked_until,
        )
        self._versions.setdefault(key, []).append(_Version(stored, data))

    def _find(self, key: str, version_id: str) -> _Version | None:
        versions = self._versions.get(key, [])
        if not version_id:
            return versions[-1] if versions and not versions[-1].stored.is_marker else None
        return next(
            (each for each in versions if each.stored.version_id == version_id and not each.stored.is_marker),
            None,
        )

    def _describe(self, version: _Version) -> StoredObject:
        newest = self._versions[version.stored.key][-1]
        return replace(version.stored, is_newest=version is newest)
