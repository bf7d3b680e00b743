"""What is known on this host about the copies in a store: checks, problems and the number of places.

Nothing here asks a store. What was not seen, or not seen lately, is unknown, which is never success.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from urllib.parse import urlsplit

from schedgen_backups.core.catalog.points import CLOCK_TOLERANCE
from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.units import count, format_age, name_some

PROOF_INTERVAL = timedelta(hours=25)
"""Age of the last proof from which on one is due without a new point. One hour more than a day: the copy of
each night proves too, some minutes earlier or later than the night before."""
_LISTING_LIFE = timedelta(days=2)
"""Age of a listing from which on it no longer proves what the store holds."""
_REREAD_GRACE = timedelta(days=2)
"""Allows for a night without a proof: each proof reads the share of one day."""


class CopyCheck(str, Enum):
    """A statement about the copies in a store that is true when its check passes."""

    IS_COMPLETE = "copy_is_complete"
    READS_BACK = "copy_reads_back"
    IS_LOCKED = "copy_is_locked"


class Trouble(str, Enum):
    """What is wrong with the copies in a store."""

    STALE = "no recent copy"
    DAMAGED = "damaged"
    UNLOCKED = "lock"
    UNPROVED = "not proved"


@dataclass(frozen=True)
class CopyCheckResult:
    """Whether a statement about the copies holds."""

    check: CopyCheck
    is_passed: bool
    description: str
    is_warning: bool = False
    """Whether the statement is unknown for a reason that passes by itself; false if it passed or failed."""


@dataclass(frozen=True)
class StoreStatus:
    """What was last seen of one store."""

    name: str
    state: CopyState
    settings: StoreSettings | None = None
    """None if the store is described wrongly."""
    error: str = ""
    """Why the store cannot be used."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the store is not on this host; a folder may be on a disk of this host."""
        if self.settings is None:
            return False
        location = self.settings.location
        if urlsplit(location.url).scheme == "file":
            return False
        return not _is_loopback(urlsplit(location.endpoint or location.url).hostname or "")

    @property
    def kind(self) -> str:
        """Kind of place: the scheme of its URL."""
        return urlsplit(self.settings.location.url).scheme if self.settings is not None else ""

    @property
    def place(self) -> str:
        """What tells the place from others; the name for a store that is described wrongly."""
        return self.settings.location.place if self.settings is not None else self.name

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last listing and the last readings have found."""
        return (*self.state.listing_problems, *self.state.reread_problems)

    @property
    def has_locks(self) -> bool:
        """Whether copies are to be locked, or the store was seen to lock them."""
        capabilities = self.state.capabilities
        is_asked = self.settings is not None and self.settings.lock_days > 0
        return is_asked or (capabilities is not None and capabilities.has_lock)

    def find_copy(self, point_id: RecoveryPointId) -> CopiedPoint | None:
        """Return the copy of this point; None if none was listed or sent."""
        return next((copy for copy in self.state.points if copy.point_id == point_id.text), None)

    def judge(self, due: Sequence[RecoveryPointId], now: datetime) -> tuple[CopyCheckResult, ...]:
        """Return the result of every check that applies; `due` are the points that the store lacks."""
        results = (self._judge_completeness(due, now), self._judge_reading(now))
        return (*results, self._judge_lock(now)) if self.has_locks else results

    def find_troubles(
        self, verified: Sequence[RecoveryPointId], now: datetime, *, watched_since: datetime | None = None
    ) -> dict[Trouble, str]:
        """Return what is wrong, described.

        `verified` are the verified points of the backup directory. Before the first copy, the age limit
        counts from `watched_since`; without that time, a store is in trouble once an attempt has brought
        none.
        """
        found = {
            Trouble.STALE: self._find_staleness(verified, now, watched_since),
            Trouble.DAMAGED: name_some(self.problems, limit=3),
            Trouble.UNLOCKED: self._find_lock_trouble(now),
            Trouble.UNPROVED: self._find_proof_trouble(now),
        }
        return {trouble: text for trouble, text in found.items() if text}

    def describe(self, now: datetime) -> str:
        """Return number and newest of the copies, and the age of each proof."""
        if self.error:
            return f"cannot be used: {self.error}"
        state = self.state
        newest = state.newest
        copies = (
            f"{count(len(state.points), 'copy', 'copies')}, newest {newest.point_id} sent "
            f"{_describe_age(newest.copied_at, now)}"
            if newest is not None
            else "no copy"
        )
        parts = [copies, f"listed {_describe_age(state.listed_at, now)}", self.describe_reading(now)]
        parts.append(f"opened {_describe_age(state.opened_at, now)}")
        if state.locked_until is not None:
            parts.append(f"locked until {state.locked_until:%Y-%m-%d}")
        if state.problem:
            parts.append(f"last attempt failed: {state.problem}")
        return ", ".join(parts)

    def describe_reading(self, now: datetime) -> str:
        """Return when the packs were read back."""
        state = self.state
        if state.oldest_reread_at is not None:
            return f"every pack read back since {_describe_age(state.oldest_reread_at, now)}"
        if not state.pack_count:
            return "no pack read back"
        return f"{state.unread_count} of {count(state.pack_count, 'pack')} never read back"

    def _judge_completeness(self, due: Sequence[RecoveryPointId], now: datetime) -> CopyCheckResult:
        state, check = self.state, CopyCheck.IS_COMPLETE
        if state.listing_problems:
            return CopyCheckResult(check, False, name_some(state.listing_problems))
        if due:
            names = name_some([point_id.text for point_id in due], limit=3)
            reason = f": {state.problem}" if state.problem else ""
            return CopyCheckResult(check, False, f"the store lacks {names}{reason}")
        if state.listed_at is None or not state.points:
            return CopyCheckResult(check, False, "unknown: no copy has been listed yet", is_warning=True)
        age = now - state.listed_at
        if age < -CLOCK_TOLERANCE:
            return CopyCheckResult(check, False, f"unknown: {_describe_future(state.listed_at)}")
        if age > _LISTING_LIFE:
            return CopyCheckResult(
                check, False, f"unknown: the store was last listed {format_age(age)} ago{_because(state)}"
            )
        return CopyCheckResult(
            check, True, f"{count(len(state.points), 'copy', 'copies')} of {count(state.pack_count, 'pack')}"
        )

    def _judge_reading(self, now: datetime) -> CopyCheckResult:
        state, check = self.state, CopyCheck.READS_BACK
        if state.reread_problems:
            return CopyCheckResult(check, False, name_some(state.reread_problems))
        if state.reread_at is None or not state.pack_count:
            return CopyCheckResult(check, False, "unknown: no pack has been read back yet", is_warning=True)
        limit = self._reread_limit
        described = self.describe_reading(now)
        if state.oldest_reread_at is not None and state.oldest_reread_at > now + CLOCK_TOLERANCE:
            return CopyCheckResult(check, False, f"unknown: {_describe_future(state.oldest_reread_at)}")
        if state.oldest_reread_at is not None:
            is_passed = now - state.oldest_reread_at <= limit
            return CopyCheckResult(check, is_passed, described + ("" if is_passed else _because(state)))
        # Packs of a state that an earlier version wrote have no time: then it is not known to be young.
        is_young = state.oldest_unread_at is not None and now - state.oldest_unread_at <= limit
        waiting = (
            "" if state.oldest_unread_at is None else f", sent {_describe_age(state.oldest_unread_at, now)}"
        )
        return CopyCheckResult(check, False, f"{described}{waiting}{_because(state)}", is_warning=is_young)

    def _judge_lock(self, now: datetime) -> CopyCheckResult:
        state, check = self.state, CopyCheck.IS_LOCKED
        if state.listed_at is None or not state.points:
            return CopyCheckResult(check, False, "unknown: no lock has been read yet", is_warning=True)
        if trouble := self._find_lock_trouble(now):
            return CopyCheckResult(check, False, trouble)
        if state.locked_until is None or state.locked_until <= now:
            # Without lock_days, extending the store's own locks was not asked for.
            return CopyCheckResult(check, False, "not every file is locked", is_warning=True)
        return CopyCheckResult(
            check, True, f"everything is locked until {state.locked_until:%Y-%m-%d %H:%M} UTC"
        )

    @property
    def _reread_limit(self) -> timedelta:
        days = self.settings.reread_days if self.settings is not None else 0
        return timedelta(days=days) + _REREAD_GRACE

    def _find_staleness(
        self, verified: Sequence[RecoveryPointId], now: datetime, watched_since: datetime | None
    ) -> str:
        if self.settings is None:
            return ""
        # A copy ahead of the clock, which was wrong once, would hide that no other one follows.
        points = [
            copy
            for copy in self.state.points
            if RecoveryPointId.parse(copy.point_id).taken_at <= now + CLOCK_TOLERANCE
        ]
        newest = max(points, key=lambda copy: copy.point_id, default=None)
        # A store that has every point is not late. Another alert reports that no newer point was taken.
        lacking = [each for each in verified if newest is None or each.text > newest.point_id]
        if not lacking:
            return ""
        begin = RecoveryPointId.parse(newest.point_id).taken_at if newest is not None else watched_since
        hours = self.settings.max_age_hours
        if begin is None and self.state.attempted_at is not None:
            return f"no copy exists; the store lacks {max(lacking)}{_because(self.state)}"
        if begin is None or now - begin <= timedelta(hours=hours):
            return ""
        held = (
            f"the newest copy is {newest.point_id}, {format_age(now - begin)} old"
            if newest is not None
            else "no copy exists"
        )
        return f"{held} (limit {hours} h); the store lacks {max(lacking)}{_because(self.state)}"

    def _find_proof_trouble(self, now: datetime) -> str:
        """Return which proof is overdue: copies that nobody checks may be missing."""
        state = self.state
        if self.settings is None or not state.points:
            return ""
        since = state.listed_at or min(copy.copied_at for copy in state.points)
        if now - since > _LISTING_LIFE:
            return f"the store was {_describe_last('listed', state.listed_at, now)}{_because(state)}"
        since = state.oldest_reread_at or state.oldest_unread_at
        if since is not None and now - since > self._reread_limit:
            return f"{self.describe_reading(now)}, although reread_days is {self.settings.reread_days}"
        return ""

    def _find_lock_trouble(self, now: datetime) -> str:
        state = self.state
        lock_days = self.settings.lock_days if self.settings is not None else 0
        if not lock_days or state.listed_at is None or not state.points:
            return ""
        if state.locked_until is None:
            return f"not every file is locked, although lock_days is {lock_days}"
        left = state.locked_until - now
        if left >= timedelta(days=lock_days) / 4:
            return ""
        end = f"{state.locked_until:%Y-%m-%d %H:%M} UTC"
        return f"the first lock ends at {end}, although lock_days is {lock_days}"


@dataclass(frozen=True)
class Spread:
    """In how many places a point is, as in the rule of three copies, two kinds of place, one elsewhere."""

    copy_count: int
    """With the point in the backup directory."""
    kind_count: int
    elsewhere_count: int

    def __str__(self) -> str:
        if self.copy_count <= 1:
            return "the only copy is on this host"
        kinds = count(self.kind_count, "kind of place", "kinds of place")
        return f"{count(self.copy_count, 'copy', 'copies')}, {kinds}, {self.elsewhere_count} elsewhere"


def measure_spread(point_id: RecoveryPointId, statuses: Iterable[StoreStatus], now: datetime) -> Spread:
    """Count the places of this point.

    A store in which problems were found does not count, nor one where the point was not seen lately. Two
    descriptions of one place count once.
    """
    holding = {
        status.place: status
        for status in statuses
        if not status.problems and _is_seen_lately(status, point_id, now)
    }.values()
    return Spread(
        copy_count=1 + len(holding),
        kind_count=len({"backup directory", *(status.kind for status in holding)}),
        elsewhere_count=sum(status.is_elsewhere for status in holding),
    )


def _is_seen_lately(status: StoreStatus, point_id: RecoveryPointId, now: datetime) -> bool:
    copied, listed_at = status.find_copy(point_id), status.state.listed_at
    if copied is None:
        return False
    seen = [copied.copied_at] if listed_at is None else [copied.copied_at, listed_at]
    return any(-CLOCK_TOLERANCE <= now - at <= _LISTING_LIFE for at in seen)


def _describe_future(at: datetime) -> str:
    return f"the last proof is of {at:%Y-%m-%d %H:%M} UTC, ahead of this host's clock"


def _because(state: CopyState) -> str:
    return f"; last attempt: {state.problem}" if state.problem else ""


def _describe_age(at: datetime | None, now: datetime) -> str:
    return f"{format_age(max(now - at, timedelta(0)))} ago" if at is not None else "never"


def _describe_last(what: str, at: datetime | None, now: datetime) -> str:
    return f"last {what} {_describe_age(at, now)}" if at is not None else f"never {what}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
