"""Databases that cannot be captured, and every pg_dump failure that the old script missed.

Nothing is published. Each fault is made with a real server or a real program around the real pg_dump. After
each, an earlier point is untouched and the staging is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.capture.capture import take_database_dumps
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.errors import (
    BackupError,
    ClientProgramError,
    DatabaseError,
    DatabaseMissingError,
    DatabaseUnreachableError,
    DumpError,
)
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.postgres.client_programs import find_all_clients, find_client
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.settings import DatabaseSettings, DatabaseSource
from schedgen_backups.core.verify.files import verify_dump, verify_dump_against_snapshot
from schedgen_backups_tests.support.artifacts import (
    POINT,
    TableText,
    list_files,
    make_capture,
    publish_dump,
    spoken_by,
    write_dump,
)
from schedgen_backups_tests.support.fake_pg_dump import (
    FAILS_AFTER_EVERYTHING,
    FLOODS_STANDARD_ERROR,
    HANGS_AFTER_THE_FIRST_BYTES,
    IS_KILLED_HALFWAY,
    WRITES_HALF,
    WRITES_NOTHING,
    make_pg_bin_dir,
)
from schedgen_backups_tests.support.servers import connect, run

pytestmark = pytest.mark.integration

EARLIER = "db_schedgen_20261101_020000.sql.gz"
FILL = (
    "CREATE TABLE jobs (s3_key text, filler text); INSERT INTO jobs SELECT 'k' || n, repeat('x', 500) "
    "FROM generate_series(1, 5000) n"
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return a catalog of a directory with an earlier dump."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_dump(catalog.directory / EARLIER, [TableText("jobs", (b"1",))], point_id="20261101_020000")
    return catalog


@pytest.fixture
def role(database: DatabaseSettings) -> Iterator[DatabaseSettings]:
    """Yield a login with no rights beyond PUBLIC's."""
    name = f"backup_{uuid4().hex}"
    run(database, f"CREATE ROLE {name} LOGIN PASSWORD 'canary-7d1f'")
    yield replace(database, user=name, password="canary-7d1f")
    run(database, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def assert_refused(
    catalog: Catalog, database: DatabaseSettings, kind: type[BackupError], **fields: object
) -> BackupError:
    """Assert this failure, without a password in the error and without a trace in the directory."""
    before = (catalog.directory / EARLIER).read_bytes()
    with pytest.raises(kind) as caught:
        publish_dump(catalog, database, **fields)
    assert type(caught.value) is kind
    assert database.password not in spoken_by(caught.value)
    assert list_files(catalog.directory) == [EARLIER]
    # Nothing is staged before the database is open.
    assert list(catalog.directory.glob(".staging/*")) == []
    assert (catalog.directory / EARLIER).read_bytes() == before
    return caught.value


def test_a_wrong_password_is_permanent_and_names_the_login(
    catalog: Catalog, database: DatabaseSettings
) -> None:
    error = assert_refused(catalog, replace(database, password="canary-wrong-7d1f"), DatabaseError)
    assert f"refused the login of {database.user}" in error.message
    assert "POSTGRES_PASSWORD" in error.hint
    assert not error.is_retryable


def test_an_unknown_user_is_a_refused_login(catalog: Catalog, database: DatabaseSettings) -> None:
    error = assert_refused(catalog, replace(database, user="nobody-at-all"), DatabaseError)
    assert "refused the login of nobody-at-all" in error.message


def test_a_server_that_is_down_may_be_retried(catalog: Catalog, database: DatabaseSettings) -> None:
    (port,) = free_ports(1)
    error = assert_refused(catalog, replace(database, port=port), DatabaseUnreachableError)
    assert f"127.0.0.1:{port} cannot be reached" in error.message
    assert error.is_retryable


def test_a_host_that_does_not_exist_is_reported(catalog: Catalog, database: DatabaseSettings) -> None:
    error = assert_refused(catalog, replace(database, host="no-such-host.invalid"), DatabaseUnreachableError)
    assert "POSTGRES_HOST" in error.hint


def test_a_missing_database_is_permanent(catalog: Catalog, database: DatabaseSettings) -> None:
    error = assert_refused(catalog, database.with_database("no_such_database"), DatabaseMissingError)
    assert "has no database no_such_database" in error.message
    assert "POSTGRES_DB" in error.hint


@pytest.mark.parametrize(
    "statement", ["SELECT 1", "CREATE TABLE jobs (s3_key text); CREATE TABLE users (id int)"]
)
def test_an_empty_database_is_refused_unless_allowed(
    catalog: Catalog, database: DatabaseSettings, statement: str
) -> None:
    run(database, statement)
    error = assert_refused(catalog, database, DatabaseError)
    assert "is empty" in error.message
    assert "BACKUP_ALLOW_EMPTY" in error.hint
    path = publish_dump(catalog, database, is_empty_allowed=True)
    assert {result.status for result in (*verify_dump(path), verify_dump_against_snapshot(path))} == {
        CheckStatus.PASSED
    }


def test_a_table_that_may_not_be_read_is_named(
    catalog: Catalog, database: DatabaseSettings, role: DatabaseSettings
) -> None:
    run(database, f'{FILL}; CREATE TABLE "Private notes" (a int); GRANT SELECT ON jobs TO {role.user}')
    error = assert_refused(catalog, role, DatabaseError)
    assert 'may not read public."Private notes"' in error.message
    assert f'GRANT pg_read_all_data TO "{role.user}"' in error.hint


def test_a_schema_and_a_sequence_that_may_not_be_read_are_named(
    catalog: Catalog, database: DatabaseSettings, role: DatabaseSettings
) -> None:
    run(
        database,
        f"{FILL}; GRANT SELECT ON jobs TO {role.user}; CREATE SCHEMA other; CREATE TABLE other.t (a int); "
        "CREATE SEQUENCE numbers",
    )
    run(database, f"GRANT SELECT ON other.t TO {role.user}")
    error = assert_refused(catalog, role, DatabaseError)
    assert "other.t" in error.message
    assert "public.numbers" in error.message


def test_a_role_with_only_the_right_to_read_everything_suffices(
    catalog: Catalog, database: DatabaseSettings, role: DatabaseSettings
) -> None:
    run(
        database,
        f"{FILL}; CREATE SCHEMA other; CREATE TABLE other.t (a serial); GRANT pg_read_all_data TO "
        f"{role.user}",
    )
    path = publish_dump(catalog, role)
    assert {result.status for result in (*verify_dump(path), verify_dump_against_snapshot(path))} == {
        CheckStatus.PASSED
    }


def test_rows_hidden_by_a_policy_are_an_error_and_never_a_smaller_backup(
    catalog: Catalog, database: DatabaseSettings, role: DatabaseSettings
) -> None:
    run(
        database,
        f"{FILL}; ALTER TABLE jobs ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON jobs USING (s3_key = "
        "'k1')",
    )
    run(database, f"GRANT pg_read_all_data TO {role.user}")
    error = assert_refused(catalog, role, DatabaseError)
    assert "row-level security hides rows of public.jobs" in error.message
    run(database, f"ALTER ROLE {role.user} BYPASSRLS")
    result = verify_dump_against_snapshot(publish_dump(catalog, role))
    assert (result.status, result.figures["rows"]) == (CheckStatus.PASSED, 5000)


def test_a_pg_dump_older_than_the_server_is_refused_with_what_to_install(
    catalog: Catalog, database: DatabaseSettings, postgres_bin_dir_17: Path
) -> None:
    run(database, FILL)
    error = assert_refused(catalog, database, ClientProgramError, postgres_bin_dir=postgres_bin_dir_17)
    assert "the server is PostgreSQL 18 and the newest pg_dump here is 17" in error.message
    assert "postgresql-client-18" in error.hint


def test_a_folder_without_programs_is_refused(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path
) -> None:
    error = assert_refused(catalog, database, ClientProgramError, postgres_bin_dir=tmp_path)
    assert "PG_BIN_DIR" in error.message


@pytest.mark.parametrize(
    ("host", "ssl_mode"), [("db.example", "prefer"), ("127.0.0.1", "require"), ("127.0.0.1", "verify-full")]
)
def test_a_client_without_tls_is_refused_where_tls_is_required(
    database: DatabaseSettings, postgres_bin_dir: Path, host: str, ssl_mode: str
) -> None:
    with pytest.raises(ClientProgramError, match="was built without TLS") as caught:
        find_client(replace(database, host=host, ssl_mode=ssl_mode), 18, postgres_bin_dir)
    assert "postgresql-client-18" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "ssl_mode"), [("db.example", "disable"), ("127.0.0.1", "prefer"), ("/run/postgresql", "prefer")]
)
def test_a_client_without_tls_is_accepted_where_tls_is_not_required(
    database: DatabaseSettings, postgres_bin_dir: Path, host: str, ssl_mode: str
) -> None:
    assert find_client(replace(database, host=host, ssl_mode=ssl_mode), 18, postgres_bin_dir).major == 18


