r"""A modified dump runs no program on the restoring machine.

All psql commands in it are errors, wherever they stand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.postgres.connection import make_client_environment
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import (
    POINT,
    TableText,
    make_dump_text,
    make_transfer,
    publish_dump,
    write_dump_text,
)
from schedgen_backups_tests.support.recover import SCRIPT
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

HEAD = b"--\n-- PostgreSQL database dump\n--\n\n"
TABLE = b"CREATE TABLE public.jobs (a text);\n\n"
TAIL = b"--\n-- PostgreSQL database dump complete\n--\n\n"
RESTRICT = b"\\restrict abc123\n\n"
UNRESTRICT = b"\\unrestrict abc123\n\n"
PLACES = {
    "without restrict": HEAD + b"COMMAND\n" + TABLE,
    "before restrict": HEAD + b"COMMAND\n" + RESTRICT + TABLE,
    "after its own unrestrict": HEAD + RESTRICT + UNRESTRICT + b"COMMAND\n" + TABLE,
    "with a second restrict": HEAD + RESTRICT + b"\\restrict other\n\\unrestrict other\nCOMMAND\n" + TABLE,
    "within a statement": HEAD + b"SELECT 1 COMMAND\n;" + TABLE,
}
COMMANDS = (
    "\\! touch {marker}",
    "\\copy (SELECT 1) TO PROGRAM 'touch {marker}'",
    "\\o |touch {marker}",
    "\\setenv A `touch {marker}`",
)


def write(path: Path, text: bytes, command: str, *, tail: bytes = TAIL) -> Path:
    body = text.replace(b"COMMAND", command.encode())
    table = TableText("jobs", (b"x",))
    write_dump_text(
        path,
        make_dump_text([table], head=body, tail=tail.replace(b"COMMAND", command.encode())),
        {("public", "jobs"): 1},
        roles="",
    )
    return path


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES.keys())
def test_a_psql_command_in_a_dump_is_not_run(
    tmp_path: Path, database: DatabaseSettings, text: bytes, jobs: int
) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path / "dump.sql.gz", text, COMMANDS[0].format(marker=marker))
    with pytest.raises(BackupError):
        restore_database(path, database, make_transfer(), replace_contents=False, stop=Event(), jobs=jobs)
    assert not marker.exists()
    assert run(database, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_is_run(tmp_path: Path, database: DatabaseSettings, command: str) -> None:
    marker = tmp_path / "marker"
    path = write(
        tmp_path / "dump.sql.gz",
        HEAD + TABLE,
        command.format(marker=marker),
        tail=b"\\unrestrict abc123\nCOMMAND\n" + TAIL,
    )
    with pytest.raises(BackupError):
        restore_database(path, database, make_transfer(), replace_contents=False, stop=Event())
    assert not marker.exists()


@pytest.mark.parametrize("restricted", [True, False])
def test_an_honest_dump_is_loaded_with_and_without_pg_dumps_own_restrict(
    tmp_path: Path, database: DatabaseSettings, *, restricted: bool
) -> None:
    """A function's text may hold these very lines."""
    function = (
        b"CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $$SELECT '\n\\restrict abc\n\\! "
        b"id\n\\unrestrict abc\n'$$;\n\n"
    )
    head = HEAD + (RESTRICT if restricted else b"") + TABLE + function
    path = write(tmp_path / "dump.sql.gz", head, "", tail=TAIL + (UNRESTRICT if restricted else b""))
    restore_database(path, database, make_transfer(), replace_contents=False, stop=Event())
    assert run(database, "SELECT count(*) FROM public.jobs") == [(1,)]
    assert run(database, "SELECT public.f()") == [("\n\\restrict abc\n\\! id\n\\unrestrict abc\n",)]


BEGINS = """
CREATE FUNCTION public.begin() RETURNS integer LANGUAGE sql AS 'SELECT 7';
CREATE FUNCTION public.named() RETURNS integer LANGUAGE sql BEGIN ATOMIC SELECT 5 AS begin; END;
CREATE TABLE public.spans (begin integer, "end" integer);
INSERT INTO public.spans VALUES (1, 2);
CREATE TABLE public.slices (a integer[], "ERROR" integer);
INSERT INTO public.slices VALUES ('{7,8,9}', 2);
CREATE VIEW public.starts AS SELECT begin, (SELECT a[1:"ERROR"] FROM public.slices) AS slice
    FROM public.spans;
"""


@pytest.mark.parametrize("how", ["restore", "jobs", "script"])
def test_what_psql_and_the_server_parse_differently_is_restored(
    tmp_path: Path,
    database: DatabaseSettings,
    postgres_server: EmbeddedPostgres,
    postgres_bin_dir: Path,
    how: str,
) -> None:
    """The psql program waits for the END of what it takes for a body, though pg_dump wrote no quotes."""
    source = postgres_server.create_database(f"begins_{how}")
    run(source, BEGINS)
    catalog = Catalog(tmp_path)
    catalog.prepare()
    path = publish_dump(catalog, source)
    if how == "script":
        environment = {**make_client_environment(database), "PATH": f"{postgres_bin_dir}:/usr/bin:/bin"}
        words = [sys.executable, str(SCRIPT), "database", str(tmp_path), POINT]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        restore_database(
            path,
            database,
            make_transfer(),
            replace_contents=False,
            stop=Event(),
            jobs=2 if how == "jobs" else 1,
        )
    assert run(database, "SELECT public.begin(), public.named(), begin, slice FROM public.starts") == [
        (7, 5, 1, [7, 8])
    ]


@pytest.mark.parametrize(
    "role",
    ["CREATE ROLE \\!touch${IFS}MARKER;", "CREATE ROLE app;\nALTER ROLE app WITH LOGIN; \\! touch MARKER"],
)
@pytest.mark.parametrize(
    "text", [HEAD + TABLE, PLACES["without restrict"], PLACES["after its own unrestrict"]]
)
def test_the_stand_alone_script_runs_no_psql_command_either(
    tmp_path: Path, database: DatabaseSettings, postgres_bin_dir: Path, text: bytes, role: str
) -> None:
    marker = tmp_path / "marker"
    body = text.replace(b"COMMAND", f"\\! touch {marker}".encode())
    path = tmp_path / "db_schedgen_20261122_020000.sql.gz"
    tables = [TableText("jobs", (b"x",))]
    roles = role.replace("MARKER", str(marker))
    write_dump_text(path, make_dump_text(tables, head=body, tail=TAIL), {("public", "jobs"): 1}, roles=roles)
    environment = {**make_client_environment(database), "PATH": f"{postgres_bin_dir}:/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "database", str(tmp_path), "20261122_020000"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "verified" in done.stdout, done.stdout + done.stderr
    assert not marker.exists(), done.stdout + done.stderr
    run(database, "DROP ROLE IF EXISTS app")
