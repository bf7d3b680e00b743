"""Loads without superuser rights: honest dumps are equal, hostile code gets only the loader's rights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import psycopg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.drill.scratch_database import ScratchDatabase, open_scratch_database
from schedgen_backups.core.drill.scratch_folder import open_scratch_folder
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.restore.comparison import compare_database
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.unprivileged_load import LOADED_SETTINGS, UnprivilegedLoad
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings
from schedgen_backups_tests.support.artifacts import make_transfer, publish_dump, write_dump_text
from schedgen_backups_tests.support.dumps import ODDITIES, ZOO, load_script
from schedgen_backups_tests.support.restores import compare_database as compare_restored
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, connect, run

pytestmark = pytest.mark.integration

HEAD = (
    b"SET standard_conforming_strings = on;\nSET check_function_bodies = false;\nSELECT "
    b"pg_catalog.set_config('search_path', '', false);\n"
)
TAIL = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
EVIL = """
CREATE FUNCTION public.evil() RETURNS boolean LANGUAGE plpgsql {security} AS $$
BEGIN
    IF pg_catalog.current_setting('is_superuser') = 'on' OR (SELECT rolsuper FROM pg_catalog.pg_roles
        WHERE rolname = current_user) THEN
        EXECUTE 'COPY (SELECT 1) TO PROGRAM ''(env; cat) > {marker}''';
    END IF;
    BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''(env; cat) > {marker}''';
    EXCEPTION WHEN insufficient_privilege THEN NULL; END;
    BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''(env; cat) > {marker}''';
    EXCEPTION WHEN insufficient_privilege THEN NULL; END;
    BEGIN PERFORM pg_catalog.pg_read_file('/etc/hostname');
    EXECUTE 'SELECT pg_catalog.lo_export(0, ''{marker}'')';
        EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN PERFORM pg_catalog.set_config('schedgen.read', pg_catalog.pg_read_file('/etc/hostname'), false);
        RAISE EXCEPTION 'the loader reads files of the server' USING ERRCODE = 'XX001';
        EXCEPTION WHEN insufficient_privilege THEN NULL; END;
    RETURN true;
END $$;
ALTER FUNCTION public.evil() OWNER TO postgres;
"""
ROLES = (
    "CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN "
    "REPLICATION BYPASSRLS;\nCREATE ROLE app;"
)
TABLE = (
    "CREATE TABLE public.jobs (i integer, CONSTRAINT jobs_check CHECK (public.evil()));\nALTER TABLE "
    "public.jobs OWNER TO app;\n\n"
    "--\n-- Data for Name: jobs; Type: TABLE DATA; Schema: public; Owner: app\n--\n\nCOPY public.jobs (i) "
    "FROM stdin;\n1\n\\.\n\n\n"
)


def load_and_compare(path: Path, target: ScratchDatabase) -> tuple[CheckResult, ...]:
    """Do what a drill does: load as the loader, compare as the superuser."""
    superuser = target.roles.superuser
    assert superuser is not None
    with prepare_database(path, superuser, make_transfer(), values=LOADED_SETTINGS) as prepared:
        load = UnprivilegedLoad(prepared, target.roles, stop=Event())
        load.run()
        return compare_database(prepared, roles=target.roles, uncompared=load.uncompared)


class Loaded:
    """A server of the drill's own, and loads into it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marker = directory / "marker"
        self.path = directory / "dump.sql.gz"

    @contextmanager
    def open_target(self, path: Path, drill: DrillSettings | None = None) -> Iterator[ScratchDatabase]:
        drill = drill or DrillSettings(self.directory / "drill")
        with (
            open_dump(path) as dump,
            open_scratch_folder(drill.directory) as folder,
            open_scratch_database(folder, dump.record, dump.roles, drill, None) as made,
        ):
            yield made

    def write(self, text: str, *, security: str = "SECURITY DEFINER", **fields: object) -> None:
        script = (EVIL + text).replace("{security}", security).replace("{marker}", str(self.marker))
        counted = {("public", "jobs"): 1} if "COPY public.jobs" in text else {}
        write_dump_text(self.path, HEAD + script.encode() + TAIL, counted, roles=ROLES, **fields)

    def load(self, drill: DrillSettings | None = None) -> None:
        with self.open_target(self.path, drill) as target:
            load_and_compare(self.path, target)
            superuser = target.roles.superuser
            assert superuser is not None
            # An operator or our own comparison does this next, as superuser.
            run(superuser, "SELECT count(*) FROM public.jobs" if "jobs" in self.text else "SELECT 1")
            assert run(
                superuser, "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> current_user"
            ) in ([], [("schedgen",)])

    @property
    def text(self) -> str:
        with open_dump(self.path) as dump:
            return b"".join(dump.read_contents(on_progress=lambda _block: None)).decode()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setenv("POSTGRES_PASSWORD", "canary-of-production")
    return Loaded(tmp_path)


