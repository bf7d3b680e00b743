"""Asks the live system about objects that a backup lacks, to tell an object that was deleted from one that we lost.

Used once per recovery point, right after the capture. It only reads. Whether a verdict is good news is said by `model.ReferenceSummary`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from schedgen_backups.core.model import ReferenceVerdict
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BackupSettings, BucketSettings, DatabaseSettings


class LiveSystem(Protocol):
    """Something that knows what became of an object that the snapshot refers to and the archive lacks."""

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        """Key → verdict. Raises DatabaseError or BucketError when the live system cannot be asked."""
        ...


@dataclass(frozen=True)
class LiveApplication:
    """The database and the bucket that the backup was taken from, as they are now."""

    database: DatabaseSettings
    bucket: BucketSettings
    backup: BackupSettings

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        """Key → verdict by what is there now.

        LOST when the object is there: the listing should have had it. Otherwise DELETED when the row is gone as well, MISSING when the
        database still refers to an object that nobody has.
        """
        wanted = set(keys)
        with BucketClient(self.bucket, threads=1, stall_timeout_seconds=self.backup.stall_timeout_seconds) as client:
            verdicts = {key: ReferenceVerdict.LOST for key in wanted if client.find_head(key) is not None}
        absent = wanted - verdicts.keys()
        if absent:
            with open_snapshot(self.database) as snapshot:
                still_referenced: set[str] = set()
                for page in snapshot.read_references(self.backup):
                    still_referenced.update(absent.intersection(page))
            for key in absent:
                verdicts[key] = ReferenceVerdict.MISSING if key in still_referenced else ReferenceVerdict.DELETED
        return verdicts
