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

WRONG_STATES = frozenset({PointState.FAILED, PointState.DAMAGED})


@dataclass(frozen=True)
class HealReport:
    """What became of the damaged packs."""

    healed: tuple[str, ...]
    damaged: tuple[str, ...]
    """Those that stay damaged."""
    points: tuple[PointListing, ...]
    """The points in packs that were failed or damaged, as listed before."""
    problems: tuple[str, ...] = ()
    """Why copies could not help."""

    def list_whole(self) -> tuple[PointListing, ...]:
        """Return the points that lack no pack by now: their files are to be read again."""
        return tuple(
            point
            for point in self.points
            if not {pack.name for pack in _list_packs(point)} & set(self.damaged)
        )


def heal_packs(catalog: Catalog, access: CopyAccess | None) -> HealReport:
    """Read the packs of damaged points, and write the damaged ones again as they were.

    With `access`, also from the copies in that store. Requires the directory's lock. StorageError when a pack
    cannot be written; errors of the store.
    """
    packs = LocalPacks(catalog.directory)
    listed = catalog.list_points()
    wrong = tuple(point for point in listed if point.state in WRONG_STATES and _is_packed(point))
    stated = {pack.name: pack for point in wrong for pack in _list_packs(point)}
    damaged = {name: pack for name, pack in stated.items() if packs.read_again(pack)}
    healed: set[str] = set()
    problems: list[str] = []
    if damaged:
        packs.prepare()
        with packs.open_index() as index:
            for name, pack in damaged.items():
                index.set_aside(name)
                if heal_pack(packs, index, pack):
                    healed.add(name)
            if access is not None and healed < damaged.keys():
                # Also from copies of points in which the damage was not noticed yet.
                healed |= _fetch(access, packs, index, listed, damaged.keys() - healed, problems)
    return HealReport(
        tuple(sorted(healed)), tuple(sorted(damaged.keys() - healed)), wrong, tuple(dict.fromkeys(problems))
    )


def _fetch(
    access: CopyAccess,
    packs: LocalPacks,
    index: PieceIndex,
    points: Iterable[PointListing],
    names: Iterable[str],
    problems: list[str],
) -> set[str]:
    """Put back what copies of the points that need these packs hold of them; return which."""
    missing = set(names)
    copied = set(access.list_ids())
    for point in points:
        wanted = missing & {pack.name for pack in _list_packs(point)}
        if point.point_id not in copied or not wanted:
            continue
        # Another copy may hold what this one does not.
        try:
            for pack, data in access.open_copy(point.point_id.text).read_packs(wanted, problems.append):
                if put_back(packs, index, pack, data):
                    missing.discard(pack.name)
        except VerificationError as error:
            problems.append(error.message)
    return set(names) - missing


def _is_packed(point: PointListing) -> bool:
    named = point.manifest.artifacts if point.manifest is not None else ()
    return any(
        is_recipe_name(name)
        for name in (
            *(each.path.name for each in point.artifacts),
            *(each.file_name for each in named),
        )
    )


def _list_packs(point: PointListing) -> tuple[StatedPack, ...]:
    found: list[StatedPack] = []
    for artifact in point.artifacts:
        if is_recipe_name(artifact.path.name):
            with suppress(VerificationError):
                found += read_local_recipe(artifact.path).stated_packs
    return tuple(found)
