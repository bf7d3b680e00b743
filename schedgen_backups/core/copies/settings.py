"""Settings of a store of copies as a frozen value: where it is, who may read it, how long it keeps points."""

from __future__ import annotations

from dataclasses import dataclass, field

from schedgen_backups.core.packs.encryption import AgeEncryptor, Encryptor, PlainEncryptor
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.location import StoreLocation

PACK_BYTES = 16 << 20
LARGE_SITE_PACK_BYTES = 64 << 20
"""From 100 GB on: a fourth of the requests and of the objects (design.md, section 8)."""
LARGE_SITE_BYTES = 100 * 10**9


@dataclass(frozen=True)
class StoreSettings:
    """One store of copies."""

    name: str
    location: StoreLocation
    recipients: tuple[str, ...] = ()
    """Public keys of those who may read the copies."""
    is_encrypted: bool = True
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    reread_days: int = 30
    """Number of days in which every pack is read back once."""
    max_age_hours: int = 26
    """Age of the newest copied point from which on its absence is an alert."""
    lock_days: int = 0
    """Days for which what a kept point needs is to stay locked; 0 without locks of our own."""
    is_append_only: bool = False
    """Whether it is an error that this host's credentials can delete."""
    prune_location: StoreLocation | None = None
    """With credentials that may delete; None if those of `location` may."""

    def make_encryptor(self) -> Encryptor:
        """Return how files of copies are written; ConfigurationError without recipients."""
        return AgeEncryptor(self.recipients) if self.is_encrypted else PlainEncryptor()
