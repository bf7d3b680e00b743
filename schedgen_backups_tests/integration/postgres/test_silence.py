"""A silent server is asked what its session does: if it works, it is waited for; otherwise not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, DatabaseUnreachableError
from schedgen_backups.core.postgres import connection as connection_module
from schedgen_backups.core.postgres.connection import connect_database, give_up_sessions, translate_errors
from schedgen_backups.core.postgres.watched_connection import (
    SessionState,
    SilentServerError,
    WatchedConnection,
)
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import publish_dump
from schedgen_backups_tests.support.pgbouncer import open_pgbouncer
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run
from schedgen_backups_tests.support.silent_proxy import SilentProxy

pytestmark = pytest.mark.integration

_ENOUGH_SECONDS = 40.0


@pytest.fixture
def proxy(database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentProxy]:
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    made = SilentProxy(database.port, None)
    yield made
    made.close()


@pytest.mark.parametrize(
    "limit_bytes",
    [100, 20000, *(pytest.param(other, marks=pytest.mark.exhaustive) for other in (1200, 3000))],
)
def test_a_capture_fails_when_the_server_goes_silent(
    database: DatabaseSettings, proxy: SilentProxy, tmp_path: Path, limit_bytes: int
) -> None:
    run(database, "CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 100)")
    proxy.limit_bytes = limit_bytes
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    found: list[BaseException] = []

    def capture() -> None:
        try:
            publish_dump(catalog, replace(database, port=proxy.port), stall_timeout_seconds=3)
        except BaseException as error:  # noqa: BLE001 - checked below
            found.append(error)

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    thread.join(_ENOUGH_SECONDS)
    assert not thread.is_alive()
    assert [isinstance(error, BackupError) for error in found] == [True]


def test_a_server_at_work_is_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    with connect_database(replace(database, port=proxy.port)) as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_a_server_that_hides_its_sessions_is_waited_for(
    database: DatabaseSettings, proxy: SilentProxy
) -> None:
    run(database, f"ALTER DATABASE {database.database} SET track_activities = off")
    with connect_database(replace(database, port=proxy.port)) as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_one_refused_question_ends_no_query(database: DatabaseSettings, proxy: SilentProxy) -> None:
    """A restart of a proxy's listener takes a moment; the query's own connection is not affected."""
    with connect_database(replace(database, port=proxy.port)) as connection:
        proxy.refuse_for(2.0)
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_a_server_without_a_free_connection_is_waited_for(
    database: DatabaseSettings, proxy: SilentProxy
) -> None:
    """It answers, so it is alive."""
    run(database, "CREATE ROLE lone LOGIN CONNECTION LIMIT 1 PASSWORD 'p'")
    try:
        with connect_database(replace(database, port=proxy.port, user="lone", password="p")) as connection:
            assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)
    finally:
        run(database, "DROP ROLE lone")


@contextmanager
def translate_to_ours(settings: DatabaseSettings) -> Iterator[None]:
    with pytest.raises(DatabaseUnreachableError, match="silent for 1 s"), translate_errors(settings):
        yield


def test_a_lost_answer_is_not_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    """The server can be asked, and says that the session is idle."""
    settings = replace(database, port=proxy.port)
    began = time.monotonic()
    with translate_to_ours(settings), connect_database(settings) as connection:
        proxy.limit_bytes = 1500
        connection.execute("SELECT repeat('x', 5000)")
    assert time.monotonic() - began < _ENOUGH_SECONDS
    with psycopg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        dbname=database.database,
    ) as other:
        assert other.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def frozen(tmp_path: Path, postgres_bin_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a server whose processes a test may stop."""
    with EmbeddedPostgres(
        tmp_path / "server", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
    ) as server:
        yield server


