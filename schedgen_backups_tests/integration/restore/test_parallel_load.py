"""A dump loaded in several sessions: equal for every kind of object, and removed again after any error.

The load in one transaction is tested in `test_point`.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.restore import parallel_load
from schedgen_backups.core.restore.database import can_load_in_parallel, prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.verify.files import verify_dump_against_snapshot
from schedgen_backups_tests.support.artifacts import damage, make_transfer, publish_dump
from schedgen_backups_tests.support.dumps import ODDITIES, assert_equal, change_digest
from schedgen_backups_tests.support.recover import SCRIPT
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

MAKE_PLAIN = "SELECT lo_unlink(oid) FROM pg_largeobject_metadata"
"""Removes the large objects, which only a load in one transaction restores."""
RELATIONS = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
BROKEN = """
CREATE TABLE upper (id int PRIMARY KEY); CREATE TABLE lower (upper_id int REFERENCES upper);
CREATE INDEX ON lower (upper_id);
SET session_replication_role = replica; INSERT INTO lower VALUES (7);
"""


class Dumped:
    """A dump of a database, and an empty database to load it into."""

    def __init__(self, source: DatabaseSettings, target: DatabaseSettings, folder: Path) -> None:
        self.source, self.target = source, target
        self.catalog = Catalog(folder)
        self.catalog.prepare()

    def capture(self) -> Path:
        return publish_dump(self.catalog, self.source)

    def load(
        self,
        path: Path,
        *,
        stop: Event | None = None,
        on_progress: Callable[[int], object] = lambda _size: None,
    ) -> None:
        options = make_transfer()
        restore_database(
            path,
            self.target,
            options,
            replace_contents=False,
            stop=stop or Event(),
            jobs=3,
            on_progress=on_progress,
        )


@pytest.fixture
def dumped(database: DatabaseSettings, second_database: DatabaseSettings, tmp_path: Path) -> Dumped:
    return Dumped(database, second_database, tmp_path / "backups")


@pytest.mark.parametrize("change", ["", MAKE_PLAIN], ids=["one transaction", "several sessions"])
def test_every_kind_of_object_is_equal(dumped: Dumped, change: str) -> None:
    """With large objects, the load is one transaction."""
    run(dumped.source, ODDITIES)
    if change:
        run(dumped.source, change)
    path = dumped.capture()
    with path.open("rb") as file:
        assert can_load_in_parallel(DumpFile(file)) is bool(change)
    dumped.load(path)
    assert_equal(path, dumped.target)


def test_every_kind_of_object_is_equal_on_an_older_server(
    database_17: DatabaseSettings, dumped: Dumped
) -> None:
    run(database_17, ODDITIES)
    run(database_17, MAKE_PLAIN)
    path = publish_dump(dumped.catalog, database_17)
    # This server has the extensions; a second database there is the target.
    name = f"{database_17.database[:40]}_loaded"
    run(database_17, f'CREATE DATABASE "{name}" TEMPLATE template0')
    dumped.target = database_17.with_database(name)
    try:
        dumped.load(path)
        assert_equal(path, dumped.target)
    finally:
        run(database_17, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def every_table_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sessions share the rows of each table, even of small ones."""
    monkeypatch.setattr(parallel_load, "_WIDE_TABLE_BYTES", 0)
    monkeypatch.setattr(parallel_load, "_WIDE_ROW_BYTES", 0)


@pytest.mark.usefixtures("every_table_is_wide")
def test_every_kind_of_object_is_equal_when_sessions_share_the_rows(dumped: Dumped) -> None:
    run(dumped.source, ODDITIES)
    run(dumped.source, MAKE_PLAIN)
    path = dumped.capture()
    dumped.load(path)
    assert_equal(path, dumped.target)


def test_rows_of_a_wide_table_are_shared_and_complete(dumped: Dumped) -> None:
    """The values are large and hardly compress.

    No single session gets all of them, in blocks that end within a row.
    """
    value = "SELECT string_agg(md5((n * 1000 + part)::text), '') FROM generate_series(1, 3000) part"
    run(dumped.source, f"CREATE TABLE wide AS SELECT n, ({value}) AS value FROM generate_series(1, 200) n")
    path = dumped.capture()
    with path.open("rb") as file:
        (table,) = DumpFile(file).tables
    assert parallel_load.is_wide(table)
    dumped.load(path)
    assert_equal(path, dumped.target)
    assert run(dumped.target, "SELECT count(DISTINCT xmin::text) > 1 FROM wide") == [(True,)]


