"""Looks at the recovery points as they lie there now: reports when the newest is too old, when one is
damaged, when the clock is wrong.

The checks of the asset `recovery_point` say the same in the UI, and are evaluated here whenever something
changed. Needs no run to have started.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg
from pydantic import AwareDatetime

from schedgen_backups.alerts.service import CLOCK_KEY, DAMAGE_KEY, STALE_CLOCK_KEY, STALE_KEY, AlertService
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import Overview, look_over
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.monitoring.markdown import OVERVIEW_KEY, describe_points, make_overview

RECOVERY_POINT_KEY = dg.AssetKey("recovery_point")
WATCH_NAME = "freshness_watch"
INTACT_CHECK = "recovery_point_is_intact"
FRESH_CHECK = "recovery_point_is_fresh"
_REPEAT = timedelta(hours=6)
"""An evaluation that says the same as the last is written so seldom: each is a row of Dagster's database."""


class WatchCursor(FrozenModel):
    """What the watch knows of its last look."""

    watched_since: AwareDatetime
    """Before the first point, silence is measured from here."""
    reported: str = ""
    """What the checks said last."""
    reported_at: AwareDatetime | None = None


def make_intact_result(overview: Overview, catalog: Catalog) -> dg.AssetCheckResult:
    """Return the result of the check on every point's files, with the table of all points."""
    return dg.AssetCheckResult(
        passed=overview.is_intact,
        severity=dg.AssetCheckSeverity.ERROR,
        description=overview.describe_intactness(),
        metadata={OVERVIEW_KEY: dg.MetadataValue.md(make_overview(catalog, overview.freshness.now))},
    )


def make_fresh_result(
    overview: Overview, max_age: timedelta, *, watched_since: datetime | None = None
) -> dg.AssetCheckResult:
    """Return the result of the check on the newest verified point's age."""
    is_fresh = not overview.freshness.is_too_old(max_age, watched_since=watched_since)
    return dg.AssetCheckResult(
        passed=is_fresh,
        severity=dg.AssetCheckSeverity.ERROR,
        description=overview.describe_freshness(max_age),
    )


def watch_site(
    instance: dg.DagsterInstance, service: AlertService, cursor: WatchCursor, now: datetime
) -> tuple[WatchCursor, str]:
    """Report what is wrong with the recovery points and what is right again; return the cursor for the next
    look, and the look in words.
    """
    overview = look_over(service.catalog, now)
    max_age = service.settings.max_age
    intact = make_intact_result(overview, service.catalog)
    fresh = make_fresh_result(overview, max_age, watched_since=cursor.watched_since)
    newest = overview.freshness.newest
    # Not the age: it is another at every look.
    words = (
        f"{fresh.passed}; {newest.point_id if newest else None}; {intact.description}; "
        f"{describe_points(service.catalog)}"
    )
    if words != cursor.reported or cursor.reported_at is None or now - cursor.reported_at >= _REPEAT:
        for name, result in ((INTACT_CHECK, intact), (FRESH_CHECK, fresh)):
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=RECOVERY_POINT_KEY,
                    check_name=name,
                    passed=result.passed,
                    severity=result.severity,
                    description=result.description,
                    metadata=result.metadata,
                )
            )
        cursor = cursor.model_copy(update={"reported": words, "reported_at": now})
    outcomes = [*_report_points(service, overview), *_report_age(service, overview, cursor)]
    return cursor, "; ".join(
        (overview.describe_freshness(max_age), overview.describe_intactness(), *outcomes)
    )


def _report_points(service: AlertService, overview: Overview) -> list[str]:
    outcomes: list[str] = []
    over = {
        key
        for key, points in (
            (DAMAGE_KEY, overview.broken),
            (CLOCK_KEY, overview.ahead),
            (STALE_CLOCK_KEY, overview.ahead),
        )
        if not points
    }
    service.report_resolved(over)
    if overview.broken:
        outcome = service.raise_trouble(
            DAMAGE_KEY,
            Severity.HIGH,
            f"{_count(len(overview.broken))} damaged",
            f"{overview.describe_broken()}. What is damaged counts for nothing and is never removed; other "
            "points are as they were.",
            next_step="`schedgen-backups show ID` names the files. Bring them back from a copy, or move "
            "all files of that point elsewhere.",
        )
        outcomes.append(f"damaged; alert {outcome.value}")
    if overview.ahead:
        is_newest_lost = overview.freshness.is_too_old(service.settings.max_age)
        outcome = service.raise_trouble(
            STALE_CLOCK_KEY if is_newest_lost else CLOCK_KEY,
            Severity.CRITICAL if is_newest_lost else Severity.HIGH,
            f"{_count(len(overview.ahead))} ahead of the clock",
            f"{overview.describe_ahead()}. This clock is wrong, or that of the host which took them was; "
            "they count for nothing until it is later.",
            next_step="Set the clock right (timedatectl). Such a point can be restored by its id.",
        )
        outcomes.append(f"ahead of the clock; alert {outcome.value}")
    return outcomes


def _report_age(service: AlertService, overview: Overview, cursor: WatchCursor) -> list[str]:
    freshness, max_age = overview.freshness, service.settings.max_age
    # Where points are ahead, the clock is the incident, and its alert says so.
    if overview.ahead or not freshness.is_too_old(max_age, watched_since=cursor.watched_since):
        return []
    outcome = service.raise_trouble(
        STALE_KEY,
        Severity.CRITICAL,
        f"No verified recovery point for {max_age.total_seconds() / 3600:.0f} hours",
        f"The newest verified recovery point: {freshness.describe()}.",
        next_step="Look at the schedule and at the runs of the last days; take one now: schedgen-backups "
        "backup",
    )
    return [f"too old; alert {outcome.value}"]


def _count(number: int) -> str:
    return "A recovery point is" if number == 1 else f"{number} recovery points are"


def start_watch() -> WatchCursor:
    """Return the cursor of the first look."""
    return WatchCursor(watched_since=datetime.now(timezone.utc))
