"""A server that says nothing is asked what it does: at work it is waited for, and otherwise not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, DatabaseUnreachableError
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.watched_connection import WatchedConnection
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import publish_dump
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

_ENOUGH_SECONDS = 40.0


class SilentProxy:
    """Passes on everything until so many bytes came from the server on one connection; holds it open then, and says nothing more."""

    def __init__(self, port: int, limit_bytes: int | None) -> None:
        self._server_port = port
        self.limit_bytes = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_limited: bool) -> None:  # noqa: FBT001 - a thread's argument
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if is_limited and self.limit_bytes is not None and passed > self.limit_bytes:
                    self._ended.wait()
                    return
                target.sendall(data)
        except OSError:
            return

    def refuse_for(self, seconds: float) -> None:
        self._listener.close()

        def listen_again() -> None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._serve, daemon=True).start()

        threading.Timer(seconds, listen_again).start()

    def close(self) -> None:
        self._ended.set()
        for each in (self._listener, *self._open):
            each.close()


@pytest.fixture
def proxy(database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentProxy]:
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 1.0)
    made = SilentProxy(database.port, None)
    yield made
    made.close()


@pytest.mark.parametrize("limit_bytes", [100, 1200, 3000, 20000])
def test_a_capture_ends_when_the_server_falls_silent(database: DatabaseSettings, proxy: SilentProxy, tmp_path: Path, limit_bytes: int) -> None:
    run(database, "CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 100)")
    proxy.limit_bytes = limit_bytes
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    found: list[BaseException] = []

    def capture() -> None:
        try:
            publish_dump(catalog, replace(database, port=proxy.port), stall_timeout_seconds=3)
        except BaseException as error:  # noqa: BLE001 - looked at below
            found.append(error)

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    thread.join(_ENOUGH_SECONDS)
    assert not thread.is_alive()
    assert [isinstance(error, BackupError) for error in found] == [True]


def test_a_server_at_work_is_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    with connect_database(replace(database, port=proxy.port)) as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_a_server_that_tells_nothing_of_its_sessions_is_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    run(database, f"ALTER DATABASE {database.database} SET track_activities = off")
    with connect_database(replace(database, port=proxy.port)) as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_one_question_that_is_refused_ends_no_query(database: DatabaseSettings, proxy: SilentProxy) -> None:
    """A restart of a proxy's listener takes a moment; the query's own connection is not touched by it."""
    with connect_database(replace(database, port=proxy.port)) as connection:
        proxy.refuse_for(2.0)
        assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)


def test_a_server_that_has_no_connection_left_is_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    """It answers, so that it is there."""
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


def test_an_answer_that_was_lost_on_the_way_is_not_waited_for(database: DatabaseSettings, proxy: SilentProxy) -> None:
    """The server can be asked, and says that the session has nothing to do."""
    settings = replace(database, port=proxy.port)
    began = time.monotonic()
    with translate_to_ours(settings), connect_database(settings) as connection:
        proxy.limit_bytes = 1500
        connection.execute("SELECT repeat('x', 5000)")
    assert time.monotonic() - began < _ENOUGH_SECONDS
    with psycopg.connect(host=database.host, port=database.port, user=database.user, password=database.password, dbname=database.database) as other:
        assert other.execute("SELECT 1").fetchone() == (1,)
