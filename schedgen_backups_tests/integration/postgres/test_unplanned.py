"""Reading without a plan gives a query's row counts and keys, for tables of every shape."""

from __future__ import annotations

import pytest
from psycopg import sql

from schedgen_backups.core.postgres.object_keys import find_reference_problem, read_references
from schedgen_backups.core.postgres.snapshot import TableName, open_snapshot
from schedgen_backups.core.postgres.unplanned import count_rows, read_columns
from schedgen_backups.core.settings import DatabaseSettings, References
from schedgen_backups_tests.support.servers import connect, run

pytestmark = pytest.mark.integration

ODD = "a\\b\tc\nd\re\x07\x08\x0b\x0cf\\N \u00e9\U0001f600"


PARTITIONED = """
CREATE TABLE jobs (id int, s3_key text) PARTITION BY HASH (id);
CREATE TABLE a PARTITION OF jobs FOR VALUES WITH (MODULUS 2, REMAINDER 0) PARTITION BY LIST (s3_key);
CREATE TABLE aa PARTITION OF a DEFAULT;
CREATE TABLE b PARTITION OF jobs FOR VALUES WITH (MODULUS 2, REMAINDER 1);
"""


def list_keys(database: DatabaseSettings) -> list[str]:
    with open_snapshot(database) as snapshot:
        assert find_reference_problem(snapshot, References()) == ""
        return [key for block in read_references(snapshot, References()) for key in block]


@pytest.mark.parametrize(
    "definition",
    [
        "CREATE TABLE jobs (id int, s3_key text)",
        "CREATE TABLE jobs (id int, s3_key varchar(200))",
        "CREATE DOMAIN key AS text; CREATE TABLE jobs (id int, s3_key key)",
        PARTITIONED,
        (
            "CREATE TABLE jobs (id int, s3_key text); CREATE TABLE child (more int) INHERITS (jobs); INSERT "
            "INTO child VALUES (7, 'of a child', 1)"
        ),
    ],
    ids=["text", "varchar", "domain", "partitions", "children"],
)
def test_the_keys_are_those_of_the_query(database: DatabaseSettings, definition: str) -> None:
    run(database, definition)
    with connect(database) as connection:
        rows = [
            (1, "b"),
            (2, None),
            (3, "a"),
            (4, "b"),
            (5, ODD),
            (6, ""),
            (7, "\\N"),
            (8, " ends with blanks  "),
            *((n, f"k/{n}") for n in range(9, 3000)),
        ]
        connection.cursor().executemany("INSERT INTO jobs (id, s3_key) VALUES (%s, %s)", rows)
    queried = run(
        database, 'SELECT DISTINCT s3_key::text COLLATE "C" FROM jobs WHERE s3_key IS NOT NULL ORDER BY 1'
    )
    assert list_keys(database) == [key for (key,) in queried]


def test_the_padding_of_a_char_key_is_not_part_of_it(database: DatabaseSettings) -> None:
    run(database, "CREATE TABLE jobs (s3_key char(10)); INSERT INTO jobs VALUES ('abc'), ('abc   '), (' d')")
    assert list_keys(database) == [" d", "abc"]


@pytest.mark.parametrize(
    ("definition", "rows"),
    [
        (
            (
                "CREATE TABLE t (a text, b text); INSERT INTO t SELECT E'x\\ny', repeat('z', 100000) FROM "
                "generate_series(1, 3)"
            ),
            3,
        ),
        ("CREATE TABLE t (); INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES", 2),
        (
            (
                "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a + 1) STORED); INSERT INTO t "
                "SELECT g FROM generate_series(1, 5000) g"
            ),
            5000,
        ),
        (
            (
                "CREATE TABLE t (a int, b boolean); INSERT INTO t SELECT g, NULL FROM "
                "generate_series(1, 7) g; ALTER TABLE t DROP COLUMN b"
            ),
            7,
        ),
        ("CREATE TABLE t (a int); CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (1)", 0),
        ('CREATE TABLE t ("(odd) ""name" int); INSERT INTO t VALUES (1)', 1),
    ],
    ids=["wide", "no columns", "generated", "dropped column", "only a child", "odd name"],
)
def test_rows_are_counted_whatever_the_columns(
    database: DatabaseSettings, definition: str, rows: int
) -> None:
    run(database, definition)
    table = TableName("public", "t")
    with open_snapshot(database) as snapshot:
        assert snapshot.count_rows([table]) == {table: rows}
        # The session is unchanged: it counts again.
        assert snapshot.count_rows([table, table]) == {table: rows}


def test_an_error_of_the_server_leaves_the_session_usable(database: DatabaseSettings) -> None:
    with connect(database) as connection:
        connection.autocommit = True
        with pytest.raises(Exception, match="does not exist"):
            count_rows(connection, sql.Identifier("nothing"))
        with pytest.raises(Exception, match="does not exist"):
            list(read_columns(connection, sql.Identifier("nothing"), ("a",)))
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_several_columns_are_told_apart_whatever_they_hold(database: DatabaseSettings) -> None:
    values = [("a\tb", "c"), ("\\N", None), ("", "x\\ty"), (None, "line\nbreak")]
    with connect(database) as connection:
        connection.execute("CREATE TABLE t (a text, b text)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, %s)", values)
        read = list(read_columns(connection, sql.Identifier("t"), ("a", "b")))
    assert read == [tuple(None if value is None else value.encode() for value in row) for row in values]
