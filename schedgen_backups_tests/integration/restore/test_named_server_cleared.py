"""A drill leaves nothing on a shared server, whatever the dump's code did to the scratch database.

Nothing of others is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.drill.scratch import sweep_scratch
from schedgen_backups.core.drill.scratch_folder import ServerDatabase, open_scratch_folder
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.unprivileged_load import LOADED_SETTINGS, UnprivilegedLoad
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings
from schedgen_backups_tests.integration.restore.test_unprivileged_load import (
    HEAD,
    ROLES,
    TAIL,
    Loaded,
    load_and_compare,
)
from schedgen_backups_tests.support.artifacts import make_transfer, write_dump_text
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration

NAMES = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
SUBSCRIPTION = (
    "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false, "
    "slot_name = 's');\n"
)
PREPARED = "BEGIN;\nCREATE TABLE public.second (i integer);\nPREPARE TRANSACTION 'kept';\n"
CHANGES = """CREATE FUNCTION public.change() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN EXECUTE pg_catalog.format('{change}', pg_catalog.current_database()); RETURN true; END $$;
CREATE TABLE public.first (i integer DEFAULT 1 CHECK (public.change()));
INSERT INTO public.first VALUES (1);
"""
LOGIN_TRIGGER = """CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN IF pg_catalog.current_setting('is_superuser') = 'on' THEN
    EXECUTE 'COPY (SELECT 1) TO PROGRAM ''(env; cat) > {marker}'''; END IF; END $$;
CREATE EVENT TRIGGER e ON login
   EXECUTE FUNCTION public.e();
"""
LOCKS = (
    "ALTER DATABASE %I SET local_preload_libraries = ''nothing''",
    "ALTER ROLE CURRENT_USER SET local_preload_libraries = ''nothing''",
    "ALTER DATABASE %I SET session_authorization = ''app''",
    "ALTER DATABASE %I CONNECTION LIMIT 0",
    "ALTER DATABASE %I IS_TEMPLATE true",
)


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return Loaded(tmp_path)


@pytest.fixture
def server(tmp_path: Path, postgres_bin_dir: Path) -> Iterator[DatabaseSettings]:
    options = {**FAST_SERVER_OPTIONS, "max_prepared_transactions": "5"}
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=postgres_bin_dir, user="drillmaster", server_options=options
    ) as named:
        yield named.settings("postgres")


@pytest.mark.parametrize("is_superuser", [True, False], ids=["superuser", "maker of databases and roles"])
@pytest.mark.parametrize("change", LOCKS)
def test_a_scratch_database_closed_to_logins_is_dropped(
    loaded: Loaded, tmp_path: Path, server: DatabaseSettings, change: str, *, is_superuser: bool
) -> None:
    """What must be done in it before the drop is still done."""
    text = CHANGES.replace("{change}", change) + (SUBSCRIPTION if is_superuser else "") + PREPARED
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    run(server, "CREATE ROLE maker LOGIN CREATEROLE CREATEDB PASSWORD 'p'")
    before = run(server, NAMES)
    drill = DrillSettings(
        tmp_path / "drill", database=server if is_superuser else replace(server, user="maker", password="p")
    )
    with loaded.open_target(loaded.path, drill) as target:
        roles = target.roles
        with prepare_database(
            loaded.path, roles.superuser or roles.loader, make_transfer(), values=LOADED_SETTINGS
        ) as prepared:
            UnprivilegedLoad(prepared, roles, stop=Event()).run()
    assert run(server, NAMES) == before


def test_a_login_trigger_does_not_fire_while_the_scratch_database_is_dropped(
    loaded: Loaded, tmp_path: Path, server: DatabaseSettings
) -> None:
    text = LOGIN_TRIGGER.replace("{marker}", str(loaded.marker)) + SUBSCRIPTION
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    before = run(server, NAMES)
    with loaded.open_target(loaded.path, DrillSettings(tmp_path / "drill", database=server)) as target:
        load_and_compare(loaded.path, target)
        assert target.roles.superuser is not None
        assert run(server, "SELECT count(*) FROM pg_database WHERE dathasloginevt") == [(1,)]
    assert run(server, NAMES) == before
    assert not loaded.marker.exists()


def plant_record(folder: Path, server: DatabaseSettings, *roles: str) -> str:
    """Leave the record of a drill that was killed after writing down what it would create.

    Return its database's name.
    """
    with open_scratch_folder(folder) as scratch:
        made = ServerDatabase(host=server.host, port=server.port, name=scratch.database_name, roles=roles)
        scratch.write_record(database=made)
        # A folder whose record names something is not removed.
        return scratch.database_name


def test_a_sweep_drops_no_role_that_another_user_created_meanwhile(
    tmp_path: Path, server: DatabaseSettings
) -> None:
    """The record names roles before they are created."""
    plant_record(tmp_path / "drill", server, "app")
    run(
        server,
        "CREATE ROLE app LOGIN PASSWORD 'of the application'; CREATE ROLE readers; GRANT readers TO app",
    )
    run(server, "COMMENT ON ROLE app IS 'the application'; CREATE ROLE other")
    assert [
        line.split()[0] for line in sweep_scratch(DrillSettings(tmp_path / "drill", database=server))
    ] == ["removed"]
    query = (
        "SELECT rolname, rolcanlogin, pg_has_role('app', 'readers', 'member') FROM pg_roles WHERE "
        "rolname = 'app'"
    )
    assert run(server, query) == [("app", True, True)]


def test_a_drill_drops_its_own_roles_and_none_of_another_drill(
    loaded: Loaded, tmp_path: Path, server: DatabaseSettings
) -> None:
    write_dump_text(loaded.path, HEAD + TAIL, {}, roles=ROLES)
    before = run(server, NAMES)
    drill = DrillSettings(tmp_path / "drill", database=server)
    with loaded.open_target(loaded.path, drill) as target:
        kept, roles = (
            target.roles.loader.database,
            [str(name) for (name,) in run(server, NAMES) if (name,) not in before],
        )
        name = plant_record(tmp_path / "killed", server, *roles)
        # The same roles, under the name of a drill that did not create them, stay.
        assert kept != name
        sweep_scratch(DrillSettings(tmp_path / "killed", database=server))
        assert {"app", "postgres", target.roles.loader.user} <= {role for (role,) in run(server, NAMES)}
    assert run(server, NAMES) == before


def test_roles_created_without_superuser_rights_are_dropped_too(
    loaded: Loaded, tmp_path: Path, server: DatabaseSettings
) -> None:
    write_dump_text(loaded.path, HEAD + TAIL, {}, roles=ROLES)
    run(server, "CREATE ROLE maker LOGIN CREATEROLE CREATEDB PASSWORD 'p'")
    before = run(server, NAMES)
    drill = DrillSettings(tmp_path / "drill", database=replace(server, user="maker", password="p"))
    with loaded.open_target(loaded.path, drill):
        assert ("app",) in run(server, NAMES)
    assert run(server, NAMES) == before
