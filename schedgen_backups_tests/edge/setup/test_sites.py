"""The command `sites`: the list, and the move of an installation into a file of sites."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from schedgen_backups.config.config import Config, Part, load_config
from schedgen_backups.config.drill import DrillSettings
from schedgen_backups.config.sites import load_site
from schedgen_backups.config.variables import NAMES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup.site_file import PATHS
from schedgen_backups_tests.support.copies import list_objects, make_point
from schedgen_backups_tests.support.site_stores import UNREACHABLE
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

ENVIRONMENT = """
POSTGRES_HOST=db1
POSTGRES_PORT=6000
POSTGRES_USER=reader
POSTGRES_PASSWORD='canary $1 "quoted" \\ # äöü'
POSTGRES_DB=shop
PGSSLMODE=require
MINIO_ENDPOINT=minio:9000
MINIO_ACCESS_KEY=shop
MINIO_SECRET_KEY_FILE=keys/secret
MINIO_BUCKET=shop-pdfs
BACKUP_DIR=points
BACKUP_NAME=production
BACKUP_SCHEDULE='0 3 * * *'
BACKUP_LAYOUT=packs
BACKUP_EXCLUDE_OBJECTS='tmp/*,cache/*'
BACKUP_BEFORE_COMMAND='echo "a \\ b" > /dev/null; true'
BACKUP_REFERENCE_QUERY='SELECT "pdf path" FROM jobs'
BACKUP_STORES_FILE=stores.toml
BACKUP_GIT_DIRECTORY=.
DRILL_DIR=drills
DRILL_SQL_CHECKS=checks.sql
SMTP_HOST=mail
BACKUP_ALERT_EMAIL=a@example.org
SMTP_PASSWORD=canary-mail
BACKUP_UI_HOSTS=backups.example.org
BACKUP_RETENTION_DAYS=9
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that its environment file describes, apart from one secret of the process."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    site.env.write_text(ENVIRONMENT)
    site.set(RESTORE_POSTGRES_PASSWORD="canary-process")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "secret").write_text("canary-key\n")
    (tmp_path / "checks.sql").write_text("SELECT 1\n")
    store = f'[stores.disk]\nurl = "file://{tmp_path}/copies"\nencryption = "none"\n'
    (tmp_path / "stores.toml").write_text(store)
    (tmp_path / "etc").mkdir()
    return site


def read_parts(config: Config) -> dict[str, Any]:
    """Return every part of the configuration, without what the file itself and the name decide."""
    parts = {part: getattr(config, part) for part in get_args(Part) if part != "stores"}
    drill = parts["drill"]
    assert isinstance(drill, DrillSettings)
    parts["drill"] = replace(drill, hidden_paths=())
    return {
        **parts,
        "stores": [(entry.name, entry.require()) for entry in config.stores],
        "definitions": config.definitions,
        "housekeeping": config.housekeeping,
        "metrics_file": config.metrics_file,
    }


def run_import(site: Site, *options: str) -> Path:
    path = site.folder / "etc" / "sites.toml"
    answer = site.cli("sites", "import-env", "shop", "--to", str(path), *options)
    assert answer.code == 0, answer
    assert "canary" not in answer.stdout + answer.stderr
    return path


def test_the_site_of_the_file_has_the_settings_of_the_environment(site: Site) -> None:
    before = read_parts(load_config())
    path = run_import(site)
    site.set(BACKUP_SITES_FILE=str(path))
    assert read_parts(load_site("shop")) == before
    site.env.write_text("BACKUP_UI_HOSTS=backups.example.org\n")
    assert read_parts(load_site("shop")) == before


def test_the_points_stay_the_sites_own(site: Site) -> None:
    make_point(Catalog(site.folder / "points"), 1, list_objects(2))
    before = site.cli("list", "--json").stdout
    site.set(BACKUP_SITES_FILE=str(run_import(site)))
    assert site.cli("--site", "shop", "list", "--json").stdout == before


def test_secrets_are_in_files_of_their_owner_and_never_in_the_file_of_sites(site: Site) -> None:
    path = run_import(site)
    assert "canary" not in path.read_text()
    secrets = sorted(file for file in path.parent.iterdir() if file != path)
    assert [file.name for file in secrets] == ["shop.postgres_password", "shop.smtp_password"]
    assert secrets[0].read_text() == 'canary $1 "quoted" \\ # äöü\n'
    assert {file.stat().st_mode & 0o777 for file in (path, *secrets)} == {0o600}
    text = path.read_text()
    assert f'minio_secret_key_file = "{site.folder}/keys/secret"' in text
    assert 'restore_postgres_password_env = "RESTORE_POSTGRES_PASSWORD"' in text
    assert "ui_hosts" not in text


