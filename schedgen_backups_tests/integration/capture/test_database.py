"""Databases full of oddities: dumped by the real pg_dump, matched with their snapshot, and restored equal.

The oddities are in `support.dumps`, other versions and encodings in `test_dump_versions`, faults in
`test_database_faults`.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import ReferenceState
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.verify.files import verify_dump_against_snapshot
from schedgen_backups_tests.support.artifacts import publish_dump
from schedgen_backups_tests.support.dumps import (
    ODDITIES,
    assert_equal,
    assert_whole,
    load_with_psql,
    read_record,
    restore,
)
from schedgen_backups_tests.support.fake_pg_dump import WRITES_FIRST, make_pg_bin_dir
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def test_every_oddity_is_captured_restored_and_equal(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, ODDITIES)
    path = publish_dump(catalog, database)
    assert_whole(path)
    record = read_record(path)
    assert (record.large_object_count, record.missing_tables, record.server_major) == (2, (), 18)
    restore(path, second_database)
    assert_equal(path, second_database)
    assert run(second_database, "SELECT count(*) FROM no_columns") == [(2,)]
    assert run(second_database, "SELECT nextval('lonely')") == [(44,)]
    assert run(second_database, "SELECT lo_get(70001)") == run(database, "SELECT lo_get(70001)")


def test_gunzip_and_psql_restore_the_dump_without_us(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path
) -> None:
    run(database, ODDITIES)
    path = publish_dump(catalog, database)
    loaded = load_with_psql(path, second_database, postgres_bin_dir)
    assert loaded.returncode == 0, loaded.stderr
    assert "ERROR" not in loaded.stderr
    assert_equal(path, second_database)


def test_a_restored_database_dumps_to_the_same_text(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, ODDITIES)
    first = publish_dump(catalog, database)
    restore(first, second_database)
    second = publish_dump(catalog, second_database, "20261123_020000")
    with open_dump(first) as one, open_dump(second) as two:
        assert one.record.text_sha256 == two.record.text_sha256
        assert [(table.qualified_name, table.sha256) for table in one.tables] == [
            (table.qualified_name, table.sha256) for table in two.tables
        ]


def test_chinook_is_restored(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog, shared_data: Path
) -> None:
    script = (shared_data / "chinook.sql").read_text(encoding="utf-8")
    run(
        database,
        "\n".join(
            line
            for line in script.splitlines()
            if not line.startswith(("\\c", "DROP DATABASE", "CREATE DATABASE"))
        ),
    )
    path = publish_dump(catalog, database)
    assert_whole(path)
    assert read_record(path).row_count > 15_000
    restore(path, second_database)
    assert_equal(path, second_database)


def test_one_table_is_read_alone(database: DatabaseSettings, catalog: Catalog) -> None:
    run(
        database,
        "CREATE TABLE a (n int); CREATE TABLE b (n int); INSERT INTO a SELECT generate_series(1, 9); "
        "INSERT INTO b VALUES (7)",
    )
    with open_dump(publish_dump(catalog, database)) as dump:
        table = next(table for table in dump.tables if table.name == "b")
        assert b"".join(dump.read_table(table)) == b"COPY public.b (n) FROM stdin;\n7\n\\.\n"


def test_rows_committed_while_the_dump_runs_are_not_in_it(
    database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path, tmp_path: Path
) -> None:
    """The rows are inserted after the snapshot and before pg_dump starts.

    The counts are the snapshot's as well.
    """
    run(
        database,
        "CREATE TABLE jobs (s3_key text); INSERT INTO jobs SELECT 'key ' || n FROM generate_series(1, 100) n",
    )
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=WRITES_FIRST)
    path = publish_dump(catalog, database, postgres_bin_dir=bin_dir)
    assert run(database, "SELECT count(*) FROM jobs WHERE s3_key = 'too late'") == [(1,)]
    assert_whole(path)
    with open_dump(path) as dump:
        (table,) = dump.tables
        assert (table.rows, table.expected_rows) == (100, 100)
        references = [key for page in dump.read_references() for key in page]
    assert sorted(references) == sorted(f"key {number}" for number in range(1, 101))


def test_references_are_distinct_sorted_by_bytes_and_without_nulls(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    run(
        database,
        "CREATE TABLE jobs (s3_key text); INSERT INTO jobs SELECT 'k' || n % 2500 FROM generate_series(1, "
        "5000) n",
    )
    run(database, "INSERT INTO jobs VALUES (NULL), ('é'), ('Z'), ('a b'), (E'new\\nline')")
    with open_dump(publish_dump(catalog, database)) as dump:
        references = [key for page in dump.read_references() for key in page]
        assert dump.record.reference_count == len(references) == 2504
        assert dump.record.reference_state is ReferenceState.READ
    assert references == sorted(references, key=str.encode)


def test_without_a_jobs_table_references_are_not_configured(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, "CREATE TABLE other (a int); INSERT INTO other VALUES (1)")
    record = read_record(publish_dump(catalog, database))
    assert (record.reference_state, record.reference_count) == (ReferenceState.NOT_CONFIGURED, 0)
    assert 'relation "jobs" does not exist' in record.reference_note


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT file FROM documents", "documents"),
        ("SELECT s3_key, 1 FROM jobs", "2 columns"),
        ("DELETE FROM jobs", "syntax error"),
        ("SELECT s3_key FROM jobs; DROP TABLE jobs", "syntax error|multiple"),
    ],
)
def test_a_custom_reference_query_that_fails_is_a_wrong_setting(
    database: DatabaseSettings, catalog: Catalog, query: str, reason: str
) -> None:
    run(database, "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a')")
    with pytest.raises(ConfigurationError, match=rf"BACKUP_REFERENCE_QUERY cannot be used: .*({reason})"):
        publish_dump(catalog, database, reference_query=query, is_reference_query_default=False)
    assert list(catalog.directory.glob("*.gz")) == []
    assert run(database, "SELECT s3_key FROM jobs") == [("a",)]


def test_roles_are_kept_without_their_passwords(database: DatabaseSettings, catalog: Catalog) -> None:
    role = f"app_{uuid4().hex}"
    run(
        database,
        f"CREATE ROLE {role} LOGIN PASSWORD 'canary-7d1f'; CREATE TABLE t (a int); INSERT INTO t VALUES "
        f"(1); GRANT SELECT ON t TO {role}",
    )
    try:
        path = publish_dump(catalog, database)
        with open_dump(path) as dump:
            assert f"CREATE ROLE {role};" in dump.roles
            assert dump.record.role_count >= 2
        text = gzip.decompress(path.read_bytes())
        assert b"SCRAM" not in text
        assert b"canary-7d1f" not in text
        assert database.password.encode() not in text
    finally:
        run(database, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_function_that_imitates_a_table_is_not_a_table(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    body = (
        "--\n-- Data for Name: fake; Type: TABLE DATA; Schema: public; Owner: x\n--\n\nCOPY public.fake "
        "(a) FROM stdin;\n"
    )
    run(
        database,
        "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a'); CREATE FUNCTION f() RETURNS text "
        f"LANGUAGE sql AS $$ SELECT '\n{body}' $$",
    )
    result = verify_dump_against_snapshot(publish_dump(catalog, database))
    assert result.status is CheckStatus.PASSED
    assert result.figures == {"tables": 1, "rows": 1}
