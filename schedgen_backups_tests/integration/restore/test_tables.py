"""Single tables: read alone from a dump, compared with the live ones, and restored row by row.

Whole databases are tested in `test_point`, the command line in `edge/defs/test_restore_job`.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.table_diff import describe_rows, diffs_to_json
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import TableRequest, prepare_tables, select_tables
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups_tests.support.artifacts import POINT, damage, make_transfer, publish_dump
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import wait_until

pytestmark = pytest.mark.integration

ID = RecoveryPointId(POINT)
FILL = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, mood mood);
CREATE TABLE jobs (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id int REFERENCES users, s3_key text,
    data json,
                   doubled int GENERATED ALWAYS AS (user_id * 2) STORED);
CREATE TABLE log (line text);
CREATE TABLE "odd ""name" ("a b" float8 PRIMARY KEY, c bytea);
INSERT INTO users SELECT n, 'user ' || n, 'happy' FROM generate_series(1, 5) n;
INSERT INTO jobs (user_id, s3_key, data) SELECT n, 'k' || n, json_build_object('n', n)
    FROM generate_series(1, 5) n;
INSERT INTO log VALUES ('a'), ('a'), ('b'), (NULL);
INSERT INTO "odd ""name" VALUES ('NaN', '\\x00ff'), ('-Infinity', ''), (0.1, NULL);
"""
FILL_AND_WAIT = """
import json, sys, time
from pathlib import Path
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.tables import open_side_database
server = DatabaseSettings(**json.loads(sys.stdin.readline())).with_database("postgres")
with DatabaseSession(server) as session, open_side_database(session, sys.argv[1], encoding="UTF8"):
    print("there", flush=True)
    time.sleep(600)
"""


class Tables:
    """A captured database that changes afterwards."""

    def __init__(self, live: DatabaseSettings, settings: TransferSettings, catalog: Catalog) -> None:
        self.live, self.settings, self.catalog = live, settings, catalog

        # Each test has its own id: side databases of parallel tests must not have the same name.
        self.side_name = f"side_of_{live.database[-20:]}"

    def request(self, *names: str, where: str = "") -> TableRequest:
        return TableRequest(self.catalog.get_point(ID), names, self.live, where, self.side_name)


@pytest.fixture
def tables(database: DatabaseSettings, tmp_path: Path) -> Iterator[Tables]:
    run(database, FILL)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database)
    made = Tables(database, make_transfer(), catalog)
    yield made
    run(database, f'DROP DATABASE IF EXISTS "{made.side_name}"')


