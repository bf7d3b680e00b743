"""A database is empty only if it holds nothing that a dump can hold; replacing it removes all of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.postgres.emptiness import count_user_objects
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import make_transfer, publish_dump
from schedgen_backups_tests.support.dumps import restore
from schedgen_backups_tests.support.restores import compare_database
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

OBJECTS = {
    "foreign data wrapper": "CREATE FOREIGN DATA WRAPPER w",
    "server": "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE USER MAPPING "
    "FOR CURRENT_USER SERVER s",
    "subscription": "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect "
    "= false)",
    "publication": "CREATE PUBLICATION p",
    "event trigger": "CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE "
    "EVENT TRIGGER t ON ddl_command_start"
    " EXECUTE FUNCTION e()",
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "revoked default privileges": "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
    "default privileges of the owner": "ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM CURRENT_USER",
    "default privileges of a schema": "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO "
    "PUBLIC",
    "large object": "SELECT lo_from_bytea(0, 'x')",
    "extension": "CREATE EXTENSION hstore",
    "cast": "CREATE CAST (money AS int8) WITHOUT FUNCTION",
    "language": "CREATE LANGUAGE other HANDLER plpgsql_call_handler",
    "access method": "CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler",
    "collation": "CREATE COLLATION other (locale = 'C')",
    "conversion": "CREATE CONVERSION other FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
    "operator": "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
    "operator family": "CREATE OPERATOR FAMILY other USING btree",
    "text search": "CREATE TEXT SEARCH CONFIGURATION other (COPY = simple)",
    "range type": "CREATE TYPE other AS RANGE (subtype = int)",
    "shell type": "CREATE TYPE other",
    "schema": "CREATE SCHEMA other",
}


@pytest.fixture
def path(database: DatabaseSettings, tmp_path: Path) -> Path:
    run(database, "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('k')")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return publish_dump(catalog, database)


def count(database: DatabaseSettings) -> int:
    with connect_database(database) as connection:
        return count_user_objects(connection)


def test_a_new_database_is_empty(database: DatabaseSettings, database_17: DatabaseSettings) -> None:
    assert (count(database), count(database_17)) == (0, 0)


@pytest.mark.parametrize("kind", OBJECTS)
def test_whatever_a_dump_can_hold_counts_and_is_removed_by_a_replacement(
    second_database: DatabaseSettings, path: Path, kind: str
) -> None:
    run(second_database, OBJECTS[kind])
    assert count(second_database) > 0
    with pytest.raises(TargetNotEmptyError):
        restore(path, second_database)
    restore(path, second_database, replace_contents=True)
    assert [
        result.summary
        for result in compare_database(path, second_database, make_transfer())
        if not result.is_passed
    ] == []


def test_an_active_subscription_is_never_dropped_silently(
    second_database: DatabaseSettings, path: Path
) -> None:
    run(second_database, OBJECTS["subscription"])
    run(second_database, "ALTER SUBSCRIPTION s ENABLE")
    try:
        with pytest.raises(RestoreError, match="the database has the subscription s: drop it first"):
            restore(path, second_database, replace_contents=True)
    finally:
        run(second_database, "ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        run(second_database, "DROP SUBSCRIPTION s")
