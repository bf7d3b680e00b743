"""A table owner of the live database gains no shell, variable or file through the weekly drill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.drill import drill as drill_module
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import Origin, RecoveryPointId
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
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration


def take_point(folder: Path, database: DatabaseSettings, bucket: BucketSettings) -> Catalog:
    """Commit a point of the database and of one object, and return its catalog."""
    put(bucket, "k1", b"%PDF-")
    catalog = Catalog(folder / "backups")
    catalog.prepare()
    publish_dump(catalog, database)
    publish_archive(catalog, bucket)
    commit_point(
        catalog, RecoveryPointId(POINT), origin=Origin(run_id="a run"), live=make_live(database, bucket)
    )
    return catalog


ENDLESS = """
CREATE FUNCTION waits(i int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF pg_catalog.current_database() <> 'LIVE' THEN PERFORM pg_catalog.pg_sleep(100000); END IF;
    RETURN true;
END $$;
CREATE TABLE jobs (s3_key text, i int CHECK (public.waits(i)));
INSERT INTO jobs VALUES ('k1', 1);
"""


def test_code_that_never_ends_does_not_keep_a_drill_from_ending(
    tmp_path: Path, database: DatabaseSettings, bucket: BucketSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, ENDLESS.replace("LIVE", database.database))
    catalog = take_point(tmp_path, database, bucket)
    monkeypatch.setattr(drill_module, "PIN_TIME_FACTOR", 0.2)
    drill = DrillSettings(tmp_path / "drill", max_minutes=1)
    with pytest.raises(RestoreError, match="the drill was aborted after 0 minutes") as refused:
        drill_point(catalog, None, make_transfer(), drill, source=database, drilled_by="a test")
    assert "DRILL_MAX_MINUTES" in refused.value.hint
    assert catalog.get_point(RecoveryPointId(POINT)).state is PointState.VERIFIED


SHELL = """
CREATE FUNCTION ok(i int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF pg_catalog.current_setting('is_superuser') = 'on' THEN
        EXECUTE 'COPY (SELECT 1) TO PROGRAM ''(id; env; ls -la; cat) > {marker} 2>&1''';
    END IF;
    RETURN true;
END $$;
CREATE TABLE jobs (s3_key text, i int CHECK (public.ok(i)));
INSERT INTO jobs VALUES ('k1', 1);
CREATE VIEW inspected AS SELECT public.ok(1);
"""


def test_a_table_owner_gets_no_shell_through_the_drill(
    tmp_path: Path, database: DatabaseSettings, bucket: BucketSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "shell"
    name = f"{database.database}_owner"
    run(database, f"CREATE ROLE {name} LOGIN PASSWORD 'x'; ALTER SCHEMA public OWNER TO {name}")
    owner = replace(database, user=name, password="x")
    assert run(owner, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    run(owner, SHELL.replace("{marker}", str(marker)))
    catalog = take_point(tmp_path, database, bucket)
    monkeypatch.setenv("POSTGRES_PASSWORD", "canary-of-production")
    checks = tmp_path / "checks.sql"
    checks.write_text("SELECT ok FROM inspected;")
    drill = DrillSettings(tmp_path / "drill", sql_checks_path=checks)
    report = drill_point(catalog, None, make_transfer(), drill, source=database, drilled_by="a test")
    run(
        database,
        "DROP TABLE jobs CASCADE; ALTER SCHEMA public OWNER TO pg_database_owner; DROP FUNCTION ok "
        f"CASCADE; DROP ROLE {name}",
    )
    assert not marker.exists(), marker.read_text()
    assert {result.check.value: result.status.value for result in report.results}[
        "database_is_equal"
    ] == "passed"
    assert catalog.get_point(RecoveryPointId(POINT)).state is PointState.VERIFIED
