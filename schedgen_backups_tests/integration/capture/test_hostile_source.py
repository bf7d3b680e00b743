"""A table owner in the source cannot run a function with the rights of the backup's role."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import ReferenceState
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import publish_dump
from schedgen_backups_tests.support.servers import connect, run

pytestmark = pytest.mark.integration

EVIL = """
CREATE FUNCTION public.evil(k text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''cat > MARKER'''; RETURN k; END $$;
"""


@pytest.fixture
def owner(database: DatabaseSettings) -> Iterator[DatabaseSettings]:
    """Yield a role that may create tables in the database, and nothing else."""
    name = f"{database.database}_owner"
    run(database, f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT ALL ON SCHEMA public TO {name}")
    yield replace(database, user=name, password="x")
    run(database, f"DROP OWNED BY {name} CASCADE")
    run(database, f"DROP ROLE {name}")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def test_the_built_in_query_of_references_reads_no_view(
    owner: DatabaseSettings, database: DatabaseSettings, catalog: Catalog, tmp_path: Path
) -> None:
    """Its function would run with the rights of the backup.

    A query that the operators wrote may read a view.
    """
    marker = tmp_path / "marker"
    view = "CREATE VIEW jobs AS SELECT public.evil(s3_key) AS s3_key FROM jobs_;"
    run(
        owner,
        "CREATE TABLE jobs_ (s3_key text); INSERT INTO jobs_ VALUES ('k'); "
        f"{EVIL.replace('MARKER', str(marker))} {view}",
    )
    with open_dump(publish_dump(catalog, database)) as dump:
        assert dump.record.reference_state is ReferenceState.NOT_CONFIGURED
        assert "the built-in query reads tables only" in dump.record.reference_note
    assert not marker.exists()
    run(owner, "CREATE OR REPLACE FUNCTION public.evil(k text) RETURNS text LANGUAGE sql AS 'SELECT k'")
    fields: dict[str, object] = {
        "reference_query": "SELECT s3_key FROM jobs",
        "is_reference_query_default": False,
    }
    other = Catalog(tmp_path / "other")
    other.prepare()
    with open_dump(publish_dump(other, database, **fields)) as dump:
        assert list(dump.read_references()) == [["k"]]


FOLDED = """
CREATE FUNCTION public.touch() RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''cat > MARKER'''; END $$;
CREATE FUNCTION public.evil(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF current_setting('is_superuser') = 'on' THEN PERFORM public.touch(); END IF;
    RETURN i;
END $$;
"""


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE jobs (s3_key text); CREATE INDEX ON jobs ((public.evil(1)))",
        "CREATE TABLE jobs (s3_key text); CREATE INDEX ON jobs (s3_key) WHERE public.evil(1) = 1",
        (
            "CREATE TABLE jobs (s3_key text); CREATE STATISTICS jobs_s ON (length(s3_key) + public.evil(1)), "
            "s3_key FROM jobs"
        ),
        (
            "CREATE TABLE jobs (s3_key text, i int) PARTITION BY RANGE ((i + public.evil(1))); CREATE TABLE "
            "leaf PARTITION OF jobs DEFAULT"
        ),
        "CREATE TABLE jobs (s3_key text); CREATE TABLE child (CHECK (public.evil(1) = 1)) INHERITS (jobs)",
    ],
    ids=["index", "predicate", "statistics", "partition key", "check"],
)
def test_functions_that_the_planner_would_run_are_not_run(
    owner: DatabaseSettings, database: DatabaseSettings, catalog: Catalog, tmp_path: Path, tables: str
) -> None:
    """Planning a query would run them: rows are counted and keys are read without a plan."""
    marker = tmp_path / "marker"
    run(owner, f"{FOLDED.replace('MARKER', str(marker))} {tables}; INSERT INTO jobs VALUES ('k')")
    with open_dump(publish_dump(catalog, database)) as dump:
        assert list(dump.read_references()) == [["k"]]
        assert dump.record.row_count == 1
    assert not marker.exists()
    run(database, "SELECT count(*) FROM jobs WHERE s3_key IS NOT NULL")
    assert marker.exists()


@pytest.mark.parametrize("query", ["", "SELECT s3_key FROM jobs"], ids=["built-in", "own"])
def test_a_cast_of_the_type_of_a_key_is_not_called(
    owner: DatabaseSettings, database: DatabaseSettings, catalog: Catalog, tmp_path: Path, query: str
) -> None:
    marker = tmp_path / "marker"
    evil = (
        EVIL.replace("MARKER", str(marker))
        .replace("(k text)", "(k public.key)")
        .replace("RETURN k;", "RETURN (k).part;")
    )
    run(
        owner,
        f"CREATE TYPE public.key AS (part text); {evil} CREATE CAST (public.key AS text) WITH FUNCTION "
        "public.evil(public.key)",
    )
    run(owner, "CREATE TABLE jobs (s3_key key); INSERT INTO jobs VALUES (ROW('k'))")
    fields: dict[str, object] = (
        {"reference_query": query, "is_reference_query_default": False} if query else {}
    )
    with open_dump(publish_dump(catalog, database, **fields)) as dump:
        assert list(dump.read_references()) == [["(k)"]]
    assert not marker.exists()
    run(database, "SELECT s3_key::text FROM jobs")
    assert marker.exists()


@pytest.mark.parametrize("change", ["view", "table"])
def test_a_table_replaced_while_it_is_waited_for_aborts_the_dump(
    owner: DatabaseSettings, database: DatabaseSettings, catalog: Catalog, tmp_path: Path, change: str
) -> None:
    """A migration does this, or an attacker who waits for the backup (compare CVE-2024-7348).

    A retry succeeds.
    """
    marker = tmp_path / "marker"
    run(
        owner,
        "CREATE TABLE jobs (s3_key text); CREATE TABLE t (i text); INSERT INTO t VALUES ('a'); "
        f"{EVIL.replace('MARKER', str(marker))}",
    )
    changes = {
        "view": "ALTER TABLE t RENAME TO t_old; CREATE VIEW t AS SELECT public.evil('x') AS i",
        "table": "DROP TABLE t; CREATE TABLE t (i bigint)",
    }
    with connect(owner) as holder:
        holder.autocommit = False
        holder.execute(changes[change].encode())

        def commit_when_waited_for() -> None:
            ends_at = time.monotonic() + 60
            while time.monotonic() < ends_at and run(
                database, "SELECT count(*) FROM pg_locks WHERE NOT granted"
            ) == [(0,)]:
                time.sleep(0.05)
            holder.commit()

        thread = threading.Thread(target=commit_when_waited_for)
        thread.start()
        try:
            with pytest.raises(DumpError):
                publish_dump(catalog, database)
        finally:
            thread.join()
    assert not marker.exists()
    assert list(catalog.directory.glob("*.gz")) == []
