"""Restore drills of real recovery points on real servers: what passes, what is found, and no leftovers.

Killed drills are in `test_drill_killed`, runs under Dagster in `edge/defs/test_drill`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.drill.database_servers import find_server_bin_dirs
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, VerificationError
from schedgen_backups.core.model import ArtifactKind, Origin, RecoveryPointId
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings, TransferSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.artifacts import (
    POINT,
    damage,
    get_status,
    get_summary,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.dumps import ODDITIES
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, S3Server, client_of, run

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 180
DOCUMENTS = "SELECT key FROM documents"


class Drilled:
    """An application with a committed recovery point, and drills of it."""

    def __init__(
        self, directory: Path, database: DatabaseSettings, bucket: BucketSettings, query: str | None = None
    ) -> None:
        self.catalog = Catalog(directory / "backups")
        self.catalog.prepare()
        self.database, self.bucket = database, bucket
        self._fields: dict[str, object] = (
            {"reference_query": query, "is_reference_query_default": False} if query else {}
        )
        self.backup: TransferSettings = make_transfer()
        self.settings = DrillSettings(directory / "scratch")
        publish_dump(self.catalog, database, **self._fields)
        publish_archive(self.catalog, bucket)

    def commit(self) -> None:
        live = make_live(self.database, self.bucket, **self._fields)
        commit_point(self.catalog, RecoveryPointId(POINT), origin=Origin(run_id="a run"), live=live)

    def drill(self, seen: list[str] | None = None, **settings: object) -> DrillReport:
        """Run a drill to its end and assert that it left no folder."""
        chosen = replace(self.settings, **settings)  # type: ignore[arg-type]
        phases = seen if seen is not None else []
        try:
            return drill_point(
                self.catalog,
                None,
                self.backup,
                chosen,
                source=self.database,
                drilled_by="a test",
                on_progress=lambda phase, _size: phases.append(phase),
            )
        finally:
            assert [path.name for path in chosen.directory.iterdir() if path.is_dir()] == []
            assert [path.name for path in self.catalog.directory.glob("pin_*")] == []

    @property
    def state(self) -> PointState:
        return self.catalog.get_point(RecoveryPointId(POINT)).state


def list_scratch(server: DatabaseSettings, bucket: BucketSettings) -> tuple[set[str], set[str]]:
    """Return what drills left on the servers.

    Drills of other workers share the S3 server: theirs disappears without this test.
    """

    def look() -> tuple[set[str], set[str]]:
        databases = {
            str(name)
            for (name,) in run(server, "SELECT datname FROM pg_database WHERE datname LIKE 'schedgen_drill%'")
        }
        return databases, {
            found.name
            for found in client_of(bucket).list_buckets()
            if found.name.startswith("schedgen-drill")
        }

    databases, buckets = look()
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while (databases or buckets) and time.monotonic() < ends_at:
        time.sleep(0.5)
        now = look()
        databases, buckets = databases & now[0], buckets & now[1]
    return databases, buckets


def failures_of(report: DrillReport) -> dict[str, str]:
    unremarkable = {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED}
    return {
        result.check.value: result.summary for result in report.results if result.status not in unremarkable
    }


def fill_documents(database: DatabaseSettings, bucket: BucketSettings, pdfs: list[Path]) -> None:
    run(database, "CREATE TABLE documents (key text PRIMARY KEY)")
    for path in pdfs:
        put(bucket, f"docs/{path.name}", path.read_bytes())
        run(database, f"INSERT INTO documents VALUES ('docs/{path.name}')")


@pytest.fixture
def servers(postgres_server: EmbeddedPostgres, bucket: BucketSettings) -> dict[str, object]:
    """Return servers that are not the drill's own, here the source's, which is allowed."""
    return {
        "database": postgres_server.settings("postgres"),
        "bucket": bucket,
        "is_source_server_allowed": True,
    }


def test_every_kind_of_type_and_name_is_equal_after_a_drill(
    database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path
) -> None:
    run(database, ODDITIES)
    put(bucket, "any", b"thing")
    drilled = Drilled(tmp_path, database, bucket)
    drilled.commit()
    report = drilled.drill()
    assert failures_of(report) == {}
    assert get_status(report.results, Check.DATABASE_IS_EQUAL) is CheckStatus.PASSED
    assert get_status(report.results, Check.REFERENCED_PDFS_OPEN) is CheckStatus.NOT_CONFIGURED
    assert drilled.state is PointState.VERIFIED


def test_chinook_and_real_pdfs_are_drilled_on_named_servers_without_leftovers(
    database: DatabaseSettings,
    bucket: BucketSettings,
    servers: dict[str, object],
    shared_data: Path,
    tmp_path: Path,
) -> None:
    script = (shared_data / "chinook.sql").read_text(encoding="utf-8")
    run(
        database,
        "\n".join(
            line
            for line in script.splitlines()
            if not line.startswith(("DROP DATABASE", "CREATE DATABASE", "\\c"))
        ),
    )
    # The sample's size, without the broken ones at the end of the list.
    pdfs = sorted((shared_data / "pdfs").glob("*.pdf"))[:15]
    fill_documents(database, bucket, pdfs)
    put(bucket, "docs/notes.txt", b"no PDF", content_type="text/plain")
    run(database, "INSERT INTO documents VALUES ('docs/notes.txt')")
    checks = tmp_path / "checks.sql"
    checks.write_text(
        "-- artists\nSELECT count(*) > 100 FROM artist;\n-- no ';' is lost\nSELECT ';' = ';'",
        encoding="utf-8",
    )
    drilled = Drilled(tmp_path, database, bucket, DOCUMENTS)
    drilled.commit()
    seen: list[str] = []
    report = drilled.drill(seen, **servers, sql_checks_path=checks)
    assert (failures_of(report), report.is_passed) == ({}, True)
    [sampled] = [result for result in report.results if result.check is Check.REFERENCED_PDFS_OPEN]
    assert (sampled.figures["pdfs_opened"], sampled.figures["objects_compared_only"]) == (len(pdfs), 1)
    assert get_summary(report.results, Check.OPERATOR_CHECKS_HOLD) == "2 of 2 checks passed"
    assert set(seen) == {"verify", "database", "bucket", "compare", "sample", "sql checks"}
    assert report.rto_seconds == report.seconds.total > 0
    assert list_scratch(database, bucket) == (set(), set())


def test_a_broken_pdf_of_the_live_system_is_named_and_does_not_fail_the_point(
    database: DatabaseSettings, bucket: BucketSettings, servers: dict[str, object], tmp_path: Path
) -> None:
    run(database, "CREATE TABLE documents (key text); INSERT INTO documents VALUES ('broken.pdf')")
    put(bucket, "broken.pdf", b"%PDF-1.7 and no more")
    drilled = Drilled(tmp_path, database, bucket, DOCUMENTS)
    drilled.commit()
    report = drilled.drill(**servers)
    assert list(failures_of(report)) == ["referenced_pdfs_open"]
    assert (
        "captured bytes but cannot be read as their content type"
        in failures_of(report)["referenced_pdfs_open"]
    )
    assert "broken.pdf" in failures_of(report)["referenced_pdfs_open"]
    assert get_status(report.results, Check.REFERENCED_PDFS_OPEN) is CheckStatus.UNKNOWN
    assert not report.is_passed
    assert drilled.state is PointState.VERIFIED


def test_a_key_missing_in_the_live_system_is_not_a_failure(
    database: DatabaseSettings, bucket: BucketSettings, servers: dict[str, object], tmp_path: Path
) -> None:
    run(database, "CREATE TABLE documents (key text); INSERT INTO documents VALUES ('gone.pdf')")
    drilled = Drilled(tmp_path, database, bucket, DOCUMENTS)
    drilled.commit()
    report = drilled.drill(**servers)
    assert failures_of(report) == {}
    assert "1 keys have no object, as recorded" in get_summary(report.results, Check.REFERENCED_PDFS_OPEN)


@pytest.mark.parametrize("kind", ArtifactKind)
def test_damage_is_found_before_anything_is_written_and_fails_the_point(
    seeded: SeedSummary,
    database: DatabaseSettings,
    bucket: BucketSettings,
    servers: dict[str, object],
    tmp_path: Path,
    kind: ArtifactKind,
) -> None:
    assert seeded.jobs > 0
    drilled = Drilled(tmp_path, database, bucket)
    drilled.commit()
    path = drilled.catalog.get_point(RecoveryPointId(POINT)).get_path(kind)
    path.write_bytes(damage(path.read_bytes(), path.stat().st_size * 4))
    seen: list[str] = []
    with pytest.raises(VerificationError):
        drilled.drill(seen, **servers)
    assert set(seen) <= {"verify"}
    assert drilled.state is PointState.FAILED
    assert list_scratch(database, bucket) == (set(), set())
    with pytest.raises(PointNotFoundError, match="no verified recovery point"):
        drilled.drill(**servers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_backed_up_server_is_refused_under_any_name(
    database: DatabaseSettings,
    bucket: BucketSettings,
    postgres_server: EmbeddedPostgres,
    tmp_path: Path,
    host: str,
) -> None:
    run(database, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    put(bucket, "any", b"thing")
    drilled = Drilled(tmp_path, database, bucket)
    drilled.commit()
    with pytest.raises(ConfigurationError, match="names the server that was backed up"):
        drilled.drill(database=replace(postgres_server.settings("postgres"), host=host), bucket=bucket)
    assert list_scratch(database, bucket) == (set(), set())


def find_majors() -> dict[int, Path]:
    """Yield a server of each major version on this machine."""
    return {major: bin_dir for bin_dir, major in reversed(find_server_bin_dirs(0))}


@pytest.fixture(scope="module", params=sorted(find_majors()))
def some_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    directory = tmp_path_factory.mktemp(f"major-{request.param}")
    with EmbeddedPostgres(
        directory, bin_dir=find_majors()[request.param], server_options=FAST_SERVER_OPTIONS
    ) as server:
        yield server


def test_a_point_is_drilled_on_a_server_of_its_major_version(
    some_server: EmbeddedPostgres, bucket: BucketSettings, tmp_path: Path
) -> None:
    database = some_server.create_database(f"test_{uuid4().hex}")
    run(
        database,
        "CREATE TABLE jobs (id int PRIMARY KEY, s3_key text, took interval); INSERT INTO jobs VALUES (1, "
        "'a.pdf', '1 day')",
    )
    put(bucket, "a.pdf", b"text", content_type="text/plain")
    drilled = Drilled(tmp_path, database, bucket)
    drilled.commit()
    report = drilled.drill(bucket=bucket)
    assert failures_of(report) == {}
    assert report.target.startswith(f"PostgreSQL {some_server.server_version} from ")
    assert report.notes == ()


def test_on_a_newer_server_the_schema_text_is_unknown_and_no_role_stays(
    database_17: DatabaseSettings,
    postgres_server: EmbeddedPostgres,
    s3_server: S3Server,
    bucket: BucketSettings,
    tmp_path: Path,
) -> None:
    role = f"role_{uuid4().hex}"
    # PostgreSQL 18 keeps NOT NULL as a named constraint and writes it elsewhere.
    run(
        database_17,
        "CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); ALTER TABLE child ALTER a "
        "SET NOT NULL",
    )
    run(
        database_17,
        f"CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a'); CREATE ROLE {role}; GRANT SELECT "
        f"ON jobs TO {role}",
    )
    put(bucket, "a", b"text", content_type="text/plain")
    drilled = Drilled(tmp_path, database_17, bucket)
    drilled.commit()
    server = postgres_server.settings("postgres")
    report = drilled.drill(database=server, bucket=s3_server.settings("unused"))
    assert list(failures_of(report)) == ["database_is_equal"]
    assert get_status(report.results, Check.DATABASE_IS_EQUAL) is CheckStatus.UNKNOWN
    assert "every row is equal" in failures_of(report)["database_is_equal"]
    assert not report.is_passed
    assert "restored into PostgreSQL 18, but the dump is from 17" in report.notes[0]
    assert run(server, f"SELECT count(*) FROM pg_roles WHERE rolname = '{role}'") == [(0,)]
    assert list_scratch(server, bucket) == (set(), set())
    run(database_17, f"DROP OWNED BY {role}; DROP ROLE {role}")
