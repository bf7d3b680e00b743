"""A drill ends although its connection with a named server is lost and stays open."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from schedgen_backups.core.drill import drill as drill_module
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.watched_connection import WatchedConnection
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups_tests.integration.drill.test_hostile_dump import ENDLESS, take_point
from schedgen_backups_tests.support.artifacts import make_transfer
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run
from schedgen_backups_tests.support.silent_proxy import SilentProxy

pytestmark = pytest.mark.integration

SLEEPERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.jobs%' AND wait_event = 'PgSleep'"
)


@pytest.fixture
def server(tmp_path: Path, postgres_bin_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=postgres_bin_dir, user="master", server_options=FAST_SERVER_OPTIONS
    ) as named:
        yield named


def lose_answer(server: DatabaseSettings, proxy: SilentProxy) -> None:
    """Make the proxy go silent on connections that are open while the server loads rows, and on no other."""
    ends_at = time.monotonic() + 60
    while run(server, SLEEPERS) != [(1,)] and time.monotonic() < ends_at:
        time.sleep(0.1)
    proxy.lose_connections()


def test_a_drill_ends_after_losing_its_loaders_connection(
    tmp_path: Path,
    database: DatabaseSettings,
    bucket: BucketSettings,
    server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loader cannot log in again to ask; the superuser can."""
    run(database, ENDLESS.replace("LIVE", database.database).replace("100000", "4"))
    catalog = take_point(tmp_path, database, bucket)
    monkeypatch.setattr(WatchedConnection, "silence_seconds", 2.0)
    named = server.settings("postgres")
    proxy = SilentProxy(named.port, None)
    drill = DrillSettings(tmp_path / "drill", database=replace(named, port=proxy.port))
    found: list[str] = []

    def run_drill() -> None:
        try:
            drill_point(catalog, None, make_transfer(), drill, source=database, drilled_by="a test")
        except RestoreError as error:
            found.append(error.message)

    thread = threading.Thread(target=run_drill, daemon=True)
    try:
        thread.start()
        lose_answer(named, proxy)
        thread.join(30)
        assert not thread.is_alive()
    finally:
        proxy.close()
    assert ["is not at work" in message for message in found] == [True]
    assert run(named, "SELECT count(*) FROM pg_database WHERE datname LIKE 'schedgen%'") == [(0,)]


def test_a_cancelled_drill_does_not_wait_for_a_lost_connection(
    database: DatabaseSettings,
) -> None:
    proxy = SilentProxy(database.port, None)
    loader = replace(database, port=proxy.port)
    limit = drill_module._ended_after(timedelta(seconds=1), LoadRoles(loader, None))
    began = time.monotonic()
    with (
        pytest.raises(RestoreError, match=r"the drill was aborted .* the session was ended here"),
        limit,
        translate_errors(loader),
    ):
        wait_in_vain(loader, proxy)
    assert time.monotonic() - began < 30


def wait_in_vain(loader: DatabaseSettings, proxy: SilentProxy) -> None:
    try:
        with connect_database(loader) as connection:
            proxy.limit_bytes = 1
            connection.execute("SELECT 1")
    finally:
        proxy.close()
