"""Carries out a retention plan: removes exactly the files of the points that may go, the manifest first, so
that no half of a point is listed as one.

Plans anew at the moment of deletion, since things may have moved since somebody looked. Callers hold the
directory's lock. What may go is decided in `retention`; pins are kept here, beside the points they protect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog, PointListing, is_ours
from schedgen_backups.core.catalog.check_results import STORED_CHECKS
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.retention.plan import Candidate, RetentionPlan, RetentionPolicy, plan_retention


@dataclass(frozen=True)
class PruneReport:
    """What was planned, and what was removed of it."""

    plan: RetentionPlan
    removed_files: tuple[str, ...]
    freed_bytes: int


def plan_pruning(catalog: Catalog, policy: RetentionPolicy, now: datetime) -> RetentionPlan:
    """The plan for what lies in the directory now; files that are not ours are not part of it."""
    return plan_retention(
        [_as_candidate(catalog, point, now) for point in catalog.list_points()], policy, now
    )


ReadAgain = Callable[[PointListing], object]
"""Reads a point's files whole and records what was found."""
_READ_FRESHNESS = timedelta(days=1)


def remove_points(
    catalog: Catalog, policy: RetentionPolicy, read_again: ReadAgain, now: datetime | None = None
) -> PruneReport:
    """Remove the points that no rule keeps.

    StorageError when a file cannot be removed: what is left is taken up by the next call.

    Before anything is removed, the newest verified point, which the others may go in favour of, is read whole
    unless that was done within a day.
    """
    now = now or datetime.now(timezone.utc)
    plan = plan_pruning(catalog, policy, now)
    while plan.removed and (relied_on := _find_unread(catalog, plan, now)) is not None:
        read_again(relied_on)
        after = plan_pruning(catalog, policy, now)
        if after == plan and _find_unread(catalog, after, now) == relied_on:
            raise VerificationError(
                f"recovery point {relied_on.point_id} was read again and nothing was recorded; no point "
                "was removed",
                hint="Look at the permissions of the backup directory.",
            )
        plan = after
    points = {point.point_id: point for point in catalog.list_points()}
    removed: list[str] = []
    freed_bytes = 0
    for decision in plan.removed:
        point = points[decision.candidate.point_id]
        for path in _list_files(catalog, point):
            size_bytes = path.stat().st_size
            catalog.remove_file(path)
            removed.append(path.name)
            freed_bytes += size_bytes
    return PruneReport(plan, tuple(removed), freed_bytes)


def _find_unread(catalog: Catalog, plan: RetentionPlan, now: datetime) -> PointListing | None:
    """Return the newest point that counts as verified, if its bytes were not read within a day."""
    newest = max(
        decision.candidate.point_id for decision in plan.decisions if "newest verified" in decision.reasons
    )
    point = catalog.get_point(newest)
    results = [point.verification.result(check) for check in STORED_CHECKS.values()]
    is_read = not point.unread_files and all(
        result is not None and abs(now - result.checked_at) < _READ_FRESHNESS for result in results
    )
    return None if is_read else point


def _as_candidate(catalog: Catalog, point: PointListing, now: datetime) -> Candidate:
    try:
        pin = read_pin(catalog, point.point_id)
    except VerificationError:
        return Candidate(point.point_id, point.state, is_pin_unreadable=True)
    pin_reason = pin.reason if pin is not None and pin.is_valid(now) else None
    return Candidate(point.point_id, point.state, pin_reason, is_coherent=point.verification.is_coherent)


def _list_files(catalog: Catalog, point: PointListing) -> tuple[Path, ...]:
    # The manifest goes first: a crash in between leaves files without one, which is what a partial point is,
    # and that goes with the next plan.
    manifest = catalog.manifest_path(point.point_id)
    described = (catalog.verification_path(point.point_id), catalog.pin_path(point.point_id))
    # The shell script may have written in the same second: a file is the point's when its manifest names it
    # or it describes itself.
    named = (
        {artifact.file_name for artifact in point.manifest.artifacts}
        if point.manifest is not None
        else set[str]()
    )
    own = (artifact.path for artifact in point.artifacts if artifact.path.name in named or is_ours(artifact))
    return tuple(path for path in (manifest, *described, *own) if path.exists())
