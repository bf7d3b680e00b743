"""Copies of points in encrypted packs: as they are for the same recipients, otherwise encrypted again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import STORED_CHECKS, CheckStatus
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.copies.access import CopyAccess
from schedgen_backups.core.copies.heal import HealReport, heal_packs
from schedgen_backups.core.errors import PackKeyError
from schedgen_backups.core.formats.packed_file import PACKS_NAME, read_local_recipe
from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import AgeEncryptor, Decryptor
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.verify.files import verify_archive
from schedgen_backups.core.verify.reread import reread_sources
from schedgen_backups_tests.support.artifacts import damage, make_result
from schedgen_backups_tests.support.copies import (
    ENCRYPTION,
    HOST_KEY_PAIR,
    KEY_PAIR,
    KEYS,
    CopiedSite,
    encrypt_for_host,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.memory_store import MemoryStore
from schedgen_backups_tests.unit.core.copies.conftest import ENCRYPTED

pytestmark = pytest.mark.parametrize("layout", [ENCRYPTED], indirect=True, ids=[ENCRYPTED])


def make_site(folder: Path, recipients: str) -> CopiedSite:
    """Return a site whose packs are encrypted for the host and the operator; `recipients` of the store."""
    ENCRYPTION.set(encrypt_for_host(KEY_PAIR))
    keys = [HOST_KEY_PAIR.public, KEY_PAIR.public]
    return CopiedSite(
        folder / "backups",
        MemoryStore(),
        encryptor=AgeEncryptor(keys[::-1] if recipients == "the same" else keys[1:]),
    )


def list_stated(point: PointListing) -> list[StatedPack]:
    return [pack for artifact in point.artifacts for pack in read_local_recipe(artifact.path).stated_packs]


def read_packs(catalog: Catalog) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (catalog.directory / PACKS_NAME).glob("2*")}


@pytest.mark.parametrize("recipients", ["the same", "others"])
def test_a_copy_is_readable_with_the_key_of_the_store_alone(tmp_path: Path, recipients: str) -> None:
    site = make_site(tmp_path, recipients)
    for night in range(2):
        make_point(site.catalog, night, {**list_objects(40), "new": b"%d" % night})
        site.copy(night)
        site.assert_equal(night, tmp_path / f"fetched {night}")
        fetched = Catalog(tmp_path / f"fetched {night}", site.decryptor).get_point(make_point_id(night))
        path = fetched.get_path(ArtifactKind.BUCKET)
        assert {each.status for each in verify_archive(path, fetched.keys)} == {CheckStatus.PASSED}
    stored = {pack.sha256 for pack in site.open_reader(1).pack_list.packs}
    stated = {pack.sha256 for pack in list_stated(site.catalog.get_point(make_point_id(1)))}
    if recipients == "the same":
        assert stated == stored, "they are handed on as they are"
        ours, theirs = read_packs(site.catalog), read_packs(Catalog(tmp_path / "fetched 1"))
        assert theirs == {name: data for name, data in ours.items() if name in theirs}
    else:
        assert stated.isdisjoint(stored)
        assert not any(name.endswith(".age") for name in read_packs(Catalog(tmp_path / "fetched 1")))


def test_packs_for_the_same_recipients_are_copied_without_a_key(tmp_path: Path) -> None:
    site = make_site(tmp_path, "the same")
    make_point(site.catalog, 0, list_objects(20))
    site.catalog = Catalog(site.catalog.directory)
    site.copy(0)
    other = make_site(tmp_path / "other", "others")
    make_point(other.catalog, 0, list_objects(20))
    other.catalog = Catalog(other.catalog.directory)
    with pytest.raises(PackKeyError):
        other.copy(0)


def test_the_plain_form_of_a_pack_never_reaches_a_store_as_it_is(tmp_path: Path) -> None:
    site = make_site(tmp_path, "the same")
    point = make_point(site.catalog, 0, list_objects(20))
    packs = LocalPacks(site.catalog.directory, site.catalog.keys)
    for pack in list_stated(point):
        plain = packs.read_pack(pack)
        (packs.folder / pack.name).unlink()
        (packs.folder / pack.plain_name).write_bytes(plain)
    site.copy(0)
    for stored in site.store.list(KEYS.packs):
        head = site.store.get_range(stored.key, 0, 30)
        assert head.startswith(b"age-encryption.org/v1"), stored.key
    site.assert_equal(0, tmp_path / "fetched")


def test_a_change_of_recipients_here_sends_everything_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, "others")
    make_point(site.catalog, 0, list_objects(40))
    first = site.copy(0)
    make_point(site.catalog, 1, list_objects(40))
    assert site.copy(1).uploaded_bytes < first.uploaded_bytes / 2
    ENCRYPTION.set(encrypt_for_host())
    make_point(site.catalog, 2, list_objects(40))
    third = site.copy(2)
    assert third.uploaded_bytes > 0.9 * first.uploaded_bytes
    site.assert_equal(2, tmp_path / "fetched")


def test_fetched_packs_and_own_ones_lie_in_one_directory(tmp_path: Path) -> None:
    site = make_site(tmp_path, "others")
    for night in range(2):
        make_point(site.catalog, night, {**list_objects(40), "new": b"%d" % night})
        site.copy(night)
    lost = site.catalog.get_point(make_point_id(0))
    for path in (
        site.catalog.manifest_path(lost.point_id),
        site.catalog.verification_path(lost.point_id),
        *(artifact.path for artifact in lost.artifacts),
    ):
        path.unlink()
    gone = {pack.name for pack in list_stated(site.catalog.get_point(make_point_id(1)))}
    for name in read_packs(site.catalog).keys() - gone:
        (site.catalog.directory / PACKS_NAME / name).unlink()
    site.open_reader(0).fetch_into(site.catalog.directory)
    for point in site.catalog.list_points():
        assert point.problems == ()
        path = point.get_path(ArtifactKind.BUCKET)
        assert {each.status for each in verify_archive(path, point.keys)} == {CheckStatus.PASSED}
    names = read_packs(site.catalog)
    assert {name.endswith(".age") for name in names} == {True, False}
    assert not {f"{name}.age" for name in names} & names.keys(), "what is here is not fetched"


@pytest.mark.parametrize("recipients", ["the same", "others"])
def test_an_encrypted_pack_is_healed_only_by_the_bytes_that_it_had(tmp_path: Path, recipients: str) -> None:
    site = make_site(tmp_path, recipients)
    point = make_point(site.catalog, 0, list_objects(20))
    site.copy(0)
    name = read_local_recipe(point.get_path(ArtifactKind.BUCKET)).packs[0]
    path = site.catalog.directory / PACKS_NAME / name
    data = path.read_bytes()
    path.write_bytes(damage(data, 8 * (len(data) // 2)))
    site.catalog.record_results(
        point.point_id, (make_result(STORED_CHECKS[ArtifactKind.BUCKET], CheckStatus.FAILED),)
    )
    report: HealReport = heal_packs(site.catalog, CopyAccess(site.store, KEYS, Decryptor([KEY_PAIR.private])))
    if recipients == "the same":
        assert (report.healed, path.read_bytes()) == ((name,), data)
    else:
        assert (report.healed, report.damaged) == ((), (name,))
        assert "encrypted for other keys" in report.problems[0]


def test_the_script_in_the_store_reads_both_with_debians_age(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY_PAIR.private)
    for recipients in ("the same", "others"):
        folder = tmp_path / recipients
        folder.mkdir()
        site = make_site(folder, recipients)
        site.store = FolderStore(folder / "store")
        site.store.prepare()
        point = make_point(site.catalog, 0, list_objects(20))
        site.copy(0)
        subprocess.run(
            ["sh", "restore.sh", make_point_id(0).text, str(key), "out"],
            cwd=folder / "store" / KEYS.site_id,
            check=True,
        )
        for artifact in point.artifacts:
            with point.open_file(artifact.name.kind) as file:
                whole = file.open_reader().read()
            out = folder / "store" / KEYS.site_id / "out"
            assert (out / artifact.name.to_file_name()).read_bytes() == whole


def test_a_point_that_is_read_again_with_the_key_stays_known(tmp_path: Path) -> None:
    site = make_site(tmp_path, "the same")
    point = make_point(site.catalog, 0, list_objects(20))
    before = point.verification.levels()
    paths = [artifact.path for artifact in point.artifacts]
    assert reread_sources(site.catalog, paths, checked_by="test") == ()
    after = site.catalog.get_point(make_point_id(0)).verification
    assert [(each.level, each.status) for each in after.levels()] == [
        (each.level, each.status) for each in before
    ]
    assert {each.status for each in after.results if each.checked_by == "test"} == {CheckStatus.PASSED}
