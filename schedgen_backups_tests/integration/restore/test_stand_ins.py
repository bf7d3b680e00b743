"""Stand-ins for existing roles on a named server sort by another name, which alone makes no difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.drill.scratch_database import ScratchDatabase
from schedgen_backups.core.restore.comparison import compare_database
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.unprivileged_load import LOADED_SETTINGS, UnprivilegedLoad
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DrillSettings
from schedgen_backups_tests.integration.restore.test_unprivileged_load import (
    Loaded,
    catalog,
    load_and_compare,
    loaded,
)
from schedgen_backups_tests.support.artifacts import make_transfer, publish_dump
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

__all__ = ["catalog", "loaded"]

pytestmark = pytest.mark.integration

DEFAULTS = """
ALTER DEFAULT PRIVILEGES FOR ROLE b_role GRANT SELECT ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE c_role GRANT SELECT ON TABLES TO PUBLIC;
"""
SCRIPTS = {
    "default privileges": DEFAULTS,
    "default privileges of a schema": "CREATE SCHEMA q; ALTER DEFAULT PRIVILEGES FOR ROLE c_role IN SCHEMA "
    "q GRANT SELECT ON TABLES TO b_role;"
    "ALTER DEFAULT PRIVILEGES FOR ROLE b_role IN SCHEMA q GRANT SELECT ON TABLES TO c_role WITH GRANT "
    "OPTION;",
    "user mappings": "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;"
    "CREATE USER MAPPING FOR b_role SERVER s OPTIONS (user 'x', password 'y');"
    "CREATE USER MAPPING FOR c_role SERVER s OPTIONS (user 'x', password 'y');",
}


@contextmanager
def open_named_target(
    loaded: Loaded, tmp_path: Path, bin_dir: Path, catalog: Catalog, script: str
) -> Iterator[tuple[Path, ScratchDatabase]]:
    """Return the dump of a database with two roles, and a target on a server that has one of them."""
    with EmbeddedPostgres(tmp_path / "source", bin_dir=bin_dir, server_options=FAST_SERVER_OPTIONS) as source:
        database = source.create_database("live")
        run(
            database,
            f"CREATE ROLE b_role; CREATE ROLE c_role; CREATE TABLE filled AS SELECT 1 AS i; {script}",
        )
        path = publish_dump(catalog, database)
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=bin_dir, user="drillmaster", server_options=FAST_SERVER_OPTIONS
    ) as server:
        run(server.settings("postgres"), "CREATE ROLE b_role")
        with loaded.open_target(
            path, DrillSettings(tmp_path / "drill", database=server.settings("postgres"))
        ) as target:
            yield path, target


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_text_sorted_by_roles_is_equal_where_one_has_a_stand_in(
    loaded: Loaded, tmp_path: Path, postgres_bin_dir: Path, catalog: Catalog, script: str
) -> None:
    with open_named_target(loaded, tmp_path, postgres_bin_dir, catalog, script) as (path, target):
        results = load_and_compare(path, target)
    assert [(result.status.value, result.summary) for result in results if not result.is_passed] == []


@pytest.mark.parametrize(
    "change",
    [
        "COMMENT ON TABLE public.filled IS 'other'",
        "ALTER DEFAULT PRIVILEGES FOR ROLE c_role GRANT INSERT ON TABLES TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE c_role REVOKE SELECT ON TABLES FROM PUBLIC",
        "CREATE SEQUENCE public.other",
    ],
)
def test_a_stand_in_hides_no_difference(
    loaded: Loaded, tmp_path: Path, postgres_bin_dir: Path, catalog: Catalog, change: str
) -> None:
    with open_named_target(loaded, tmp_path, postgres_bin_dir, catalog, DEFAULTS) as (path, target):
        superuser = target.roles.superuser
        assert superuser is not None
        with prepare_database(path, superuser, make_transfer(), values=LOADED_SETTINGS) as prepared:
            UnprivilegedLoad(prepared, target.roles, stop=Event()).run()
            run(superuser, change)
            assert compare_database(prepared, roles=target.roles)[1].status is CheckStatus.FAILED


def test_a_sequence_that_moved_is_unknown_where_a_role_has_a_stand_in(
    loaded: Loaded, tmp_path: Path, postgres_bin_dir: Path, catalog: Catalog
) -> None:
    script = f"{DEFAULTS} CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS id"
    with open_named_target(loaded, tmp_path, postgres_bin_dir, catalog, script) as (path, target):
        _restored, equal = load_and_compare(path, target)
    assert (equal.status, "public.s" in equal.summary) == (CheckStatus.UNKNOWN, True)
