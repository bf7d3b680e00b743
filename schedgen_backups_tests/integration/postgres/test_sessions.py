"""Sessions begin alike whatever a database, role or configuration sets.

Captures are the same and restores equal.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.errors import DatabaseUnreachableError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.postgres.client_programs import find_client
from schedgen_backups.core.postgres.connection import (
    SessionFacts,
    connect_database,
    make_client_environment,
    read_session_facts,
)
from schedgen_backups.core.postgres.object_keys import find_reference_problem, read_references
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.postgres.session_settings import FIXED_SETTINGS, list_later_settings
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups_tests.support.artifacts import (
    POINT,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.dumps import restore
from schedgen_backups_tests.support.fake_pg_dump import make_pg_bin_dir
from schedgen_backups_tests.support.idle_cutter import IdleCutter
from schedgen_backups_tests.support.restores import compare_database
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

FILL = r"""
CREATE TABLE kinds (id int PRIMARY KEY, ts timestamptz, plain timestamp, d date, i interval, f float8,
    raw bytea, text text,
    many text[], s3_key text);
INSERT INTO kinds VALUES (1, '2026-03-29 01:30:00+00', '2026-02-03 04:05:06', '2026-02-03', '-1 day +2:03:04',
    0.1::float8 + 0.2, '\x00ff5c27',
    E'back\\slash', '{NULL,"NULL",a}', 'k1'), (2, 'infinity', '-infinity', '0044-03-15 BC', '1 year -2 mons',
        1e-300, '', '', '{}', NULL);
CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('k1');
CREATE VIEW shown AS SELECT id, ts AT TIME ZONE 'UTC' AS "at" FROM kinds WHERE text ~ E'\\\\';
CREATE FUNCTION quoting() RETURNS text LANGUAGE sql AS $$ SELECT 'a\b'::text $$;
"""
SETTINGS = (
    "datestyle = 'German'",
    "timezone = 'Africa/Johannesburg'",
    "standard_conforming_strings = off",
    "bytea_output = 'escape'",
    "intervalstyle = 'sql_standard'",
    "extra_float_digits = 0",
    "xmlbinary = 'hex'",
    "row_security = off",
    "search_path = 'nowhere', 'public'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "session_replication_role = replica",
    "role = 'pg_monitor'",
    "quote_all_identifiers = on",
    "array_nulls = off",
    "client_encoding = 'LATIN1'",
    "statement_timeout = '20ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '50ms'",
    "idle_session_timeout = '50ms'",
    "transaction_timeout = '50ms'",
)


def set_all(database: DatabaseSettings) -> None:
    for setting in SETTINGS:
        run(database.with_database("postgres"), f'ALTER DATABASE "{database.database}" SET {setting}')


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@contextmanager
def superuser_with(database: DatabaseSettings, *settings: str) -> Iterator[DatabaseSettings]:
    name = f"set_{uuid4().hex}"
    run(database, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'p'")
    for setting in settings:
        run(database, f"ALTER ROLE {name} SET {setting}")
    yield replace(database, user=name, password="p")
    run(database, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_session_begins_with_the_fixed_settings(database: DatabaseSettings) -> None:
    set_all(database)
    with connect_database(database) as connection:
        facts = read_session_facts(connection)
        wanted = {**FIXED_SETTINGS, **list_later_settings(facts.server_major, is_superuser=True)}
        found = {
            name: connection.execute("SELECT pg_catalog.current_setting(%s)", [name]).fetchone()
            for name in wanted
        }
    differing = {
        name: value
        for name, value in found.items()
        if value not in {(wanted[name],), (wanted[name].replace(",", ", "),)}
    }
    assert differing == {}


@pytest.mark.parametrize("program", ["psql", "psql without facts"])
def test_a_program_begins_with_the_fixed_settings(
    database: DatabaseSettings, postgres_bin_dir: Path, program: str
) -> None:
    set_all(database)
    with connect_database(database) as connection:
        facts = read_session_facts(connection) if program == "psql" else SessionFacts()
    wanted = {**FIXED_SETTINGS, **list_later_settings(facts.server_major, is_superuser=facts.is_superuser)}
    query = ", ".join(f"current_setting('{name}')" for name in wanted)
    done = subprocess.run(
        [postgres_bin_dir / "psql", "-XAtqc", f"SELECT {query}"],
        env={"PATH": os.environ["PATH"], **make_client_environment(database, facts)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().replace(", ", ",").split("|") == list(wanted.values())


def test_settings_of_the_source_change_no_byte_of_a_dump(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    plain = publish_dump(catalog, database)
    set_all(database)
    with_settings = publish_dump(catalog, database, "20261122_030000")
    contents = []
    for path in (plain, with_settings):
        with open_dump(path) as dump:
            contents.append(
                (
                    dump.record.text_sha256,
                    [table.sha256 for table in dump.tables],
                    dump.record.reference_count,
                )
            )
    assert contents[0] == contents[1]


def test_settings_of_the_target_change_nothing_in_a_restore(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    path = publish_dump(catalog, database)
    set_all(second_database)
    restore(path, second_database)
    results = compare_database(path, second_database, make_transfer())
    assert [(result.status, result.summary) for result in results if not result.is_passed] == []


def test_a_drill_of_a_database_with_settings_is_equal(
    database: DatabaseSettings, bucket: BucketSettings, catalog: Catalog, tmp_path: Path
) -> None:
    run(database, FILL)
    set_all(database)
    publish_dump(catalog, database)
    publish_archive(catalog, bucket)
    commit_point(
        catalog, RecoveryPointId(POINT), origin=Origin(run_id="a run"), live=make_live(database, bucket)
    )
    report = drill_point(
        catalog,
        None,
        make_transfer(),
        DrillSettings(tmp_path / "scratch"),
        source=database,
        drilled_by="a test",
    )
    assert [
        result.summary
        for result in report.results
        if result.check.value == "database_is_equal" and result.status is not CheckStatus.PASSED
    ] == []


@pytest.mark.parametrize(
    "setting",
    [
        "transaction_timeout = '1s'",
        "idle_session_timeout = '1s'",
        "idle_in_transaction_session_timeout = '1s'",
    ],
)
def test_time_limits_of_the_role_end_no_snapshot(database: DatabaseSettings, setting: str) -> None:
    with superuser_with(database, setting) as role, open_snapshot(role) as snapshot:
        time.sleep(1.5)
        assert snapshot.read_facts().server_major == 18


def test_a_session_between_two_uses_outlives_the_roles_limits(database: DatabaseSettings) -> None:
    with superuser_with(database, "idle_session_timeout = '500ms'") as role, DatabaseSession(role) as session:
        with session.use() as connection:
            before = connection.info.backend_pid
        time.sleep(1)
        with session.use() as connection:
            assert connection.info.backend_pid == before


def test_an_operator_that_shadows_the_systems_is_never_called(database: DatabaseSettings) -> None:
    run(
        database,
        "CREATE SCHEMA trap; CREATE FUNCTION trap.differs(name, text) RETURNS bool LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE 'called'; END $$;"
        "CREATE OPERATOR trap.<> (LEFTARG = name, RIGHTARG = text, FUNCTION = trap.differs);"
        f'ALTER DATABASE "{database.database}" SET search_path = trap, pg_catalog, public; CREATE TABLE '
        "public.jobs (s3_key text)",
    )
    with open_snapshot(database) as snapshot:
        assert [table.name for table in snapshot.list_tables()] == ["jobs"]


def test_the_custom_query_resolves_names_as_the_database_does(database: DatabaseSettings) -> None:
    run(
        database,
        f"CREATE SCHEMA app; CREATE TABLE app.jobs (s3_key text); INSERT INTO app.jobs VALUES ('k');"
        f'ALTER DATABASE "{database.database}" SET search_path = app',
    )
    live = make_live(database, BucketSettings("x:1", "a", "b", "c"))
    with open_snapshot(database) as snapshot:
        assert find_reference_problem(snapshot, live.references) == ""
        assert list(read_references(snapshot, live.references)) == [["k"]]


def test_a_dump_survives_a_proxy_that_cuts_silent_connections(
    database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path, tmp_path: Path
) -> None:
    run(database, FILL)
    slow = 'for n in 1 2 3 4 5 6 7 8; do sleep 1; done; exec {real} "$@"'
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=slow)
    with IdleCutter(database, 3) as proxy:
        publish_dump(catalog, proxy.settings, postgres_bin_dir=bin_dir)
        assert proxy.cut_count == 0


def test_a_restore_that_waits_for_the_bucket_survives_it_too(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    path = publish_dump(catalog, database)
    with (
        IdleCutter(second_database, 3) as proxy,
        prepare_database(path, proxy.settings, make_transfer()) as prepared,
    ):
        DatabaseLoad(
            prepared, replace_contents=False, jobs=1, roles=None, stop=Event(), on_progress=lambda _size: None
        ).run(lambda: time.sleep(5))
    assert run(second_database, "SELECT count(*) FROM jobs") == [(1,)]


def test_a_lost_snapshot_is_found_while_the_dump_runs(
    database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path, tmp_path: Path
) -> None:
    run(database, FILL)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
        "datname = current_database()"
    )
    script = f'{{real}} "$@"; "$(dirname {{real}})/psql" -XqAtc "{kill}" >/dev/null; sleep 2'
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    with pytest.raises(DatabaseUnreachableError):
        publish_dump(catalog, database, postgres_bin_dir=bin_dir)


def test_a_role_without_free_connections_is_reported_as_such(database: DatabaseSettings) -> None:
    name = f"few_{uuid4().hex}"
    run(database, f"CREATE ROLE {name} LOGIN PASSWORD 'canary-7d1f' CONNECTION LIMIT 1")
    role = replace(database, user=name, password="canary-7d1f")
    with (
        connect_database(role),
        pytest.raises(DatabaseUnreachableError, match="no connection left for the role") as caught,
        connect_database(role),
    ):
        pytest.fail("connected")
    assert f'ALTER ROLE "{name}" CONNECTION LIMIT' in caught.value.hint
    run(database, f"DROP ROLE {name}")


def test_settings_that_an_older_server_does_not_know_break_no_start(database_17: DatabaseSettings) -> None:
    with connect_database(database_17) as connection:
        facts = read_session_facts(connection)
    assert (facts.server_major, facts.encoding) == (17, "UTF8")
    client = find_client(database_17, 17, None)
    subprocess.run(
        [client.psql, "-XAtqc", "SELECT 1"],
        env={"PATH": os.environ["PATH"], **make_client_environment(database_17, facts)},
        capture_output=True,
        check=True,
    )
