"""The file of sites: what each site gets, and that a wrong one harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.config.config import Config
from schedgen_backups.config.sites import load_installation, load_site, load_sites, require_one_site
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import Layout

SHOP = """
[sites.shop]
backup_dir = "shop"
postgres_host = "db1"
postgres_db = "shop"
postgres_password_file = "shop.password"
minio_bucket = "shop-pdfs"
minio_access_key = "shop"
minio_secret_key_env = "SHOP_SECRET"
backup_layout = "packs"
backup_exclude_objects = ["tmp/*", "cache/*"]
"""
BLOG = SHOP.replace("shop", "blog").replace("SHOP", "BLOG").replace('"packs"', '"files"')


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the file of sites is to be written."""
    path = tmp_path / "sites.toml"
    monkeypatch.setenv("BACKUP_SITES_FILE", str(path))
    for name in ("shop", "blog"):
        (tmp_path / f"{name}.password").write_text(f"password of {name}\n")
        monkeypatch.setenv(f"{name.upper()}_SECRET", f"secret of {name}")
    return path


def write(file: Path, *texts: str) -> tuple[Config, ...]:
    file.write_text("\n".join(texts))
    return load_sites()


def find_problem(site: Config, part: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        getattr(site, part)
    return caught.value.message


def test_each_site_has_its_own_settings(file: Path, tmp_path: Path) -> None:
    shop, blog = write(file, SHOP, BLOG)
    assert (shop.site_name, blog.site_name) == ("shop", "blog")
    assert (shop.database.host, shop.database.password) == ("db1", "password of shop")
    assert (blog.database.database, blog.database.password) == ("blog", "password of blog")
    assert (shop.bucket.secret_key, blog.bucket.secret_key) == ("secret of shop", "secret of blog")
    assert (shop.capture.layout, blog.capture.layout) == (Layout.PACKS, Layout.FILES)
    assert shop.capture.exclusions.objects == ("tmp/*", "cache/*")
    assert (shop.backup_directory, blog.backup_directory) == (tmp_path / "shop", tmp_path / "blog")


def test_what_a_site_leaves_out_comes_from_the_defaults_and_then_from_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "6000")
    monkeypatch.setenv("POSTGRES_USER", "everybody")
    monkeypatch.setenv("POSTGRES_PASSWORD", "of the environment")
    (shop,) = write(file, '[defaults]\npostgres_user = "reader"\nbackup_retention_days = 9', SHOP)
    assert (shop.database.port, shop.database.user) == (6000, "reader")
    assert shop.retention.keep_days == 9
    assert shop.database.password == "password of shop"


def test_database_bucket_and_directory_are_never_those_of_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSTGRES_DB", "of_the_environment")
    monkeypatch.setenv("MINIO_BUCKET", "of-the-environment")
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path))
    (site,) = write(file, '[sites.empty]\nminio_access_key = "x"')
    assert "does not set postgres_db" in find_problem(site, "database")
    assert "does not set minio_bucket" in find_problem(site, "bucket")
    assert "does not set backup_dir" in find_problem(site, "backup_directory")


@pytest.mark.parametrize(
    ("change", "part", "said"),
    [
        (("postgres_host", "postgres_hots"), "database", "did you mean postgres_host?"),
        (("backup_layout", "layout"), "capture", "did you mean backup_layout?"),
        (('"shop.password"', '"missing"'), "database", "names a file that cannot be read"),
        (('"SHOP_SECRET"', '"NOT_SET"'), "bucket", "NOT_SET, which is not set"),
        (
            ('postgres_password_file = "shop.password"', 'postgres_password = "canary"'),
            "database",
            "a secret",
        ),
        (('postgres_db = "shop"', "postgres_db = 1.5"), "database", "neither text"),
        (('"packs"', '"boxes"'), "capture", "BACKUP_LAYOUT is invalid"),
        (("sites.shop", 'sites."../shop"'), "backup_directory", "cannot be the name of a site"),
        (("sites.shop", "sites.a__b"), "backup_directory", "cannot be the name of a site"),
    ],
)
def test_a_wrong_setting_is_a_problem_of_that_site_and_of_that_part(
    file: Path, change: tuple[str, str], part: str, said: str
) -> None:
    wrong, blog = write(file, SHOP.replace(*change), BLOG)
    problem = find_problem(wrong, part)
    assert said in problem
    assert "canary" not in problem
    wrong.check("alerts")
    blog.check("database", "bucket", "capture", "backup_directory")


