"""A schema with one of everything is equal after an unprivileged load.

It is loaded on every major version here and in other encodings. What only a superuser may create uses the
narrow path of `unprivileged_load`. Statements that a version or an encoding refuses are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.database_servers import find_server_bin_dirs
from schedgen_backups.core.drill.scratch_database import open_scratch_database
from schedgen_backups.core.drill.scratch_folder import open_scratch_folder
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.restore.comparison import compare_database
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.unprivileged_load import LOADED_SETTINGS, UnprivilegedLoad
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.artifacts import make_transfer, publish_dump
from schedgen_backups_tests.support.dumps import ZOO, assert_equal, load_script
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration

OWNED = """
CREATE ROLE "zoo's own" NOSUPERUSER;
CREATE SCHEMA own AUTHORIZATION "zoo's own";
SET ROLE "zoo's own";
CREATE TABLE own.secret (id int PRIMARY KEY, note text CHECK (note <> ''));
INSERT INTO own.secret VALUES (1, 'a'), (2, 'b');
ALTER TABLE own.secret ENABLE ROW LEVEL SECURITY; ALTER TABLE own.secret FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON own.secret USING (false);
CREATE MATERIALIZED VIEW own.seen AS SELECT count(*) FROM own.secret;
RESET ROLE;
"""
PLACES = [
    (15, "UTF8"),
    (17, "UTF8"),
    (18, "UTF8"),
    (18, "LATIN1"),
    (18, "EUC_JP"),
    (18, "SQL_ASCII"),
    (17, "LATIN1"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, EmbeddedPostgres]]:
    """Yield a server of each installed major version; Debian's has ICU."""
    servers: dict[int, EmbeddedPostgres] = {}
    for bin_dir, major in find_server_bin_dirs(15):
        if major not in servers:
            servers[major] = EmbeddedPostgres(
                tmp_path_factory.mktemp("postgres"), bin_dir=bin_dir, server_options=FAST_SERVER_OPTIONS
            ).start()
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def zoo(request: pytest.FixtureRequest, servers: dict[int, EmbeddedPostgres]) -> Iterator[DatabaseSettings]:
    """Return a database with everything that this version and encoding accept."""
    major, encoding = request.param
    if major not in servers:
        pytest.skip(f"no PostgreSQL {major} is installed")
    server = servers[major]
    name = f"test_{uuid4().hex}"
    run(
        server.settings("postgres"),
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc",
    )
    database = server.settings(name)
    load_script(OWNED + ZOO, database)
    yield database
    run(database, "ALTER SUBSCRIPTION sub_x SET (slot_name = NONE)")
    run(database, "DROP SUBSCRIPTION sub_x")
    server.drop_database(name)


def assert_equal_in_a_drill(database: DatabaseSettings, folder: Path) -> dict[str, int]:
    """Return the tables of the dump with their rows."""
    catalog = Catalog(folder / "backups")
    catalog.prepare()
    path = publish_dump(catalog, database)
    drill = DrillSettings(folder / "drill")
    with open_dump(path) as dump, open_scratch_folder(drill.directory) as scratch:
        with open_scratch_database(scratch, dump.record, dump.roles, drill, None) as target:
            superuser = target.roles.superuser
            assert superuser is not None
            with prepare_database(path, superuser, make_transfer(), values=LOADED_SETTINGS) as prepared:
                load = UnprivilegedLoad(prepared, target.roles, stop=Event())
                load.run()
                results = compare_database(prepared, roles=target.roles, uncompared=load.uncompared)
        assert [
            (result.check, result.status, result.summary) for result in results if not result.is_passed
        ] == []
        return {table.qualified_name: table.rows for table in dump.tables}


@pytest.mark.parametrize(
    "zoo", PLACES, indirect=True, ids=[f"{major} {encoding}" for major, encoding in PLACES]
)
def test_everything_is_equal_after_a_load_without_superuser_rights(
    zoo: DatabaseSettings, tmp_path: Path
) -> None:
    tables = assert_equal_in_a_drill(zoo, tmp_path)
    assert tables["own.secret"] == 2
    assert len(tables) > 35


def load_chinook(database: DatabaseSettings, shared_data: Path) -> None:
    script = (shared_data / "chinook.sql").read_text(encoding="utf-8")
    run(
        database,
        "\n".join(
            line
            for line in script.splitlines()
            if not line.startswith(("\\c", "DROP DATABASE", "CREATE DATABASE"))
        ),
    )


@pytest.mark.parametrize("major", [15, 17, 18])
@pytest.mark.parametrize("name", ["chinook", "demo"])
def test_real_applications_are_equal_after_a_load_without_superuser_rights(
    servers: dict[int, EmbeddedPostgres],
    bucket: BucketSettings,
    shared_data: Path,
    tmp_path: Path,
    name: str,
    major: int,
) -> None:
    """A role without rights owns it, as in an application."""
    if major not in servers:
        pytest.skip(f"no PostgreSQL {major} is installed")
    server = servers[major]
    owner = f"{name}_owner"
    run(server.settings("postgres"), f"CREATE ROLE {owner} LOGIN PASSWORD 'p' NOSUPERUSER")
    database = server.create_database(f"{name}_{major}")
    run(database, f"ALTER DATABASE {database.database} OWNER TO {owner}")
    owned = replace(database, user=owner, password="p")
    if name == "chinook":
        load_chinook(owned, shared_data)
    else:
        seed_application(owned, bucket, job_count=20)
    assert_equal_in_a_drill(owned, tmp_path)
    server.drop_database(database.database)
    run(server.settings("postgres"), f"DROP ROLE {owner}")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_view_over_rows_hidden_from_its_owner_is_refreshed(
    database: DatabaseSettings, second_database: DatabaseSettings, tmp_path: Path, jobs: int
) -> None:
    """With pg_dump's `SET row_security = off` the refresh is an error, and psql stops."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    run(database, OWNED.replace("zoo's own", database.database))
    try:
        path = publish_dump(catalog, database)
        restore_database(
            path, second_database, make_transfer(), replace_contents=False, stop=Event(), jobs=jobs
        )
        assert run(second_database, "SELECT * FROM own.seen") == [(0,)]
        assert_equal(path, second_database)
    finally:
        for settings in (second_database, database):
            run(settings, f'DROP OWNED BY "{database.database}"')
        run(database, f'DROP ROLE "{database.database}"')
