"""User rows in an extension's table are loaded, although the superuser owns the table.

An example is postgis' spatial_ref_sys.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DrillSettings
from schedgen_backups_tests.integration.restore.test_unprivileged_load import (
    HEAD,
    ROLES,
    TAIL,
    Loaded,
    catalog,
    load_and_compare,
    loaded,
)
from schedgen_backups_tests.support.artifacts import publish_dump, write_dump_text
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

__all__ = ["catalog", "loaded"]

pytestmark = pytest.mark.integration

SCRIPT = """
CREATE TABLE @extschema@.spatial_ref_sys (srid integer PRIMARY KEY, srtext text);
GRANT SELECT ON @extschema@.spatial_ref_sys TO PUBLIC;
INSERT INTO @extschema@.spatial_ref_sys VALUES (4326, 'WGS 84');
CREATE SEQUENCE @extschema@.topology_id_seq;
CREATE TABLE @extschema@.topology (
    id integer DEFAULT pg_catalog.nextval('@extschema@.topology_id_seq') PRIMARY KEY, name text);
CREATE SCHEMA tiger;
CREATE TABLE tiger.loader_platform (os text);
SELECT pg_catalog.pg_extension_config_dump('tiger.loader_platform', '');
SELECT pg_catalog.pg_extension_config_dump('spatial_ref_sys', 'WHERE srid <> 4326');
SELECT pg_catalog.pg_extension_config_dump('topology', '');
SELECT pg_catalog.pg_extension_config_dump('topology_id_seq', '');
"""


@pytest.fixture
def server_options(tmp_path: Path) -> dict[str, str]:
    """Return options of a server 18 with an extension of postgis' name."""
    folder = tmp_path / "share" / "extension"
    folder.mkdir(parents=True)
    (folder / "postgis.control").write_text(
        "default_version = '3.4'\nrelocatable = false\n", encoding="ascii"
    )
    (folder / "postgis--3.4.sql").write_text(SCRIPT, encoding="ascii")
    return {**FAST_SERVER_OPTIONS, "extension_control_path": f"{tmp_path / 'share'}:$system"}


ROWS = {
    "none": "",
    "some": "INSERT INTO spatial_ref_sys VALUES (900913, 'Google'); INSERT INTO topology (name) VALUES "
    "('roads'), ('rivers');"
    "INSERT INTO tiger.loader_platform VALUES ('sh');",
    "with rights of the users": "INSERT INTO spatial_ref_sys VALUES (1, 'x'); CREATE ROLE app; GRANT "
    "INSERT ON spatial_ref_sys TO app;"
    "GRANT USAGE ON SEQUENCE topology_id_seq TO app;",
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_in_a_table_of_an_extension_are_equal(
    loaded: Loaded,
    tmp_path: Path,
    postgres_bin_dir: Path,
    catalog: Catalog,
    server_options: dict[str, str],
    rows: str,
) -> None:
    """pg_dump writes a COPY even without rows."""
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=postgres_bin_dir, user="drillmaster", server_options=server_options
    ) as server:
        database = server.create_database("live")
        run(database, f"CREATE EXTENSION postgis; CREATE TABLE t AS SELECT 1 AS i; {rows}")
        path = publish_dump(catalog, database)
        with loaded.open_target(
            path,
            DrillSettings(
                tmp_path / "drill", database=server.settings("postgres"), is_source_server_allowed=True
            ),
        ) as target:
            results = load_and_compare(path, target)
    assert [(result.status.value, result.summary) for result in results if not result.is_passed] == []


def test_rows_of_a_system_table_are_not_loaded(loaded: Loaded) -> None:
    """The narrow path is for tables that an extension has marked."""
    copy = "--\n-- Data for Name: pg_am; Type: TABLE DATA; Schema: pg_catalog; Owner: postgres\n--\n\n"
    copy += "COPY pg_catalog.pg_am (oid) FROM stdin;\n1\n\\.\n\n\n"
    write_dump_text(loaded.path, HEAD + copy.encode() + TAIL, {("pg_catalog", "pg_am"): 1}, roles=ROLES)
    with loaded.open_target(loaded.path) as target, pytest.raises(RestoreError, match="permission denied"):
        load_and_compare(loaded.path, target)
