"""Databases and buckets of a site in the file of sites: a wrong table is a problem of its site and part."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.config.config import Config
from schedgen_backups.config.site_parts import (
    find_baseline_source,
    has_referring_part,
    read_buckets,
    read_databases,
    read_known_live_parts,
)
from schedgen_backups.config.sites import load_site, load_sites
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.pack_reader import NO_KEYS
from schedgen_backups.core.model import PartName

SHOP = """
[sites.shop]
backup_dir = "shop"
postgres_host = "db1"
postgres_password_env = "SECRET"
minio_secret_key_env = "SECRET"
minio_access_key = "shop"
[sites.shop.databases.main]
postgres_db = "shop"
bucket = "pdfs"
[sites.shop.databases.reports]
postgres_db = "reports"
[sites.shop.buckets.pdfs]
minio_bucket = "shop-pdfs"
[sites.shop.buckets.images]
minio_bucket = "shop-images"
"""
BLOG = """
[sites.blog]
backup_dir = "blog"
postgres_db = "blog"
postgres_password_env = "SECRET"
minio_bucket = "blog-pdfs"
minio_access_key = "blog"
minio_secret_key_env = "SECRET"
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sites.toml"
    monkeypatch.setenv("BACKUP_SITES_FILE", str(path))
    monkeypatch.setenv("SECRET", "of both")
    return path


def write(file: Path, *texts: str) -> tuple[Config, ...]:
    file.write_text("\n".join(texts))
    return load_sites()


def list_errors(site: Config) -> dict[str, str]:
    """Return what is wrong with each database and bucket by its name, or with the whole site."""
    try:
        site.check("backup_directory")
    except ConfigurationError as error:
        return {"site": error.message}
    found = {**read_databases(site)[1], **read_buckets(site)[1]}
    return {name: error.message for name, error in found.items()}


def test_each_database_and_bucket_has_its_name_and_settings(file: Path) -> None:
    shop, blog = write(file, SHOP, BLOG)
    assert list_errors(shop) == list_errors(blog) == {}
    assert [(each.name, each.settings.database) for each in read_databases(shop)[0]] == [
        ("main", "shop"),
        ("reports", "reports"),
    ]
    assert [(each.name, each.settings.bucket) for each in read_buckets(shop)[0]] == [
        ("pdfs", "shop-pdfs"),
        ("images", "shop-images"),
    ]
    assert (shop.is_divided, blog.is_divided) == (True, False)


@pytest.mark.parametrize(
    ("change", "wrong", "said"),
    [
        (('postgres_db = "reports"', ""), "reports", "does not set postgres_db"),
        (('bucket = "pdfs"', 'bucket = "pfds"'), "main", "no bucket 'pfds'"),
        (('\nbucket = "pdfs"', "\nbucket = 3"), "main", "no bucket 3"),
        (('\nbucket = "pdfs"', '\nbukcet = "pdfs"'), "main", "did you mean bucket?"),
        (('postgres_db = "reports"', 'postgres_bd = "reports"'), "reports", "did you mean postgres_db?"),
        (('"reports"', '"reports"\npostgres_password = "canary"'), "reports", "a secret"),
        (('"reports"', '"reports"\nbackup_dir = "elsewhere"'), "reports", "backup_dir belongs elsewhere"),
        (('"shop-images"', '"shop-images"\npostgres_db = "x"'), "images", "postgres_db belongs elsewhere"),
        (('"reports"', '"reports"\nminio_bucket = "x"'), "reports", "minio_bucket belongs elsewhere"),
        (('minio_bucket = "shop-images"', "minio_bucket = 1.5"), "images", "neither text"),
        (("databases.reports", 'databases."a/b"'), "site", "'a/b' cannot be the name"),
        (("databases.reports", "databases.pdfs"), "site", "pdfs is the name of a database and of a bucket"),
    ],
)
def test_a_wrong_table_is_a_problem_of_that_part_only(
    file: Path, change: tuple[str, str], wrong: str, said: str
) -> None:
    assert change[0] in SHOP
    shop, blog = write(file, SHOP.replace(*change), BLOG)
    errors = list_errors(shop)
    assert list(errors) == [wrong]
    assert said in errors[wrong]
    assert "canary" not in errors[wrong]
    shop.check("alerts")
    blog.check("database", "bucket", "capture", "backup_directory")


