"""A drill finds a database equal whatever its history of grants and owners.

Grantors are part of the schema text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.database_servers import find_server_bin_dirs
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DrillSettings
from schedgen_backups_tests.integration.restore.test_unprivileged_load import (
    Loaded,
    catalog,
    load_and_compare,
    loaded,
)
from schedgen_backups_tests.support.artifacts import publish_dump
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, connect, run

__all__ = ["catalog", "loaded"]

pytestmark = pytest.mark.integration

ROLES = ("a", "b", "c", '"D d"', "su")
PREPARED = """
CREATE ROLE a; CREATE ROLE b; CREATE ROLE c; CREATE ROLE "D d"; CREATE ROLE su SUPERUSER;
GRANT a TO b WITH ADMIN OPTION; GRANT c TO a;
CREATE EXTENSION postgres_fdw; CREATE EXTENSION amcheck; CREATE TABLE filled AS SELECT 1 AS i;
"""
KINDS = {
    "TABLE s{n}.o": (
        "CREATE TABLE s{n}.o (i integer, j integer)",
        ("SELECT", "INSERT", "ALL", "SELECT (i)", "UPDATE (i, j)", "REFERENCES (j)"),
    ),
    "SEQUENCE s{n}.o": ("CREATE SEQUENCE s{n}.o", ("USAGE", "SELECT", "ALL")),
    "FUNCTION s{n}.o(integer)": (
        "CREATE FUNCTION s{n}.o(number integer, OUT words text) LANGUAGE sql AS 'SELECT NULL::text'",
        ("EXECUTE", "ALL"),
    ),
    "SCHEMA s{n}": ("SELECT 1", ("USAGE", "CREATE", "ALL")),
    "TYPE s{n}.o": ("CREATE TYPE s{n}.o AS ENUM ('x')", ("USAGE",)),
    "FOREIGN SERVER o{n}": ("CREATE SERVER o{n} FOREIGN DATA WRAPPER postgres_fdw", ("USAGE",)),
    "LARGE OBJECT 50{n}": ("SELECT lo_create(50{n})", ("SELECT", "UPDATE", "ALL")),
}


def make_history(chance: random.Random) -> Iterator[str]:
    """Return statements, some of which the server may refuse."""
    for number in range(30):
        kind = chance.choice(list(KINDS))
        name, (make, privileges) = kind.replace("{n}", str(number)), KINDS[kind]
        yield from ("RESET ROLE", f"CREATE SCHEMA s{number}", f"GRANT ALL ON SCHEMA s{number} TO PUBLIC")
        if chance.random() < 0.5:
            yield f"SET ROLE {chance.choice(ROLES)}"
        yield make.replace("{n}", str(number))
        for _step in range(chance.randrange(1, 14)):
            yield "RESET ROLE"
            if chance.random() < 0.6:
                yield f"SET ROLE {chance.choice(ROLES)}"
            who, what, kind_of_step = (
                chance.choice([*ROLES, "PUBLIC"]),
                chance.choice(privileges),
                chance.random(),
            )
            if kind_of_step < 0.55:
                yield (
                    f"GRANT {what} ON {name} TO "
                    f"{who}{' WITH GRANT OPTION' if who != 'PUBLIC' and chance.random() < 0.5 else ''}"
                )
            elif kind_of_step < 0.85:
                yield (
                    f"REVOKE {chance.choice(['GRANT OPTION FOR ', ''])}{what} ON {name} FROM {who} "
                    f"{chance.choice(['CASCADE', ''])}"
                )
            else:
                yield "RESET ROLE"
                yield f"ALTER {name.removeprefix('FOREIGN ')} OWNER TO {chance.choice(ROLES)}"


@pytest.mark.parametrize(("major", "seed"), [(18, 1), (15, 2)])
def test_a_random_history_of_rights_is_equal(
    loaded: Loaded, tmp_path: Path, catalog: Catalog, major: int, seed: int
) -> None:
    bin_dir = next(bin_dir for bin_dir, version in find_server_bin_dirs(major) if version == major)
    with EmbeddedPostgres(tmp_path / "source", bin_dir=bin_dir, server_options=FAST_SERVER_OPTIONS) as source:
        database = source.create_database("live")
        run(database, PREPARED)
        with connect(database) as connection:
            for statement in make_history(random.Random(seed)):  # noqa: S311 - no secret
                with suppress(psycopg.Error):
                    connection.execute(statement.encode())
        path = publish_dump(catalog, database)
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=bin_dir, user="drillmaster", server_options=FAST_SERVER_OPTIONS
    ) as server:
        # A stand-in replaces a role that already exists.
        run(server.settings("postgres"), "CREATE ROLE b")
        for drill in (None, DrillSettings(tmp_path / "drill", database=server.settings("postgres"))):
            with loaded.open_target(path, drill) as target:
                results = load_and_compare(path, target)
            assert [(result.status.value, result.summary) for result in results if not result.is_passed] == []


GIVEN_ON = {
    "by the owner to two": "CREATE TABLE t (i integer); ALTER TABLE t OWNER TO c_own;"
    " GRANT SELECT ON t TO a_app WITH GRANT OPTION; GRANT SELECT ON t TO b_ro",
    "of a superuser's schema": "CREATE SCHEMA s; GRANT USAGE ON SCHEMA s TO a_app WITH GRANT OPTION; GRANT "
    "USAGE ON SCHEMA s TO b_ro",
    "of a column to the owner": "CREATE TABLE t (i integer); ALTER TABLE t OWNER TO c_own; GRANT SELECT ON "
    "t TO a_app WITH GRANT OPTION;"
    "GRANT SELECT (i) ON t TO c_own WITH GRANT OPTION",
    "of a function with named parameters": "CREATE FUNCTION f(x integer, OUT y integer) LANGUAGE sql AS "
    "'SELECT 1'; ALTER FUNCTION f OWNER TO c_own;"
    "REVOKE ALL ON FUNCTION f FROM PUBLIC; GRANT ALL ON FUNCTION f TO a_app WITH GRANT OPTION; GRANT ALL "
    "ON FUNCTION f TO b_ro",
    "of a function whose parameter has a quote": 'CREATE FUNCTION f("x\'y" integer) RETURNS integer '
    "LANGUAGE sql AS 'SELECT 1';"
    "ALTER FUNCTION f OWNER TO c_own; GRANT ALL ON FUNCTION f TO a_app WITH GRANT OPTION; GRANT ALL ON "
    "FUNCTION f TO b_ro",
}


@pytest.mark.parametrize("script", GIVEN_ON.values(), ids=GIVEN_ON)
def test_a_right_with_grant_option_is_equal(
    loaded: Loaded, tmp_path: Path, named_server: EmbeddedPostgres, catalog: Catalog, script: str
) -> None:
    """The loader is a member of every role.

    The server records as grantor any role with the grant option that the loader is a member of, not the
    owner.
    """
    database = named_server.create_database("live")
    run(
        database,
        "CREATE ROLE a_app; CREATE ROLE b_ro; CREATE ROLE c_own; CREATE TABLE filled AS SELECT 1 AS i; "
        f"{script}",
    )
    path = publish_dump(catalog, database)
    for drill in (
        None,
        DrillSettings(
            tmp_path / "drill", database=named_server.settings("postgres"), is_source_server_allowed=True
        ),
    ):
        with loaded.open_target(path, drill) as target:
            results = load_and_compare(path, target)
        assert [(result.status.value, result.summary) for result in results if not result.is_passed] == []
