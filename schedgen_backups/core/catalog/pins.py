"""Pins: they keep retention from removing a recovery point.

A temporary pin protects a point while it is read. It expires on its own and is removed at the end. A pin set
by the operator is left in place or restored.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.small_files import read_model
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import FrozenModel, RecoveryPointId


class Pin(FrozenModel):
    """Why a recovery point must be kept, and until when."""

    point_id: str
    reason: str
    pinned_by: str = ""
    pinned_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    """None means until the pin is removed."""

    def is_valid(self, now: datetime) -> bool:
        """Return whether the pin has not expired."""
        return self.expires_at is None or now < self.expires_at


def write_pin(catalog: Catalog, pin: Pin) -> None:
    """Keep the point until the pin expires or is removed."""
    catalog.write_description(catalog.pin_path(RecoveryPointId.parse(pin.point_id)).name, pin)


def read_pin(catalog: Catalog, point_id: RecoveryPointId) -> Pin | None:
    """Return the point's pin, or None; VerificationError when the pin is damaged."""
    return read_model(catalog.pin_path(point_id), Pin)


def describe_pin(catalog: Catalog, point_id: RecoveryPointId) -> str:
    """Describe the pin: whether the point is pinned, until when and why; empty without a pin."""
    try:
        pin = read_pin(catalog, point_id)
    except VerificationError:
        return "pin cannot be read: the point is kept"
    if pin is None:
        return ""
    if pin.expires_at is None:
        return f"pinned: {pin.reason}"
    verb = "pinned until" if pin.is_valid(datetime.now(timezone.utc)) else "was pinned until"
    return f"{verb} {pin.expires_at:%Y-%m-%d %H:%M} UTC: {pin.reason}"


def remove_pin(catalog: Catalog, point_id: RecoveryPointId) -> bool:
    """Remove the pin; return whether one existed."""
    path = catalog.pin_path(point_id)
    if not path.exists():
        return False
    catalog.remove_file(path)
    return True


@contextmanager
def pin_temporarily(
    catalog: Catalog, point_id: RecoveryPointId, *, reason: str, pinned_by: str, max_duration: timedelta
) -> Generator[PointListing, None, None]:
    """Keep the point within the block, and at most for `max_duration` if this process dies in it.

    ConfigurationError when the point does not exist, for example because retention has just removed it.
    """
    catalog.get_point(point_id)
    now = datetime.now(timezone.utc)
    pin = Pin(
        point_id=point_id.text,
        reason=reason,
        pinned_by=pinned_by,
        pinned_at=now,
        expires_at=now + max_duration,
    )
    before = read_pin(catalog, point_id)
    is_pinned_anyway = before is not None and (
        before.expires_at is None or before.expires_at >= now + max_duration
    )
    if not is_pinned_anyway:
        write_pin(catalog, pin)
    try:
        yield catalog.get_point(point_id)
    finally:
        # The operator may have changed the pin in the meantime.
        if not is_pinned_anyway and read_pin(catalog, point_id) == pin:
            if before is not None and before.is_valid(datetime.now(timezone.utc)):
                write_pin(catalog, before)
            else:
                remove_pin(catalog, point_id)