@pytest.mark.parametrize("tables", ["databases = 3", "databases = {}", "databases = {}\nbuckets = {}"])
def test_tables_that_hold_nothing_are_a_problem_of_that_site(file: Path, tables: str) -> None:
    shop, blog = write(file, SHOP.split("[sites.shop.databases.main]", maxsplit=1)[0] + tables, BLOG)
    assert "site shop" in list_errors(shop)["site"]
    blog.check("database", "bucket", "backup_directory")


def test_the_database_of_the_defaults_is_that_of_no_part(file: Path) -> None:
    (shop,) = write(file, '[defaults]\npostgres_db = "x"', SHOP.replace('postgres_db = "reports"', ""))
    assert list(list_errors(shop)) == ["reports"]
    (images,) = [part for part in shop.parts if part.part == PartName("", "images")]
    with pytest.raises(ConfigurationError, match="has no database"):
        images.check("database")


def test_after_it_was_read_again_every_part_has_the_fetched_points(file: Path, tmp_path: Path) -> None:
    """A drill of a copy must not restore what lies on this host."""
    (shop,) = write(file, SHOP)
    fetched = shop.with_points_in(tmp_path / "fetched", store="nas", keys=NO_KEYS).reload()
    assert {part.backup_directory for part in fetched.parts} == {tmp_path / "fetched"}
    assert {part.make_catalog().directory for part in (fetched, *fetched.parts)} == {tmp_path / "fetched"}
    assert {part.store for part in (fetched, *fetched.parts)} == {"nas"}
    part = load_site("shop/main").with_points_in(tmp_path / "fetched", store="nas", keys=NO_KEYS).reload()
    assert (part.part, part.backup_directory) == (PartName("main", "pdfs"), tmp_path / "fetched")


def test_a_site_that_is_no_longer_described_is_not_backed_up(file: Path) -> None:
    (shop,) = write(file, SHOP)
    write(file, BLOG)
    errors = list_errors(shop.reload())
    assert list(errors) == [""], "one reason, not one for each part"
    assert "unknown site 'shop'" in errors[""]


def test_a_shared_directory_is_a_problem_of_every_part(file: Path) -> None:
    _blog, shop = write(file, BLOG.replace('"blog"', '"shop"', 1), SHOP)
    for part in (shop, *shop.parts):
        with pytest.raises(ConfigurationError, match="share the directory"):
            part.check("backup_directory")


def test_missing_objects_are_accepted_for_one_part(file: Path) -> None:
    shop, blog = write(file, SHOP, BLOG)
    assert find_baseline_source(load_site("shop/main")) == "main and pdfs"
    assert find_baseline_source(blog) == ""
    with pytest.raises(ConfigurationError) as caught:
        find_baseline_source(shop)
    assert "shop/main" in caught.value.hint


def test_the_only_part_has_the_missing_objects_of_the_site(file: Path) -> None:
    (shop,) = write(file, _keep_tables("main", "pdfs"))
    assert find_baseline_source(shop) == find_baseline_source(load_site("shop/main")) == ""


@pytest.mark.parametrize(
    ("names", "is_referring"),
    [(("main", "pdfs"), True), (("reports", "images"), True), (("reports",), False), (("images",), False)],
)
def test_a_site_has_references_if_a_database_has_a_bucket(
    file: Path, names: tuple[str, ...], is_referring: bool
) -> None:
    (shop,) = write(file, _keep_tables(*names))
    assert has_referring_part(shop) is is_referring


def test_databases_beside_buckets_have_no_references(file: Path) -> None:
    (shop,) = write(file, SHOP.replace('\nbucket = "pdfs"', ""))
    assert not has_referring_part(shop)


