"""A parallel dump has the text of a single pg_dump, and leaves nothing behind when one pg_dump fails.

Every table counts as large here, so that each oddity is dumped separately too. The choice of tables is tested
in `unit`.
"""

from __future__ import annotations

import gzip
import re
import time
from pathlib import Path

import psutil
import pytest

from schedgen_backups.core.capture import dump_plan
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import list_files, publish_dump
from schedgen_backups_tests.support.dumps import ODDITIES, assert_equal, assert_whole, restore
from schedgen_backups_tests.support.fake_pg_dump import make_pg_bin_dir
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

UNSTABLE = re.compile(rb"^(\\(un)?restrict .*|-- schedgen-backups: .*)\n", re.MULTILINE)
TWO_TABLES = (
    "CREATE TABLE a (n int); CREATE TABLE b (n int); INSERT INTO a SELECT generate_series(1, 9); "
    "INSERT INTO b VALUES (7)"
)
OF_ONE_TABLE = 'case " $* " in *" --data-only "*) is_beside=1;; *) is_beside=;; esac\n'
SIDE_FAILS = OF_ONE_TABLE + (
    '[ -z "$is_beside" ] && exec {real} "$@"\n{real} "$@" | head -c 700\necho "the connection was lost" '
    ">&2\nexit 1\n"
)
SIDE_IS_CUT = OF_ONE_TABLE + '[ -z "$is_beside" ] && exec {real} "$@"\n{real} "$@" | head -c 700\nexit 0\n'
SIDE_IS_ANOTHER_TABLE = (
    OF_ONE_TABLE
    + 'if [ -n "$is_beside" ]; then exec {real} --data-only --table=public.a; fi\nexec {real} "$@"\n'
)
REST_FAILS_WHILE_SIDES_HANG = (
    OF_ONE_TABLE + '[ -n "$is_beside" ] && exec sleep 3600\necho "--"\necho "out of memory" >&2\nexit 1\n'
)


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_plan, "LARGE_TABLE_BYTES", 0)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def read_text(path: Path) -> bytes:
    return UNSTABLE.sub(b"", gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize("jobs", [2, 4])
def test_the_text_is_that_of_a_single_pg_dump(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog, jobs: int
) -> None:
    run(database, ODDITIES)
    one = publish_dump(catalog, database, dump_jobs=1)
    several = publish_dump(catalog, database, "20261123_020000", dump_jobs=jobs)
    assert read_text(several) == read_text(one)
    assert_whole(several)
    with open_dump(one) as serial, open_dump(several) as parallel:
        assert parallel.record.text_sha256 == serial.record.text_sha256
        assert parallel.record.size_bytes == serial.record.size_bytes
        assert [table.model_copy(update={"offset": 0, "length": 0}) for table in parallel.tables] == [
            table.model_copy(update={"offset": 0, "length": 0}) for table in serial.tables
        ]
    restore(several, second_database)
    assert_equal(several, second_database)


def test_the_text_is_the_same_on_an_older_server(database_17: DatabaseSettings, catalog: Catalog) -> None:
    run(database_17, ODDITIES)
    one = publish_dump(catalog, database_17, dump_jobs=1)
    several = publish_dump(catalog, database_17, "20261123_020000", dump_jobs=3)
    assert read_text(several) == read_text(one)
    assert_whole(several)


def test_several_pg_dumps_ran_and_saw_the_same_snapshot(
    database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path, tmp_path: Path
) -> None:
    """Before each pg_dump starts, a row moves from one table to the other.

    In the snapshot there are ten rows in all, whichever pg_dump reads them.
    """
    run(database, TWO_TABLES)
    moves = (
        '"$(dirname {real})/psql" -X -q -v ON_ERROR_STOP=1 '
        # Two that start at once move different rows.
        '-c "WITH moved AS (DELETE FROM a WHERE n = (SELECT n FROM a ORDER BY n LIMIT 1 FOR UPDATE SKIP '
        "LOCKED) RETURNING n) "
        'INSERT INTO b SELECT n FROM moved" >&2 || exit 1\n'
        'exec {real} "$@"'
    )
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=moves)
    path = publish_dump(catalog, database, postgres_bin_dir=bin_dir, dump_jobs=2)
    assert run(database, "SELECT count(*) FROM a") == [(7,)]
    assert_whole(path)
    with open_dump(path) as dump:
        assert [(table.name, table.rows) for table in dump.tables] == [("a", 9), ("b", 1)]


def test_a_migration_waits_for_the_dump(
    database: DatabaseSettings, catalog: Catalog, postgres_bin_dir: Path, tmp_path: Path
) -> None:
    """It requests a lock on the last table while an earlier one is read.

    Each table is locked at the start.
    """
    run(
        database,
        "CREATE TABLE a (n int); CREATE TABLE b AS SELECT repeat('x', 100) AS x FROM generate_series(1, "
        "40000); CREATE TABLE c AS SELECT 1 AS n",
    )
    is_locked = (
        "SELECT count(*) >= 2 FROM pg_locks WHERE relation = 'c'::regclass AND mode = "
        "'AccessShareLock' AND granted"
    )
    migrates = (
        OF_ONE_TABLE
        + '[ -n "$is_beside" ] && exec {real} "$@"\n'
        + 'psql="$(dirname {real})/psql -X -q -A -t"\n'
        + '{real} "$@" > "$0.out" || exit 1\n'
        + f'for _try in $(seq 30); do [ "$($psql -c "{is_locked}")" = t ] && break; sleep 0.1; done\n'
        + '$psql -c "ALTER TABLE c ADD extra int" >/dev/null 2>&1 &\n'
        + 'cat "$0.out"\n'
    )
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=migrates)
    # Slow enough that b takes three seconds.
    path = publish_dump(
        catalog,
        database,
        postgres_bin_dir=bin_dir,
        dump_jobs=2,
        max_mb_per_second=1,
        stall_timeout_seconds=20,
    )
    assert_whole(path)
    with open_dump(path) as dump:
        assert [(table.name, table.rows) for table in dump.tables] == [("a", 0), ("b", 40000), ("c", 1)]
    deadline = time.monotonic() + 60
    while not run(
        database, "SELECT 1 FROM pg_attribute WHERE attrelid = 'c'::regclass AND attname = 'extra'"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (SIDE_FAILS, "the connection was lost"),
        (
            SIDE_IS_CUT,
            "pg_dump of the rows of public.b ended with exit code 0|the rows of public.b ended too early",
        ),
        (
            SIDE_IS_ANOTHER_TABLE,
            "pg_dump of the rows of public.b ended with exit code 0|the rows of public.b ended too early",
        ),
        (REST_FAILS_WHILE_SIDES_HANG, "out of memory"),
    ],
)
def test_when_one_pg_dump_fails_nothing_is_published_and_none_keeps_running(
    database: DatabaseSettings,
    catalog: Catalog,
    postgres_bin_dir: Path,
    tmp_path: Path,
    script: str,
    reason: str,
) -> None:
    run(database, TWO_TABLES)
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    with pytest.raises(DumpError, match=reason):
        publish_dump(catalog, database, postgres_bin_dir=bin_dir, dump_jobs=2)
    assert list_files(catalog.directory) == []
    assert list((catalog.directory / ".staging").iterdir()) == []
    left = {child.name() for child in psutil.Process().children(recursive=True)}
    assert left.isdisjoint({"pg_dump", "sleep", "sh", "head"})
