"""Packs of the backup directory that are healed from the copies in a store."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import STORED_CHECKS, CheckStatus
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.copies.access import CopyAccess
from schedgen_backups.core.copies.heal import HealReport, heal_packs
from schedgen_backups.core.formats.packed_file import PACKS_NAME, open_packed_file
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import Decryptor, PlainEncryptor, make_key_pair
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups_tests.support.artifacts import damage, make_result
from schedgen_backups_tests.support.copies import (
    KEYS,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.memory_store import MemoryStore
from schedgen_backups_tests.unit.core.copies.test_killed import act

# Encrypted packs: test_encrypted_points.
pytestmark = pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])


@pytest.fixture
def site(tmp_path: Path) -> CopiedSite:
    return CopiedSite(tmp_path / "backups", MemoryStore())


def take(site: CopiedSite, night: int) -> PointListing:
    return make_point(site.catalog, night, list_objects(20), layout=Layout.PACKS)


def spoil(site: CopiedSite, point: PointListing) -> dict[Path, bytes]:
    """Damage two packs of the archive, where the piece index cannot help; return their paths and bytes."""
    names = open_packed_file(point.get_path(ArtifactKind.BUCKET)).recipe.packs[:2]
    paths = {site.catalog.directory / PACKS_NAME / name for name in names}
    found = {path: path.read_bytes() for path in paths}
    for path, data in found.items():
        path.write_bytes(damage(data, 8 * (len(data) // 2)))
    note_damage(site, point)
    return found


def note_damage(site: CopiedSite, point: PointListing) -> None:
    check = STORED_CHECKS[ArtifactKind.BUCKET]
    site.catalog.record_results(point.point_id, (make_result(check, CheckStatus.FAILED),))


def heal(site: CopiedSite, decryptor: Decryptor | None = None) -> HealReport:
    return heal_packs(site.catalog, CopyAccess(site.store, KEYS, decryptor or site.decryptor))


def test_a_pack_is_healed_although_the_copy_lacks_another(site: CopiedSite) -> None:
    point = take(site, 0)
    site.copy(0)
    for stored in list(site.store.list(KEYS.packs)):
        found = spoil(site, point)
        data = site.store.get_range(stored.key, 0, stored.size_bytes)
        site.store.delete(stored)
        report = heal(site)
        assert len(report.healed) + len(report.damaged) == len(found)
        assert report.healed, "one pack is missing in the store, two are damaged here"
        assert bool(report.problems) is bool(report.damaged)
        site.store.put_new(stored.key, data)
        heal(site)


def test_a_copy_of_another_point_that_needs_the_pack_heals_it(site: CopiedSite) -> None:
    first = take(site, 0)
    take(site, 1)
    site.copy(1)
    found = spoil(site, first)
    assert sorted(heal(site).healed) == sorted(path.name for path in found)
    assert {path: path.read_bytes() for path in found} == found


def test_a_wrong_key_is_named(site: CopiedSite) -> None:
    point = take(site, 0)
    site.copy(0)
    found = spoil(site, point)
    report = heal(site, Decryptor([make_key_pair().private]))
    assert (report.healed, len(report.damaged), len(report.problems) > 0) == ((), len(found), True)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_point_without_its_recipe_is_reported(site: CopiedSite, how: str) -> None:
    point = take(site, 0)
    path = point.get_path(ArtifactKind.BUCKET)
    if how == "damaged":
        path.write_bytes(damage(path.read_bytes(), 8 * 100))
    else:
        path.unlink()
    report = heal_packs(site.catalog, None)
    assert [each.point_id for each in report.points] == [make_point_id(0)]


@pytest.mark.exhaustive
def test_healing_killed_at_every_write_makes_nothing_worse(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    point = make_point(site.catalog, 0, list_objects(20), layout=Layout.PACKS)
    site.copy(0)
    packs = site.catalog.directory / PACKS_NAME
    whole = {path: path.read_bytes() for path in packs.iterdir() if not path.name.startswith(".")}
    spoilt = {path: damage(data, 8 * (len(data) // 2)) for path, data in whole.items()}
    for writes in count():
        for path, data in spoilt.items():
            path.write_bytes(data)
        check = STORED_CHECKS[ArtifactKind.BUCKET]
        site.catalog.record_results(point.point_id, (make_result(check, CheckStatus.FAILED),))
        ended = act(tmp_path, writes, "heal")
        assert all(path.read_bytes() in {data, spoilt[path]} for path, data in whole.items())
        if ended:
            break
    assert {path: path.read_bytes() for path in whole} == whole
    assert writes > 1
