"""Carry out a retention plan: remove exactly the files of the points to remove, the manifest first.

Plans again at the moment of deletion, because the directory may have changed since an earlier plan. Callers
hold the directory's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import STORED_CHECKS, CheckResult
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.catalog.points import PointListing, is_ours
from schedgen_backups.core.catalog.resume import find_resumable, read_places
from schedgen_backups.core.errors import DiskFullError, VerificationError
from schedgen_backups.core.formats.packed_file import PACKS_NAME, is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import Recipe
from schedgen_backups.core.history.events import PointsRemoved, RemovedPoint
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.retention.plan import Candidate, RetentionPlan, RetentionPolicy, plan_retention
from schedgen_backups.core.units import name_some


@dataclass(frozen=True)
class PruneReport:
    """The plan and the files that were removed."""

    plan: RetentionPlan
    removed_files: tuple[str, ...]
    freed_bytes: int
    packs_kept_because: str = ""
    """Why packs that nobody needs were not removed; empty if they were."""


def plan_pruning(catalog: Catalog, policy: RetentionPolicy, now: datetime) -> RetentionPlan:
    """Return the plan for the current content of the directory; unmanaged files are not part of it."""
    return plan_retention(
        [_as_candidate(catalog, point, now) for point in catalog.list_points()], policy, now
    )


ReadAgain = Callable[[PointListing], tuple[CheckResult, ...]]
"""Reads all files of a point and returns the results, which are not recorded yet."""
_READ_FRESHNESS = timedelta(days=1)


def remove_points(
    catalog: Catalog, policy: RetentionPolicy, read_again: ReadAgain, now: datetime | None = None
) -> PruneReport:
    """Remove the points that no rule keeps.

    Before anything is removed, the newest verified point is read completely unless that was done within a
    day: the others are removed because it exists. If the disk is too full to record that it is intact, the
    others are removed first. StorageError when a file cannot be removed; the next call removes what is left.
    """
    now = now or datetime.now(timezone.utc)
    plan = plan_pruning(catalog, policy, now)
    unrecorded: tuple[RecoveryPointId, tuple[CheckResult, ...]] | None = None
    while plan.removed and (relied_on := _find_unread(catalog, plan, now)) is not None:
        results = read_again(relied_on)
        try:
            catalog.record_results(relied_on.point_id, results)
        except DiskFullError:
            if not relied_on.with_results(results).verification.is_verified:
                raise
            unrecorded = (relied_on.point_id, results)
            break
        after = plan_pruning(catalog, policy, now)
        if after == plan and _find_unread(catalog, after, now) == relied_on:
            raise VerificationError(
                f"recovery point {relied_on.point_id} was read again, but no result was recorded; no point "
                "was removed",
                hint="Check the permissions of the backup directory.",
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
        if unrecorded is not None:
            catalog.record_results(*unrecorded)
            unrecorded = None
    packs = remove_unused_packs(catalog)
    freed_bytes += packs.freed_bytes
    if plan.removed or plan.refusal:
        History(catalog.directory).record(
            PointsRemoved(
                at=now,
                removed=tuple(
                    RemovedPoint(point_id=decision.candidate.point_id.text, reasons=decision.reasons)
                    for decision in plan.removed
                ),
                kept_count=len(plan.kept),
                freed_bytes=freed_bytes,
                refusal=plan.refusal,
            )
        )
    return PruneReport(plan, (*removed, *packs.names), freed_bytes, packs.kept_because)


@dataclass(frozen=True)
class RemovedPacks:
    """The packs that were removed, or why none was."""

    names: tuple[str, ...] = ()
    freed_bytes: int = 0
    kept_because: str = ""


def remove_unused_packs(catalog: Catalog) -> RemovedPacks:
    """Remove the packs that no artifact in the directory needs, also those of killed backups.

    None while a recipe cannot be read, or while one is missing that a manifest names. What a killed backup
    left is kept while it can be resumed. StorageError when a pack cannot be removed.
    """
    packs = LocalPacks(catalog.directory)
    if not packs.find_sizes():
        return RemovedPacks()
    try:
        paths = catalog.find_recipes()
        if missing := _find_named_recipes(catalog) - {path.name for path in paths}:
            raise VerificationError(f"{name_some(sorted(missing))} is missing")
        recipes = [read_local_recipe(path) for path in paths]
    except VerificationError as error:
        return RemovedPacks(
            kept_because=f"{error.message}: no pack is removed before every recipe can be read"
        )
    # What a killed backup has written is used by the next one.
    unfinished = map(read_places, find_resumable(catalog.staging))
    names, freed_bytes = packs.remove_unused((*recipes, *map(Recipe, unfinished)))
    return RemovedPacks(tuple(f"{PACKS_NAME}/{name}" for name in names), freed_bytes)


def _find_named_recipes(catalog: Catalog) -> set[str]:
    """Return the names of the recipes that the manifests name."""
    return {
        artifact.file_name
        for point in catalog.list_points()
        if point.manifest is not None
        for artifact in point.manifest.artifacts
        if is_recipe_name(artifact.file_name)
    }


def _find_unread(catalog: Catalog, plan: RetentionPlan, now: datetime) -> PointListing | None:
    """Return the newest verified point if its files were not read within a day, else None."""
    newest = max(
        decision.candidate.point_id for decision in plan.decisions if "newest verified" in decision.reasons
    )
    point = catalog.get_point(newest)
    results = [
        point.verification.result(check)
        for kind, check in STORED_CHECKS.items()
        if kind in point.verification.kinds
    ]
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
    # The manifest goes first: a crash afterwards leaves files without a manifest, a partial point, which the
    # next plan removes.
    manifest = catalog.manifest_path(point.point_id)
    described = (catalog.verification_path(point.point_id), catalog.pin_path(point.point_id))
    # The shell script may have written in the same second: a file belongs to the point when the manifest
    # names it or when its own record does.
    named = (
        {artifact.file_name for artifact in point.manifest.artifacts}
        if point.manifest is not None
        else set[str]()
    )
    own = (artifact.path for artifact in point.artifacts if artifact.path.name in named or is_ours(artifact))
    return tuple(path for path in (manifest, *described, *own) if path.exists())
