"""Fixtures of the edge tests: one read-only application per session, and a site per test.

Tests that need other data create their own database or bucket and point their site at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import SeedSummary, seed_application
from schedgen_backups_tests.support.servers import SharedS3, client_of
from schedgen_backups_tests.support.site_parts import BUCKET_KEYS, DATABASE_KEYS, Parts
from schedgen_backups_tests.support.sites import Application, Site


@pytest.fixture(scope="session")
def weed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedS3 | SharedS3]:
    """Yield one S3 server; edge tests do not depend on its make, so they do not run once per make."""
    keys = getattr(request.config, "workerinput", {}).get("shared_s3")
    if keys:
        yield SharedS3(BucketSettings(**keys["admin"]), BucketSettings(**keys["reader"]))
        return
    with EmbeddedS3(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def seeded_application(
    postgres_server: EmbeddedPostgres, weed: EmbeddedS3
) -> tuple[Application, SeedSummary]:
    name = f"edge_{uuid4().hex}"
    application = Application(postgres_server.create_database(name), weed.settings(name.replace("_", "-")))
    return application, seed_application(
        application.database, application.bucket, user_count=20, job_count=40
    )


@pytest.fixture
def application(seeded_application: tuple[Application, SeedSummary]) -> Application:
    return seeded_application[0]


@pytest.fixture
def seeded(seeded_application: tuple[Application, SeedSummary]) -> SeedSummary:
    return seeded_application[1]


@pytest.fixture
def site(tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, application, monkeypatch)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def weed_bucket(weed: EmbeddedS3) -> BucketSettings:
    """Yield a bucket that the test may change; it is deleted with the server."""
    settings = weed.settings(f"edge-{uuid4().hex}")
    client_of(settings).make_bucket(settings.bucket)
    return settings


@pytest.fixture
def parts(
    site: Site,
    database: DatabaseSettings,
    weed_bucket: BucketSettings,
) -> Parts:
    seed_application(database, weed_bucket, user_count=5, job_count=7, seed=3)
    for name in (*DATABASE_KEYS, *BUCKET_KEYS, "POSTGRES_PASSWORD", "MINIO_SECRET_KEY", "BACKUP_DIR"):
        site.unset(name)
    site.set(BACKUP_SITES_FILE=str(site.folder / "sites.toml"))
    found = Parts(
        site,
        {"main": site.application.database, "reports": database},
        {"pdfs": site.application.bucket, "images": weed_bucket},
    )
    found.write()
    return found
