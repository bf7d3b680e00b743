"""The `restore` command: empty and full targets, confirmation and dry run.

All tests share one site with one recovery point; each has its own targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO

import dagster as dg
import pytest

from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Application, Site

pytestmark = [pytest.mark.edge]

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


@pytest.fixture(scope="module")
def cli_site(
    tmp_path_factory: pytest.TempPathFactory, seeded_application: tuple[Application, SeedSummary]
) -> Iterator[Site]:
    """Return a site with one verified recovery point."""
    with pytest.MonkeyPatch.context() as monkeypatch, dg.DagsterInstance.ephemeral() as instance:
        site = Site(tmp_path_factory.mktemp("restore"), seeded_application[0], monkeypatch)
        assert site.run(instance).success
        yield site


def keys_of(bucket: BucketSettings) -> set[str | None]:
    return {entry.object_name for entry in client_of(bucket).list_objects(bucket.bucket, recursive=True)}


def url_of(database: DatabaseSettings) -> str:
    return f"postgresql://{database.user}@{database.host}:{database.port}/{database.database}"


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    cli_site: Site, database: DatabaseSettings, weed_bucket: BucketSettings
) -> None:
    targets = ("--database", database.database, "--bucket", weed_bucket.bucket)
    answer = cli_site.cli("restore", "latest", *targets, "--dry-run")
    assert (answer.code, answer.stdout) == (0, "")
    assert f"would load 3 tables with 63 rows into {database.label}" in answer.stderr
    steps = json.loads(cli_site.cli("restore", "latest", *targets, "--dry-run", "--json").stdout)["steps"]
    assert any(weed_bucket.label in step for step in steps)
    assert run(database, TABLES) == []
    assert keys_of(weed_bucket) == set()


def test_a_restore_into_empty_targets_is_equal(
    cli_site: Site, database: DatabaseSettings, weed_bucket: BucketSettings
) -> None:
    bucket_url = f"http://{weed_bucket.endpoint}/{weed_bucket.bucket}"
    result = cli_site.cli(
        "restore", "latest", "--database", url_of(database), "--bucket", bucket_url, "--json"
    )
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["equal"] is True
    assert {found["status"] for found in report["results"]} == {"passed"}
    assert report["seconds"].keys() == {"verify", "restore", "compare"}
    source = cli_site.application
    assert keys_of(weed_bucket) == keys_of(source.bucket)
    for (table,) in run(source.database, TABLES):
        rows = f"SELECT t::text FROM {table} AS t ORDER BY 1"
        assert run(database, rows) == run(source.database, rows)
    [listed] = json.loads(cli_site.cli("list", "--json").stdout)["points"]
    assert (listed["levels"]["restored"], listed["levels"]["equal"]) == ("passed", "passed")


def test_restoring_one_half_warns_about_the_other(cli_site: Site, database: DatabaseSettings) -> None:
    [point] = cli_site.points()
    result = cli_site.cli("restore", point.point_id.text, "--database", database.database)
    assert result.code == 0
    assert "database_is_equal" in result.stdout
    assert "load 3 tables" in result.stderr


def test_a_full_target_is_replaced_only_when_its_name_is_typed(
    cli_site: Site, database: DatabaseSettings
) -> None:
    run(database, "CREATE TABLE precious AS SELECT 1 AS one")
    words = ("restore", "latest", "--database", database.database)
    refused = [
        cli_site.cli(*words),
        cli_site.cli(*words, "--into-nonempty"),
        cli_site.cli(*words, "--into-nonempty", "--confirm", "yes"),
    ]
    assert [(result.code, result.stdout) for result in refused] == [(7, "")] * 3
    assert "error:" in refused[0].stderr
    assert all("not confirmed" in result.stderr for result in refused[1:])
    assert run(database, TABLES) == [("precious",)]
    confirmed = cli_site.cli(*words, "--into-nonempty", "--confirm", database.database)
    assert confirmed.code == 0
    assert "remove everything" in confirmed.stderr
    assert ("precious",) not in run(database, TABLES)
    assert run(database, "SELECT count(*) FROM users") == [(20,)]


def test_a_full_bucket_is_kept_without_confirmation(cli_site: Site, weed_bucket: BucketSettings) -> None:
    client_of(weed_bucket).put_object(weed_bucket.bucket, "precious.pdf", BytesIO(b"%PDF"), 4)
    words = ("restore", "latest", "--bucket", weed_bucket.bucket)
    assert cli_site.cli(*words).code == 7
    assert cli_site.cli(*words, "--into-nonempty", "--confirm", "another").code == 7
    assert keys_of(weed_bucket) == {"precious.pdf"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--database", "postgresql://host-without-user:5432/"), "lacks a user or a database"),
        (("--bucket", "ftp://127.0.0.1/name"), "--bucket is not a valid bucket URL"),
        (("--database", "postgresql://schedgen@127.0.0.1:port/name"), "--database"),
        (("--bucket", "http://127.0.0.1:port/name"), "--bucket"),
        # A slash in a password must be %2F; otherwise the part before it is parsed as the port.
        (("--database", "postgresql://schedgen:hunter2/x@127.0.0.1:5432/name"), "--database"),
    ],
    ids=["no user", "scheme", "database port", "bucket port", "password"],
)
def test_an_invalid_target_exits_with_4(words: tuple[str, ...], said: str, cli_site: Site) -> None:
    result = cli_site.cli("restore", "latest", *words)
    assert (result.code, result.stdout) == (4, ""), result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stderr


def test_a_restore_without_a_target_is_refused(cli_site: Site) -> None:
    result = cli_site.cli("restore", "latest")
    assert result.code != 0
    assert "no database and no bucket given" in result.stderr
