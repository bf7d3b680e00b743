"""What `status`, `list` and `show` print about copies in stores; they ask no store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from schedgen_backups.config.config import Config
from schedgen_backups.core.copies.local_folder import CopiedPoint
from schedgen_backups.core.copies.status import StoreStatus, measure_spread
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.units import format_age, format_bytes


class KnownCopies:
    """The stores and what is known of their copies, or why that is unknown."""

    def __init__(self, config: Config) -> None:
        self.stores: Sequence[StoreStatus] = ()
        self.error = ""
        """Why the file of stores cannot be read; empty if it can, or if there is none."""
        try:
            self.stores = config.read_store_statuses()
        except ConfigurationError as error:
            self.error = error.message

    def list_holders(self, point_id: RecoveryPointId) -> list[tuple[StoreStatus, CopiedPoint]]:
        """Return the stores that hold this point, with the copy."""
        found = ((status, status.find_copy(point_id)) for status in self.stores)
        return [(status, copied) for status, copied in found if copied is not None]

    def describe_spread(self, newest: RecoveryPointId | None, now: datetime) -> str:
        """Return in how many places the newest verified point is."""
        if self.error:
            return f"copies elsewhere are unknown: {self.error}"
        if newest is None:
            return ""
        spread = str(measure_spread(newest, self.stores, now))
        return spread if self.stores else f"{spread} (no store is configured)"

    def describe_point(self, point_id: RecoveryPointId, now: datetime) -> list[str]:
        """Return a line for each store that holds the point: size and the age of each proof."""
        return [
            f"{status.name}: {format_bytes(copied.size_bytes)}, "
            f"sent {format_age(now - copied.copied_at)} ago, "
            f"{_describe_listing(status, copied, now)}, {status.describe_reading(now)}, "
            f"{_describe_opening(status, copied, now)}"
            for status, copied in self.list_holders(point_id)
        ]

    def stores_to_json(self, verified: Sequence[RecoveryPointId], now: datetime) -> list[dict[str, object]]:
        """Return the fields of `stores` in `status --json`."""
        return [_store_to_json(status, verified, now) for status in self.stores]

    def spread_to_json(self, newest: RecoveryPointId | None, now: datetime) -> dict[str, object] | None:
        """Return the fields of `copies` in `status --json`; None if they are unknown."""
        if self.error or newest is None:
            return None
        spread = measure_spread(newest, self.stores, now)
        return {
            "count": spread.copy_count,
            "kinds_of_place": spread.kind_count,
            "elsewhere": spread.elsewhere_count,
        }

    def point_to_json(self, point_id: RecoveryPointId) -> list[dict[str, object]]:
        """Return the fields of `copies` of a point."""
        return [
            {
                "store": status.name,
                "size_bytes": copied.size_bytes,
                "sent_at": copied.copied_at.isoformat(),
                "listed_at": _format_time(status.state.listed_at),
                "read_back_since": _format_time(status.state.oldest_reread_at),
                "opened_at": _format_time(status.state.opened_at)
                if status.state.opened_point_id == copied.point_id
                else None,
            }
            for status, copied in self.list_holders(point_id)
        ]


def list_store_troubles(
    stores: Iterable[StoreStatus], verified: Sequence[RecoveryPointId], now: datetime
) -> list[str]:
    """Return what is wrong with the copies, one text per store and trouble."""
    return [
        f"{status.name}: {text}"
        for status in stores
        for text in (
            *([status.error] if status.error else []),
            *status.find_troubles(verified, now).values(),
        )
    ]


def _describe_listing(status: StoreStatus, copied: CopiedPoint, now: datetime) -> str:
    listed_at = status.state.listed_at
    if listed_at is None or listed_at < copied.copied_at:
        return "not listed yet"
    return f"listed {format_age(now - listed_at)} ago"


def _describe_opening(status: StoreStatus, copied: CopiedPoint, now: datetime) -> str:
    state = status.state
    if state.opened_at is None or state.opened_point_id != copied.point_id:
        return "not opened"
    return f"opened {format_age(now - state.opened_at)} ago"


def _store_to_json(
    status: StoreStatus, verified: Sequence[RecoveryPointId], now: datetime
) -> dict[str, object]:
    state, newest = status.state, status.state.newest
    return {
        "name": status.name,
        "error": status.error or None,
        "elsewhere": status.is_elsewhere,
        "copies": len(state.points),
        "newest_id": newest.point_id if newest is not None else None,
        "sent_at": _format_time(newest.copied_at if newest is not None else None),
        "listed_at": _format_time(state.listed_at),
        "read_back_since": _format_time(state.oldest_reread_at),
        "packs": state.pack_count,
        "packs_unread": state.unread_count,
        "opened_at": _format_time(state.opened_at),
        "locked_until": _format_time(state.locked_until),
        "attempted_at": _format_time(state.attempted_at),
        "last_failure": state.problem or None,
        "problems": list(status.find_troubles(verified, now).values()),
    }


def _format_time(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
