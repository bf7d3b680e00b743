"""Query the live system: verdicts on missing objects, and rows and objects without a counterpart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from schedgen_backups.core.errors import BucketError, ConfigurationError, ObjectError
from schedgen_backups.core.model import PartName, ReferenceVerdict
from schedgen_backups.core.postgres.object_keys import find_reference_problem, read_references
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, References, TransferSettings
from schedgen_backups.core.units import count

_KEY_LIMIT_BYTES = 1024
"""In UTF-8 (Amazon S3 user guide, "Naming Amazon S3 objects")."""


class LiveSystem(Protocol):
    """A source of verdicts on objects to which the snapshot refers and that the archive lacks."""

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        """Return a verdict for each key; DatabaseError or BucketError when the live system is unavailable."""
        ...


@dataclass(frozen=True)
class SitePart:
    """A database of a site and the bucket to which it refers, or one of them alone, and how to ask them."""

    name: PartName
    live: LiveSystem | None


@dataclass(frozen=True)
class LiveApplication:
    """The source database and bucket of the backup in their current state."""

    database: DatabaseSettings
    bucket: BucketSettings
    transfer: TransferSettings
    references: References

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        """Return a verdict for each key according to the current state.

        LOST when the object exists: the listing should have had it. Otherwise DELETED when the row is gone as
        well, and MISSING when the database still refers to the object. UNKNOWN when the server neither
        returns nor lists the object. An invalid value in one row does not prevent the other verdicts.
        """
        wanted = set(keys)
        with BucketClient(
            self.bucket, threads=1, stall_timeout_seconds=self.transfer.stall_timeout_seconds
        ) as client:
            found = {key: _is_there(client, key) for key in wanted}
        verdicts = {
            key: ReferenceVerdict.UNKNOWN if is_there is None else ReferenceVerdict.LOST
            for key, is_there in found.items()
            if is_there is not False
        }
        absent = wanted - verdicts.keys()
        if absent:
            with open_snapshot(
                self.database, stall_timeout_seconds=self.transfer.stall_timeout_seconds
            ) as snapshot:
                still_referenced: set[str] = set()
                for page in read_references(snapshot, self.references):
                    still_referenced.update(absent.intersection(page))
            for key in absent:
                verdicts[key] = (
                    ReferenceVerdict.MISSING if key in still_referenced else ReferenceVerdict.DELETED
                )
        return verdicts


def _is_there(client: BucketClient, key: str) -> bool | None:
    """Return whether the bucket has the object.

    None when the server refuses to answer for this key; BucketError when it is unavailable.
    """
    if not _can_be_key(key):
        return False
    try:
        return client.find_head(key) is not None
    except BucketError as refusal:
        # A refusal for this key only: a name that the SDK or the server rejects, or missing permissions. The
        # listing accepts any prefix.
        try:
            # To the end: not every server lists in key order.
            return any(listed.key == key for listed in client.list_objects(key))
        except ObjectError:
            return None
        except BucketError:
            if isinstance(refusal, ObjectError):
                return None
            raise refusal from None


def _can_be_key(text: str) -> bool:
    try:
        return 0 < len(text.encode()) <= _KEY_LIMIT_BYTES
    except UnicodeEncodeError:  # bytes of an SQL_ASCII database that are not UTF-8
        return False


@dataclass(frozen=True)
class ConsistencyReport:
    """How rows and objects of the live system match."""

    checked_at: datetime
    """Aware UTC: the moment of the database's snapshot."""
    reference_count: int
    object_count: int
    rows_without_object: tuple[str, ...]
    """Keys to which rows refer and that the bucket lacks, in byte order."""
    objects_without_row: tuple[str, ...]
    """Keys of objects to which no row refers, in byte order."""
    unreferenced_bytes: int

    @property
    def is_coherent(self) -> bool:
        """Whether the object of each row exists; objects without a row are not a loss of data."""
        return not self.rows_without_object


def check_consistency(live: LiveApplication) -> ConsistencyReport:
    """Check the rows and objects of the live system against each other.

    ConfigurationError when the reference query cannot be used. Errors of database and bucket are raised.
    Memory: about a hundred bytes per object.
    """
    sizes: dict[str, int] = {}
    referenced: set[str] = set()
    with open_snapshot(live.database, stall_timeout_seconds=live.transfer.stall_timeout_seconds) as snapshot:
        checked_at = snapshot.taken_at
        problem = find_reference_problem(snapshot, live.references)
        if problem:
            raise ConfigurationError(
                f"the references of the database are unknown: {problem}",
                hint="Set BACKUP_REFERENCE_QUERY to a SELECT of the column that contains object keys.",
            )
        for page in read_references(snapshot, live.references):
            referenced.update(page)
    with BucketClient(
        live.bucket, threads=1, stall_timeout_seconds=live.transfer.stall_timeout_seconds
    ) as client:
        client.check_exists()
        for listed in client.list_objects():
            sizes[listed.key] = listed.size_bytes
    missing = live.judge(sorted(referenced - sizes.keys()))
    # `judge` returns LOST for an object that exists: it was uploaded after the listing.
    without_object = sorted(key for key, verdict in missing.items() if verdict is ReferenceVerdict.MISSING)
    unreferenced = sorted(sizes.keys() - referenced)
    if unreferenced:
        with open_snapshot(live.database, stall_timeout_seconds=live.transfer.stall_timeout_seconds) as later:
            for page in read_references(later, live.references):
                referenced.update(page)
        unreferenced = [key for key in unreferenced if key not in referenced]
    return ConsistencyReport(
        checked_at=checked_at,
        reference_count=len(referenced),
        object_count=len(sizes),
        rows_without_object=tuple(without_object),
        objects_without_row=tuple(unreferenced),
        unreferenced_bytes=sum(sizes[key] for key in unreferenced),
    )


def describe_consistency(found: ConsistencyReport) -> str:
    """Return the figures in one line."""
    return (
        f"{count(found.reference_count, 'reference')}, {count(found.object_count, 'object')}: "
        f"{count(len(found.rows_without_object), 'row')} without their object, "
        f"{count(len(found.objects_without_row), 'object')} without a row ({found.unreferenced_bytes} bytes)"
    )
