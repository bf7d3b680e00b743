"""Swapping a restored database in by renaming: all or nothing, the old one kept, its users no obstacle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import Pin, read_pin
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.restore.point import RestoreReport, RestoreRequest, prepare_restore
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.restore.swap import Swap, finish_swap, open_swap
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import (
    DUMP_HEAD,
    DUMP_NAME,
    POINT,
    TableText,
    make_capture,
    make_dump_text,
    publish_archive,
    publish_dump,
    write_dump_text,
)
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import client_of, connect, run
from schedgen_backups_tests.support.sites import wait_until

pytestmark = pytest.mark.integration

ID = RecoveryPointId(POINT)
NOW = RecoveryPointId("20261124_020000")
DATABASES = "SELECT datname FROM pg_database WHERE datname LIKE '{}%' ORDER BY 1"
SWAP_AND_WAIT = """
import json, sys, time
from schedgen_backups.core.restore.swap import open_swap
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.settings import DatabaseSettings
live = DatabaseSettings(**json.loads(sys.stdin.readline()))
ids = RecoveryPointId("20261122_020000"), RecoveryPointId("20261123_020000")
with DatabaseSession(live.with_database("postgres")) as session:
    with open_swap(session, live, *ids, encoding="UTF8"):
        print("open", flush=True)
        time.sleep(600)
"""


@dataclass(frozen=True)
class Live:
    """A database that was captured and damaged since."""

    database: DatabaseSettings
    service: RestoreService
    reports: list[str]
    session: DatabaseSession
    """Connected to the maintenance database."""

    @property
    def request(self) -> RestoreRequest:
        return RestoreRequest(self.service.catalog.get_point(ID), self.database, None, is_swap=True)

    def restore(self, request: RestoreRequest | None = None, **options: Any) -> RestoreReport:
        with prepare_restore(request or self.request, self.service.transfer) as prepared:
            return self.service.restore_whole(prepared, **options)

    def open_swap(self) -> AbstractContextManager[Swap]:
        return open_swap(self.session, self.database, ID, NOW, encoding="UTF8")

    def names(self) -> list[str]:
        return [
            name
            for (name,) in run(
                self.database.with_database("postgres"), DATABASES.format(self.database.database)
            )
        ]


@pytest.fixture
def live(database: DatabaseSettings, tmp_path: Path) -> Iterator[Live]:
    run(
        database,
        "CREATE TABLE jobs (id int PRIMARY KEY, s3_key text); INSERT INTO jobs VALUES (1, 'a'), (2, 'b')",
    )
    run(database, f"ALTER DATABASE \"{database.database}\" SET statement_timeout = '77s'")
    run(database, f'ALTER DATABASE "{database.database}" SET search_path = public, pg_catalog')
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database)
    run(database, "DELETE FROM jobs")
    reports: list[str] = []
    service = RestoreService(
        catalog, make_capture(), RestoreOptions("a test", "it went wrong"), report=reports.append
    )
    with DatabaseSession(database.with_database("postgres")) as session:
        made = Live(database, service, reports, session)
        yield made
    for name in made.names():
        if name != database.database:
            run(database.with_database("postgres"), f'DROP DATABASE "{name}" WITH (FORCE)')


def test_the_restored_database_takes_the_name_and_the_old_one_keeps_its_rows(live: Live) -> None:
    report = live.restore()
    assert report.is_equal
    assert run(live.database, "SELECT count(*) FROM jobs") == [(2,)]
    old = f"{live.database.database}_old_{POINT}"
    assert live.names() == [live.database.database, old]
    assert run(live.database.with_database(old), "SELECT count(*) FROM jobs") == [(0,)]
    assert old in live.reports[-2]
    way_back = live.reports[-1].partition(" run in the database postgres: ")[2]
    assert way_back.count("RENAME TO") == 2
    assert run(live.database, "SHOW statement_timeout") == [("77s",)]
    assert run(live.database, "SHOW search_path") == [("public, pg_catalog",)]
    [entry] = read_restore_log(live.service.catalog.directory)
    assert (entry.subject, entry.reason, entry.result) == ("database", "it went wrong", "done: equal")
    for statement in way_back.splitlines():
        run(live.database.with_database("postgres"), statement)
    assert run(live.database, "SELECT count(*) FROM jobs") == [(0,)]


PROPERTIES = """
SELECT pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'), datistemplate,
    datcollate, datctype, datlocprovider, datlocale,
    (SELECT array_agg(x ORDER BY x) FROM unnest(datacl::text[]) x),
    (SELECT array_agg((setrole, x)::text ORDER BY setrole, x) FROM pg_db_role_setting,
        unnest(setconfig) x WHERE setdatabase = d.oid)