@contextmanager
def stand_still(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop all processes of the server within the block, as when a machine is moved or saved."""
    postmaster = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
    found = [postmaster]
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found += [int(path.name)] if parent == postmaster else []
    for process in found:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            os.kill(process, signal.SIGCONT)


class Waiting:
    """A query in its own thread."""

    def __init__(self, settings: DatabaseSettings, query: str, **options: Any) -> None:
        self.error = ""
        self.seconds = 0.0
        self.is_open = threading.Event()
        self._arguments = (settings, query, options)
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()
        assert self.is_open.wait(_ENOUGH_SECONDS)

    def _wait(self) -> None:
        settings, query, options = self._arguments
        try:
            with connect_database(settings, **options) as connection:
                self.is_open.set()
                began = time.monotonic()
                try:
                    connection.execute(query.encode())
                finally:
                    self.seconds = time.monotonic() - began
        except psycopg.Error as error:
            self.error = str(error)

    def ends_within(self, seconds: float) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()


def test_a_stopped_server_is_waited_for_until_the_stall_limit(
    frozen: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a question may take, several times."""
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_SECONDS", 2)
    waiting = Waiting(frozen.create_database("live"), "SELECT pg_sleep(2)", stall_timeout_seconds=60)
    with stand_still(frozen):
        assert not waiting.ends_within(14)
    assert waiting.ends_within(_ENOUGH_SECONDS)
    assert waiting.error == ""


def test_a_server_stopped_for_good_is_not_waited_for(
    frozen: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_SECONDS", 2)
    waiting = Waiting(frozen.create_database("live"), "SELECT pg_sleep(600)", stall_timeout_seconds=6)
    with stand_still(frozen):
        assert waiting.ends_within(_ENOUGH_SECONDS)
    assert "the state of this session is unknown" in waiting.error
    assert waiting.seconds >= 6


def test_a_stopped_server_behind_a_pooler_is_not_waited_for_endlessly(
    frozen: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pooler answers the login, but not the question."""
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    with open_pgbouncer(frozen.create_database("live"), "session", max_client_conn="50") as pooled:
        waiting = Waiting(pooled, "SELECT pg_sleep(600)", stall_timeout_seconds=4)
        with stand_still(frozen):
            assert waiting.ends_within(_ENOUGH_SECONDS)
    assert "the state of this session is unknown" in waiting.error
    assert waiting.seconds >= 4


def test_a_role_that_cannot_log_in_again_is_waited_for_until_the_stall_limit(
    database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is alive, and says nothing about this session."""
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    run(database, "CREATE ROLE once LOGIN PASSWORD 'p'")
    try:
        short = Waiting(
            replace(database, user="once", password="p"), "SELECT pg_sleep(600)", stall_timeout_seconds=3
        )
        long = Waiting(
            replace(database, user="once", password="p"), "SELECT pg_sleep(5)", stall_timeout_seconds=60
        )
        run(database, "ALTER ROLE once NOLOGIN")
        assert short.ends_within(_ENOUGH_SECONDS)
        assert long.ends_within(_ENOUGH_SECONDS)
    finally:
        run(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'once'")
        run(database, "DROP ROLE once")
    assert "is unknown" in short.error
    assert short.seconds >= 3
    assert long.error == ""


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost on the way", "at work"])
def test_another_login_asks_for_a_role_that_cannot_log_in_again(
    database: DatabaseSettings, proxy: SilentProxy, *, is_lost: bool
) -> None:
    run(database, "CREATE ROLE once LOGIN PASSWORD 'p'")
    loader = replace(database, user="once", password="p", port=proxy.port)
    try:
        with connect_database(loader, stall_timeout_seconds=3, asked_as=database) as connection:
            run(database, "ALTER ROLE once NOLOGIN")
            proxy.limit_bytes = 1 if is_lost else None
            began = time.monotonic()
            if is_lost:
                connection.stall_timeout_seconds = 600
                with pytest.raises(SilentServerError, match="not at work"):
                    connection.execute("SELECT 1")
            else:
                connection.execute("SELECT pg_sleep(10)")
        assert time.monotonic() - began < _ENOUGH_SECONDS
    finally:
        run(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'once'")
        run(database, "DROP ROLE once")


def test_a_process_that_reuses_the_pid_is_not_taken_for_the_session(
    database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids are reused; the start time of the process is not."""
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    monkeypatch.setattr(connection_module, "_BEGAN_AT", "SELECT TIMESTAMPTZ '2000-01-01 00:00:00 UTC'")
    waiting = Waiting(database, "SELECT pg_sleep(20)")
    assert waiting.ends_within(15)
    assert "not at work" in waiting.error


def test_an_answer_that_arrives_during_the_question_counts(
    database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 0.5)

    def ask_slowly() -> SessionState:
        time.sleep(2)
        return SessionState.NOT_AT_WORK

    with connect_database(database) as connection:
        connection.ask_state = ask_slowly
        assert connection.execute("SELECT 1 FROM pg_sleep(1)").fetchone() == (1,)


def test_abandoned_sessions_end_although_their_server_works(
    database: DatabaseSettings, second_database: DatabaseSettings
) -> None:
    given_up, other = Waiting(database, "SELECT pg_sleep(60)"), Waiting(second_database, "SELECT pg_sleep(3)")
    try:
        time.sleep(0.5)
        give_up_sessions(replace(database, user="any"))
        assert given_up.ends_within(5)
        assert other.ends_within(_ENOUGH_SECONDS)
    finally:
        run(
            second_database,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.database}'",
        )
    assert "was ended here" in given_up.error
    assert other.error == ""
