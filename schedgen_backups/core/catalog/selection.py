"""Select recovery points by id, label or time, and describe the state of the directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.catalog.small_files import SITE_NAME
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, VerificationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.units import NAMED_LIMIT, name_some

LATEST = "latest"
UTC = timezone.utc


def list_verified(catalog: Catalog) -> tuple[PointListing, ...]:
    """Return the verified recovery points of this site that are not ahead of the clock, oldest first."""
    return tuple(point for point in catalog.list_points() if point.state is PointState.VERIFIED)


def find_newest_verified(catalog: Catalog, *, label: str = "") -> PointListing | None:
    """Return the newest verified point, or the newest with this label (`key` or `key=value`).

    None when there is none.
    """
    return next((point for point in reversed(list_verified(catalog)) if has_label(point, label)), None)


def has_label(point: PointListing, label: str) -> bool:
    """Return whether the point has the label (`key` or `key=value`); true for an empty label."""
    key, separator, value = label.partition("=")
    labels = point.manifest.origin.labels if point.manifest is not None else {}
    return not label or (labels.get(key) == value if separator else key in labels)


def resolve_point(catalog: Catalog, text: str, *, as_of: str = "", timezone: tzinfo = UTC) -> PointListing:
    """Return the point with this id, or for `latest` the newest committed one.

    With `as_of`, `latest` means the newest verified point whose snapshot is not later. `as_of` is an ISO 8601
    time, in `timezone` when it has no offset. PointNotFoundError when no point matches.
    """
    if as_of and text != LATEST:
        raise ConfigurationError(
            f"both {text} and a time are given", hint="Use `latest` instead of an id with --as-of."
        )
    if as_of:
        return _find_as_of(catalog, as_of, timezone)
    if text == LATEST:
        passed_over = {PointState.FOREIGN, PointState.DAMAGED, PointState.AHEAD}
        committed = [
            point
            for point in catalog.list_points()
            if point.manifest is not None and point.state not in passed_over
        ]
        if not committed:
            raise PointNotFoundError(
                f"no committed recovery point in {catalog.directory}",
                hint="Take one: schedgen-backups backup",
            )
        return committed[-1]
    return catalog.get_point(RecoveryPointId.parse(text))


def _find_as_of(catalog: Catalog, text: str, timezone: tzinfo) -> PointListing:
    moment = parse_time(text, timezone)
    fitting = [
        point
        for point in list_verified(catalog)
        if point.manifest is not None and point.manifest.snapshot_at <= moment
    ]
    if not fitting:
        raise PointNotFoundError(
            f"no verified recovery point was taken at or before {text}",
            hint="`schedgen-backups list` shows the existing ones.",
        )
    return fitting[-1]


def parse_time(text: str, timezone: tzinfo = UTC) -> datetime:
    """Return the aware time that this ISO 8601 text spells, in `timezone` when it has no offset.

    ConfigurationError when it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"invalid time {text!r}",
            hint="Write it as 2026-11-22 14:30, or with an offset as 2026-11-22T14:30+02:00.",
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)


@dataclass(frozen=True)
class Freshness:
    """The newest verified recovery point at a given time."""

    newest: PointListing | None
    now: datetime
    foreign_count: int = 0
    """Number of points that belong to another site."""

    @property
    def age(self) -> timedelta | None:
        """Time since its data was captured; None when no point is verified."""
        return self.now - self.newest.point_id.taken_at if self.newest is not None else None

    def is_too_old(self, max_age: timedelta, *, watched_since: datetime | None = None) -> bool:
        """Return whether no verified point is younger than `max_age`.

        Before the first verified point, count from `watched_since`.
        """
        if self.age is not None:
            return self.age > max_age
        return watched_since is None or self.now - watched_since > max_age

    def describe(self) -> str:
        """Return the id and age as text."""
        own = (
            "none"
            if self.newest is None or self.age is None
            else f"{self.newest.point_id}, {self.age.total_seconds() / 3600:.1f} h old"
        )
        return f"{own}{self.describe_foreign()}"

    def describe_foreign(self) -> str:
        """Return how many points belong to another site, as text to append; empty without one."""
        return (
            f"; {self.foreign_count} of another site, or of a site whose {SITE_NAME} is lost"
            if self.foreign_count
            else ""
        )


