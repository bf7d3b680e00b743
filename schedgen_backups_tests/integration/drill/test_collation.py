"""An ICU database is restored with the same collation, or the difference is named before the load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.drill.database_servers import find_server_bin_dirs
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.point import RestoreRequest, prepare_restore
from schedgen_backups.core.restore.tables import open_side_database
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups_tests.support.artifacts import (
    POINT,
    get_status,
    get_summary,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration

ID = RecoveryPointId(POINT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a server with ICU, which those of the wheels lack."""
    installed = [
        bin_dir for bin_dir, _major in find_server_bin_dirs(15) if "site-packages" not in bin_dir.parts
    ]
    if not installed:
        pytest.skip("no PostgreSQL of the distribution is installed")
    with EmbeddedPostgres(
        tmp_path / "postgres", bin_dir=installed[0], server_options=FAST_SERVER_OPTIONS
    ) as server:
        yield server


@pytest.fixture
def source(server: EmbeddedPostgres) -> DatabaseSettings:
    run(
        server.settings("postgres"),
        "CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-u-kn-true' LC_COLLATE "
        "'C' LC_CTYPE 'C'",
    )
    source = server.settings("icu")
    run(
        source,
        "CREATE TABLE jobs (s3_key text CHECK (s3_key > 'a9')); INSERT INTO jobs VALUES ('a10'), ('b')",
    )
    return source


@pytest.fixture
def catalog(source: DatabaseSettings, bucket: BucketSettings, tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, source)
    publish_archive(catalog, bucket)
    commit_point(catalog, ID, origin=Origin(run_id="a run"), live=make_live(source, bucket))
    return catalog


def test_a_drill_restores_into_the_captured_collation(
    source: DatabaseSettings, catalog: Catalog, tmp_path: Path
) -> None:
    report = drill_point(
        catalog,
        None,
        make_transfer(),
        DrillSettings(tmp_path / "scratch"),
        source=source,
        drilled_by="a test",
    )
    assert get_status(report.results, Check.DATABASE_IS_EQUAL) is CheckStatus.PASSED, get_summary(
        report.results, Check.DATABASE_IS_EQUAL
    )
    assert get_summary(report.results, Check.DATABASE_IS_EQUAL).endswith(
        "; unknown: owner, privileges and settings of the database itself"
    )


def test_the_record_has_the_collation(catalog: Catalog) -> None:
    with open_dump(next(catalog.directory.glob("db_*.sql.gz"))) as dump:
        properties = dump.record.properties
    assert properties is not None
    assert (properties.provider, properties.locale, properties.collate) == ("icu", "en-u-kn-true", "C")


def test_another_collation_of_the_target_is_named_before_the_load(
    server: EmbeddedPostgres, catalog: Catalog
) -> None:
    target = server.create_database("other")
    with prepare_restore(RestoreRequest(catalog.get_point(ID), target, None), make_transfer()) as prepared:
        said = "\n".join(prepared.describe())
    assert "note that the database's collation is libc" in said
    assert "the captured one's was icu en-u-kn-true" in said


def test_a_side_database_sorts_as_the_live_one(source: DatabaseSettings, catalog: Catalog) -> None:
    with open_dump(next(catalog.directory.glob("db_*.sql.gz"))) as dump:
        properties = dump.record.properties
    with (
        DatabaseSession(source.with_database("postgres")) as session,
        open_side_database(session, "side", encoding="UTF8", like=properties) as side,
    ):
        assert run(source.with_database(side.name), "SELECT 'a10' > 'a9'") == [(True,)]
