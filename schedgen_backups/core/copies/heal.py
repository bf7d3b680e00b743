"""Make the damaged packs of a backup directory whole again, from other packs or from copies in a store."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.copies.access import CopyAccess
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.packed_file import is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.packs.healing import heal_pack, put_back
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.piece_index import PieceIndex


@dataclass(frozen=True)
class HealReport:
    """What became of the damaged packs."""

    healed: tuple[str, ...]
    damaged: tuple[str, ...]
    """Those that stay damaged."""
    points: tuple[PointListing, ...]
    """The points that need a healed pack, as listed before: their files are to be read again."""


def heal_packs(catalog: Catalog, access: CopyAccess | None) -> HealReport:
    """Read the packs of damaged points, and write the damaged ones again as they were.

    With `access`, also from the copies in that store. Requires the directory's lock. StorageError when a pack
    cannot be written; errors of the store.
    """
    packs = LocalPacks(catalog.directory)
    needed = [
        (point, _list_packs(point))
        for point in catalog.list_points()
        if point.state in {PointState.FAILED, PointState.DAMAGED}
    ]
    stated = {pack.name: pack for _point, listed in needed for pack in listed}
    damaged = {name: pack for name, pack in stated.items() if packs.read_again(pack)}
    healed: set[str] = set()
    if damaged:
        packs.prepare()
        with packs.open_index() as index:
            for name, pack in damaged.items():
                index.set_aside(name)
                if heal_pack(packs, index, pack):
                    healed.add(name)
            if access is not None and healed < damaged.keys():
                healed |= _fetch(access, packs, index, needed, damaged.keys() - healed)
    return HealReport(
        tuple(sorted(healed)),
        tuple(sorted(damaged.keys() - healed)),
        tuple(point for point, listed in needed if healed & {pack.name for pack in listed}),
    )


def _fetch(
    access: CopyAccess,
    packs: LocalPacks,
    index: PieceIndex,
    needed: list[tuple[PointListing, tuple[StatedPack, ...]]],
    names: Iterable[str],
) -> set[str]:
    """Put back what copies of the points that need these packs hold of them; return which."""
    missing = set(names)
    healed: set[str] = set()
    copied = set(access.list_ids())
    for point, listed in needed:
        wanted = (missing - healed) & {pack.name for pack in listed}
        if point.point_id not in copied or not wanted:
            continue
        # Another copy may hold what this one does not.
        with suppress(VerificationError):
            for pack, data in access.open_copy(point.point_id.text).read_packs(wanted):
                if put_back(packs, index, pack, data):
                    healed.add(pack.name)
    return healed


def _list_packs(point: PointListing) -> tuple[StatedPack, ...]:
    found: list[StatedPack] = []
    for artifact in point.artifacts:
        if is_recipe_name(artifact.path.name):
            with suppress(VerificationError):
                found += read_local_recipe(artifact.path).stated_packs
    return tuple(found)
