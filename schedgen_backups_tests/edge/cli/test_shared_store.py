"""Two sites of a file that copy to the same store: each sees and removes its own copies only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support import copies
from schedgen_backups_tests.support.copies import KEY_PAIR, list_objects, make_point
from schedgen_backups_tests.support.site_stores import UNREACHABLE
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

POINTS = {"shop": "20261001_020000", "blog": "20261002_020000"}
IDENTITIES = {"shop": "5" * 32, "blog": "6" * 32}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return an installation of two sites whose points were copied to one store."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    tables: list[str] = []
    for night, name in enumerate(POINTS):
        with monkeypatch.context() as identity:
            identity.setattr(copies, "SITE_ID", IDENTITIES[name])
            make_point(Catalog(tmp_path / name), night, list_objects(2 + night))
        tables.append(
            f'[sites.{name}]\nbackup_dir = "{name}"\npostgres_db = "{name}"\nminio_bucket = "{name}-pdfs"\n'
        )
    (tmp_path / "sites.toml").write_text("\n".join(tables))
    (tmp_path / "key.txt").write_text(f"{KEY_PAIR.private}\n")
    (tmp_path / "stores.toml").write_text(
        f'[stores.nas]\nurl = "file://{tmp_path / "nas"}"\nrecipients = ["{KEY_PAIR.public}"]\n'
    )
    site.set(BACKUP_SITES_FILE=str(tmp_path / "sites.toml"), BACKUP_STORES_FILE=str(tmp_path / "stores.toml"))
    assert site.cli("--site", "shop", "stores", "prepare", "nas").code == 0
    for name, point_id in POINTS.items():
        answer = site.cli("--site", name, "stores", "copy", "nas", "--json")
        assert (answer.code, json.loads(answer.stdout)["copied"]) == (0, [point_id]), answer
    return site


def list_copies(site: Site, name: str) -> list[str]:
    answer = site.cli("--site", name, "list", "--from", "nas", "--json")
    assert answer.code == 0, answer
    return [copy["id"] for copy in json.loads(answer.stdout)["copies"]]


def test_each_site_lists_and_fetches_its_own_copies(site: Site) -> None:
    source = ("--from", "nas", "--identity", str(site.folder / "key.txt"))
    for name, point_id in POINTS.items():
        assert list_copies(site, name) == [point_id]
        to = site.folder / f"fetched-{name}"
        answer = site.cli("--site", name, "fetch", point_id, *source, "--to", str(to))
        assert answer.code == 0, answer
        fetched = list(to.glob(f"*{point_id}*.*z*"))
        assert len(fetched) == 2
        for path in fetched:
            assert path.read_bytes() == (site.folder / name / path.name).read_bytes()
    answer = site.cli("--site", "shop", "fetch", POINTS["blog"], *source, "--to", str(site.folder / "none"))
    assert answer.code != 0
    assert "schedgen-backups --site shop list --from STORE" in answer.stderr


def test_a_removal_of_one_site_leaves_the_copies_of_the_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "SITE_ID", IDENTITIES["shop"])
    for night in range(1, 4):  # the first has the ID of the other site's point
        make_point(Catalog(site.folder / "shop"), night, list_objects(3))
    assert site.cli("--site", "shop", "stores", "copy", "nas").code == 0
    assert len(list_copies(site, "shop")) == 4
    path = site.folder / "stores.toml"
    path.write_text(f"{path.read_text()}[stores.nas.retention]\ndays = 1\nkeep_last = 1\n")
    answer = site.cli("--site", "shop", "stores", "prune", "nas", "--json")
    assert answer.code == 0, answer
    assert list_copies(site, "shop") == ["20261004_020000"]
    assert list_copies(site, "blog") == [POINTS["blog"]]
    assert site.cli("--site", "blog", "stores", "prove", "nas").code == 0


def test_a_copied_directory_does_not_remove_the_copies_of_its_original(site: Site) -> None:
    shutil.rmtree(site.folder / "blog")
    shutil.copytree(site.folder / "shop", site.folder / "blog")
    for words in (("copy", "nas"), ("prune", "nas")):
        answer = site.cli("--site", "blog", "stores", *words)
        assert (answer.code, "was copied from that of site shop" in answer.stderr) == (4, True), answer
    assert site.cli("--site", "blog", "list").code == 0
    assert site.cli("--site", "shop", "stores", "copy", "nas").code == 0
    assert list_copies(site, "shop") == [POINTS["shop"]]
    stores = site.folder / "stores.toml"
    (site.folder / "other.toml").write_text(stores.read_text().replace("/nas", "/elsewhere"))
    sites = site.folder / "sites.toml"
    sites.write_text(f'{sites.read_text()}backup_stores_file = "other.toml"\n')
    assert site.cli("--site", "blog", "stores", "prepare", "nas").code == 0
    assert site.cli("--site", "blog", "stores", "copy", "nas").code == 0, "each has a store of its own"
