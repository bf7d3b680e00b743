"""A silent program is looked up on its server.

It continues while the server works, and is killed while it waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.postgres.activity import ServerActivity
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import make_transfer, publish_dump
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

STALL_SECONDS = 1
SLOW_INDEX = """
CREATE FUNCTION public.slow(a int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN IF pg_catalog.current_database() <> 'SOURCE' THEN PERFORM pg_catalog.pg_sleep(1); END IF; RETURN a;
END $$;
CREATE TABLE jobs AS SELECT generate_series(1, 4) AS a; CREATE INDEX ON jobs (public.slow(a));
"""


@pytest.fixture
def slow_dump(database: DatabaseSettings, tmp_path: Path) -> Path:
    """Return a dump whose index takes four times the stall limit to build; psql is silent meanwhile."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    run(database, SLOW_INDEX.replace("SOURCE", database.database))
    return publish_dump(catalog, database)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_restore_whose_index_build_exceeds_the_stall_limit_succeeds(
    slow_dump: Path, second_database: DatabaseSettings, jobs: int
) -> None:
    transfer = replace(make_transfer(), stall_timeout_seconds=STALL_SECONDS)
    started_at = time.monotonic()
    restore_database(slow_dump, second_database, transfer, replace_contents=False, stop=Event(), jobs=jobs)
    assert time.monotonic() - started_at > 3 * STALL_SECONDS
    assert run(second_database, "SELECT count(*) FROM jobs") == [(4,)]


def test_a_restore_that_waits_for_a_lock_is_aborted(
    slow_dump: Path, second_database: DatabaseSettings
) -> None:
    transfer = replace(make_transfer(), stall_timeout_seconds=STALL_SECONDS)
    run(second_database, "CREATE TABLE mine (a int)")
    with login(second_database) as holder:
        holder.execute("BEGIN; LOCK TABLE mine")
        with pytest.raises(RestoreError, match="no data for 1 seconds"):
            restore_database(slow_dump, second_database, transfer, replace_contents=True, stop=Event())
        holder.execute("ROLLBACK")
    assert run(second_database, "SELECT count(*) FROM mine") == [(0,)]


@contextmanager
def login(
    database: DatabaseSettings, name: str = "somebody"
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        dbname=database.database,
        application_name=name,
        autocommit=True,
    ) as connection:
        yield connection


@contextmanager
def busy(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> Iterator[None]:
    """Execute the statement on the connection within the block; cancel it afterwards."""

    def execute() -> None:
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(statement.encode())

    thread = threading.Thread(target=execute)
    thread.start()
    try:
        yield
    finally:
        connection.cancel()
        thread.join()


def wait_for(is_so: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 30
    while not is_so() and time.monotonic() < ends_at:
        time.sleep(0.05)
    return is_so()


def test_only_a_session_that_works_counts_as_working(database: DatabaseSettings) -> None:
    activity = ServerActivity(database)
    assert not activity.is_working()  # no session of this name
    run(database, "CREATE TABLE jobs (a int)")
    with login(database, activity.application_name) as session, login(database) as holder:
        assert not activity.is_working()  # idle
        with busy(session, "SELECT pg_sleep(600)"):
            assert wait_for(activity.is_working)
        assert wait_for(lambda: not activity.is_working())
        holder.execute("BEGIN; LOCK TABLE jobs")
        with busy(session, "SELECT * FROM jobs"):
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'jobs'::regclass"
            assert wait_for(lambda: run(database, query) == [(1,)])
            assert not activity.is_working()
        holder.execute("ROLLBACK")


def test_a_server_that_cannot_be_asked_does_not_count_as_working(database: DatabaseSettings) -> None:
    assert not ServerActivity(replace(database, password="wrong")).is_working()
    assert not ServerActivity(replace(database, port=1)).is_working()