@pytest.mark.parametrize("directory", ["shop", "shop/inner", "."])
def test_two_sites_do_not_share_a_directory(file: Path, directory: str) -> None:
    shop, blog = write(file, SHOP, BLOG.replace('backup_dir = "blog"', f'backup_dir = "{directory}"'))
    shop.check("backup_directory")
    assert "site blog and site shop share the directory" in find_problem(blog, "backup_directory")


def test_a_site_without_a_table_is_a_problem_of_its_own(file: Path) -> None:
    wrong, blog = write(file, "[sites]\nshop = 1", BLOG)
    assert "it holds no table [sites.shop]" in find_problem(wrong, "backup_directory")
    blog.check("backup_directory")


@pytest.mark.parametrize("text", ["", "[sites]", "a = 1", "[sites.x", "[site.shop]\nbackup_dir = 'x'"])
def test_a_file_that_describes_no_site_is_an_error(file: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sites\.toml"):
        write(file, text)
    (only,) = load_installation()
    assert "sites.toml" in find_problem(only, "backup_directory")
    only.check("alerts")


def test_a_file_that_others_can_write_is_refused(file: Path) -> None:
    file.write_text(SHOP)
    file.chmod(0o666)
    with pytest.raises(ConfigurationError, match="writable by every user"):
        load_sites()


def test_of_a_directory_each_file_is_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    folder = tmp_path / "sites.d"
    folder.mkdir()
    monkeypatch.setenv("BACKUP_SITES_FILE", str(folder))
    for name in ("shop", "blog"):
        (folder / f"{name}.password").write_text("x")
    (folder / "defaults.toml").write_text("backup_retention_days = 9")
    (folder / "shop.toml").write_text(SHOP.replace("[sites.shop]", ""))
    (folder / "blog.toml").write_text("not TOML")
    blog, shop = load_sites()
    assert (shop.site_name, shop.retention.keep_days) == ("shop", 9)
    shop.check("database", "bucket", "backup_directory")
    assert "is not TOML" in find_problem(blog, "backup_directory")
    del file


def test_a_site_is_read_again_with_what_changed(file: Path) -> None:
    (shop,) = write(file, SHOP)
    write(file, SHOP.replace('"db1"', '"db2"'))
    again = shop.reload()
    assert (again.site_name, again.database.host) == ("shop", "db2")
    write(file, BLOG)
    gone = again.reload()
    assert "unknown site 'shop'" in find_problem(gone, "database")
    gone.check("alerts", "backup_directory")
    assert write(file, SHOP)[0].reload().database.host == "db1"
    assert gone.reload().database.host == "db1", "once it is described again"


def test_a_site_is_found_by_its_name(file: Path) -> None:
    write(file, SHOP, BLOG)
    assert load_site("blog").database.database == "blog"
    with pytest.raises(ConfigurationError) as caught:
        load_site("shpo")
    assert "shop, blog" in caught.value.hint
    with pytest.raises(ConfigurationError) as caught:
        require_one_site(load_sites())
    assert "--site NAME" in caught.value.hint


def test_without_a_file_the_environment_is_the_only_site(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BACKUP_SITES_FILE", raising=False)
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path))
    site = require_one_site(load_sites())
    assert (site.site_name, site.backup_directory) == ("", tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        load_site("shop")
    assert "BACKUP_SITES_FILE describes sites" in caught.value.hint


def test_a_site_knows_the_environment_file_of_the_installation(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's directory depends on it, whichever site a command works on."""
    (tmp_path / "env").touch(mode=0o600)
    monkeypatch.setenv("BACKUP_ENV_FILE", str(tmp_path / "env"))
    (shop,) = write(file, SHOP)
    assert (shop.file.path, shop.installation_file.path) == (file, tmp_path / "env")
    assert shop.reload().installation_file.path == tmp_path / "env"


def test_a_site_overrides_a_default_that_says_otherwise_where_the_value_is(file: Path) -> None:
    defaults = '[defaults]\npostgres_password_env = "BLOG_SECRET"\nminio_secret_key_file = "blog.password"\n'
    (shop,) = write(file, defaults, SHOP)
    assert (shop.database.password, shop.bucket.secret_key) == ("password of shop", "secret of shop")


def test_an_inherited_file_of_metrics_gets_the_name_of_the_site(file: Path, tmp_path: Path) -> None:
    own = f'{BLOG}\nbackup_metrics_file = "b.prom"'
    shop, blog = write(file, '[defaults]\nbackup_metrics_file = "metrics/m.prom"', SHOP, own)
    assert shop.metrics_file == tmp_path / "metrics" / "m-shop.prom"
    assert blog.metrics_file == tmp_path / "b.prom"
    (wrong,) = write(file, '[defaults]\nbackup_metrics_file = "/"', SHOP)
    assert "does not end with .prom" in find_problem(wrong, "metrics_file")
