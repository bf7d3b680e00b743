"""Check the stored recovery points: alert when the newest is too old, one is damaged or the clock is wrong.

This also evaluates the checks of the asset `recovery_point` whenever something changed, so that the UI shows
the same. It needs no run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import dagster as dg
from pydantic import AwareDatetime

from schedgen_backups.alerts.guides import COPY_AGE_AREA, COPY_DAMAGE_AREA, COPY_LOCK_AREA, COPY_PROOF_AREA
from schedgen_backups.alerts.service import CLOCK_KEY, DAMAGE_KEY, STALE_CLOCK_KEY, STALE_KEY, AlertService
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import Overview, list_verified, look_over
from schedgen_backups.core.copies.status import StoreStatus, Trouble
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.monitoring.markdown import OVERVIEW_KEY, describe_points, make_overview
from schedgen_backups.site_names import RECOVERY_POINT

INTACT_CHECK = "recovery_point_is_intact"
FRESH_CHECK = "recovery_point_is_fresh"
_COPY_AREAS = {
    Trouble.STALE: COPY_AGE_AREA,
    Trouble.DAMAGED: COPY_DAMAGE_AREA,
    Trouble.UNLOCKED: COPY_LOCK_AREA,
    Trouble.UNPROVED: COPY_PROOF_AREA,
}
_COPY_TITLES = {
    Trouble.STALE: "No recent copy in the store {}",
    Trouble.DAMAGED: "Copies in the store {} are damaged",
    Trouble.UNLOCKED: "Locks in the store {} run out",
    Trouble.UNPROVED: "The copies in the store {} are not proved",
}
_COPY_STEPS = {
    Trouble.STALE: "Check whether the store can be reached, and the runs of its job in the UI. A store that "
    "is new in the file gets its job when the code location is reloaded.",
    Trouble.DAMAGED: "Do not rely on this store until you know the cause. Other copies, and the recovery "
    "points on this host, are not affected.",
    Trouble.UNPROVED: "Check the runs of its job in the UI. Without the daemon, run "
    "`schedgen-backups stores prove NAME` every day by cron.",
    Trouble.UNLOCKED: "Check that the credentials may extend locks, and that the bucket's object lock is on.",
}
_REPEAT = timedelta(hours=6)
"""Interval at which an unchanged evaluation is written again: each is a row of Dagster's database."""


class WatchCursor(FrozenModel):
    """What the sensor keeps between two ticks."""

    watched_since: AwareDatetime
    """Start of the age limit while no verified point exists."""
    stores_since: dict[str, AwareDatetime] = {}
    """When each store was first seen: start of its age limit while it has no copy."""
    reported: str = ""
    """The last written state of the checks."""
    reported_at: AwareDatetime | None = None


def make_intact_result(overview: Overview, catalog: Catalog) -> dg.AssetCheckResult:
    """Return the result of the check of every point's files, with the table of all points."""
    return dg.AssetCheckResult(
        passed=overview.is_intact,
        severity=dg.AssetCheckSeverity.ERROR,
        description=overview.describe_intactness(),
        metadata={OVERVIEW_KEY: dg.MetadataValue.md(make_overview(catalog, overview.freshness.now))},
    )


def make_fresh_result(
    overview: Overview, max_age: timedelta, *, watched_since: datetime | None = None
) -> dg.AssetCheckResult:
    """Return the result of the check of the newest verified point's age."""
    is_fresh = not overview.freshness.is_too_old(max_age, watched_since=watched_since)
    return dg.AssetCheckResult(
        passed=is_fresh,
        severity=dg.AssetCheckSeverity.ERROR,
        description=overview.describe_freshness(max_age),
    )


def watch_site(
    instance: dg.DagsterInstance,
    service: AlertService,
    cursor: WatchCursor,
    now: datetime,
    stores: Sequence[StoreStatus] | None = None,
) -> tuple[WatchCursor, str]:
    """Alert on problems of points and copies and on resolved ones; return the new cursor and a summary.

    `stores` is None if the file of stores cannot be read: then nothing of the copies is resolved either.
    """
    overview = look_over(service.catalog, now)
    max_age = service.settings.max_age
    intact = make_intact_result(overview, service.catalog)
    fresh = make_fresh_result(overview, max_age, watched_since=cursor.watched_since)
    newest = overview.freshness.newest
    # Without the age, which changes in every tick.
    state = (
        f"{fresh.passed}; {newest.point_id if newest else None}; {intact.description}; "
        f"{describe_points(service.catalog)}"
    )
    if state != cursor.reported or cursor.reported_at is None or now - cursor.reported_at >= _REPEAT:
        for name, result in ((INTACT_CHECK, intact), (FRESH_CHECK, fresh)):
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey(service.names.make_asset_path(RECOVERY_POINT)),
                    check_name=name,
                    passed=result.passed,
                    severity=result.severity,
                    description=result.description,
                    metadata=result.metadata,
                )
            )
        cursor = cursor.model_copy(update={"reported": state, "reported_at": now})
    outcomes = [*_report_points(service, overview), *_report_age(service, overview, cursor)]
    if stores is not None:
        since = {status.name: cursor.stores_since.get(status.name, now) for status in stores}
        cursor = cursor.model_copy(update={"stores_since": since})
        outcomes += _report_copies(service, stores, cursor, now)
    return cursor, "; ".join(
        (overview.describe_freshness(max_age), overview.describe_intactness(), *outcomes)
    )


