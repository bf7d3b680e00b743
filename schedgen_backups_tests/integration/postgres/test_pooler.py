"""Poolers that share sessions between transactions are refused everywhere; session poolers work."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.postgres.connection import connect_database, read_session_facts
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.doctor.checks import examine_database
from schedgen_backups.doctor.results import Verdict
from schedgen_backups_tests.support.artifacts import list_files, make_capture, make_transfer, publish_dump
from schedgen_backups_tests.support.dumps import restore
from schedgen_backups_tests.support.pgbouncer import open_pgbouncer
from schedgen_backups_tests.support.restores import compare_database
from schedgen_backups_tests.support.servers import connect, run

pytestmark = pytest.mark.integration

FILL = """CREATE TABLE jobs (s3_key text, at timestamptz, i interval);
INSERT INTO jobs SELECT 'k' || n, now(), '-1 day +1 h' FROM generate_series(1, 50) n"""
REFUSED = "shares sessions between transactions"
SHARING = (
    {"pool_mode": "transaction"},
    {"pool_mode": "transaction", "server_round_robin": "1"},
    {"pool_mode": "transaction", "ignore_startup_parameters": "options"},
    {"pool_mode": "transaction", "default_pool_size": "1"},
    {"pool_mode": "statement"},
)
IDS = ("plain", "in turn", "options are swallowed", "one session", "statements")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@pytest.mark.parametrize("settings", SHARING, ids=IDS)
def test_a_transaction_pooler_is_refused_and_nothing_is_left(
    database: DatabaseSettings, catalog: Catalog, settings: dict[str, str]
) -> None:
    run(database, FILL)
    run(database.with_database("postgres"), f'ALTER DATABASE "{database.database}" SET search_path = public')
    with open_pgbouncer(database, **settings) as pooled:
        if settings["pool_mode"] == "transaction":
            # The application's sessions, which exist before and after.
            with ExitStack() as stack:
                for connection in [
                    stack.enter_context(connect(pooled))
                    for _session in range(1 if "default_pool_size" in settings else 3)
                ]:
                    connection.execute("BEGIN; SELECT 1; COMMIT")
        with pytest.raises(DatabaseError, match=REFUSED) as caught:
            publish_dump(catalog, pooled)
        assert not caught.value.is_retryable
        assert "pool_mode = session" in caught.value.hint
        with connect(pooled) as connection:
            found = connection.execute(
                "SELECT current_setting('search_path'), current_setting('IntervalStyle'), count(*) FROM jobs"
            ).fetchone()
    assert found == ("public", "postgres", 50)
    assert list_files(catalog.directory) == []


@pytest.mark.parametrize("settings", SHARING, ids=IDS)
def test_the_doctor_also_refuses_it(database: DatabaseSettings, settings: dict[str, str]) -> None:
    run(database, FILL)
    with open_pgbouncer(database, **settings) as pooled:
        results = list(examine_database(pooled, make_capture()))
    assert [(result.verdict, REFUSED in result.detail) for result in results] == [(Verdict.PROBLEM, True)]


def test_a_restore_through_it_writes_nothing(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    path = publish_dump(catalog, database)
    with (
        open_pgbouncer(second_database, "transaction") as pooled,
        pytest.raises(DatabaseError, match=REFUSED),
    ):
        restore(path, pooled)
    assert (
        run(second_database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    )


@pytest.mark.parametrize("ignored", ["", "options"], ids=["options are refused", "options are swallowed"])
def test_a_session_pooler_works_for_capture_and_restore(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog, ignored: str
) -> None:
    run(database, FILL)
    for name in (database.database, second_database.database):
        for setting in (
            "timezone = 'Africa/Johannesburg'",
            "datestyle = 'German'",
            "intervalstyle = 'sql_standard'",
        ):
            run(database.with_database("postgres"), f'ALTER DATABASE "{name}" SET {setting}')
    direct = publish_dump(catalog, database)
    with open_pgbouncer(
        database, "session", ignore_startup_parameters=ignored or "extra_float_digits"
    ) as pooled:
        path = publish_dump(catalog, pooled, "20261122_030000")
        other = replace(pooled, database=second_database.database)
        restore(path, other)
        assert [
            result.summary
            for result in compare_database(direct, other, make_transfer())
            if not result.is_passed
        ] == []
        with connect_database(other) as connection:
            assert read_session_facts(connection).is_pooled


def test_the_doctor_notes_a_session_pooler(database: DatabaseSettings) -> None:
    run(database, FILL)
    with open_pgbouncer(database, "session") as pooled:
        results = list(examine_database(pooled, make_capture()))
    assert [result.verdict for result in results if result.subject == "pooler"] == [Verdict.NOTE]
    assert [result.detail for result in results if result.verdict is Verdict.PROBLEM] == []
    assert [
        result for result in examine_database(database, make_capture()) if result.subject == "pooler"
    ] == []


def test_settings_that_programs_would_inherit_through_a_pooler_are_refused(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    run(
        database.with_database("postgres"),
        f'ALTER DATABASE "{database.database}" SET quote_all_identifiers = on',
    )
    with (
        open_pgbouncer(database, "session") as pooled,
        pytest.raises(DatabaseError, match="quote_all_identifiers = on"),
    ):
        publish_dump(catalog, pooled)


def test_a_pool_without_a_second_session_is_reported_as_such(
    database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, FILL)
    with (
        open_pgbouncer(database, "session", default_pool_size="1") as pooled,
        pytest.raises(DatabaseUnreachableError, match="no second session"),
    ):
        publish_dump(catalog, pooled)