@dataclass(frozen=True)
class Overview:
    """The state of a directory's recovery points at a given time."""

    freshness: Freshness
    broken: tuple[PointListing, ...]
    """This site's committed points that are damaged or failed, oldest first. They do not count as verified
    and are never removed."""
    ahead: tuple[PointListing, ...]
    """This site's points that are ahead of the clock, oldest first."""
    due_count: int
    """Number of points that must be read again."""

    @property
    def is_intact(self) -> bool:
        """Whether no committed point is damaged, failed or ahead of the clock."""
        return not self.broken and not self.ahead

    def describe_freshness(self, max_age: timedelta) -> str:
        """Return the newest verified point's id and age, and the age limit, as text."""
        newest, age = self.freshness.newest, self.freshness.age
        limit = f"(limit {max_age.total_seconds() / 3600:g} h)"
        own = (
            f"no verified recovery point {limit}"
            if newest is None or age is None
            else (
                f"newest verified recovery point {newest.point_id} is {age.total_seconds() / 3600:.1f} h "
                f"old {limit}"
            )
        )
        return f"{own}{self.freshness.describe_foreign()}"

    def describe_intactness(self) -> str:
        """Return the points' problems as text, or that there are none, and how many must be read again."""
        parts = [self.describe_broken()] if self.broken else []
        if self.ahead:
            parts.append(f"ahead of the clock: {self.describe_ahead()}")
        if self.due_count:
            parts.append(f"{self.due_count} to be read again")
        return "; ".join(parts) or "no committed recovery point is damaged, failed or ahead of the clock"

    def describe_broken(self) -> str:
        """Return each broken point with its problem."""
        return "; ".join(
            f"{point.point_id} {point.state.value}: {_name_problem(point)}"
            for point in self.broken[-NAMED_LIMIT:]
        )

    def describe_ahead(self) -> str:
        """Return the points that are ahead, with this machine's time."""
        names = name_some([point.point_id.text for point in reversed(self.ahead)])
        return f"{names}; this machine's clock says {self.freshness.now:%Y-%m-%d %H:%M:%S} UTC"


def _name_problem(point: PointListing) -> str:
    failed = (result.summary for result in point.verification.results if result.status is CheckStatus.FAILED)
    return next(iter((*point.problems, *failed)), "no reason is known")


def look_over(catalog: Catalog, now: datetime) -> Overview:
    """Return the state of all points; no points when the directory does not exist."""
    return judge_points(catalog.list_points() if catalog.directory.is_dir() else (), now)


def judge_points(points: Sequence[PointListing], now: datetime) -> Overview:
    """Return the state of these points, oldest first, as `look_over` does."""
    newest = next((point for point in reversed(points) if point.state is PointState.VERIFIED), None)
    broken = [
        point
        for point in points
        if point.state is PointState.DAMAGED
        or (point.state is PointState.FAILED and point.manifest is not None)
    ]
    ahead = [point for point in points if point.state is PointState.AHEAD]
    due = [point for point in points if point.unread_files and point.state is not PointState.FOREIGN]
    foreign_count = sum(point.state is PointState.FOREIGN for point in points)
    return Overview(Freshness(newest, now, foreign_count), tuple(broken), tuple(ahead), len(due))


def measure_freshness(catalog: Catalog, now: datetime) -> Freshness:
    """Return the newest verified point; none when the directory does not exist.

    VerificationError when a file of the catalog is damaged.
    """
    return look_over(catalog, now).freshness


def describe_freshness(catalog: Catalog, now: datetime) -> str:
    """Return the freshness as text for an alert; errors become text, so that the alert is always sent."""
    try:
        return measure_freshness(catalog, now).describe()
    except (OSError, VerificationError) as error:
        return f"unknown ({type(error).__name__})"