def test_a_part_that_is_described_wrongly_has_no_live_system(file: Path) -> None:
    (shop,) = write(file, SHOP.replace('postgres_db = "shop"', ""))
    assert [(part.name.database, part.live) for part in read_known_live_parts(shop)] == [
        ("main", None),
        ("reports", None),
        ("", None),
    ]


def _keep_tables(*names: str) -> str:
    head, *tables = SHOP.split("[sites.shop.")
    kept = [table for table in tables if any(f".{name}]" in table for name in names)]
    return "[sites.shop.".join([head, *kept])


def test_nothing_is_wrong_with_a_site_for_having_parts(file: Path) -> None:
    """Lists, the metric of wrong settings and its alarm ask for all of this at once."""
    (shop,) = write(file, SHOP)
    shop.check("database", "database_server", "bucket", "capture")
    (shop,) = write(file, SHOP.replace('postgres_db = "reports"', "postgres_port = 0"))
    with pytest.raises(ConfigurationError, match="database reports does not set postgres_db"):
        shop.check("database")
    shop.check("bucket", "capture")
    (shop,) = write(file, SHOP.replace('bucket = "pdfs"', 'bucket = "pdfs"\nbackup_preset = "wrong"'))
    with pytest.raises(ConfigurationError, match="BACKUP_PRESET is invalid"):
        shop.check("capture")


def test_a_bucket_of_two_databases_needs_the_settings_of_one(file: Path) -> None:
    twice = SHOP.replace('postgres_db = "reports"', 'postgres_db = "reports"\nbucket = "pdfs"')
    wrong = twice.replace('postgres_db = "reports"', 'postgres_db = "reports"\nbackup_preset = "wrong"')
    (shop,) = write(file, wrong)
    buckets, errors = read_buckets(shop)
    assert ([bucket.name for bucket in buckets], errors) == (["pdfs", "images"], {})
    databases, errors = read_databases(shop)
    assert ([database.name for database in databases], list(errors)) == (["main"], ["reports"])


TWICE = SHOP.replace('postgres_db = "reports"', 'postgres_db = "reports"\nbucket = "pdfs"')


@pytest.mark.parametrize(
    "setting",
    [
        'backup_exclude_objects = "tmp/*"',
        "backup_allow_empty = true",
        "backup_allow_new_source = true",
        "backup_reread_days = 3",
        'backup_layout = "packs"',
        "backup_pack_reread_days = 3",
        "backup_max_mb_per_second = 3",
    ],
)
def test_two_databases_of_a_bucket_must_not_differ_in_a_setting_of_its_archive(
    file: Path, setting: str
) -> None:
    (shop,) = write(file, TWICE.replace('"reports"', f'"reports"\n{setting}', 1))
    buckets, errors = read_buckets(shop)
    assert ([bucket.name for bucket in buckets], list(errors)) == (["images"], ["pdfs"])
    name = setting.partition(" ")[0]
    assert errors["pdfs"].message == f"site shop: the databases of bucket pdfs differ in {name}"
    assert "in the table of bucket pdfs" in errors["pdfs"].hint
    databases, errors = read_databases(shop)
    assert ([database.name for database in databases], errors) == (["main", "reports"], {})


@pytest.mark.parametrize(
    ("place", "setting"),
    [
        ('"reports"', 'backup_exclude_table_data = "log"'),
        ('"reports"', 'backup_reference_query = "SELECT key FROM files"'),
        ('"reports"', "backup_dump_jobs = 3"),
        ('"shop-pdfs"', 'backup_exclude_objects = "tmp/*"'),
    ],
)
def test_two_databases_of_a_bucket_may_differ_in_settings_of_their_dumps(
    file: Path, place: str, setting: str
) -> None:
    (shop,) = write(file, TWICE.replace(place, f"{place}\n{setting}", 1))
    assert [bucket.name for bucket in read_buckets(shop)[0]] == ["pdfs", "images"]
    assert list_errors(shop) == {}
