"""How much space recovery points take in the backup directory, and how much the next one should add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.formats.packed_file import is_recipe_name
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.pack_files import parse_pack_point
from schedgen_backups.core.settings import Layout

_NEWEST = 3
"""Points that count at least, whatever their age."""
_RECENT = timedelta(days=1)
"""Points this much older than the newest one count too: with an hourly schedule, the night adds little."""


@dataclass(frozen=True)
class SpaceForecast:
    """What the next recovery point is expected to need, by what the newest ones needed."""

    added_bytes: int
    """What stays: the largest of what the newest points added."""
    temporary_bytes: int = 0
    """What its backup needs in addition until it ends."""

    @property
    def needed_bytes(self) -> int:
        """Free space without which the next backup is expected to fail."""
        return self.added_bytes + self.temporary_bytes

    def count_fitting(self, free_bytes: int) -> int:
        """Return how many more points fit."""
        return max(0, free_bytes - self.temporary_bytes) // max(1, self.added_bytes)


def forecast_space(
    points: Sequence[PointListing], pack_sizes: Mapping[str, int], layout: Layout
) -> SpaceForecast | None:
    """Return what the next point needs in this layout; None without a point of this site.

    `points` are in order, and `pack_sizes` are those of all packs of the directory, by name.
    """
    own = [point for point in points if not point.is_foreign and not point.is_ahead and point.size_bytes]
    if not own:
        return None
    newest = _choose_newest(own)
    whole_bytes = max(point.size_bytes for point in newest)
    if layout is Layout.FILES:
        return SpaceForecast(whole_bytes)
    # A dump is written as a file, and then placed in packs.
    dumps = (point.measure(dump) for point in newest for dump in point.list_sources(ArtifactKind.DATABASE))
    dump_bytes = max(dumps, default=0)
    packed = [point for point in own if any(is_recipe_name(found.path.name) for found in point.artifacts)]
    # The first whole one wrote everything, as no later one does.
    whole = [point.manifest is not None or len(point.artifacts) >= len(ArtifactKind) for point in packed]
    if True not in whole:
        return SpaceForecast(whole_bytes, dump_bytes)
    sharing = packed[whole.index(True) + 1 :]
    if not sharing:
        # Most objects stay as they are; rows of any table may change.
        return SpaceForecast(dump_bytes, dump_bytes)
    by_point = _sum_by_point(pack_sizes)
    added = (
        _measure_files(point) + by_point.get(point.point_id.text, 0) for point in _choose_newest(sharing)
    )
    return SpaceForecast(max(added), dump_bytes)


def measure_stored(points: Sequence[PointListing], pack_sizes: Mapping[str, int]) -> int:
    """Return the size of all points in bytes, with each pack counted once."""
    return sum(map(_measure_files, points)) + sum(pack_sizes.values())


def _choose_newest(points: Sequence[PointListing]) -> list[PointListing]:
    newest = points[-1].point_id.taken_at
    return [
        point
        for rank, point in enumerate(reversed(points))
        if rank < _NEWEST or newest - point.point_id.taken_at < _RECENT
    ]


def _measure_files(point: PointListing) -> int:
    """Return the size of its own files, which are recipes if it is in packs."""
    return sum(found.size_bytes for found in point.artifacts)


def _sum_by_point(pack_sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the size of the packs that were written with each point, by the text of its ID."""
    found: dict[str, int] = {}
    for name, size_bytes in pack_sizes.items():
        point_id = parse_pack_point(name)
        if point_id is not None:
            found[point_id.text] = found.get(point_id.text, 0) + size_bytes
    return found