def test_a_dry_run_prints_the_file_and_writes_nothing(site: Site) -> None:
    path = site.folder / "etc" / "sites.toml"
    answer = site.cli("sites", "import-env", "shop", "--to", str(path), "--dry-run")
    assert (answer.code, list(path.parent.iterdir())) == (0, [])
    printed = answer.stdout.partition("[sites.shop]")[2].partition("would be written")[0]
    run_import(site)
    assert f"[sites.shop]{printed}".strip() == path.read_text().strip()
    assert "shop/database_dump" in answer.stdout
    assert "the history of an asset or a schedule begins again" in answer.stdout


@pytest.mark.parametrize("existing", ["sites.toml", "shop.smtp_password"])
def test_nothing_is_overwritten(site: Site, existing: str) -> None:
    folder = site.folder / "etc"
    (folder / existing).write_text("mine")
    answer = site.cli("sites", "import-env", "shop", "--to", str(folder / "sites.toml"))
    assert (answer.code, "exists" in answer.stderr) == (4, True)
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(existing, "mine")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import-env",), "needs a name and a file"),
        (("import-env", "Shop", "--to", "etc/sites.toml"), "cannot be the name of a site"),
        (("import-env", "shop", "--to", "nowhere/sites.toml"), "cannot be written"),
        (("list", "shop"), "takes no NAME"),
    ],
)
def test_wrong_calls_are_refused(site: Site, arguments: tuple[str, ...], said: str) -> None:
    answer = site.cli("sites", *arguments)
    assert answer.code in {4, 6}
    assert said in answer.stderr
    assert list((site.folder / "etc").iterdir()) == []


def test_an_installation_with_a_file_of_sites_is_not_imported(site: Site) -> None:
    site.set(BACKUP_SITES_FILE=str(run_import(site)))
    answer = site.cli("sites", "import-env", "blog", "--to", "etc/blog.toml")
    assert (answer.code, "has a file of sites" in answer.stderr) == (4, True)


def test_the_list_has_every_site_with_its_problem(site: Site) -> None:
    path = run_import(site)
    path.write_text(path.read_text() + '\n[sites.blog]\nbackup_dir = "blog"\nminio_bucket = "x"\n')
    site.set(BACKUP_SITES_FILE=str(path))
    answer = site.cli("sites", "--json")
    assert answer.code == 4
    shop, blog = json.loads(answer.stdout)["sites"]
    assert shop == {"name": "shop", "directory": str(site.folder / "points"), "problem": None}
    assert blog["directory"] == str(path.parent / "blog")
    assert "site blog does not set postgres_db" in blog["problem"]
    assert "does not set postgres_db" in site.cli("sites").stdout


def test_every_setting_that_is_a_path_is_known() -> None:
    """A relative path would start at another directory after the move."""
    package = Path(__file__).resolve().parents[3] / "schedgen_backups" / "config"
    constants = {
        "METRICS_VARIABLE": "BACKUP_METRICS_FILE",
        "PACK_IDENTITY_VARIABLE": "BACKUP_PACK_IDENTITY_FILE",
        "STAGING_VARIABLE": "BACKUP_STAGING_DIR",
        "STORES_VARIABLE": "BACKUP_STORES_FILE",
    }
    found: set[str] = set()
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "reader.path":
                name = ast.unparse(node.args[0]).strip("'")
                found.add(constants.get(name, name))
    assert found - {"SITES_VARIABLE", "CERTIFICATES_VARIABLE"} == PATHS


def test_defaults_that_each_site_must_set_are_written(site: Site) -> None:
    site.env.write_text("POSTGRES_PASSWORD=canary\nMINIO_ACCESS_KEY=x\nMINIO_SECRET_KEY=canary\n")
    before = load_config()
    site.set(BACKUP_SITES_FILE=str(run_import(site)))
    after = load_site("shop")
    for part in ("database", "bucket", "backup_directory"):
        assert getattr(before, part) == getattr(after, part)


def test_wrong_settings_are_imported_as_they_are(site: Site) -> None:
    site.env.write_text(ENVIRONMENT.replace("PORT=6000", "PORT=many"))
    site.set(BACKUP_SITES_FILE=str(run_import(site)))
    with pytest.raises(ConfigurationError, match="POSTGRES_PORT is invalid"):
        load_site("shop").check("database")
