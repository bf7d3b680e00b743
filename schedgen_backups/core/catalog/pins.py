"""Keeps retention from removing a recovery point while somebody reads it: a pin of our own that expires by
itself and is taken back at the end.

A pin of the operators stays as it is, or comes back. Deciding what goes is `retention`'s business, pins as
such are `pruning`'s.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import FrozenModel, RecoveryPointId


class Pin(FrozenModel):
    """Why a recovery point must stay, and for how long."""

    point_id: str
    reason: str
    pinned_by: str = ""
    pinned_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    """None: until somebody takes it away."""

    def is_valid(self, now: datetime) -> bool:
        """Whether the pin still holds."""
        return self.expires_at is None or now < self.expires_at


def write_pin(catalog: Catalog, pin: Pin) -> None:
    """The point stays until the pin expires or is removed."""
    catalog.write_description(catalog.pin_path(RecoveryPointId.parse(pin.point_id)).name, pin)


def read_pin(catalog: Catalog, point_id: RecoveryPointId) -> Pin | None:
    """The point's pin, or None; a damaged pin is a VerificationError, which keeps everything."""
    return catalog.read_description(catalog.pin_path(point_id).name, Pin)


def describe_pin(catalog: Catalog, point_id: RecoveryPointId) -> str:
    """Return in words whether the point is pinned, until when and why; empty when it is not."""
    try:
        pin = read_pin(catalog, point_id)
    except VerificationError:
        return "pin cannot be read: the point stays"
    if pin is None:
        return ""
    if pin.expires_at is None:
        return f"pinned: {pin.reason}"
    verb = "pinned until" if pin.is_valid(datetime.now(timezone.utc)) else "was pinned until"
    return f"{verb} {pin.expires_at:%Y-%m-%d %H:%M} UTC: {pin.reason}"


def remove_pin(catalog: Catalog, point_id: RecoveryPointId) -> bool:
    """The point is not pinned; returns whether it was."""
    path = catalog.pin_path(point_id)
    if not path.exists():
        return False
    catalog.remove_file(path)
    return True


@contextmanager
def pin_temporarily(
    catalog: Catalog, point_id: RecoveryPointId, *, reason: str, pinned_by: str, max_duration: timedelta
) -> Generator[PointListing, None, None]:
    """The point stays within the block, and for `max_duration` at the most when this process dies in it.

    ConfigurationError when there is no such point, also when retention has removed it a moment ago.
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
        # Somebody may have pinned or unpinned it meanwhile.
        if not is_pinned_anyway and read_pin(catalog, point_id) == pin:
            if before is not None and before.is_valid(datetime.now(timezone.utc)):
                write_pin(catalog, before)
            else:
                remove_pin(catalog, point_id)