def exists(tables: Tables, name: str) -> bool:
    return run(tables.live, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == [(1,)]


def test_a_table_is_compared_with_the_live_one_by_its_primary_key(tables: Tables) -> None:
    run(
        tables.live,
        "DELETE FROM jobs WHERE id = 5; UPDATE jobs SET s3_key = 'other' WHERE id = 1; INSERT INTO jobs "
        "(user_id) VALUES (1)",
    )
    with prepare_tables(tables.request("jobs"), tables.settings) as prepared:
        [diff] = prepared.describe()
        assert run(prepared.captured.settings, "SELECT count(*), sum(doubled) FROM jobs") == [(5, 30)]
        assert run(prepared.captured.settings, "SELECT count(*) FROM users") == [(0,)]
    assert (diff.only_captured, diff.only_live, diff.changed, diff.same) == (1, 1, 1, 3)
    assert (diff.only_captured_keys, diff.only_live_keys, diff.changed_keys) == (("[5]",), ("[6]",), ("[1]",))
    [row] = diff.changed_rows
    assert [(value.column, str(value.live)) for value in row.values] == [("s3_key", "other")]
    assert "changed: [1] (s3_key)" in describe_rows(diff)
    [shown] = diffs_to_json([diff], with_values=True)
    assert shown["changed_rows"] == [
        {"key": "[1]", "columns": ["s3_key"], "values": {"s3_key": {"backup": "k1", "live": "other"}}}
    ]
    assert diffs_to_json([diff])[0]["changed_rows"] == [{"key": "[1]", "columns": ["s3_key"]}]
    assert not exists(tables, prepared.side.name)


def test_a_value_is_printed_by_its_type_and_no_cast_of_its_owner_is_called(tables: Tables) -> None:
    run(
        tables.live,
        "CREATE FUNCTION public.shout(mood) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'a cast was "
        "called'; END$$",
    )
    run(
        tables.live,
        "CREATE CAST (mood AS text) WITH FUNCTION public.shout(mood); UPDATE users SET mood = 'sad' WHERE "
        "id = 1",
    )
    with prepare_tables(tables.request("users"), tables.settings) as prepared:
        [diff] = prepared.describe()
    [row] = diff.changed_rows
    assert {value.column: str(value.live) for value in row.values} == {"mood": "sad"}


def test_a_long_value_is_cut_and_a_null_is_shown(tables: Tables) -> None:
    run(tables.live, "UPDATE jobs SET s3_key = repeat('long', 100000), data = NULL WHERE id = 1")
    with prepare_tables(tables.request("jobs"), tables.settings) as prepared:
        [shown] = diffs_to_json(prepared.describe(), with_values=True)
    [row] = shown["changed_rows"]  # type: ignore[misc]
    assert row["values"]["s3_key"]["live"] == f"{'long' * 50} … (400000 characters)"
    assert row["values"]["data"]["live"] is None


def test_rows_without_a_primary_key_are_compared_as_wholes(tables: Tables) -> None:
    run(tables.live, "DELETE FROM log WHERE line = 'a'; INSERT INTO log VALUES ('a'), ('c')")
    with prepare_tables(tables.request("public.log"), tables.settings) as prepared:
        [diff] = prepared.describe()
    assert (diff.only_captured, diff.only_live, diff.changed, diff.same) == (1, 1, 0, 3)


def test_awkward_names_and_values_are_equal(tables: Tables) -> None:
    with prepare_tables(tables.request("public.*"), tables.settings) as prepared:
        assert len(prepared.describe()) == 4
        assert all(diff.is_equal for diff in prepared.describe())


def test_missing_rows_are_restored_and_changed_ones_stay(tables: Tables) -> None:
    before = run(tables.live, "SELECT id, user_id, s3_key, data::text, doubled FROM jobs ORDER BY id")
    run(tables.live, "DELETE FROM jobs WHERE id > 3; UPDATE jobs SET s3_key = 'newer' WHERE id = 1")
    request = tables.request("jobs")
    with prepare_tables(request, tables.settings) as prepared:
        [written] = prepared.execute(WriteMode.MISSING)
    assert written.count == 2
    after = run(tables.live, "SELECT id, user_id, s3_key, data::text, doubled FROM jobs ORDER BY id")
    assert after[0][2] == "newer"
    assert after[1:] == before[1:]


def test_changed_rows_are_reset_and_newer_rows_stay(tables: Tables) -> None:
    run(
        tables.live,
        "UPDATE users SET mood = 'sad' WHERE id < 3; DELETE FROM jobs WHERE user_id = 4; DELETE FROM users "
        "WHERE id = 4",
    )
    run(tables.live, "INSERT INTO users VALUES (9, 'newer', 'sad')")
    with prepare_tables(tables.request("jobs", "users"), tables.settings) as prepared:
        written = prepared.execute(WriteMode.CHANGED)
    assert {rows.table.name: rows.count for rows in written} == {"users": 3, "jobs": 1}
    assert [rows.table.name for rows in written] == ["users", "jobs"]
    assert run(tables.live, "SELECT count(*) FILTER (WHERE mood = 'happy'), count(*) FROM users") == [(5, 6)]


def test_a_refused_row_leaves_all_tables_as_they_were(tables: Tables) -> None:
    run(tables.live, "DELETE FROM jobs; DELETE FROM users; DELETE FROM log")
    with (
        prepare_tables(tables.request("log", "jobs"), tables.settings) as prepared,
        pytest.raises(RestoreError, match=r"nothing was written: .*violates foreign key constraint"),
    ):
        prepared.execute(WriteMode.MISSING)
    assert run(tables.live, "SELECT (SELECT count(*) FROM log), (SELECT count(*) FROM jobs)") == [(0, 0)]


def test_a_condition_selects_rows_and_their_keys(tables: Tables) -> None:
    run(tables.live, "DELETE FROM jobs")
    with prepare_tables(
        tables.request("jobs", where="data->>'n' IN ('2', '3')"), tables.settings
    ) as prepared:
        [diff] = prepared.describe()
        assert prepared.read_keys("s3_key") == ("k2", "k3")
        [written] = prepared.execute(WriteMode.MISSING)
    assert (diff.only_captured, written.count) == (2, 2)
    assert run(tables.live, "SELECT id FROM jobs ORDER BY id") == [(2,), (3,)]


@pytest.mark.parametrize("where", ["no_such_column = 1", "id = ", "id = 'x'", "true); DROP TABLE jobs; --"])
def test_an_invalid_condition_is_refused_and_changes_nothing(tables: Tables, where: str) -> None:
    with (
        pytest.raises(RestoreError, match="condition"),
        prepare_tables(tables.request("jobs", where=where), tables.settings),
    ):
        pytest.fail("it was accepted")
    assert run(tables.live, "SELECT count(*) FROM jobs") == [(5,)]
    assert not exists(tables, tables.side_name)


def test_a_dropped_table_can_be_read_and_not_written(tables: Tables) -> None:
    run(tables.live, "DROP TABLE log")
    with prepare_tables(tables.request("log"), tables.settings) as prepared:
        [diff] = prepared.describe()
        assert (diff.shape.is_there, diff.only_captured) == (False, 4)
        with pytest.raises(RestoreError, match=r"no table public\.log"):
            prepared.execute(WriteMode.MISSING)


def test_a_name_that_matches_no_table_is_refused(tables: Tables) -> None:
    with (
        pytest.raises(RestoreError, match=r"no rows of job, other\.\*"),
        prepare_tables(tables.request("job", "other.*"), tables.settings),
    ):
        pytest.fail("it was accepted")


def test_a_kept_side_database_is_not_overwritten(tables: Tables) -> None:
    with prepare_tables(tables.request("log"), tables.settings) as prepared:
        prepared.side.keep("for a test")
    assert exists(tables, tables.side_name)
    with (
        pytest.raises(TargetNotEmptyError, match="already"),
        prepare_tables(tables.request("log"), tables.settings),
    ):
        pytest.fail("it was overwritten")


def test_a_killed_restores_leftovers_are_removed_by_the_next(tables: Tables) -> None:
    name = f"left_{tables.live.database[-20:]}"
    words = [sys.executable, "-c", FILL_AND_WAIT, name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(dumps(asdict(tables.live)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "there\n"
        # One of a running process is left alone.
        with prepare_tables(tables.request("log"), tables.settings):
            assert exists(tables, name)
        process.kill()
    sessions = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    wait_until(lambda: run(tables.live, sessions) == [(0,)], "the killed process's session ends")
    with prepare_tables(tables.request("log"), tables.settings):
        assert not exists(tables, name)


def test_only_the_schema_and_the_tables_bytes_are_read(database: DatabaseSettings, tmp_path: Path) -> None:
    run(
        database,
        "CREATE TABLE a_large (t text); INSERT INTO a_large SELECT md5(n::text) FROM generate_series(1, "
        "100000) n",
    )
    run(database, "CREATE TABLE small (t text); INSERT INTO small VALUES ('x')")
    run(
        database,
        "CREATE TABLE z_large (t text); INSERT INTO z_large SELECT md5(n::text) FROM generate_series(1, "
        "100000) n",
    )
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    path = publish_dump(catalog, database)
    with CountingFile(path) as file:
        dump = DumpFile(io.BufferedReader(file, 512))
        [table] = select_tables(dump, ("small",))
        schema = b"".join(dump.read_schema())
        rows = b"".join(dump.read_table(table))
        assert b"CREATE TABLE public.small" in schema
        assert rows.endswith(b"FROM stdin;\nx\n\\.\n")
        assert file.read_bytes < path.stat().st_size / 50


def test_a_damaged_table_and_a_replaced_file_are_refused(tables: Tables) -> None:
    path = tables.catalog.get_point(ID).artifacts[0].path
    good = path.read_bytes()
    with path.open("rb") as file:
        dump = DumpFile(file)
        [jobs] = select_tables(dump, ("jobs",))
    path.write_bytes(damage(good, (jobs.offset + jobs.length // 2) * 8))
    with pytest.raises(VerificationError), prepare_tables(tables.request("jobs"), tables.settings):
        pytest.fail("it was accepted")
    assert not exists(tables, tables.side_name)
    path.write_bytes(good)
    path.rename(path.with_name(path.name.replace(POINT, "20261123_020000")))
    other = TableRequest(tables.catalog.get_point(RecoveryPointId("20261123_020000")), ("jobs",), tables.live)
    with (
        pytest.raises(VerificationError, match="not to 20261123_020000") as caught,
        prepare_tables(other, tables.settings),
    ):
        pytest.fail("it was accepted")
    assert "swapped" in caught.value.hint


class CountingFile(io.FileIO):
    """A file that counts the bytes read."""

    read_bytes = 0

    def readinto(self, buffer: object, /) -> int:
        count = super().readinto(buffer)  # type: ignore[arg-type]
        self.read_bytes += count or 0
        return count or 0
