"""The six calls of every store, and the values that they exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class StoredObject:
    """One object of a store, or one version of it where the store keeps versions."""

    key: str
    size_bytes: int
    modified_at: datetime
    """Aware UTC, by the store's clock."""
    version_id: str = ""
    """Empty where the store keeps no versions."""
    is_newest: bool = True
    """Whether a reader of the key without a version gets this one. Only from `list`."""
    is_marker: bool = False
    """Whether this is the mark of a deletion, under which older versions are hidden."""
    sha256: str = ""
    """Digest that the store itself computed; empty where it does not tell one. Only from `head`."""
    locked_until: datetime | None = None
    """Aware UTC; None where the object is not locked or the store does not tell. Only from `head`."""


@dataclass(frozen=True)
class Capabilities:
    """What a store was seen to do when it was probed."""

    has_conditional_put: bool
    """Whether a key that exists is never overwritten, also when two writers put it at once."""
    has_checksums: bool
    """Whether the store checks the SHA-256 of what it receives."""
    has_versions: bool
    """Whether an overwritten or deleted object can still be read."""
    has_lock: bool
    """Whether new objects are locked against deletion by the store's own default."""

    def __str__(self) -> str:
        names = {
            "no overwriting": self.has_conditional_put,
            "checksums": self.has_checksums,
            "versions": self.has_versions,
            "object lock": self.has_lock,
        }
        return ", ".join(f"{name}: {'yes' if value else 'no'}" for name, value in names.items())


UNPROBED = Capabilities(has_conditional_put=False, has_checksums=False, has_versions=False, has_lock=False)
"""Of a store that was not probed: nothing is assumed."""


class Store(Protocol):
    """A place for copies. Keys are relative paths with `/`; objects are written whole and never changed.

    Safe for several threads. Every call raises StoreUnreachableError (retryable) when the store does not
    answer, and StoreError (permanent) when it refuses. No error contains a secret.
    """

    @property
    def label(self) -> str:
        """Where the store is, for messages, without secrets."""
        ...

    def put_new(self, key: str, data: bytes) -> None:
        """Store the bytes under a new key; KeyExistsError if it exists, and nothing is overwritten.

        When it returns, the bytes are durable and were checked by the store where it can.
        """
        ...

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Return at most `length` bytes from `offset`, fewer at the end of the object.

        KeyMissingError if it does not exist.
        """
        ...

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size, time, digest and lock of the object; None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose key starts with `prefix`, by key.

        With versions, every version and deletion marker, the newest of a key first.
        """
        ...

    def delete(self, stored: StoredObject) -> None:
        """Delete this object, or exactly this version; LockedError if a lock forbids that.

        Deleting what no longer exists raises nothing.
        """
        ...

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Lock the object until this aware time; StoreError where the store has no locks."""
        ...


class ProbedStore(Store, Protocol):
    """A store that can find out what it is capable of."""

    def probe(self, key: str) -> Capabilities:
        """Put an object under this new key, try to put it again, and return what the store was seen to do.

        The key must be new. Other objects that are needed have a key that starts with it and a dash. Nothing
        is deleted, and nothing else is overwritten.
        """
        ...


@runtime_checkable
class MadeStore(Protocol):
    """A store whose place this program makes: a folder here, or on a server with SFTP."""

    def prepare(self) -> None:
        """Create the folder if its parent exists; nothing if it is there."""
        ...


@runtime_checkable
class SweptStore(Protocol):
    """A store in which a killed upload leaves a file that is not an object: a folder here, or behind SFTP."""

    def remove_unfinished(self, prefix: str, before: datetime) -> tuple[StoredObject, ...]:
        """Remove the files of unfinished uploads below the prefix that were last written before this time.

        By the store's clock. Return what was removed. An upload that still runs fails if its file is removed:
        the time must be earlier than any pause that an upload survives.
        """
        ...
