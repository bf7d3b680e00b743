"""Read recovery points again whose files were modified since they were last read: copied, moved or altered.

The catalog detects this by a file's modification time; until the files are read, the point keeps its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.core.verify.files import verify_archive, verify_dump


@dataclass(frozen=True)
class RereadReport:
    """The points that were read again, newest first, and how many are still due."""

    points: tuple[PointListing, ...]
    """As listed after they were read."""
    due_count: int
    problems: tuple[str, ...] = ()
    """Points that could not be read for a reason other than their content, with that reason."""

    @property
    def wrong(self) -> tuple[PointListing, ...]:
        """The points that turned out not to be verified."""
        return tuple(
            point
            for point in self.points
            if point.state in {PointState.FAILED, PointState.DAMAGED, PointState.UNVERIFIED}
        )


def find_unread(catalog: Catalog) -> tuple[PointListing, ...]:
    """Return this site's committed points that must be read again, newest first."""
    points = catalog.list_points() if catalog.directory.is_dir() else ()
    return tuple(
        point for point in reversed(points) if point.unread_files and point.state is not PointState.FOREIGN
    )


def read_unread(
    catalog: Catalog,
    *,
    checked_by: str,
    budget_seconds: float,
    on_point: Callable[[PointListing], object] = lambda _point: None,
) -> RereadReport:
    """Read points again, newest first, until none is due or the budget is used up.

    The first point is read however long that takes. A point that retention removes in the meantime is
    skipped, and one that cannot be read does not stop the others.
    """
    ends_at = time.monotonic() + budget_seconds
    due = find_unread(catalog)
    read: list[PointListing] = []
    problems: list[str] = []
    for position, point in enumerate(due):
        if position and time.monotonic() >= ends_at:
            return RereadReport(tuple(read), len(due) - position, tuple(problems))
        on_point(point)
        try:
            verify_point(catalog, point, checked_by=checked_by)
        except (BackupError, OSError) as error:
            if catalog.manifest_path(point.point_id).exists():
                problems.append(f"{point.point_id}: {error}")
            continue
        read.append(catalog.get_point(point.point_id))
    return RereadReport(tuple(read), 0, tuple(problems))


def reread_sources(catalog: Catalog, paths: Iterable[Path], *, checked_by: str) -> tuple[str, ...]:
    """Read these artifacts again, which a capture found damaged; return what is wrong with each.

    The results are recorded with their points, so that a damaged one is noticed before it is needed. An
    artifact of no committed point, such as that of a killed capture, is left out.
    """
    problems: list[str] = []
    for path in paths:
        point = next(
            (
                point
                for point in catalog.list_points()
                if point.manifest is not None and any(found.path == path for found in point.artifacts)
            ),
            None,
        )
        named = point.manifest.artifacts if point is not None and point.manifest is not None else ()
        artifact = next((each for each in named if each.file_name == path.name), None)
        if point is None or artifact is None:
            continue
        verify = verify_dump if artifact.kind is ArtifactKind.DATABASE else verify_archive
        source = artifact.source_name if point.manifest is not None and point.manifest.parts else ""
        results = tuple(
            result.model_copy(update={"checked_by": checked_by, "source": source})
            for result in verify(path, point.keys, expected_sha256=artifact.sha256)
        )
        if not path.exists():  # removed meanwhile
            continue
        catalog.record_results(point.point_id, results)
        problems += [
            f"recovery point {point.point_id}: {result.summary}" for result in results if not result.is_passed
        ]
    return tuple(problems)