@pytest.mark.parametrize("is_named", [False, True], ids=["own server", "named server"])
@pytest.mark.parametrize("script", [ODDITIES, ZOO], ids=["oddities", "zoo"])
def test_every_kind_of_object_is_equal_after_a_load_without_superuser_rights(
    loaded: Loaded,
    postgres_server: EmbeddedPostgres,
    database: DatabaseSettings,
    catalog: Catalog,
    *,
    script: str,
    is_named: bool,
) -> None:
    """The named server's superuser owns the objects in the source, too: a stand-in gets them."""
    load_script(script, database)
    path = publish_dump(catalog, database)
    for (name,) in run(
        database,
        "SELECT subname FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = "
        "current_database())",
    ):
        run(database, f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
        run(database, f"DROP SUBSCRIPTION {name}")
    named = DrillSettings(
        loaded.directory / "drill",
        database=postgres_server.settings("postgres"),
        is_source_server_allowed=True,
    )
    with loaded.open_target(path, named if is_named else None) as target:
        results = load_and_compare(path, target)
    assert [(result.check, result.status, result.summary) for result in results if not result.is_passed] == []


@pytest.mark.parametrize("security", ["SECURITY DEFINER", "SECURITY INVOKER"])
def test_a_check_of_a_table_runs_as_the_loader(loaded: Loaded, security: str) -> None:
    """Finding K1, first line: a table owner's function in a CHECK gave a shell as the backup's user."""
    loaded.write(TABLE, security=security)
    loaded.load()
    assert not loaded.marker.exists()


HOSTILE = {
    "materialized view of a superuser": "CREATE MATERIALIZED VIEW public.m AS SELECT public.evil() WITH NO "
    "DATA;\n"
    "ALTER MATERIALIZED VIEW public.m OWNER TO postgres;\nREFRESH MATERIALIZED VIEW public.m;\n",
    "index on a function": "CREATE TABLE public.t (i integer);\nALTER TABLE public.t OWNER TO postgres;\n"
    "CREATE FUNCTION public.f(i integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT "
    "public.evil()';\nINSERT INTO public.t VALUES (1);\n"
    "CREATE INDEX ON public.t (public.f(i));\n",
    "event trigger": "CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM "
    "public.evil(); END$$;\n"
    "CREATE EVENT TRIGGER e ON ddl_command_end\n   EXECUTE FUNCTION public.e();\nALTER EVENT TRIGGER e "
    "OWNER TO postgres;\n",
    "event trigger on login": "CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS "
    "$$BEGIN PERFORM public.evil(); END$$;\n"
    "CREATE EVENT TRIGGER e ON login\n   EXECUTE FUNCTION public.e();\nALTER EVENT TRIGGER e ENABLE "
    "ALWAYS;\n",
    "view that the superuser reads": "CREATE VIEW public.jobs AS SELECT public.evil();\nALTER VIEW "
    "public.jobs OWNER TO postgres;\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_code_in_a_dump_never_runs_as_superuser(loaded: Loaded, text: str) -> None:
    loaded.write(text, security="SECURITY INVOKER" if "view that" in text else "SECURITY DEFINER")
    with loaded.open_target(loaded.path) as target:
        load_and_compare(loaded.path, target)
    assert not loaded.marker.exists()


REFUSED = {
    "an expression before the owner": "CREATE TABLE public.t (i integer);\nALTER TABLE public.t OWNER TO "
    "postgres;\n"
    "ALTER TABLE pg_catalog.pg_class ADD CHECK (public.evil()), OWNER TO app;\n",
    "owner by keyword": "CREATE FUNCTION public.g() RETURNS integer LANGUAGE sql AS 'SELECT 1';\nALTER "
    "FUNCTION public.g() OWNER TO postgres;\n"
    "REVOKE ALL ON SCHEMA public FROM app;\nALTER FUNCTION pg_catalog.now() OWNER TO CURRENT_USER;\n",
    "the schema of the system": "ALTER SCHEMA pg_catalog OWNER TO app;\n",
    "a function of the system": "ALTER FUNCTION pg_catalog.now() OWNER TO app;\n",
    "a function of the system without its schema": "ALTER FUNCTION now() OWNER TO app;\n",
    "a family of the system": "ALTER OPERATOR FAMILY pg_catalog.integer_ops USING btree ADD\n"
    "    FUNCTION 2 (integer, integer) pg_catalog.btint4sortsupport(internal);\n",
    "programs by membership": "GRANT pg_execute_server_program TO app;\n",
    "a setting by grant": "GRANT SET ON PARAMETER session_preload_libraries TO app;\n",
    "a role made superuser": "ALTER ROLE app SUPERUSER;\n",
    "a system catalog changed": "UPDATE pg_catalog.pg_authid SET rolsuper = true;\n",
    "an untrusted language": "CREATE LANGUAGE plpython3u;\n",
    "an extension after objects": "CREATE EXTENSION IF NOT EXISTS pg_stat_statements WITH SCHEMA public;\n",
    "a function in C": "CREATE FUNCTION public.c() RETURNS integer LANGUAGE c AS 'libc', 'system';\n",
    "a cast without a function": "CREATE CAST (integer AS bytea) WITHOUT FUNCTION;\n",
    "a session of somebody else": "SET SESSION AUTHORIZATION DEFAULT; SET SESSION AUTHORIZATION schedgen;\n",
    "two statements in one comment": "COMMENT ON DATABASE template1 IS 'x'; ALTER ROLE app SUPERUSER;\n",
    "a setting of the server": "ALTER SYSTEM SET archive_command = 'env > {marker}';\n",
    "rows from a program": "COPY public.t FROM PROGRAM 'env > {marker}';\n",
}


@pytest.mark.parametrize(
    "is_named", [pytest.param(False, marks=pytest.mark.exhaustive), True], ids=["own server", "named server"]
)
@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_statements_that_exceed_the_narrow_path_are_refused(
    loaded: Loaded, named_server: EmbeddedPostgres, text: str, *, is_named: bool
) -> None:
    loaded.write(text)
    with pytest.raises(RestoreError):
        loaded.load(
            DrillSettings(loaded.directory / "drill", database=named_server.settings("postgres"))
            if is_named
            else None
        )
    assert not loaded.marker.exists()


@pytest.mark.parametrize(
    "text",
    ["\\! env > {marker}\n", "SELECT 1 \\g |env>{marker}\n", "\\copy (SELECT 1) TO PROGRAM 'env>{marker}'\n"],
)
def test_a_psql_command_in_the_text_is_refused_and_not_run(loaded: Loaded, text: str) -> None:
    loaded.write(text)
    with pytest.raises(VerificationError, match="psql command"):
        loaded.load()
    assert not loaded.marker.exists()


def test_the_servers_processes_have_none_of_the_backups_variables(loaded: Loaded) -> None:
    loaded.write("")
    with loaded.open_target(loaded.path) as target:
        assert target.roles.superuser is not None
        ((process_id,),) = run(target.roles.superuser, "SELECT pg_backend_pid()")
        postmaster = re.search(
            r"^PPid:\s+(\d+)", Path(f"/proc/{_other_session(target)}/status").read_text(), re.MULTILINE
        )
        assert postmaster is not None
        environment = Path(f"/proc/{postmaster[1]}/environ").read_bytes()
    assert process_id
    assert b"PATH=" in environment
    assert b"canary-of-production" not in environment


def _other_session(target: ScratchDatabase) -> int:
    assert target.roles.superuser is not None
    ((process_id,),) = run(
        target.roles.superuser, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    )
    return int(str(process_id))


def test_a_named_server_has_the_same_barrier_and_keeps_nothing(
    loaded: Loaded, postgres_server: EmbeddedPostgres
) -> None:
    loaded.write(
        f"{TABLE}CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false, "
        "slot_name = 's');\n"
    )
    before = run(postgres_server.settings("postgres"), "SELECT rolname FROM pg_roles ORDER BY 1")
    loaded.load(
        DrillSettings(
            loaded.directory / "drill",
            database=postgres_server.settings("postgres"),
            is_source_server_allowed=True,
        )
    )
    assert not loaded.marker.exists()
    assert run(postgres_server.settings("postgres"), "SELECT rolname FROM pg_roles ORDER BY 1") == before
    assert os.environ["POSTGRES_PASSWORD"] == "canary-of-production"


AS_PAYROLL = """
CREATE FUNCTION public.evil() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    BEGIN EXECUTE 'SET ROLE payroll'; EXECUTE 'ALTER ROLE payroll PASSWORD ''mine'''; EXECUTE 'RESET ROLE';
        EXCEPTION WHEN insufficient_privilege THEN NULL; END;
    RETURN true;
END $$;
"""


def test_a_drill_on_a_named_server_never_acts_as_an_existing_role(
    loaded: Loaded, tmp_path: Path, named_server: EmbeddedPostgres
) -> None:
    """A role of the same name may belong to anyone, with databases of its own."""
    run(
        named_server.settings("postgres"),
        "CREATE ROLE payroll LOGIN PASSWORD 'secret of payroll'; CREATE ROLE app",
    )
    payrolls = named_server.create_database("payroll_db")
    script = AS_PAYROLL + TABLE.replace("OWNER TO app", "OWNER TO payroll")
    write_dump_text(
        loaded.path,
        HEAD + script.encode() + TAIL,
        {("public", "jobs"): 1},
        roles=f"{ROLES}\nCREATE ROLE payroll;",
    )
    drill = DrillSettings(tmp_path / "drill", database=named_server.settings("postgres"))
    with loaded.open_target(loaded.path, drill) as target:
        load_and_compare(loaded.path, target)
    run(replace(payrolls, user="payroll", password="secret of payroll"), "SELECT 1")
    left = run(
        named_server.settings("postgres"), "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
    )
    assert left == [("app",), ("drillmaster",), ("payroll",)]


LOGS_IN_AGAIN = """
CREATE EXTENSION IF NOT EXISTS dblink WITH SCHEMA public;
CREATE FUNCTION public.one() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN EXECUTE pg_catalog.format('ALTER ROLE %I PASSWORD ''mine''', current_user); RETURN true; END $$;
CREATE FUNCTION public.evil() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM public.dblink_connect('c', 'host=127.0.0.1 password=mine user=' || current_user
        || ' dbname={database}'
        || ' port=' || pg_catalog.current_setting('port'));
    PERFORM public.dblink_send_query('c', 'SELECT pg_catalog.pg_sleep(60)');
  EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN NULL;
  END;
  RETURN true;
END $$;
CREATE TABLE public.first (i integer DEFAULT 1 CHECK (public.one()));
INSERT INTO public.first VALUES (1);
"""


@pytest.mark.parametrize("is_named", [False, True], ids=["own server", "named server"])
def test_no_one_else_logs_in_as_the_loader(
    loaded: Loaded, tmp_path: Path, named_server: EmbeddedPostgres, *, is_named: bool
) -> None:
    """A session of the dump would survive role changes and bypass row security in other databases."""
    script = LOGS_IN_AGAIN.replace("{database}", "postgres") + TABLE
    write_dump_text(loaded.path, HEAD + script.encode() + TAIL, {("public", "jobs"): 1}, roles=ROLES)
    named = (
        DrillSettings(tmp_path / "drill", database=named_server.settings("postgres")) if is_named else None
    )
    with loaded.open_target(loaded.path, named) as target:
        load_and_compare(loaded.path, target)
        superuser = target.roles.superuser
        assert superuser is not None
        assert (
            run(superuser, "SELECT usename, query FROM pg_stat_activity WHERE usename LIKE 'schedgen_drill%'")
            == []
        )
        assert target.roles.reader is not None
        run(target.roles.reader, "SELECT * FROM public.jobs")
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            run(replace(target.roles.loader, password="mine"), "SELECT 1")


READS_ELSEWHERE = """
CREATE EXTENSION IF NOT EXISTS dblink WITH SCHEMA public;
CREATE FUNCTION public.one() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN EXECUTE pg_catalog.format('ALTER ROLE %I PASSWORD ''mine''', current_user); RETURN true; END $$;
CREATE TABLE public.first (i integer DEFAULT 1 CHECK (public.one()));
INSERT INTO public.first VALUES (1);
CREATE TABLE public.stolen (t text);
INSERT INTO public.stolen SELECT * FROM public.dblink('host=127.0.0.1 password=mine dbname=payroll_db user='
    || current_user
    || ' port=' || pg_catalog.current_setting('port'), 'SELECT who FROM salaries') AS r(t text);
"""


def test_a_dump_reads_no_other_database_of_a_named_server(
    loaded: Loaded, tmp_path: Path, named_server: EmbeddedPostgres
) -> None:
    """The loader bypasses row security, and could log in elsewhere with a password that the dump sets."""
    write_dump_text(loaded.path, HEAD + READS_ELSEWHERE.encode() + TAIL, {}, roles=ROLES)
    run(
        named_server.create_database("payroll_db"),
        "CREATE TABLE salaries (who text, owner name); INSERT INTO salaries VALUES ('9 for the boss', "
        "'boss');"
        "ALTER TABLE salaries ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON salaries USING (owner = "
        "current_user);"
        "GRANT SELECT ON salaries TO PUBLIC",
    )
    drill = DrillSettings(tmp_path / "drill", database=named_server.settings("postgres"))
    with (
        loaded.open_target(loaded.path, drill) as target,
        pytest.raises(RestoreError, match="not permitted to log in"),
    ):
        load_and_compare(loaded.path, target)


BEFORE_AN_EXTENSION = [
    (
        "SET standard_conforming_strings = off;\nCOMMENT ON SCHEMA public IS '\\' ';CREATE TABLE "
        "public.early (); --';\n"
    ),
    "CREATE SCHEMA s CREATE TABLE cube (i integer) CREATE VIEW v AS SELECT i FROM cube;\n",
    "SELECT pg_catalog.set_config('a.b', pg_catalog.lo_create(4711)::text, false);\n",
]


@pytest.mark.parametrize(
    "text", BEFORE_AN_EXTENSION, ids=["two statements", "a schema with objects", "a call within a setting"]
)
def test_no_object_of_a_dump_exists_when_an_extension_is_created(loaded: Loaded, text: str) -> None:
    """Its script runs as superuser, and may call what it finds."""
    text += "CREATE EXTENSION IF NOT EXISTS dblink WITH SCHEMA public;\n"
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    with loaded.open_target(loaded.path) as target, pytest.raises(RestoreError):
        load_and_compare(loaded.path, target)


KEEPS_ITSELF = {
    "as a template": """
CREATE FUNCTION public.one() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I IS_TEMPLATE true', pg_catalog.current_database());
RETURN true; END $$;
CREATE TABLE public.first (i integer DEFAULT 1 CHECK (public.one()));
INSERT INTO public.first VALUES (1);
""",
    "by a prepared transaction": """
BEGIN;
CREATE TABLE public.first (i integer);
PREPARE TRANSACTION 'it''s kept';
""",
}


@pytest.mark.parametrize("text", KEEPS_ITSELF.values(), ids=KEEPS_ITSELF)
def test_nothing_of_a_dump_stays_on_a_named_server(
    loaded: Loaded, tmp_path: Path, postgres_bin_dir: Path, text: str
) -> None:
    """Its rows are production data, and others use the server."""
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    options = {**FAST_SERVER_OPTIONS, "max_prepared_transactions": "5"}
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=postgres_bin_dir, user="drillmaster", server_options=options
    ) as server:
        names = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
        before = run(server.settings("postgres"), names)
        with loaded.open_target(
            loaded.path, DrillSettings(tmp_path / "drill", database=server.settings("postgres"))
        ) as target:
            load_and_compare(loaded.path, target)
        assert run(server.settings("postgres"), names) == before


FEIGNED = {
    "a comment in a signature": """
CREATE FUNCTION public.a() RETURNS integer LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION public.a() OWNER TO postgres;
GRANT ALL ON FUNCTION public.a(--"
), pg_catalog.lo_import(text,oid --"
) TO PUBLIC;
""",
    "a backslash that escapes nothing": """
CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1\\' PUBLICATION p WITH (connect = true --' \
PUBLICATION p WITH (connect = false
);
""",
    "a comment in a type": """
CREATE TYPE public.t AS ENUM ('a', 'b');
CREATE FUNCTION public.c(integer, public.t) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 0';
CREATE OPERATOR CLASS public.k FOR TYPE public.t USING btree FAMILY pg_catalog.integer_ops AS -- USING btree \
AS
    FUNCTION 1 (integer, public.t) public.c(integer, public.t);
""",
    "keywords in small letters": """
CREATE TYPE public.t AS ENUM ('a', 'b');
CREATE OPERATOR CLASS public.k FOR TYPE public.t USING gist AS storage pg_catalog.int4;
""",
    "a comment on what is not the dump's": """
COMMENT ON DATABASE postgres IS 'taken';
""",
    "a comment on a role in small letters": """
COMMENT ON role pg_monitor IS 'taken';
""",
    "a comment behind the form of an event trigger": """
CREATE EXTENSION IF NOT EXISTS tcn WITH SCHEMA public;
CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN END$$;
CREATE EVENT TRIGGER e ON ddl_command_start /* WHEN TAG IN ('a') */
   EXECUTE FUNCTION public.e();
""",
}


@pytest.mark.parametrize("text", FEIGNED.values(), ids=FEIGNED)
def test_a_statement_that_imitates_a_known_form_is_refused(loaded: Loaded, text: str) -> None:
    """For the server, a name or value may end earlier than for a form; the rest would run as superuser."""
    loaded.write(text, security="SECURITY INVOKER")
    with (
        loaded.open_target(loaded.path) as target,
        pytest.raises(RestoreError, match=r"permission|superuser|owner of"),
    ):
        load_and_compare(loaded.path, target)


NAMED_LIKE_A_TRIGGER = """
CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM public.evil(); END$$;
CREATE SUBSCRIPTION "EVENT TRIGGER" CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false, \
slot_name = 's');
CREATE EVENT TRIGGER e ON ddl_command_start
   EXECUTE FUNCTION public.e();
ALTER SUBSCRIPTION "EVENT TRIGGER" OWNER TO app;
"""


@pytest.mark.parametrize("is_named", [False, True], ids=["own server", "named server"])
def test_a_name_cannot_place_a_statement_after_the_event_triggers(
    loaded: Loaded, tmp_path: Path, postgres_15_bin_dir: Path, *, is_named: bool
) -> None:
    loaded.write(NAMED_LIKE_A_TRIGGER, security="SECURITY INVOKER", server_major=15)
    with EmbeddedPostgres(
        tmp_path / "named",
        bin_dir=postgres_15_bin_dir,
        user="drillmaster",
        server_options=FAST_SERVER_OPTIONS,
    ) as server:
        named = DrillSettings(tmp_path / "drill", database=server.settings("postgres")) if is_named else None
        with loaded.open_target(loaded.path, named) as target:
            load_and_compare(loaded.path, target)
            assert target.roles.superuser is not None
            assert run(target.roles.superuser, "SELECT evtname FROM pg_event_trigger") == [("e",)]
    assert not loaded.marker.exists()


KEPT_FUNCTION = """
CREATE EXTENSION IF NOT EXISTS dblink WITH SCHEMA public;
{gift}
CREATE FUNCTION public.evil() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM public.dblink_connect_u('host=127.0.0.1 user=drillmaster dbname=postgres port='
        || pg_catalog.current_setting('port'));
    PERFORM public.dblink_exec('COPY (SELECT 1) TO PROGRAM ''(id; cat) > {marker}''');
  EXCEPTION WHEN insufficient_privilege THEN NULL;
  END;
  RETURN true;
END $$;
"""


@pytest.mark.parametrize(
    "gift",
    [
        "GRANT ALL ON FUNCTION public.dblink_connect_u(text) TO PUBLIC;",
        "GRANT ALL ON FUNCTION public.dblink_connect_u(text) TO app;",
        "ALTER FUNCTION public.dblink_connect_u(text) OWNER TO app;",
        "ALTER FUNCTION public.dblink_connect_u (text) OWNER TO app;",
        'GRANT ALL ON FUNCTION "public"."dblink_connect_u"("text") TO app;',
    ],
)
def test_an_extensions_restricted_function_is_not_granted_on_a_named_server(
    loaded: Loaded, tmp_path: Path, postgres_bin_dir: Path, gift: str
) -> None:
    """It would connect without a password to a server that trusts its own machine, as its superuser."""
    with EmbeddedPostgres(
        tmp_path / "named", bin_dir=postgres_bin_dir, user="drillmaster", server_options=FAST_SERVER_OPTIONS
    ) as server:
        (server.directory / "data" / "pg_hba.conf").write_text(
            "host all drillmaster 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        run(server.settings("postgres"), "SELECT pg_reload_conf()")
        script = KEPT_FUNCTION.replace("{gift}", gift).replace("{marker}", str(loaded.marker)) + TABLE
        write_dump_text(loaded.path, HEAD + script.encode() + TAIL, {("public", "jobs"): 1}, roles=ROLES)
        with loaded.open_target(
            loaded.path, DrillSettings(tmp_path / "drill", database=server.settings("postgres"))
        ) as target:
            results = load_and_compare(loaded.path, target)
        assert not loaded.marker.exists()
        words = [result.summary for result in results if result.status is CheckStatus.UNKNOWN]
        assert any(
            "privileges on functions that an extension protects were not granted" in summary
            for summary in words
        )


@pytest.mark.parametrize(
    "gift",
    [
        "GRANT ALL ON FUNCTION public.verify_heapam TO app;",
        "GRANT EXECUTE,EXECUTE ON FUNCTION public.verify_heapam TO PUBLIC WITH GRANT OPTION;",
        "ALTER FUNCTION public.verify_heapam OWNER TO app;",
        (
            "ALTER FUNCTION public.verify_heapam (regclass, boolean, boolean, text, bigint, bigint) OWNER TO "
            "app;"
        ),
        "ALTER FUNCTION public.verify_heapam(regclass, boolean, boolean, text, bigint, bigint) OWNER TO app;",
    ],
)
def test_a_restricted_function_is_not_granted_in_any_spelling(
    loaded: Loaded, postgres_server: EmbeddedPostgres, gift: str
) -> None:
    """The server accepts a name without parameters, and blanks before them; pg_dump writes neither."""
    script = f"CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA public;\n{gift}\n"
    write_dump_text(loaded.path, HEAD + script.encode() + TAIL, {}, roles=ROLES)
    drill = DrillSettings(
        loaded.directory / "drill",
        database=postgres_server.settings("postgres"),
        is_source_server_allowed=True,
    )
    with loaded.open_target(loaded.path, drill) as target:
        load_and_compare(loaded.path, target)
        superuser = target.roles.superuser
        assert superuser is not None
        query = (
            "SELECT has_function_privilege('app', oid, 'EXECUTE') FROM pg_proc WHERE proname = "
            "'verify_heapam'"
        )
        assert run(superuser, query) == [(False,)]


def test_functions_that_only_read_the_server_may_be_granted_on_the_drills_own(loaded: Loaded) -> None:
    """Monitoring roles have such rights, and nothing else lives there.

    A signature has the names of parameters, as pg_dump writes them.
    """
    function = "public.bt_index_check(index regclass)"
    gift = f"REVOKE ALL ON FUNCTION {function} FROM app;\nGRANT ALL ON FUNCTION {function} TO app;\n"
    text = (
        f"CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA public;\n{gift}CREATE TABLE public.t (i "
        "integer);\n"
    )
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    with loaded.open_target(loaded.path) as target:
        results = load_and_compare(loaded.path, target)
        superuser = target.roles.superuser
        assert superuser is not None
        assert run(
            superuser, "SELECT has_function_privilege('app', 'public.bt_index_check(regclass)', 'EXECUTE')"
        ) == [(True,)]
    assert not any("privileges on functions" in result.summary for result in results)


@pytest.mark.parametrize(
    "to",
    [
        pytest.param("app", marks=pytest.mark.exhaustive),
        "PUBLIC",
        pytest.param("app WITH GRANT OPTION", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize(
    "signature", ["(text)", "(text, text)", "(connection_name text, connection text)", ""]
)
def test_a_passwordless_login_is_not_granted_on_the_drills_own_server_either(
    loaded: Loaded, signature: str, to: str
) -> None:
    """It runs as the backup's user, whom servers on the same machine may admit for that alone."""
    text = (
        "CREATE EXTENSION IF NOT EXISTS dblink WITH SCHEMA public;\nGRANT ALL ON FUNCTION "
        f"public.dblink_connect_u{signature} TO {to};\n"
    )
    write_dump_text(loaded.path, HEAD + text.encode() + TAIL, {}, roles=ROLES)
    with loaded.open_target(loaded.path) as target:
        if "connection" in signature or not signature:
            with suppress(RestoreError):  # the server has no function of these forms
                load_and_compare(loaded.path, target)
        else:
            _restored, equal = load_and_compare(loaded.path, target)
            assert equal.status is CheckStatus.UNKNOWN
            assert "privileges on functions that an extension protects were not granted" in equal.summary
        superuser = target.roles.superuser
        assert superuser is not None
        query = (
            "SELECT DISTINCT has_function_privilege('app', oid, 'EXECUTE') FROM pg_proc WHERE proname "
            "= 'dblink_connect_u'"
        )
        assert run(superuser, query) == [(False,)]


def test_the_drills_own_server_does_not_see_the_unix_socket_of_the_source(
    loaded: Loaded, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    write_dump_text(loaded.path, HEAD + b"CREATE TABLE public.t (i integer);\n" + TAIL, {}, roles=ROLES)
    with TemporaryDirectory(prefix="pg-", dir="/var/tmp") as sockets:
        (Path(sockets) / ".s.PGSQL.5432").touch()
        source = DatabaseSettings(sockets, 5432, "postgres", "x", "live")
        drill = DrillSettings(tmp_path / "drill", hidden_paths=(hidden,))
        with (
            open_dump(loaded.path) as dump,
            open_scratch_folder(drill.directory) as folder,
            open_scratch_database(folder, dump.record, dump.roles, drill, source) as made,
        ):
            superuser = made.roles.superuser
            assert superuser is not None
            assert run(superuser, f"SELECT pg_ls_dir('{sockets}')") == []


OPERATOR_CLASS = """
CREATE TYPE public.money_range AS (low integer, high integer);
ALTER TYPE public.money_range OWNER TO app;
CREATE OPERATOR FAMILY public.f USING gist;
ALTER OPERATOR FAMILY public.f USING gist OWNER TO app;
{statement}
"""


@pytest.mark.parametrize(
    "statement",
    [
        (
            "CREATE OPERATOR CLASS public.k FOR TYPE public.money_range USING gist FAMILY public.f AS "
            "FUNCTION 7 pg_catalog.array_eq(anyarray,anyarray);"
        ),
        (
            "ALTER OPERATOR FAMILY public.f USING gist ADD FUNCTION 3 (text, text) "
            "pg_catalog.gist_box_union(internal,internal);"
        ),
    ],
    ids=["class", "family"],
)
def test_no_operator_class_of_a_dump_is_created_on_a_shared_server(
    loaded: Loaded, postgres_server: EmbeddedPostgres, statement: str
) -> None:
    """Its support functions may crash the server, which does not check the types that they take."""
    write_dump_text(
        loaded.path, HEAD + OPERATOR_CLASS.replace("{statement}", statement).encode() + TAIL, {}, roles=ROLES
    )
    drill = DrillSettings(
        loaded.directory / "drill",
        database=postgres_server.settings("postgres"),
        is_source_server_allowed=True,
    )
    with (
        loaded.open_target(loaded.path, drill) as target,
        pytest.raises(RestoreError, match="shared server") as refused,
    ):
        load_and_compare(loaded.path, target)
    assert "leave DRILL_DATABASE_URL empty" in refused.value.hint


@pytest.mark.parametrize("function", ["pg_read_file(text)", "pg_ls_dir(text)", "lo_export(oid, text)"])
def test_a_right_to_server_files_is_left_out_and_named(loaded: Loaded, function: str) -> None:
    """Monitoring roles have such rights: the rest of the dump loads without them."""
    loaded.write(f"GRANT ALL ON FUNCTION pg_catalog.{function} TO app;\n{TABLE}")
    with loaded.open_target(loaded.path) as target:
        _restored, equal = load_and_compare(loaded.path, target)
        assert target.roles.superuser is not None
        query = f"SELECT has_function_privilege('app', 'pg_catalog.{function.replace(' ', '')}', 'EXECUTE')"
        assert run(target.roles.superuser, query) == [(False,)]
    assert not loaded.marker.exists()
    assert equal.status is CheckStatus.UNKNOWN
    assert "privileges on system objects" in equal.summary


@pytest.mark.parametrize("system_type", ["character varying", "regclass", "text[]", "pg_catalog.text"])
def test_no_default_operator_class_is_created_for_a_system_type(loaded: Loaded, system_type: str) -> None:
    """It depends on no schema: any user who sorts such values would call functions of the dump.

    This includes the superuser.
    """
    operators = {"<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">": "gt"}
    pair = f"{system_type}, {system_type}"
    text = (
        f"CREATE FUNCTION public.c({pair}) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$BEGIN "
        "PERFORM public.evil(); RETURN 0; END$$;\n"
    )
    for operator, name in operators.items():
        body = "SELECT public.c($1, $2) OPERATOR(pg_catalog.=) 0"
        text += f"CREATE FUNCTION public.{name}({pair}) RETURNS boolean LANGUAGE sql IMMUTABLE AS '{body}';\n"
        text += (
            f"CREATE OPERATOR public.{operator} (FUNCTION = public.{name}, LEFTARG = {system_type}, "
            f"RIGHTARG = {system_type});\n"
        )
    members = "".join(
        f"    OPERATOR {number} public.{operator}({pair}) ,\n"
        for number, operator in enumerate(operators, start=1)
    )
    text += "CREATE OPERATOR FAMILY public.f USING btree;\nCREATE OPERATOR CLASS public.k\n"
    text += f"    DEFAULT FOR TYPE {system_type} USING btree FAMILY public.f AS\n"
    loaded.write(f"{text}{members}    FUNCTION 1 ({pair}) public.c({pair});\n{TABLE}")
    with pytest.raises(RestoreError, match="OPERATOR CLASS"):
        loaded.load()
    assert not loaded.marker.exists()


EVENT_TRIGGER = """CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM \
public.evil(); END$$;
CREATE EVENT TRIGGER e ON ddl_command_start
   EXECUTE FUNCTION public.e();
ALTER EVENT TRIGGER e OWNER TO postgres;
"""
SUBSCRIPTION = (
    "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false, "
    "slot_name = 's');\n"
)


@pytest.mark.parametrize("is_named", [False, True], ids=["own server", "named server"])
@pytest.mark.parametrize(
    "text",
    [
        f"{EVENT_TRIGGER}{SUBSCRIPTION}ALTER SUBSCRIPTION s OWNER TO postgres;\n",
        pytest.param(f"{SUBSCRIPTION}{EVENT_TRIGGER}", marks=pytest.mark.exhaustive),
    ],
)
def test_an_event_trigger_of_the_dump_never_fires_for_a_superuser(
    loaded: Loaded, tmp_path: Path, postgres_15_bin_dir: Path, text: str, *, is_named: bool
) -> None:
    """Servers before 17 have no setting that disables them.

    The statements of the narrow path and of the drill's own end would fire it.
    """
    loaded.write(text, security="SECURITY INVOKER", server_major=15)
    with EmbeddedPostgres(
        tmp_path / "named",
        bin_dir=postgres_15_bin_dir,
        user="drillmaster",
        server_options=FAST_SERVER_OPTIONS,
    ) as server:
        named = DrillSettings(tmp_path / "drill", database=server.settings("postgres")) if is_named else None
        with loaded.open_target(loaded.path, named) as target:
            assert "PostgreSQL 15" in target.description or is_named
            load_and_compare(loaded.path, target)
    assert not loaded.marker.exists()


HONEST = {
    "a view of an extension for those who watch": """
CREATE EXTENSION pg_stat_statements; CREATE ROLE watcher; GRANT SELECT ON pg_stat_statements TO watcher;""",
    "functions taken from everybody": """
CREATE EXTENSION dblink; REVOKE EXECUTE ON FUNCTION dblink(text, text) FROM PUBLIC; CREATE ROLE watcher;
GRANT EXECUTE ON FUNCTION dblink(text, text) TO watcher;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) FROM PUBLIC;
REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;""",
    "rights on the system for those who watch": """
CREATE ROLE watcher; GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_logdir() TO watcher;
GRANT SELECT ON pg_catalog.pg_authid TO watcher;
GRANT SELECT (subname, subconninfo) ON pg_catalog.pg_subscription TO watcher;
GRANT EXECUTE ON FUNCTION pg_stat_reset() TO watcher;""",
    "a materialized view of a superuser": """
CREATE ROLE app_owner; CREATE SCHEMA own AUTHORIZATION app_owner; SET ROLE app_owner;
CREATE TABLE own.t (i integer); INSERT INTO own.t VALUES (1);
RESET ROLE; CREATE MATERIALIZED VIEW m AS SELECT * FROM own.t;""",
    "a materialized view of a member": """
CREATE ROLE app_owner; CREATE ROLE readers; CREATE ROLE reports; GRANT readers TO reports;
CREATE TABLE t (i integer);
ALTER TABLE t OWNER TO app_owner; GRANT SELECT ON t TO readers; CREATE MATERIALIZED VIEW m AS SELECT 1 AS i;
DROP MATERIALIZED VIEW m;
CREATE SCHEMA s AUTHORIZATION reports; SET ROLE reports;
CREATE MATERIALIZED VIEW s.m AS SELECT * FROM public.t; RESET ROLE;""",
    "a materialized view of one who may read all": """
CREATE ROLE app_owner; CREATE ROLE reports; GRANT pg_read_all_data TO reports; CREATE TABLE t (i integer);
ALTER TABLE t OWNER TO app_owner;
CREATE SCHEMA s AUTHORIZATION reports; SET ROLE reports;
CREATE MATERIALIZED VIEW s.m AS SELECT * FROM public.t; RESET ROLE;""",
    "rights given on by whom they were given to": """
CREATE ROLE app_owner; CREATE ROLE a; CREATE ROLE b; CREATE TABLE t (i integer);
ALTER TABLE t OWNER TO app_owner;
GRANT SELECT ON t TO a WITH GRANT OPTION; SET ROLE a; GRANT SELECT ON t TO b; RESET ROLE;""",
    "rights of others taken back": """
CREATE ROLE app_owner; CREATE ROLE a; CREATE TABLE t (i integer); ALTER TABLE t OWNER TO app_owner;
SET ROLE app_owner;
REVOKE ALL ON t FROM app_owner;
GRANT SELECT ON t TO a; RESET ROLE;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;""",
    "a table of whoever owns the database": """
CREATE TABLE t (i integer); ALTER TABLE t OWNER TO pg_database_owner; CREATE ROLE a;
GRANT SELECT ON t TO a WITH GRANT OPTION;""",
    "other tablespaces": """
CREATE TABLE t (i integer PRIMARY KEY USING INDEX TABLESPACE fast) TABLESPACE fast;
CREATE TABLE u (i integer PRIMARY KEY);
CREATE TABLE w (i integer) TABLESPACE fast; CREATE MATERIALIZED VIEW m TABLESPACE fast AS SELECT 1 AS i;
CREATE INDEX ON w (i) TABLESPACE fast;""",
    "a check that a superuser's function makes": """
CREATE ROLE app_owner; CREATE TABLE limits (i integer); ALTER TABLE limits OWNER TO app_owner;
INSERT INTO limits VALUES (9);
CREATE FUNCTION find_limit() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN RETURN (SELECT max(i) FROM public.limits); END$$;
CREATE TABLE v (i integer CHECK (i < coalesce(find_limit(), 9))); ALTER TABLE v OWNER TO app_owner;
INSERT INTO v VALUES (1);""",
}


@pytest.mark.parametrize("script", HONEST.values(), ids=HONEST)
def test_honest_rights_and_readers_never_fail_a_drill(
    loaded: Loaded,
    tmp_path: Path,
    source_server: EmbeddedPostgres,
    named_server: EmbeddedPostgres,
    catalog: Catalog,
    script: str,
) -> None:
    """The comparison says equal, or unknown on a shared server; a good point is never called different."""
    database = source_server.create_database("live")
    with connect(database) as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE fast LOCATION ''")
    run(database, f"CREATE TABLE filled AS SELECT 1 AS i; {script}")
    path = publish_dump(catalog, database)
    with loaded.open_target(path) as target:
        restored, equal = load_and_compare(path, target)
    assert (restored.is_passed, equal.is_passed) == (True, True)
    with loaded.open_target(
        path, DrillSettings(tmp_path / "drill", database=named_server.settings("postgres"))
    ) as target:
        restored, equal = load_and_compare(path, target)
    assert restored.is_passed
    assert equal.is_passed or (equal.status is CheckStatus.UNKNOWN and "privileges on" in equal.summary)


MOVED = {
    "ascending": "CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS id FROM t",
    "descending": "CREATE SEQUENCE s INCREMENT -1; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS id "
    "FROM t",
    "reset": "CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS id FROM t; ALTER "
    "SEQUENCE s RESTART",
    "set to its first value": "CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS id "
    "FROM t; SELECT setval('s', 1, false)",
    "cycling": "CREATE SEQUENCE s MAXVALUE 3 CYCLE; CREATE MATERIALIZED VIEW m AS SELECT nextval('s') AS "
    "id FROM t CROSS JOIN generate_series(1, 2)",
    "set by a view": "CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT setval('s', 5); SELECT "
    "setval('s', 9)",
}


@pytest.mark.parametrize("script", MOVED.values(), ids=MOVED)
def test_a_sequence_moved_by_the_load_itself_fails_no_point(
    loaded: Loaded, database: DatabaseSettings, catalog: Catalog, script: str
) -> None:
    """A materialized view that numbers its rows is filled after pg_dump's setval.

    Whether the captured value was right cannot be determined.
    """
    run(database, f"CREATE TABLE t AS SELECT 1 AS i; {script}")
    path = publish_dump(catalog, database)
    with loaded.open_target(path) as target:
        restored, equal = load_and_compare(path, target)
    assert restored.is_passed
    assert equal.status is CheckStatus.UNKNOWN
    assert (
        "sequences advanced during the load, because something in the dump calls them: public.s"
        in equal.summary
    )


def test_a_moved_sequence_hides_no_other_difference(
    loaded: Loaded, database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, f"CREATE TABLE t AS SELECT 1 AS i; {MOVED['descending']}")
    path = publish_dump(catalog, database)
    with loaded.open_target(path) as target:
        superuser = target.roles.superuser
        assert superuser is not None
        with prepare_database(path, superuser, make_transfer(), values=LOADED_SETTINGS) as prepared:
            UnprivilegedLoad(prepared, target.roles, stop=Event()).run()
            run(superuser, "COMMENT ON TABLE public.t IS 'other'")
            assert compare_database(prepared, roles=target.roles)[1].status is CheckStatus.FAILED


def test_a_sequence_below_its_captured_value_is_a_failure(
    database: DatabaseSettings, second_database: DatabaseSettings, catalog: Catalog
) -> None:
    run(database, "CREATE SEQUENCE s; SELECT setval('s', 7); CREATE TABLE t AS SELECT 1 AS i")
    path = publish_dump(catalog, database)
    run(second_database, "CREATE SEQUENCE s; SELECT setval('s', 6); CREATE TABLE t AS SELECT 1 AS i")
    assert compare_restored(path, second_database, make_transfer())[1].status is CheckStatus.FAILED
    run(second_database, "SELECT setval('s', 7)")
    assert compare_restored(path, second_database, make_transfer())[1].is_passed