def _report_points(service: AlertService, overview: Overview) -> list[str]:
    outcomes: list[str] = []
    resolved = {
        key
        for key, points in (
            (DAMAGE_KEY, overview.broken),
            (CLOCK_KEY, overview.ahead),
            (STALE_CLOCK_KEY, overview.ahead),
        )
        if not points
    }
    service.report_resolved(resolved)
    if overview.broken:
        outcome = service.raise_trouble(
            DAMAGE_KEY,
            Severity.HIGH,
            f"{_count(len(overview.broken))} damaged",
            f"{overview.describe_broken()}. Damaged points are not used for restores and are never removed; "
            "other points are not affected.",
            next_step="`schedgen-backups show ID` names the files. Restore them from a copy, or move all "
            "files of that point to another directory.",
        )
        outcomes.append(f"damaged; alert {outcome.value}")
    if overview.ahead:
        is_newest_lost = overview.freshness.is_too_old(service.settings.max_age)
        outcome = service.raise_trouble(
            STALE_CLOCK_KEY if is_newest_lost else CLOCK_KEY,
            Severity.CRITICAL if is_newest_lost else Severity.HIGH,
            f"{_count(len(overview.ahead))} ahead of the clock",
            f"{overview.describe_ahead()}. This machine's clock is wrong, or the clock of the host that took "
            "them was. They do not count as recent until their time has passed.",
            next_step="Correct the clock (timedatectl). Such a point can be restored by its id.",
        )
        outcomes.append(f"ahead of the clock; alert {outcome.value}")
    return outcomes


def _report_age(service: AlertService, overview: Overview, cursor: WatchCursor) -> list[str]:
    freshness, max_age = overview.freshness, service.settings.max_age
    # If points are ahead of the clock, the incident of the clock covers this.
    if overview.ahead or not freshness.is_too_old(max_age, watched_since=cursor.watched_since):
        return []
    outcome = service.raise_trouble(
        STALE_KEY,
        Severity.CRITICAL,
        f"No verified recovery point for {max_age.total_seconds() / 3600:.0f} hours",
        f"Newest verified recovery point: {freshness.describe()}.",
        next_step="Check the schedule and the runs of the last days; take a recovery point now: "
        "schedgen-backups backup",
    )
    return [f"too old; alert {outcome.value}"]


def _report_copies(
    service: AlertService, stores: Sequence[StoreStatus], cursor: WatchCursor, now: datetime
) -> list[str]:
    verified = (
        [point.point_id for point in list_verified(service.catalog)]
        if service.catalog.directory.is_dir()
        else []
    )
    found = {
        IncidentKey(area=_COPY_AREAS[trouble], subject=status.name): (trouble, text)
        for status in stores
        for trouble, text in status.find_troubles(
            verified, now, watched_since=cursor.stores_since.get(status.name)
        ).items()
    }
    # Nothing is known of a store that is described wrongly, so that nothing of it is over.
    unknown = {status.name for status in stores if status.settings is None}
    service.report_resolved(
        key
        for area in _COPY_AREAS.values()
        for key in service.list_open_keys(area)
        if key not in found and key.subject not in unknown
    )
    outcomes: list[str] = []
    for key, (trouble, text) in found.items():
        outcome = service.raise_trouble(
            key,
            Severity.HIGH,
            _COPY_TITLES[trouble].format(key.subject),
            f"{text[0].upper()}{text[1:]}.",
            next_step=_COPY_STEPS[trouble],
        )
        outcomes.append(f"{key.subject}: {trouble.value}; alert {outcome.value}")
    return outcomes


def _count(number: int) -> str:
    return "A recovery point is" if number == 1 else f"{number} recovery points are"


def start_watch() -> WatchCursor:
    """Return the cursor of the first tick."""
    return WatchCursor(watched_since=datetime.now(timezone.utc))
