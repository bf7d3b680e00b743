"""How old the newest verified recovery point is, and whether that is too old.

A pure look at the catalog, for the sensor, for `status` and for every alert's facts. What is done about it is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from schedgen_backups.core.catalog.catalog import Catalog, PointListing, PointState
from schedgen_backups.core.errors import VerificationError


@dataclass(frozen=True)
class Freshness:
    """The newest verified recovery point at a moment."""

    newest: PointListing | None
    now: datetime

    @property
    def age(self) -> timedelta | None:
        """Since its data was captured; None when no point is verified."""
        return self.now - self.newest.point_id.taken_at if self.newest is not None else None

    def is_too_old(self, max_age: timedelta, *, watched_since: datetime | None = None) -> bool:
        """Whether there is no verified point younger than `max_age`; before the first one, whether it was waited for that long."""
        if self.age is not None:
            return self.age > max_age
        return watched_since is None or self.now - watched_since > max_age

    def describe(self) -> str:
        """Id and age in words."""
        if self.newest is None or self.age is None:
            return "none"
        return f"{self.newest.point_id}, {self.age.total_seconds() / 3600:.1f} h old"


def look_at_freshness(catalog: Catalog, now: datetime) -> Freshness:
    """The newest verified point; none when the directory is missing. VerificationError when a file of the catalog is damaged."""
    if not catalog.directory.is_dir():
        return Freshness(None, now)
    verified = [point for point in catalog.list_points() if point.state is PointState.VERIFIED]
    return Freshness(verified[-1] if verified else None, now)


def describe_freshness(catalog: Catalog, now: datetime) -> str:
    """The same in words, whatever the state of the directory: it goes into alerts, which must go out."""
    try:
        return look_at_freshness(catalog, now).describe()
    except (OSError, VerificationError) as error:
        return f"unknown ({type(error).__name__})"
