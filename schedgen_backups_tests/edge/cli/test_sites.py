"""Commands of an installation with several sites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.copies import list_objects, make_point
from schedgen_backups_tests.support.site_stores import UNREACHABLE
from schedgen_backups_tests.support.sites import Application, Site, environment_of

pytestmark = [pytest.mark.edge]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site of the environment, beside a file with two others that have a point each."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    tables: list[str] = []
    for night, name in enumerate(("shop", "blog")):
        make_point(Catalog(tmp_path / name), night, list_objects(2))
        tables.append(
            f'[sites.{name}]\nbackup_dir = "{name}"\npostgres_db = "{name}"\nminio_bucket = "{name}-pdfs"\n'
        )
    (tmp_path / "sites.toml").write_text("\n".join(tables))
    site.set(BACKUP_SITES_FILE=str(tmp_path / "sites.toml"))
    return site


def test_a_command_works_on_the_site_that_is_named(site: Site) -> None:
    for name, point_id in (("shop", "20261001_020000"), ("blog", "20261002_020000")):
        answer = site.cli("--site", name, "list", "--json")
        assert answer.code == 0, answer
        assert [point["id"] for point in json.loads(answer.stdout)["points"]] == [point_id]
    assert site.cli("--site", "shop", "verify", "--all").code == 0


def test_a_site_must_be_named_if_there_are_several(site: Site) -> None:
    answer = site.cli("list")
    assert answer.code == 4
    assert "Add --site NAME before the command: shop, blog." in answer.stderr


def test_an_unknown_site_is_refused_with_the_names_of_the_others(site: Site) -> None:
    answer = site.cli("--site", "shpo", "list")
    assert (answer.code, "The sites are shop, blog." in answer.stderr) == (4, True)


def test_the_only_site_need_not_be_named(site: Site) -> None:
    path = site.folder / "sites.toml"
    path.write_text(path.read_text().split("[sites.blog]")[0])
    answer = site.cli("list", "--json")
    assert [point["id"] for point in json.loads(answer.stdout)["points"]] == ["20261001_020000"]


def test_a_backup_of_a_site_is_taken_listed_and_drilled_by_its_name(
    tmp_path: Path,
    seeded_application: tuple[Application, SeedSummary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(tmp_path, seeded_application[0], monkeypatch)
    texts = ["[sites.shop]"]
    for variable, value in environment_of(site.application, site.directory).items():
        monkeypatch.setenv(f"SHOP_{variable}", value)
        texts.append(f'{variable.lower()}_env = "SHOP_{variable}"')
    texts += ["[sites.blog]", 'backup_dir = "blog"', 'postgres_db = "blog"', 'minio_bucket = "blog"']
    (tmp_path / "sites.toml").write_text("\n".join(texts))
    site.set(BACKUP_SITES_FILE=str(tmp_path / "sites.toml"))
    site.unset("BACKUP_DIR")
    answer = site.cli("--site", "shop", "backup", "--json")
    assert answer.code == 0, answer
    [point] = site.points()
    assert (point.state, point.point_id.text) == (PointState.VERIFIED, json.loads(answer.stdout)["id"])
    answer = site.cli("--site", "shop", "drill")
    assert answer.code == 0, answer
    assert site.cli("--site", "shop", "status").code == 0
    answer = site.cli("--site", "blog", "backup")
    assert answer.code != 0
    assert "has no database blog" in answer.stderr
