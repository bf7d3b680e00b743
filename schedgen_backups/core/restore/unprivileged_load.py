"""Loads a dump that somebody hostile may have written, on a connection that was authenticated without superuser rights.

Whatever can run code of the dump (rows, defaults, checks, indexes, triggers, refreshes) runs as the loader. The few statements that only a superuser
may execute run on a second connection, one at a time, and only in forms that evaluate no expression and call no function of the dump.
Objects never come to belong to a superuser: a function or materialized view that does would run with its rights.
docs/decisions/0017 has the reasons; add a form here only after asking what it could execute.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from types import MappingProxyType

import psycopg
from psycopg import sql

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.dump_text import DumpDigest, Segment, TableEnd, TableStart, Text, split_dump, unquote_identifier
from schedgen_backups.core.formats.sql_quotes import has_comment_or_dollar_quote
from schedgen_backups.core.formats.sql_statements import Statement, StatementSplitter
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.restore.database import PreparedDatabase
from schedgen_backups.core.settings import DatabaseSettings

LOADED_SETTINGS: Mapping[str, str] = MappingProxyType({"search_path": ""})
"""In the startup packet, besides the fixed ones: nothing that a dump made is found without its schema. For connections to what was loaded."""
_PARTS = {
    "name": r'(?:"(?:[^"]|"")+"|[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*)',
    "role": r"(?!(?:current_user|current_role|session_user|public)\b)<name>",
    "own": r'(?!pg_|information_schema\b|"pg_|"information_schema")<name>',
    # As the server reads them with standard_conforming_strings, which our sessions fix: a backslash escapes behind E only.
    "string": r"(?:'(?:[^']|'')*'|E'(?:[^'\\]|''|\\.)*')",
    # The types of a function's parameters: names, never an expression.
    "signature": r"""\((?:[^()'";\\]|"(?:[^"]|"")+"|\(\d+(?:,\d+)?\))*\)""",
    "columns": r"\(<name>(?:, ?<name>)*\)",
    "operator": r"[-+*/<>=~!@#%^&|`?]+",
    # Of the system by words that are no keywords of the statements, or of a schema.
    "type": r"(?:(?:(?!(?i:USING|FAMILY|AS)\b)[a-z]+ ?){1,4}(?<! )|<name>\.<name>)(?:\(\d+(?:,\d+)?\))?(?:\[\])*",
}
_SCHEMA_KINDS = (
    "AGGREGATE|COLLATION|CONVERSION|DOMAIN|FOREIGN TABLE|FUNCTION|MATERIALIZED VIEW|OPERATOR CLASS|OPERATOR FAMILY|OPERATOR|PROCEDURE|SEQUENCE|"
    "STATISTICS|TABLE|TEXT SEARCH CONFIGURATION|TEXT SEARCH DICTIONARY|TYPE|VIEW"
)
_GLOBAL_KINDS = "EVENT TRIGGER|FOREIGN DATA WRAPPER|PUBLICATION|SCHEMA|SERVER|SUBSCRIPTION"


def _form(pattern: str) -> re.Pattern[bytes]:
    """Compile the form of a statement; `<name>` and the like stand for what `_PARTS` says."""
    while found := re.search(r"(?<!\?P)<([a-z]+)>", pattern):
        pattern = pattern.replace(found[0], _PARTS[found[1]])
    return re.compile(pattern.encode("latin-1"), re.DOTALL)


# Never of the system's objects: who owns the schema pg_catalog can replace functions that a superuser calls.
_OWNER = _form(
    rf"ALTER (?:(?:{_SCHEMA_KINDS}) <own>\.(?:<name>|<operator>) ?(?:<signature>)?(?: USING <name>)?|(?:{_GLOBAL_KINDS}) <own>|LARGE OBJECT [0-9]+)"
    r" OWNER TO (?P<new_owner><role>);"
)
_EXTENSION = _form(r"CREATE EXTENSION IF NOT EXISTS (?P<extension><name>)(?: WITH SCHEMA <name>)?;")
# Not on objects of the system: reading files of the server is a matter of a grant on pg_read_file.
_GRANT = _form(
    r"(?:GRANT|REVOKE) [A-Z]+(?: ?<columns>)?(?:,[A-Z]+(?: ?<columns>)?)* ON (?:"
    r"(?:TABLE|SEQUENCE|FUNCTION|PROCEDURE|TYPE|DOMAIN) <own>\.<name>(?:<signature>)?|(?:SCHEMA|LANGUAGE|FOREIGN DATA WRAPPER|FOREIGN SERVER) <own>|"
    r"LARGE OBJECT [0-9]+) (?:TO|FROM) (?:PUBLIC|<role>)(?: WITH GRANT OPTION)?;"
)
# Wide on purpose: what has no signature that the server can read is taken for a gift.
_GIVEN_FUNCTION = _form(r"(?:GRANT [^\"]* ON|ALTER) (?:AGGREGATE|FUNCTION|PROCEDURE) (?P<function><own>\.<name> ?<signature>)?")
# The server does not look at the types of what a GiST, GIN or SP-GiST index calls: functions of another type's can make it crash.
_OPERATOR_CLASS = _form(r"(?:CREATE OPERATOR CLASS|ALTER OPERATOR FAMILY) .*")
# Event triggers come last: they would run with the rights of whoever changes something.
_LATE = (
    _form(
        r"CREATE EVENT TRIGGER <name> ON [a-z_]+(?:\s+WHEN TAG IN \(<string>(?:, ?<string>)*\))?"
        r"\s+EXECUTE (?:FUNCTION|PROCEDURE) (?:<name>\.)?<name>\(\);"
    ),
    _form(r"ALTER EVENT TRIGGER <name> (?:OWNER TO <role>|DISABLE|ENABLE(?: REPLICA| ALWAYS)?);"),
    _form(r"COMMENT ON EVENT TRIGGER <name> IS <string>;"),
)
# Single statements whose grammar has no expression and no call (PostgreSQL manual, part VI), or whose form leaves none.
_FORMS = (
    _OWNER,
    _GRANT,
    # Not on what the whole server shares.
    _form(r"COMMENT ON (?!(?i:DATABASE|ROLE|TABLESPACE)\b)[A-Z]+ (?:[^'\"]|\"(?:[^\"]|\"\")+\")* IS <string>;"),
    _form(r"CREATE PUBLICATION <name> FOR (?:ALL TABLES|TABLES IN SCHEMA <name>)(?: WITH \([^()]*\))?;"),
    _form(r"ALTER PUBLICATION <name> ADD TABLES IN SCHEMA <name>;"),
    _form(r"CREATE SUBSCRIPTION <name> CONNECTION <string> PUBLICATION <name>(?:, ?<name>)* WITH \(connect = false[^()]*\);"),
    _form(
        r"CREATE SERVER <name>(?: TYPE <string>)?(?: VERSION <string>)? FOREIGN DATA WRAPPER <name>"
        r"(?: OPTIONS \(\s*<name> <string>(?:,\s+<name> <string>)*\s*\))?;"
    ),
    # Of schemas of the dump only: a support function in a family of the system would run in a superuser's queries.
    _form(r"CREATE OPERATOR FAMILY <own>\.<name> USING <name>;"),
    _form(
        # Which class is the default for a type depends on no schema: one for a type of the system would be used by everybody, us included.
        r"CREATE OPERATOR CLASS <own>\.<name>\s+(?:FOR TYPE <type>|DEFAULT FOR TYPE <own>\.<name>) USING <name>"
        r"(?: FAMILY <own>\.<name>)? AS\s(?!.*\b(?i:STORAGE|FAMILY)\b)[^;']*;"
    ),
    _form(r"ALTER OPERATOR FAMILY <own>\.<name> USING <name> ADD\s(?!.*\b(?i:STORAGE)\b)[^;']*;"),
)
_HARMLESS_EXTENSIONS = frozenset(
    {
        "amcheck",
        "bloom",
        "btree_gin",
        "btree_gist",
        "citext",
        "cube",
        "dict_int",
        "dblink",
        "dict_xsyn",
        "earthdistance",
        "file_fdw",
        "fuzzystrmatch",
        "hstore",
        "intagg",
        "intarray",
        "isn",
        "lo",
        "ltree",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_trgm",
        "pg_visibility",
        "pg_walinspect",
        "pgcrypto",
        "pgrowlocks",
        "pgstattuple",
        "postgis",
        "postgis_raster",
        "postgis_topology",
        "postgres_fdw",
        "seg",
        "sslinfo",
        "tablefunc",
        "tcn",
        "tsm_system_rows",
        "tsm_system_time",
        "unaccent",
        "uuid-ossp",
        "vector",
        "xml2",
    }
)
"""What a superuser makes for the loader: PostgreSQL's own modules that give no access to files, programs or other servers, and two well-known ones.
postgres_fdw connects elsewhere only for a role that gives a password of its own (manual, F.38.3)."""
_ROLE_STATEMENT = _form(r"GRANT |REVOKE |ALTER DEFAULT PRIVILEGES ")
_ROLE_WORD = _form(r"(?P<word>\b(?:TO|FROM|ROLE) )(?P<who><name>)(?=[;, ])")
_LOGOUT_SECONDS = 60.0
_LOGOUT_PAUSE_SECONDS = 0.1
_ROW_SECURITY = b"SET row_security = off;"
"""As of `make_loadable`: it serves no load."""
_PREPARATIONS = re.compile(rb"SET |SELECT pg_catalog\.set_config\(|(?:CREATE|ALTER) (?:SCHEMA|COLLATION) |COMMENT ON |CREATE EXTENSION ")
_WORD_LIMIT = 80


Session = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True)
class StandIn:
    """A role without superuser rights that takes the place of a superuser of the same server, whom nothing may be given to."""

    quoted: str
    """The superuser's name as pg_dump writes it in SQL."""
    name: str
    """The same as pg_dump writes it in comments."""
    stand_in: str
    """Needs no quotes, and stands nowhere else."""


@dataclass(frozen=True)
class LoadRoles:
    """Who loads: a role without superuser rights, and a superuser for the narrow path where there is one."""

    loader: DatabaseSettings
    superuser: DatabaseSettings | None
    made_roles: frozenset[str] = frozenset()
    """Names of the roles that were made for this load, all without superuser rights; the loader is a member of each."""
    refused_owners: frozenset[str] = frozenset()
    """Names of superusers of the server: nothing is given to them."""
    stand_ins: tuple[StandIn, ...] = ()
    """For those of them that the dump names."""
    is_server_shared: bool = True
    """Whether others use the server too: then a right to read its log, or to connect from it without a password, reaches what is theirs."""

    def name_stand_ins(self, statement: bytes) -> bytes:
        """Return the statement with stand-ins where it gives something to, or takes it from, one of their superusers."""
        names = {each.quoted.encode(): each.stand_in.encode() for each in self.stand_ins}
        owner = _OWNER.fullmatch(statement)
        if owner is not None and owner["new_owner"] in names:
            return statement[: owner.start("new_owner")] + names[owner["new_owner"]] + b";"
        if not names or not _ROLE_STATEMENT.match(statement):
            return statement
        return _ROLE_WORD.sub(lambda found: found["word"] + names.get(found["who"], found["who"]), statement)

    def name_superusers(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield the segments of a second dump with the superusers' names where the first one had them."""
        held = b""
        for segment in segments:
            if self.stand_ins and isinstance(segment, Text):
                lines = (held + segment.data).splitlines(keepends=True)
                held = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
                yield Text(b"".join(map(self._name_in_line, lines)))
            else:
                if held:
                    yield Text(self._name_in_line(held))
                    held = b""
                yield segment
        if held:
            yield Text(self._name_in_line(held))

    def _name_in_line(self, line: bytes) -> bytes:
        for each in self.stand_ins:
            name = each.name if line.startswith(b"-- ") else each.quoted
            line = re.sub(rb"\b" + each.stand_in.encode() + rb"\b", name.encode().replace(b"\\", b"\\\\"), line)
        return line


class UnprivilegedLoad:
    """One load into an empty database that nobody else uses. It is no transaction: after an error the database is to be dropped."""

    is_in_doubt = False

    def __init__(
        self, prepared: PreparedDatabase, roles: LoadRoles, *, stop: Event, on_progress: Callable[[int], object] = lambda _size_bytes: None
    ) -> None:
        self._prepared = prepared
        self._roles = roles
        self._stop = stop
        self._on_progress = on_progress
        self._late: list[bytes] = []
        self._left_owners = 0
        self._left_grants = 0
        self._has_objects = False

    @property
    def uncompared(self) -> str:
        """What of the schema's text cannot be equal to the dump's; empty when all of it can."""
        left: list[str] = []
        if self._left_owners:
            left.append(f"{self._left_owners} objects belong to the loader instead of a superuser of this server")
        if self._left_grants:
            left.append(
                f"rights on functions that an extension keeps from everybody were not given on this server ({self._left_grants} statements); "
                "the drill's own server gives them: leave DRILL_DATABASE_URL empty"
            )
        return " and ".join(left)

    def describe_target(self) -> str:
        """Return what the target holds after an error."""
        return "The scratch database is dropped."

    def run(self, before_commit: Callable[[], object] = lambda: None) -> None:
        """Load the dump, then wait for `before_commit`, whose errors are raised.

        RestoreError at the first statement that fails or may not be run, VerificationError when the dump's text is not what pg_dump writes or
        changed meanwhile.
        """
        dump = self._prepared.dump
        encoding = dump.record.encoding
        with self._prepared.artifact.name_errors(), ExitStack() as stack:
            with _connect(self._roles.loader, encoding) as loader:
                with self._open_superuser(encoding) as superuser:
                    self._load(dump, loader, superuser)
                superuser = stack.enter_context(self._open_superuser(encoding))
                # Before the loader's one session ends: no other can begin in between.
                stack.enter_context(self._without_loader(superuser))
            # On servers before 17 a trigger would fire at each statement behind it, with the superuser's rights.
            for statement in sorted(self._late, key=_makes_event_trigger):
                self._run_late(statement, superuser)
        before_commit()

    @contextmanager
    def _without_loader(self, superuser: Session | None) -> Generator[None, None, None]:
        """Within the block nobody is logged in as the loader, nor can be: the dump may have logged in again, and changed the password."""
        if superuser is None:
            yield
            return
        loader = self._roles.loader
        name = sql.Identifier(loader.user)
        superuser.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(name))
        ends_at = time.monotonic() + _LOGOUT_SECONDS
        query = "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity WHERE usename = %s"
        while superuser.execute(query, [loader.user]).fetchone() != (0,):
            if time.monotonic() >= ends_at:
                raise RestoreError("sessions of the dump's loader do not end", hint="Look at the log of the drill's server.")
            time.sleep(_LOGOUT_PAUSE_SECONDS)
        try:
            yield
        finally:
            superuser.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(loader.password)))

    @contextmanager
    def _open_superuser(self, encoding: str) -> Generator[Session | None, None, None]:
        if self._roles.superuser is None:
            yield None
            return
        with _connect(self._roles.superuser, encoding) as connection:
            yield connection

    def _load(self, dump: DumpFile, loader: Session, superuser: Session | None) -> None:
        splitter = StatementSplitter()
        with SerialWorker("digest") as worker:
            digest = DumpDigest(worker)
            segments = split_dump(dump.read_contents(on_progress=lambda block: self._on_progress(len(block))))
            for segment in segments:
                digest.add(segment)
                if isinstance(segment, TableStart):
                    self._run_all(splitter.flush(), loader, superuser)
                    if splitter.is_between:
                        self._copy(segment, segments, digest, loader)
                        continue
                self._run_all(splitter.feed(segment.data), loader, superuser)
            self._run_all(splitter.finish(), loader, superuser)
            facts = digest.facts()
        if facts.text_sha256 != dump.record.text_sha256 or [table.sha256 for table in facts.tables] != [table.sha256 for table in dump.tables]:
            raise VerificationError("the dump changed while it was read")

    def _copy(
        self,
        start: TableStart,
        segments: Iterator[Segment],
        digest: DumpDigest,
        loader: Session,
    ) -> None:
        self._check_stop()
        try:
            with loader.cursor().copy(start.data.strip().removesuffix(b";")) as copy:
                for segment in segments:
                    digest.add(segment)
                    if isinstance(segment, TableEnd):
                        break
                    copy.write(segment.data)
        except psycopg.Error as error:
            raise RestoreError(f"the rows of {start.schema_name}.{start.name} do not load: {_describe(error)}", hint=_hint(error)) from error

    def _run_all(
        self,
        statements: Iterator[Statement],
        loader: Session,
        superuser: Session | None,
    ) -> None:
        for statement in statements:
            self._check_stop()
            self._run(statement.text, loader, superuser)

    def _run(self, text: bytes, loader: Session, superuser: Session | None) -> None:
        if text == _ROW_SECURITY:
            return
        text = self._roles.name_stand_ins(text)
        if _makes_event_trigger(text) and not has_comment_or_dollar_quote(text):
            self._late.append(text)
            return
        owner = _OWNER.fullmatch(text)
        if owner is not None and unquote_identifier(owner["new_owner"]) in self._roles.refused_owners:
            self._left_owners += 1
            return
        try:
            _execute(loader, text)
        except psycopg.errors.InsufficientPrivilege as error:
            if superuser is None:
                raise _explain(text, error) from error
            self._run_privileged(text, superuser, error)
        except psycopg.Error as error:
            raise _explain(text, error) from error
        if not _PREPARATIONS.match(text):
            self._has_objects = True

    def _run_privileged(self, text: bytes, superuser: Session, refusal: psycopg.Error) -> None:
        if has_comment_or_dollar_quote(text):
            # pg_dump writes none within a statement, and what a form takes for a name or a value might end there for the server.
            raise _explain(text, refusal) from refusal
        extension = _EXTENSION.fullmatch(text)
        if extension is not None:
            name = unquote_identifier(extension["extension"])
            # An extension's script runs as superuser: it must not meet objects of the dump, and must be known to give nothing away.
            if self._has_objects or name not in _HARMLESS_EXTENSIONS:
                raise RestoreError(
                    f"the extension {name} is not installed for a dump: only a superuser may, and it is not among those known to be harmless",
                    hint="Restore this point by hand on a server that you trust with it: schedgen-backups restore ID --database …",
                ) from refusal
        elif not any(form.fullmatch(text) for form in _FORMS):
            raise _explain(text, refusal) from refusal
        elif self._roles.is_server_shared and _OPERATOR_CLASS.fullmatch(text):
            raise RestoreError(
                f"an operator class of a dump is not made on a server that others use, since it could crash it: {_shorten(text)}",
                hint="Give the drill a server of its own: leave DRILL_DATABASE_URL empty.",
            ) from refusal
        if self._roles.is_server_shared and _gives_kept_function(text, superuser):
            self._left_grants += 1
            return
        try:
            _execute_single(superuser, text)
        except psycopg.errors.InsufficientPrivilege as error:
            if _OWNER.fullmatch(text) is None:
                raise _explain(text, error) from error
            self._late.append(text)
        except psycopg.Error as error:
            raise _explain(text, error) from error

    def _run_late(self, text: bytes, superuser: Session | None) -> None:
        if superuser is None:
            raise RestoreError(
                f"only a superuser may run: {_shorten(text)}", hint="Give the drill a server of its own: leave DRILL_DATABASE_URL empty."
            )
        owner = _OWNER.fullmatch(text)
        role = unquote_identifier(owner["new_owner"]) if owner is not None else ""
        if owner is not None and role not in self._roles.made_roles:
            self._left_owners += 1
            return
        try:
            if owner is None:
                _execute_single(superuser, text)
                return
            # PostgreSQL lets only superusers own event triggers and publications of all tables. No other session, such as one of autovacuum, which
            # runs functions of indexes as their owner, ever sees the role as one.
            with superuser.transaction():
                superuser.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(role)))
                _execute_single(superuser, text)
                superuser.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(role)))
        except psycopg.Error as error:
            raise _explain(text, error) from error

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise RestoreError("the restore of the database was stopped")


