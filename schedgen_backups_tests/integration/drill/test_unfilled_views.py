"""A materialized view over data closed to a drill stays unfilled and is named.

The rest is restored and compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups_tests.support.artifacts import (
    POINT,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration

FAR = """
CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1',
    port '{port}', dbname 'live');
CREATE USER MAPPING FOR {user} SERVER s OPTIONS (user '{user}', password '{password}');
CREATE FOREIGN TABLE ft (i integer) SERVER s OPTIONS (table_name 't');
"""
CHAIN = """
CREATE EXTENSION dblink; CREATE MATERIALIZED VIEW m AS
SELECT * FROM dblink('host=127.0.0.1 port={port} dbname=live user={user} password={password}',
    'SELECT 1') AS t(i integer);
CREATE UNIQUE INDEX ON m (i); ALTER MATERIALIZED VIEW m CLUSTER ON m_i_idx;
CREATE MATERIALIZED VIEW n AS SELECT i + 1 AS i FROM m;
CREATE MATERIALIZED VIEW o AS SELECT i FROM n; CREATE MATERIALIZED VIEW p AS SELECT i FROM t;
"""
VIEWS = {
    "a foreign table": (
        f"{FAR} CREATE MATERIALIZED VIEW m AS SELECT * FROM ft",
        "1 materialized views were not filled, {}: public.m",
    ),
    "dblink": (CHAIN, "3 materialized views were not filled, {}: public.m, public.n, public.o"),
    "passwords of the server": (
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM pg_shadow",
        "1 materialized views were not filled, {}: public.m",
    ),
    "files of the server": (
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM pg_ls_waldir()",
        "1 materialized views were not filled, {}: public.m",
    ),
}
WHY = "since a drill may not read their sources"


class Application:
    """A database and a bucket with a committed recovery point, and drills of it."""

    def __init__(
        self, directory: Path, database: DatabaseSettings, bucket: BucketSettings, script: str
    ) -> None:
        self.directory, self.database = directory, database
        words = {"port": str(database.port), "user": database.user, "password": database.password}
        for name, value in words.items():
            script = script.replace(f"{{{name}}}", value)
        run(
            database,
            "CREATE TABLE t AS SELECT 1 AS i; CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES "
            "('k1')",
        )
        run(database, script)
        put(bucket, "k1", b"%PDF-")
        self.catalog = Catalog(directory / "backups")
        self.catalog.prepare()
        publish_dump(self.catalog, database)
        publish_archive(self.catalog, bucket)
        commit_point(
            self.catalog,
            RecoveryPointId(POINT),
            origin=Origin(run_id="a run"),
            live=make_live(database, bucket),
        )

    @property
    def state(self) -> PointState:
        return self.catalog.get_point(RecoveryPointId(POINT)).state

    def drill(self) -> DrillReport:
        # As config.py does: hiding files also closes the network.
        settings = DrillSettings(self.directory / "drill", hidden_paths=(self.catalog.directory,))
        return drill_point(
            self.catalog, None, make_transfer(), settings, source=self.database, drilled_by="a test"
        )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(*view, marks=pytest.mark.exhaustive if name.startswith("files") else (), id=name)
        for name, view in VIEWS.items()
    ],
)
def test_a_view_over_data_closed_to_a_drill_is_unknown(
    tmp_path: Path, bucket: BucketSettings, postgres_bin_dir: Path, script: str, words: str
) -> None:
    with EmbeddedPostgres(
        tmp_path / "s", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
    ) as source:
        application = Application(tmp_path, source.create_database("live"), bucket, script)
        # The data that the view reads is gone, also for a server with a network.
        source.stop()
        report = application.drill()
    results = {result.check: result for result in report.results}
    assert results[Check.DATABASE_IS_RESTORED].is_passed
    equal = results[Check.DATABASE_IS_EQUAL]
    assert (equal.status, words.format(WHY) in equal.summary) == (CheckStatus.UNKNOWN, True), equal.summary
    assert "every row is equal" in equal.summary
    assert application.state is PointState.VERIFIED


STATEFUL = """
CREATE TABLE later AS SELECT 1 AS i;
CREATE FUNCTION f() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN IF NOT EXISTS (SELECT FROM public.later) THEN RAISE EXCEPTION 'not yet' USING ERRCODE = '{code}';
END IF; RETURN 1; END$$;
CREATE MATERIALIZED VIEW m AS SELECT f();
DELETE FROM later;
"""


@pytest.mark.parametrize(
    "code", ["55000", *(pytest.param(other, marks=pytest.mark.exhaustive) for other in ("22012", "42P01"))]
)
def test_a_view_that_no_restore_could_fill_fails_the_drill(
    tmp_path: Path, bucket: BucketSettings, postgres_bin_dir: Path, code: str
) -> None:
    with EmbeddedPostgres(
        tmp_path / "s", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
    ) as source:
        application = Application(
            tmp_path, source.create_database("live"), bucket, STATEFUL.replace("{code}", code)
        )
        with pytest.raises(RestoreError, match=r"REFRESH MATERIALIZED VIEW public\.m"):
            application.drill()