FROM pg_database d WHERE datname = current_database()"""


@pytest.fixture
def owner(database: DatabaseSettings) -> Iterator[str]:
    run(
        database,
        "CREATE ROLE swap_owner; CREATE ROLE swap_app LOGIN PASSWORD 'p'; GRANT swap_owner TO swap_app",
    )
    yield "swap_owner"
    for (name,) in run(database.with_database("postgres"), DATABASES.format(database.database)):
        run(
            database.with_database("postgres"),
            f'ALTER DATABASE "{name}" IS_TEMPLATE false; ALTER DATABASE "{name}" OWNER TO CURRENT_USER',
        )
        run(database.with_database("postgres"), f'REVOKE ALL ON DATABASE "{name}" FROM swap_owner, swap_app')
        run(database.with_database("postgres"), f'ALTER ROLE swap_app IN DATABASE "{name}" RESET ALL')
    run(database.with_database("postgres"), "DROP ROLE swap_app; DROP ROLE swap_owner")


def test_everything_that_a_database_has_besides_its_contents_is_carried_over(live: Live, owner: str) -> None:
    name = f'"{live.database.database}"'
    for statement in (
        f"ALTER DATABASE {name} OWNER TO {owner}",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO swap_app WITH GRANT OPTION",
        f"ALTER DATABASE {name} CONNECTION LIMIT 23",
        f"COMMENT ON DATABASE {name} IS 'it''s live'",
        f'ALTER DATABASE {name} SET search_path = public, "Odd, name"',
        f"ALTER DATABASE {name} SET \"app.key\" = 'it''s; a key'",
        f"ALTER ROLE swap_app IN DATABASE {name} SET work_mem = '7MB'",
        f"ALTER DATABASE {name} IS_TEMPLATE true",
    ):
        run(live.database.with_database("postgres"), statement)
    before = run(live.database, PROPERTIES)
    live.restore()
    assert run(live.database, PROPERTIES) == before
    assert run(live.database, "SELECT count(*) FROM jobs") == [(2,)]
    with psycopg.connect(
        host=live.database.host,
        port=live.database.port,
        user="swap_app",
        password="p",
        dbname=live.database.database,
    ) as connection:
        connection.execute("SET ROLE swap_owner; CREATE TABLE made_by_the_application ()")
    run(live.database, "DROP TABLE made_by_the_application")


def test_a_database_with_default_privileges_keeps_them(live: Live) -> None:
    before = run(live.database, PROPERTIES)
    live.restore()
    assert run(live.database, PROPERTIES) == before


def test_what_cannot_be_carried_over_aborts_the_swap(live: Live, owner: str) -> None:
    admin = live.database.with_database("postgres")
    run(admin, "CREATE ROLE swap_restorer LOGIN CREATEDB PASSWORD 'p' IN ROLE swap_owner")
    run(admin, f'ALTER DATABASE "{live.database.database}" OWNER TO {owner}')
    run(admin, f"ALTER DATABASE \"{live.database.database}\" SET log_min_messages = 'panic'")
    restorer = replace(live.database, user="swap_restorer", password="p")
    try:
        with DatabaseSession(restorer.with_database("postgres")) as session:
            swap = open_swap(session, restorer, ID, NOW, encoding="UTF8")
            with (
                pytest.raises(
                    RestoreError, match=r"(?s)cannot be applied .* permission denied to set parameter"
                ),
                swap as opened,
            ):
                finish_swap(opened)
    finally:
        run(admin, "DROP OWNED BY swap_restorer; DROP ROLE swap_restorer")
    assert live.names() == [live.database.database]


def test_retention_keeps_a_point_while_it_is_restored(live: Live) -> None:
    seen: list[Pin | None] = []
    request = RestoreRequest(
        live.service.catalog.get_point(ID),
        live.database.with_database(f"{live.database.database}_new"),
        None,
        is_swap=True,
    )
    live.restore(request, on_progress=lambda _phase, _size: seen.append(read_pin(live.service.catalog, ID)))
    assert {pin.reason for pin in seen if pin is not None} == {"a restore reads it"}
    assert None not in seen
    assert read_pin(live.service.catalog, ID) is None


def test_a_database_that_lost_its_rows_and_tables_is_still_kept(live: Live) -> None:
    """The damage is the reason for the restore.

    Here the table of the operators' own reference query is gone, too.
    """
    backup = make_capture(reference_query="SELECT k FROM gone", is_reference_query_default=False)
    service = RestoreService(
        live.service.catalog, backup, RestoreOptions("a test"), report=live.reports.append
    )
    with prepare_restore(
        replace(live.request, replace_contents=True, is_swap=False), service.transfer
    ) as prepared:
        report = service.restore_whole(prepared)
    assert report.is_equal
    [kept] = (service.catalog.directory / "safety").glob("db_*.sql.gz")
    assert str(kept) in live.reports[0]
    assert run(live.database, "SELECT count(*) FROM jobs") == [(2,)]


def test_users_that_keep_reconnecting_do_not_stop_it(live: Live) -> None:
    is_over = threading.Event()
    sessions = [0]

    def use() -> None:
        while not is_over.is_set():
            try:
                with connect(live.database) as connection:
                    sessions[0] += 1
                    while not is_over.is_set():
                        connection.execute("SELECT pg_sleep(0.01)")
            except psycopg.Error:
                continue

    user = threading.Thread(target=use)
    user.start()
    try:
        wait_until(lambda: sessions[0] > 0, "the application connects")
        assert live.restore().is_equal
    finally:
        is_over.set()
        user.join()
    assert run(live.database, "SELECT count(*) FROM jobs") == [(2,)]


def test_a_missing_database_gets_the_name(live: Live) -> None:
    name = f"{live.database.database}_new"
    request = RestoreRequest(
        live.service.catalog.get_point(ID), live.database.with_database(name), None, is_swap=True
    )
    assert live.restore(request).is_equal
    assert live.names() == [live.database.database, name]


def test_an_earlier_swap_whose_old_database_remains_refuses_the_next(live: Live) -> None:
    live.restore()
    before = live.names()
    run(live.database, "DELETE FROM jobs")
    with pytest.raises(RestoreError, match="already, from an earlier swap"):
        live.restore()
    assert (live.names(), run(live.database, "SELECT count(*) FROM jobs")) == (before, [(0,)])


def test_an_error_midway_leaves_only_the_live_database(live: Live) -> None:
    def break_off() -> None:
        with live.open_swap() as swap:
            assert swap.fresh.database in live.names()
            raise RestoreError("stop here")

    with pytest.raises(RestoreError, match="stop here"):
        break_off()
    assert live.names() == [live.database.database]


def test_a_copy_that_differs_from_the_capture_is_never_swapped_in(live: Live) -> None:
    """The dump is sound in itself, and dumping what it creates gives another text."""
    catalog = live.service.catalog
    catalog.get_point(ID).get_path(ArtifactKind.DATABASE).unlink()
    text = make_dump_text(
        [TableText("jobs", (b"1",))], head=DUMP_HEAD + b"CREATE TABLE public.jobs (a text);\n\n"
    )
    write_dump_text(catalog.directory / DUMP_NAME, text, {("public", "jobs"): 1})
    with pytest.raises(RestoreError, match="the restored database differs from what was captured"):
        live.restore()
    assert live.names() == [live.database.database]
    assert run(live.database, "SELECT count(*) FROM jobs") == [(0,)]


def test_a_failed_swap_leaves_the_bucket_as_it_was(
    live: Live, bucket: BucketSettings, second_bucket: BucketSettings
) -> None:
    """The renaming fails at the very end, after the objects are written and compared."""
    put(bucket, "a", b"a")
    publish_archive(live.service.catalog, bucket)
    old = f"{live.database.database}_old_{POINT}"

    def take_the_name(phase: str, _size_bytes: int) -> None:
        if phase == "compare" and old not in live.names():
            run(live.database.with_database("postgres"), f'CREATE DATABASE "{old}"')

    request = replace(live.request, point=live.service.catalog.get_point(ID), bucket=second_bucket)
    with pytest.raises(RestoreError, match="already, from an earlier swap") as caught:
        live.restore(request, on_progress=take_the_name)
    assert list(client_of(second_bucket).list_objects(second_bucket.bucket)) == []
    assert "Removed 1 object that the restore had written into" in caught.value.hint
    assert live.names() == [live.database.database, old]
    assert run(live.database, "SELECT count(*) FROM jobs") == [(0,)]


def test_a_killed_swaps_leftovers_are_removed_by_the_next(live: Live) -> None:
    words = [sys.executable, "-c", SWAP_AND_WAIT]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(live.database)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "open\n"
        process.kill()
    assert len(live.names()) == 2
    sessions = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    wait_until(lambda: run(live.database, sessions) == [(0,)], "the killed process's session ends")
    with live.open_swap() as swap:
        assert live.names() == [live.database.database, swap.fresh.database]
        finish_swap(swap)
    assert live.names() == [live.database.database, f"{live.database.database}_old_{POINT}"]