def _makes_event_trigger(text: bytes) -> bool:
    return any(form.fullmatch(text) for form in _LATE)


@contextmanager
def _connect(settings: DatabaseSettings, encoding: str) -> Generator[Session, None, None]:
    with connect_database(settings, values=LOADED_SETTINGS, client_encoding=encoding) as connection:
        connection.autocommit = True
        yield connection


def _execute(connection: Session, text: bytes) -> None:
    connection.execute(text)


def _execute_single(connection: Session, text: bytes) -> None:
    # The extended protocol takes one statement only, whatever our reading of the text made of it.
    result = connection.pgconn.exec_params(text, None)
    if result.status not in {psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK}:
        raise psycopg.errors.error_from_result(result)


def _gives_kept_function(text: bytes, superuser: Session) -> bool:
    """Whether the statement gives a function away that its extension's script took from PUBLIC; true where that cannot be told.

    Such functions connect without a password (dblink_connect_u) or read what belongs to the whole server (pg_walinspect).
    """
    found = _GIVEN_FUNCTION.match(text)
    if found is None:
        return False
    query = """
        SELECT d.objid IS NOT NULL AND i.objoid IS NOT NULL
            AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(i.initprivs) a WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
        FROM pg_catalog.pg_proc p
        LEFT JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e'
        LEFT JOIN pg_catalog.pg_init_privs i ON i.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND i.objoid = p.oid
        WHERE p.oid = pg_catalog.to_regprocedure(%s)"""
    if found["function"] is None:
        return True
    try:
        row = superuser.execute(query, [found["function"].decode(superuser.info.encoding)]).fetchone()
    except (psycopg.Error, UnicodeDecodeError):  # a signature that only the statement's own grammar can read
        return True
    return row is None or row[0] is not False


def _explain(text: bytes, error: psycopg.Error) -> RestoreError:
    return RestoreError(f"{_shorten(text)}: {_describe(error)}", hint=_hint(error))


def _hint(error: psycopg.Error) -> str:
    return {
        "42501": "Loading this takes superuser rights, which a drill does not give to the contents of a backup.",
        "42704": "Something that the dump refers to is not on this server: a role, an extension, a type.",
        "58P01": "The extension is not installed on this server: install its package.",
        "0A000": "The extension is not installed on this server: install its package.",
    }.get(error.sqlstate or "", "The server's message above says what it refused.")


def _describe(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def _shorten(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return words if len(words) <= _WORD_LIMIT else f"{words[:_WORD_LIMIT]}…"
