"""Roles on a new cluster: memberships and settings by known statements only.

No existing role is raised, and a failed restore removes its roles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.roles import MadeRoles, drop_roles, make_roles
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import POINT, publish_dump
from schedgen_backups_tests.support.dumps import restore
from schedgen_backups_tests.support.points import BROKEN_FOREIGN_KEY
from schedgen_backups_tests.support.recover import Recovery
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, connect, run

pytestmark = pytest.mark.integration

ROLES = """
CREATE ROLE app_owner NOLOGIN; CREATE ROLE app LOGIN PASSWORD 'canary-7d1f' CONNECTION LIMIT 7;
CREATE ROLE "Odd; name" NOLOGIN;
CREATE ROLE auditor NOLOGIN;
COMMENT ON ROLE app IS 'it''s the application';
GRANT app_owner TO app WITH ADMIN OPTION; GRANT app_owner TO "Odd; name" WITH INHERIT FALSE, SET FALSE;
GRANT pg_read_all_data TO auditor;
ALTER ROLE app SET search_path = 'app', 'public';
ALTER ROLE app SET "app.tenant" = 'it''s; DROP ROLE app_owner';
ALTER ROLE app SET statement_timeout = '7s';
"""
FILL = """
CREATE SCHEMA app AUTHORIZATION app_owner; CREATE TABLE app.jobs (s3_key text);
ALTER TABLE app.jobs OWNER TO app_owner;
INSERT INTO app.jobs VALUES ('k1');
"""
NAMES = ("app_owner", "app", '"Odd; name"', "auditor")


@pytest.fixture
def clusters(tmp_path: Path, postgres_bin_dir: Path) -> Iterator[tuple[DatabaseSettings, DatabaseSettings]]:
    """Yield a source with roles and their database, and an empty database of a new cluster."""
    with (
        EmbeddedPostgres(
            tmp_path / "source", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
        ) as source,
        EmbeddedPostgres(
            tmp_path / "target", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
        ) as target,
    ):
        database = source.create_database("live")
        run(database, ROLES)
        run(database, FILL)
        run(
            database,
            "ALTER ROLE app IN DATABASE live SET work_mem = '7MB'; ALTER DATABASE live SET timezone = "
            "'Africa/Johannesburg'",
        )
        yield database, target.create_database("live")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


MEMBERSHIPS = """
SELECT r.rolname, u.rolname, m.admin_option, m.inherit_option,
    m.set_option FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