@pytest.mark.usefixtures("every_table_is_wide")
def test_refused_rows_leave_an_empty_database(dumped: Dumped) -> None:
    """The CHECK reads a table that is loaded later, which pg_dump cannot know."""
    run(dumped.source, "CREATE TABLE z_later (n int); INSERT INTO z_later VALUES (1)")
    run(
        dumped.source,
        "CREATE FUNCTION is_there() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN EXISTS (SELECT FROM "
        "public.z_later); END'",
    )
    run(
        dumped.source,
        "CREATE TABLE a (n int CHECK (is_there())); INSERT INTO a SELECT generate_series(1, 300000)",
    )
    with pytest.raises(BackupError, match="violates check constraint"):
        dumped.load(dumped.capture())
    assert run(dumped.target, RELATIONS) == [(0,)]


def test_an_error_after_the_rows_leaves_an_empty_database(dumped: Dumped) -> None:
    run(dumped.source, BROKEN)
    with pytest.raises(RestoreError, match="violates foreign key constraint"):
        dumped.load(dumped.capture())
    assert run(dumped.target, RELATIONS) == [(0,)]


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_damaged_table_leaves_an_empty_database(
    dumped: Dumped, request: pytest.FixtureRequest, *, is_shared: bool
) -> None:
    if is_shared:
        request.getfixturevalue("every_table_is_wide")
    run(
        dumped.source,
        "CREATE TABLE a AS SELECT n FROM generate_series(1, 1000) n; CREATE TABLE b AS SELECT md5(n::text) "
        "FROM generate_series(1, 9000) n",
    )
    path = dumped.capture()
    good = path.read_bytes()
    with path.open("rb") as file:
        table = DumpFile(file).tables[-1]
    path.write_bytes(damage(good, (table.offset + table.length // 2) * 8))
    with pytest.raises(BackupError):
        dumped.load(path)
    assert run(dumped.target, RELATIONS) == [(0,)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [("text", "the schema differs"), ("table", "the rows of public.a differ from what was captured")],
)
def test_a_dump_that_does_not_match_its_index_leaves_an_empty_database(
    dumped: Dumped, changed: str, named: str
) -> None:
    """Only the digests show it."""
    run(dumped.source, "CREATE TABLE a AS SELECT n FROM generate_series(1, 1000) n")
    with prepare_database(dumped.capture(), dumped.target, make_transfer()) as prepared:
        change_digest(prepared.dump, changed)
        load = DatabaseLoad(
            prepared,
            replace_contents=False,
            jobs=3,
            roles=None,
            stop=Event(),
            on_progress=lambda _size_bytes: None,
        )
        with pytest.raises(VerificationError, match=named):
            load.run()
    assert run(dumped.target, RELATIONS) == [(0,)]


def test_a_cancelled_load_leaves_an_empty_database(dumped: Dumped) -> None:
    run(dumped.source, "CREATE TABLE a AS SELECT n FROM generate_series(1, 1000) n; CREATE INDEX ON a (n)")
    stop = Event()
    with pytest.raises(RestoreError, match="stopped"):
        dumped.load(dumped.capture(), stop=stop, on_progress=lambda _size: stop.set())
    assert run(dumped.target, RELATIONS) == [(0,)]


def test_indexes_with_odd_names_are_built(dumped: Dumped) -> None:
    """Names that need quotes, and indexes of a partitioned table, a partition and a materialized view."""
    run(
        dumped.source,
        """
        CREATE SCHEMA "Odd.""Schema"; CREATE TABLE "Odd.""Schema"."a ""b"" ON c.d" (n int PRIMARY KEY,
            "x y" text);
        INSERT INTO "Odd.""Schema"."a ""b"" ON c.d" SELECT n, md5(n::text) FROM generate_series(1, 500) n;
        CREATE UNIQUE INDEX "on ""x.y"" too" ON "Odd.""Schema"."a ""b"" ON c.d" (lower("x y"));
        CREATE TABLE measured (day date NOT NULL, n int) PARTITION BY RANGE (day);
        CREATE TABLE measured_2026 PARTITION OF measured FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        INSERT INTO measured SELECT '2026-01-01'::date + n, n FROM generate_series(0, 300) n;
        CREATE INDEX ON measured (n);
        CREATE MATERIALIZED VIEW days AS SELECT day, count(*) FROM measured GROUP BY day;
        CREATE UNIQUE INDEX ON days (day);
        """,
    )
    path = dumped.capture()
    dumped.load(path)
    assert_equal(path, dumped.target)
    tables = "SELECT oid FROM pg_class WHERE relkind IN ('r', 'p', 'm') AND oid >= 16384"
    names = f"SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid IN ({tables}) ORDER BY 1"
    assert run(dumped.target, names) == run(dumped.source, names)


LOOKALIKE = """
--
-- Data for Name: evil; Type: TABLE DATA; Schema: public; Owner: x
--

COPY public.evil (a) FROM stdin;
1
--
-- Name: x; Type: INDEX; Schema: public; Owner: x
--

CREATE TABLE public.owned ();
"""


@pytest.mark.parametrize("jobs", [1, 3])
def test_text_of_a_table_owner_that_imitates_the_dump_stays_text(dumped: Dumped, jobs: int) -> None:
    """Each of these hid the next table from the reader, or became a statement of the restoring role."""
    quoted = LOOKALIKE.replace("'", "''")
    run(
        dumped.source,
        f"""
        CREATE TABLE a (a int PRIMARY KEY, b text DEFAULT '{quoted}',
            CONSTRAINT c CHECK (b <> E'\\'{quoted}'));
        CREATE TABLE b (a int); CREATE INDEX i ON b (a); CREATE TABLE z (a int PRIMARY KEY);
        INSERT INTO a VALUES (1); INSERT INTO b VALUES (2); INSERT INTO z VALUES (3);
        COMMENT ON TABLE a IS '{quoted}'; COMMENT ON INDEX i IS '{quoted}';
        COMMENT ON CONSTRAINT c ON a IS '{quoted}';
        CREATE VIEW v AS SELECT '{quoted}'::text AS t;
        CREATE RULE r AS ON UPDATE TO b DO INSTEAD SELECT '{quoted}'::text;
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $body$ SELECT '{quoted}'::text $body$;
        COMMENT ON RULE r ON b IS '{quoted}';
        """,
    )
    path = dumped.capture()
    with path.open("rb") as file:
        assert [table.name for table in DumpFile(file).tables] == ["a", "b", "z"]
    restore_database(path, dumped.target, make_transfer(), replace_contents=False, stop=Event(), jobs=jobs)
    assert_equal(path, dumped.target)
    assert run(dumped.target, "SELECT count(*) FROM pg_class WHERE relname IN ('owned', 'evil')") == [(0,)]


SLICES = """
CREATE TABLE t (a int[], "HOST" int, "USER" int, "ENCODING" int, CHECK (array_length(a[1:"USER"], 1) < 5));
INSERT INTO t VALUES ('{1,2,3}', 2, 2, 1);
CREATE VIEW v AS SELECT a[1:"HOST"] AS x, a[1:"ENCODING"] AS y FROM t;
CREATE TABLE after_each (a int[], "ERROR" int, "ROW_COUNT" int, "SQLSTATE" int);
INSERT INTO after_each VALUES ('{1,2,3}', 1, 2, 3);
CREATE VIEW w AS SELECT a[1:"ERROR"] AS x, a[1:"ROW_COUNT"] AS y, a["SQLSTATE":] AS z FROM after_each;
"""
HASHED = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad', 'bad', 'mad');
CREATE TABLE h (m mood PRIMARY KEY) PARTITION BY HASH (m);
CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE "h\n1" PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO h SELECT unnest(enum_range(NULL::mood));
"""
BEGINS = "CREATE TABLE rule (begin int); CREATE TABLE function (begin int); INSERT INTO rule VALUES (1)"


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    "script", [SLICES, HASHED, BEGINS], ids=["psql's variables", "hash partitions", "begin"]
)
def test_honest_schemas_with_confusing_text_load(dumped: Dumped, script: str, jobs: int) -> None:
    run(dumped.source, script)
    path = dumped.capture()
    restore_database(path, dumped.target, make_transfer(), replace_contents=False, stop=Event(), jobs=jobs)
    assert_equal(path, dumped.target)
    if script == HASHED:
        assert verify_dump_against_snapshot(path).is_passed
        verify_file: Callable[..., object] = runpy.run_path(str(SCRIPT))["verify_file"]
        verify_file(path, {})