def test_a_client_with_tls_is_chosen_over_a_network(
    database: DatabaseSettings, postgres_bin_dir_17: Path
) -> None:
    assert find_client(replace(database, host="db.example"), 17, postgres_bin_dir_17).major == 17


def test_the_client_of_the_servers_version_is_preferred_to_newer_ones(database: DatabaseSettings) -> None:
    majors = {client.major for client in find_all_clients(None)}
    assert {17, 18} <= majors
    for major in majors:
        assert find_client(database, major, None).major == major


FAULTS = {
    "writes nothing": (WRITES_NOTHING, "its last line is missing"),
    "writes half": (WRITES_HALF, "its last line is missing"),
    "fails after everything": (
        FAILS_AFTER_EVERYTHING,
        "failed with exit code 1: .*server closed the connection unexpectedly",
    ),
    "is killed": (IS_KILLED_HALFWAY, "was ended by signal 9"),
    "cannot run": ("exec /nowhere/program", "failed with exit code 127"),
    "writes something else": ("echo nonsense", "its last line is missing"),
    "says it is full": (
        '{real} "$@" | head -c 3000; echo "could not write: No space left on device" >&2; exit 1',
        "No space left",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_pg_dump_publishes_nothing_and_its_cause_is_reported(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path, name: str
) -> None:
    run(database, FILL)
    script, cause = FAULTS[name]
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    error = assert_refused(catalog, database, DumpError, postgres_bin_dir=bin_dir)
    with pytest.raises(DumpError, match=cause):
        raise error
    assert error.is_retryable
    assert error.hint


def test_a_hung_pg_dump_is_killed(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path
) -> None:
    run(database, FILL)
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=HANGS_AFTER_THE_FIRST_BYTES)
    error = assert_refused(catalog, database, DumpError, postgres_bin_dir=bin_dir, stall_timeout_seconds=1)
    assert "pg_dump wrote no data for 1 seconds and was ended" in error.message


def test_a_dump_is_captured_although_pg_dump_floods_stderr(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path
) -> None:
    run(database, FILL)
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=FLOODS_STANDARD_ERROR)
    path = publish_dump(catalog, database, postgres_bin_dir=bin_dir)
    assert {result.status for result in (*verify_dump(path), verify_dump_against_snapshot(path))} == {
        CheckStatus.PASSED
    }


