"""Four sites under one daemon: a good, a wrong and a slow one, and one of two databases and two buckets."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.edge.runs.test_cancel import end_children, running_dagster
from schedgen_backups_tests.support.inbox import Inbox, open_inbox
from schedgen_backups_tests.support.sites import Site, environment_of, find_client_processes, wait_until

pytestmark = [pytest.mark.edge, pytest.mark.exhaustive]

HANGING = """#!/bin/sh
for word; do [ "$word" = --version ] && exec {real} --version; done
exec sleep 3600
"""
_LATEST_START_SECONDS = 55
"""After the minute of its schedule; with two points in two minutes, no tick was passed over."""


@pytest.fixture
def hanging(site: Site, postgres_bin_dir: Path) -> Path:
    """Return PostgreSQL's programs with a pg_dump that never ends."""
    folder = site.folder / "pg-bin"
    folder.mkdir()
    for program in postgres_bin_dir.iterdir():
        if program.name != "pg_dump":
            (folder / program.name).symlink_to(program)
    (folder / "pg_dump").write_text(HANGING.format(real=postgres_bin_dir / "pg_dump"))
    (folder / "pg_dump").chmod(0o755)
    return folder


def describe_database(database: DatabaseSettings) -> str:
    return (
        f'postgres_host = "{database.host}"\npostgres_port = {database.port}\n'
        f'postgres_user = "{database.user}"\npostgres_db = "{database.database}"\n'
        'postgres_password_env = "DATABASE_PASSWORD"\n'
    )


def describe_bucket(bucket: BucketSettings) -> str:
    return (
        f'minio_endpoint = "{bucket.endpoint}"\nminio_access_key = "{bucket.access_key}"\n'
        f'minio_bucket = "{bucket.bucket}"\nminio_secret_key_env = "BUCKET_SECRET_KEY"\n'
    )


def write_sites(
    site: Site, inbox: Inbox, hanging: Path, database: DatabaseSettings, bucket: BucketSettings
) -> None:
    first, pdfs = site.application.database, site.application.bucket
    both = describe_database(first) + describe_bucket(pdfs)
    text = f"""
[defaults]
backup_alert_webhook_url_env = "WEBHOOK_URL"
backup_compression_threads = 1
backup_nice = 0

[sites.good]
backup_dir = "good"
backup_schedule = "* * * * *"
{both}
[sites.wrong]
backup_dir = "wrong"
backup_schedule = "* * * * *"
{both.replace("postgres_host", "postgres_hots")}
[sites.slow]
backup_dir = "slow"
backup_schedule = "* * * * *"
pg_bin_dir = "{hanging}"
{both}
[sites.four]
backup_dir = "four"
backup_schedule = "* * * * *"

[sites.four.databases.main]
bucket = "pdfs"
{describe_database(first)}
[sites.four.databases.reports]
{describe_database(database)}
[sites.four.buckets.pdfs]
{describe_bucket(pdfs)}
[sites.four.buckets.images]
{describe_bucket(bucket)}
"""
    path = site.folder / "sites.toml"
    path.write_text(text)
    path.chmod(0o600)
    for name in environment_of(site.application, site.directory):
        site.unset(name)
    site.set(
        BACKUP_SITES_FILE=str(path),
        DATABASE_PASSWORD=first.password,
        WEBHOOK_URL=inbox.url,
        BUCKET_SECRET_KEY=pdfs.secret_key,
    )


@pytest.mark.timeout(900)
def test_no_site_waits_for_another_and_each_alert_is_of_one_site(
    site: Site, hanging: Path, database: DatabaseSettings, weed_bucket: BucketSettings
) -> None:
    seed_application(database, weed_bucket, user_count=5, job_count=7, seed=3)
    [port] = free_ports(1)
    with open_inbox() as inbox:
        write_sites(site, inbox, hanging, database, weed_bucket)

        def list_verified(name: str) -> list[PointListing]:
            points = Catalog(site.folder / name).list_points()
            return [point for point in points if point.state is PointState.VERIFIED]

        try:
            with running_dagster(site, port):
                wait_until(lambda: find_hanging(site), "the slow site's pg_dump runs")
                wait_until(lambda: len(list_verified("good")) > 1, "the good site has two points")
                wait_until(lambda: bool(list_verified("four")), "the site of four has a point")
                wait_until(
                    lambda: any(" wrong: " in alert for alert in inbox.alerts), "the wrong site's alert"
                )
                assert find_hanging(site), "the slow one is still at it"
        finally:
            end_children(site)
        first, second, *_more = list_verified("good")
        assert (
            second.point_id.taken_at - first.point_id.taken_at
        ).total_seconds() < 60 + _LATEST_START_SECONDS
        assert max(point.point_id.taken_at.second for point in (first, second)) < _LATEST_START_SECONDS
        of_wrong = [alert for alert in inbox.alerts if " wrong: " in alert.splitlines()[0]]
        [alert] = of_wrong
        assert "postgres_hots is not a setting; did you mean postgres_host?" in alert
        named = {alert.splitlines()[0].split("] ")[1].split(":")[0] for alert in inbox.alerts}
        assert named <= {"wrong", "slow"}
    assert len(list_verified("four")[0].artifacts) == 4
    for part, target in (
        ("main", ("--database", "daemon_main", "--bucket", "daemon-main")),
        ("reports", ("--database", "daemon_reports")),
        ("images", ("--bucket", "daemon-images")),
    ):
        answer = site.cli("--site", f"four/{part}", "restore", "latest", *target)
        assert answer.code == 0, answer


def find_hanging(site: Site) -> bool:
    commands = find_client_processes(site.application).values()
    return any(command.startswith("sleep") for command in commands)
