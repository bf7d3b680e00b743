"""Decide which new recovery point is drilled, and whether drills leave enough time between two backups."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from schedgen_backups.core.catalog.check_results import VerificationLevel
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.history.events import DrillEnded
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.units import format_age

MAX_SHARE = 4
"""A drill of each point may take at most the interval of backups divided by this: it uses the disk and the
processor that the next backup needs."""


def find_new_points(
    points: Iterable[PointListing], since: datetime, requested: Iterable[str]
) -> list[RecoveryPointId]:
    """Return the verified points that were committed since then and never restored, oldest first.

    Points of `requested` were drilled, or it was decided that they are not.
    """
    known = frozenset(requested)
    return [
        point.point_id
        for point in points
        if point.state is PointState.VERIFIED
        and point.manifest is not None
        and point.manifest.committed_at > since
        and point.point_id.text not in known
        and point.verification.level(VerificationLevel.RESTORED).checked_at is None
    ]


def explain_no_drill(last: DrillEnded | None, interval: timedelta) -> str:
    """Return why a new point is not drilled at once; empty when it is.

    `interval` is the shortest time between two scheduled backups.
    """
    if last is None:
        return ""
    duration = last.at - last.began_at
    limit = interval / MAX_SHARE
    if duration <= limit:
        return ""
    return (
        f"the last drill took {format_age(duration)}, more than a quarter of the time between two backups "
        f"({format_age(interval)})"
    )