def test_a_dump_that_lacks_a_table_is_refused(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path
) -> None:
    """Exit code 0, last line present, gzip intact: only the snapshot shows the loss."""
    run(database, f"{FILL}; CREATE TABLE users (id int); INSERT INTO users VALUES (1)")
    bin_dir = make_pg_bin_dir(
        tmp_path, postgres_bin_dir, pg_dump_script='exec {real} --exclude-table=users "$@"'
    )
    result = verify_dump_against_snapshot(publish_dump(catalog, database, postgres_bin_dir=bin_dir))
    assert (result.status, "public.users" in result.summary) == (CheckStatus.FAILED, True)


def test_a_dump_that_lacks_rows_is_refused(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path
) -> None:
    run(database, FILL)
    bin_dir = make_pg_bin_dir(
        tmp_path, postgres_bin_dir, pg_dump_script="""{real} "$@" | sed '/^k4999\t/d'"""
    )
    path = publish_dump(catalog, database, postgres_bin_dir=bin_dir)
    result = verify_dump_against_snapshot(path)
    assert (result.status, "public.jobs (4999 of 5000)" in result.summary) == (CheckStatus.FAILED, True)


def test_a_table_that_stays_locked_is_reported_and_nothing_waits_forever(
    catalog: Catalog, database: DatabaseSettings
) -> None:
    run(database, FILL)
    with connect(database) as connection, connection.transaction():
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        error = assert_refused(catalog, database, DumpError, stall_timeout_seconds=1)
    assert error.is_retryable


def test_a_server_that_ends_the_session_midway_is_reported(
    catalog: Catalog, database: DatabaseSettings, tmp_path: Path, postgres_bin_dir: Path
) -> None:
    """A restart of the server does this to pg_dump."""
    run(database, FILL)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
        "'schedgen_backups' AND pid <> pg_backend_pid()"
    )
    script = f"""{postgres_bin_dir}/psql -X -q -A -t -c "{kill}" > /dev/null 2>&1; exec {{real}} "$@" """
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    error = assert_refused(catalog, database, DumpError, postgres_bin_dir=bin_dir)
    assert "pg_dump failed" in error.message


@pytest.mark.parametrize("ended", ["waiting", "dumped"])
def test_a_session_that_ends_harms_no_other_database(
    catalog: Catalog,
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    tmp_path: Path,
    postgres_bin_dir: Path,
    ended: str,
) -> None:
    """While the first is dumped, the server ends the session of one of both."""
    for each in (database, second_database):
        run(each, FILL)
    victim = database if ended == "dumped" else second_database
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
        f"'schedgen_backups' AND datname = '{victim.database}' AND pid <> pg_backend_pid()"
    )
    once = tmp_path / "once"
    script = f"""if mkdir {once} 2> /dev/null; then
{postgres_bin_dir}/psql -X -q -A -t -c "{kill}" > /dev/null 2>&1; sleep 2; fi; exec {{real}} "$@" """
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    capture = make_capture(postgres_bin_dir=bin_dir, stall_timeout_seconds=20, is_new_source_allowed=True)
    sources = [
        DatabaseSource("first", database, capture),
        DatabaseSource("second", replace(second_database, port=1), capture),
        DatabaseSource("third", second_database, capture),
    ]
    began = time.monotonic()
    taken = take_database_dumps(catalog, sources, RecoveryPointId(POINT))
    assert time.monotonic() - began < 60
    failed, kept = ("first", "third") if ended == "dumped" else ("third", "first")
    assert sorted(taken.errors) == sorted(["second", failed])
    assert list(taken.captured) == [kept]
    path = catalog.directory / f"db_{kept}_{POINT}.sql.gz"
    assert {result.status for result in verify_dump(path)} == {CheckStatus.PASSED}
    left = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'schedgen_backups' AND datname = '{}'"
    )
    for each in (database, second_database):
        assert run(each, left.format(each.database) + " AND pid <> pg_backend_pid()") == [(0,)]