JOIN pg_roles u ON u.oid = m.member WHERE u.rolname !~ '^pg_' ORDER BY 1, 2"""
SETTINGS = """
SELECT coalesce(d.datname, ''), r.rolname, s.setconfig FROM pg_db_role_setting s
    JOIN pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_database d ON d.oid = s.setdatabase ORDER BY 1, 2"""
DETAILS = (
    "SELECT rolname, rolconnlimit, rolcanlogin, shobj_description(oid, 'pg_authid') FROM pg_roles "
    "WHERE rolname !~ '^pg_' ORDER BY 1"
)


def test_memberships_and_settings_are_restored_on_a_new_cluster(
    clusters: tuple[DatabaseSettings, DatabaseSettings], catalog: Catalog
) -> None:
    source, target = clusters
    notes = restore(publish_dump(catalog, source), target)
    for query in (MEMBERSHIPS, SETTINGS, DETAILS):
        assert run(target, query) == run(source, query)
    run(target, "ALTER ROLE app PASSWORD 'p'")
    with psycopg.connect(
        host=target.host, port=target.port, user="app", password="p", dbname="live"
    ) as connection:
        assert connection.execute("SELECT s3_key FROM jobs").fetchall() == [("k1",)]
    assert notes == ("the database itself differs from what was captured: setting TimeZone",)


def test_the_stand_alone_script_restores_memberships_and_settings_too(
    clusters: tuple[DatabaseSettings, DatabaseSettings],
    bucket: BucketSettings,
    catalog: Catalog,
    postgres_bin_dir: Path,
    tmp_path: Path,
) -> None:
    source, target = clusters
    publish_dump(catalog, source)
    run(target, "CREATE ROLE auditor")
    done = Recovery(catalog.directory, target, bucket, postgres_bin_dir, tmp_path).run("database", POINT)
    assert done.returncode == 0, done.stderr
    assert run(target, MEMBERSHIPS) == [row for row in run(source, MEMBERSHIPS) if row[1] != "auditor"]
    assert run(target, SETTINGS) == [row for row in run(source, SETTINGS) if not row[0]]
    assert "check whether auditor is a member of pg_read_all_data" in done.stdout


def test_an_existing_role_is_not_raised_and_the_difference_is_named(
    clusters: tuple[DatabaseSettings, DatabaseSettings], catalog: Catalog
) -> None:
    source, target = clusters
    run(target, "CREATE ROLE app_owner; CREATE ROLE app; CREATE ROLE auditor")
    notes = restore(publish_dump(catalog, source), target)
    assert run(target, MEMBERSHIPS) == [("app_owner", "Odd; name", False, False, False)]
    assert [
        note
        for note in notes
        if "memberships" in note and "app in app_owner" in note and "auditor in pg_read_all_data" in note
    ]
    assert [note for note in notes if "settings of existing roles" in note and "search_path of app" in note]


AS_CAPTURED = """
CREATE ROLE app_owner NOLOGIN; CREATE ROLE app LOGIN CONNECTION LIMIT 7; CREATE ROLE auditor NOLOGIN;
GRANT pg_read_all_data TO auditor;
GRANT app_owner TO app WITH ADMIN OPTION; CREATE ROLE "Odd; name";
GRANT app_owner TO "Odd; name" WITH INHERIT FALSE, SET FALSE;
ALTER ROLE app SET search_path = 'app', 'public';
ALTER ROLE app SET "app.tenant" = 'it''s; DROP ROLE app_owner';
ALTER ROLE app SET statement_timeout = '7s'; ALTER ROLE auditor SET "app.path" = 'C:\\x';
"""


@pytest.mark.parametrize(
    ("change", "kind", "difference"),
    [
        ("SELECT 1", "", ""),
        ("ALTER ROLE auditor BYPASSRLS", "attributes", "BYPASSRLS of auditor"),
        ("ALTER ROLE app NOLOGIN", "attributes", "LOGIN of app"),
        ("ALTER ROLE app CONNECTION LIMIT 8", "attributes", "CONNECTION LIMIT of app"),
        (
            "ALTER ROLE auditor VALID UNTIL '2030-01-02 00:00:00+00'",
            "attributes",
            "VALID UNTIL of auditor",
        ),
        ("ALTER ROLE app SET search_path = public", "settings", "search_path of app"),
        (
            "ALTER ROLE auditor SET \"app.path\" = 'C:x'",
            "settings",
            "app.path of auditor",
        ),
    ],
)
def test_an_existing_role_is_compared_completely(
    clusters: tuple[DatabaseSettings, DatabaseSettings],
    catalog: Catalog,
    *,
    change: str,
    kind: str,
    difference: str,
) -> None:
    source, target = clusters
    run(
        source,
        "ALTER ROLE auditor SET \"app.path\" = 'C:\\x'; ALTER ROLE auditor VALID UNTIL '2030-01-01 "
        "00:00:00+00'",
    )
    run(target, f"{AS_CAPTURED}; ALTER ROLE auditor VALID UNTIL '2030-01-01 01:00:00+01'")
    run(target, change)
    notes = restore(publish_dump(catalog, source), target)
    named = f"{kind} of existing roles differ from the captured ones: {difference}"
    assert [note for note in notes if "of existing roles" in note] == ([named] if kind else [])


def test_a_failed_restore_removes_only_its_own_roles(
    clusters: tuple[DatabaseSettings, DatabaseSettings], catalog: Catalog
) -> None:
    source, target = clusters
    run(target, "CREATE ROLE auditor")
    run(source, BROKEN_FOREIGN_KEY)
    path = publish_dump(catalog, source)
    with pytest.raises(RestoreError) as caught:
        restore(path, target)
    assert [
        name for (name,) in run(target, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1")
    ] == ["auditor", "schedgen"]
    assert "The target is unchanged." in caught.value.hint
    assert "stay" not in caught.value.hint


def test_roles_that_cannot_be_dropped_again_are_named(database: DatabaseSettings) -> None:
    run(
        database,
        "CREATE ROLE holds_something; CREATE ROLE holds_nothing; CREATE TABLE t (); ALTER TABLE t OWNER TO "
        "holds_something",
    )
    try:
        with DatabaseSession(database) as session, session.use() as connection:
            assert drop_roles(connection, ["holds_something", "holds_nothing"]) == ("holds_something",)
    finally:
        run(database, "DROP TABLE t; DROP ROLE holds_something")


HOSTILE = (
    "CREATE ROLE victim; DROP TABLE kept;",
    "GRANT a TO b; DROP TABLE kept;",
    "GRANT a TO b WITH ADMIN OPTION; DROP TABLE kept; --;",
    r"ALTER ROLE mallory SET search_path TO 'a\'; DROP TABLE kept; --';",
    "ALTER ROLE mallory WITH LOGIN; DROP TABLE kept;",
    r"\! touch /tmp/never",
    "COMMENT ON ROLE mallory IS 'x'; DROP TABLE kept;",
)


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_lines_of_unknown_form_never_run(database: DatabaseSettings, line: str) -> None:
    run(database, "CREATE TABLE kept ()")
    with DatabaseSession(database) as session, session.use() as connection:
        try:
            made = make_roles(
                connection,
                f"CREATE ROLE mallory;\n{line}\n",
                frozenset(),
                database=database.database,
                captured=None,
            )
        finally:
            run(database, "DROP ROLE IF EXISTS mallory")
    assert made == MadeRoles(
        ("mallory",),
        ("1 lines about roles have no known form and were not run; they are in the dump file",),
    )
    with connect(database) as plain:
        assert plain.execute("SELECT count(*) FROM kept").fetchone() == (0,)


LINES = r"x\nALTER ROLE mallory WITH SUPERUSER LOGIN;\nGRANT payroll TO mallory;\nCREATE ROLE backdoor;\n"


@pytest.mark.parametrize(
    "break_",
    [
        r"\n",
        r"\u2028",
        *(
            pytest.param(other, marks=pytest.mark.exhaustive)
            for other in (r"\r", r"\u0085", r"\x0b", r"\x0c")
        ),
    ],
)
def test_a_setting_with_line_breaks_makes_no_role_a_superuser(
    tmp_path: Path, postgres_bin_dir: Path, break_: str
) -> None:
    """Any role may set it for itself.

    pg_dumpall writes it unescaped, and each of its lines had a known form.
    """
    with EmbeddedPostgres(
        tmp_path / "source", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
    ) as source:
        database = source.create_database("live")
        run(
            database,
            "CREATE ROLE mallory LOGIN PASSWORD 'x'; CREATE ROLE payroll; CREATE TABLE jobs (s3_key text); "
            "INSERT INTO jobs VALUES ('k')",
        )
        mallory = replace(database, user="mallory", password="x")
        run(mallory, "ALTER ROLE mallory SET application_name = E'" + LINES.replace(r"\n", break_) + "'")
        catalog = Catalog(tmp_path / "backups")
        catalog.prepare()
        path = publish_dump(catalog, database)
    with open_dump(path) as dump:
        assert "backdoor" not in dump.roles
        assert "1 statements with a line break" in dump.record.roles_note
    with EmbeddedPostgres(
        tmp_path / "target", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
    ) as server:
        target = server.create_database("app")
        restore(path, target)
        assert run(target, "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") == [(False,)]
        assert run(target, "SELECT count(*) FROM pg_auth_members WHERE roleid = 'payroll'::regrole") == [(0,)]
