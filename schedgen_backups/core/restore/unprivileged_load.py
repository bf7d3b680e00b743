"""Loads a dump that somebody hostile may have written, on a connection that was authenticated without
superuser rights.

Whatever can run code of the dump (rows, defaults, checks, indexes, triggers, refreshes) runs as the loader.
The few statements that only a superuser may execute run on a second connection, one at a time, and only in
forms that evaluate no expression and call no function of the dump. Objects never come to belong to a
superuser: a function or materialized view that does would run with its rights. docs/decisions/0017 has the
reasons; add a form here only after asking what it could execute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Event
from types import MappingProxyType

import psycopg
from psycopg import sql

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.dump_text import (
    DumpDigest,
    Segment,
    TableEnd,
    TableStart,
    Text,
    split_dump,
    unquote_identifier,
)
from schedgen_backups.core.formats.sql_statements import Statement, StatementSplitter
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.restore.database import PreparedDatabase
from schedgen_backups.core.restore.kept_functions import gives_kept_function
from schedgen_backups.core.restore.known_statements import (
    EXTENSION,
    HARMLESS_EXTENSIONS,
    OPERATOR_CLASS,
    OWNER,
    gives_rights,
    is_known,
    make_form,
    makes_event_trigger,
    may_be_left_out,
)
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.units import name_some

LOADED_SETTINGS: Mapping[str, str] = MappingProxyType({"search_path": ""})
"""In the startup packet, besides the fixed ones: nothing that a dump made is found without its schema. For
connections to what was loaded."""
_WITHOUT_EFFECT = frozenset({"01006", "01007"})
"""SQLSTATEs of the warnings that a GRANT or REVOKE changed nothing, or not all of it, since whoever ran it
may not (manual, appendix A)."""
_ROLE_STATEMENT = make_form(r"GRANT |REVOKE |ALTER DEFAULT PRIVILEGES ")
_ROLE_WORD = make_form(r"(?P<word>\b(?:TO|FROM|ROLE) )(?P<who><name>)(?=[;, ])")
_GRANTOR = make_form(r"SET SESSION AUTHORIZATION (?P<who><name>);")
_NO_GRANTOR = b"RESET SESSION AUTHORIZATION;"
_TABLESPACE = make_form("SET default_tablespace = (?:<name>|'');")
"""Where the source's files lie is nothing that this server has to have."""
_ROW_SECURITY = b"SET row_security = off;"
"""As of `make_loadable`: it serves no load."""
_PREPARATIONS = make_form(
    r"SET .*|SELECT pg_catalog\.set_config\(<string>, <string>, (?:true|false)\);|CREATE SCHEMA "
    r"<name>;|ALTER SCHEMA <name> OWNER TO <name>;"
    r"|CREATE COLLATION <name>\.<name> \((?:[^();']|<string>)*\);|ALTER COLLATION <name>\.<name> OWNER TO "
    r"<name>;"
    r"|COMMENT ON (?:SCHEMA|EXTENSION|COLLATION) <name>(?:\.<name>)? IS <string>;|CREATE EXTENSION .*"
)
"""Statements that make nothing which the script of an extension could call."""
_CONFIG_TABLES = """
    SELECT n.nspname::text, c.relname::text, NOT pg_catalog.has_schema_privilege(%(loader)s, n.oid, 'USAGE')
    FROM pg_catalog.pg_extension e CROSS JOIN LATERAL pg_catalog.unnest(e.extconfig) AS config(relation)
    JOIN pg_catalog.pg_class c ON c.oid = config.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND NOT pg_catalog.pg_has_role(%(loader)s, c.relowner, 'USAGE')"""
"""Tables of extensions whose rows are in a dump, if they are not the loader's (manual, 36.17.3), and whether
he may not enter their schema."""
_REFRESH = make_form(r"REFRESH MATERIALIZED VIEW (?P<view><name>\.<name>);")
_UNREACHABLE_CLASS = "08"
_REFUSED = frozenset({"42501", "2F003"})
"""SQLSTATEs of what only a superuser may read or connect to without a password (dblink, postgres_fdw)."""
_NOT_POPULATED = "55000"
_WORD_LIMIT = 80


Session = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True)
class StandIn:
    """A role without superuser rights that takes the place of a superuser of the same server, whom nothing
    may be given to.
    """

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
    reader: DatabaseSettings | None = None
    """Who looks at what was loaded, where nobody can log in as the loader any more. Nothing of the dump runs
    as this role during the load."""
    made_roles: frozenset[str] = frozenset()
    """Names of the roles that were made for this load, all without superuser rights; the loader is a member
    of each."""
    refused_owners: frozenset[str] = frozenset()
    """Names of superusers of the server: nothing is given to them."""
    stand_ins: tuple[StandIn, ...] = ()
    """For those of them that the dump names."""
    is_server_shared: bool = True
    """Whether others use the server too: then a right to read its log, or to connect from it without a
    password, reaches what is theirs."""

    def name_stand_ins(self, statement: bytes) -> bytes:
        """Return the statement with stand-ins where it gives something to, or takes it from, one of their
        superusers.
        """
        names = {each.quoted.encode(): each.stand_in.encode() for each in self.stand_ins}
        owner = OWNER.fullmatch(statement)
        if owner is not None and owner["new_owner"] in names:
            return statement[: owner.start("new_owner")] + names[owner["new_owner"]] + b";"
        grantor = _GRANTOR.fullmatch(statement)
        if grantor is not None:
            # Before the grant of somebody who was given a right to give on. The loader is a member of each
            # role, and no superuser.
            who = names.get(grantor["who"], grantor["who"])
            return b"SET ROLE " + who + b";" if unquote_identifier(who) in self.made_roles else statement
        if statement == _NO_GRANTOR:
            return b"RESET ROLE;"
        if not names or not _ROLE_STATEMENT.match(statement):
            return statement
        return _ROLE_WORD.sub(lambda found: found["word"] + names.get(found["who"], found["who"]), statement)

    def name_superusers(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield the segments of a second dump with the superusers' names where the first one had them."""
        held: list[bytes] = []
        for segment in segments:
            if self.stand_ins and isinstance(segment, Text):
                whole, newline, rest = segment.data.rpartition(b"\n")
                if newline:
                    lines = b"".join((*held, whole, newline)).splitlines(keepends=True)
                    held.clear()
                    yield Text(b"".join(map(self._name_in_line, lines)))
                # Not joined each time: a line may be as long as the whole text.
                held.append(rest)
            else:
                if any(held):
                    yield Text(self._name_in_line(b"".join(held)))
                held.clear()
                yield segment
        if any(held):
            yield Text(self._name_in_line(b"".join(held)))

    def _name_in_line(self, line: bytes) -> bytes:
        for each in self.stand_ins:
            name = each.name if line.startswith(b"-- ") else each.quoted
            line = re.sub(
                rb"\b" + each.stand_in.encode() + rb"\b", name.encode().replace(b"\\", b"\\\\"), line
            )
        return line


class UnprivilegedLoad:
    """One load into an empty database that nobody else uses.

    It is no transaction: after an error the database is to be dropped.
    """

    is_in_doubt = False

    def __init__(
        self,
        prepared: PreparedDatabase,
        roles: LoadRoles,
        *,
        stop: Event,
        on_progress: Callable[[int], object] = lambda _size_bytes: None,
    ) -> None:
        self._prepared = prepared
        self._roles = roles
        self._stop = stop
        self._on_progress = on_progress
        self._late: list[bytes] = []
        self._left_owners = 0
        self._left_gifts = 0
        self._left_grants = 0
        self._unfilled: list[str] = []
        self._is_without_effect = False
        self._config_tables: dict[tuple[str, str], bool] = {}
        self._has_grantor = False
        self._has_objects = False

    @property
    def uncompared(self) -> str:
        """What of the schema's text cannot be equal to the dump's; empty when all of it can."""
        left: list[str] = []
        if self._left_owners:
            left.append(
                f"{self._left_owners} objects belong to the loader instead of a superuser of this server"
            )
        if self._left_gifts:
            left.append(
                "rights on functions that an extension keeps from everybody were not given on this server "
                f"({self._left_gifts} statements)"
                + (
                    "; the drill's own server gives those that only read: leave DRILL_DATABASE_URL empty"
                    if self._roles.is_server_shared
                    else ""
                )
            )
        if self._left_grants:
            left.append(
                f"rights on objects of the system were neither given nor taken ({self._left_grants} "
                "statements)"
            )
        if self._unfilled:
            count = len(self._unfilled)
            left.append(
                f"{count} materialized views were not filled, since what they read is not open to a drill: "
                f"{name_some(self._unfilled)}"
            )
        return " and ".join(left)

    def describe_target(self) -> str:
        """Return what the target holds after an error."""
        return "The scratch database is dropped."

    def run(self, before_commit: Callable[[], object] = lambda: None) -> None:
        """Load the dump, then wait for `before_commit`, whose errors are raised.

        RestoreError at the first statement that fails or may not be run, VerificationError when the dump's
        text is not what pg_dump writes or changed meanwhile.
        """
        dump = self._prepared.dump
        encoding = dump.record.encoding
        with self._prepared.artifact.name_errors():
            with self._open_loader(encoding) as loader, self._open_superuser(encoding) as superuser:
                loader.add_notice_handler(self._note_warning)
                self._close_to_others(superuser)
                self._load(dump, loader, superuser)
            with self._open_superuser(encoding) as superuser:
                # On servers before 17 a trigger would fire at each statement behind it, with the superuser's
                # rights.
                for statement in sorted(self._late, key=makes_event_trigger):
                    self._run_late(statement, superuser)
        before_commit()

    def _close_to_others(self, superuser: Session | None) -> None:
        """Let nobody log in as the loader from here on: the dump may change its password, and other databases
        of the server are open to it.
        """
        if superuser is not None:
            with translate_errors(self._roles.superuser or self._roles.loader):
                superuser.execute(
                    sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(self._roles.loader.user))
                )

    def _open_loader(self, encoding: str) -> AbstractContextManager[Session]:
        # Who cannot log in a second time cannot ask what his session does.
        return _connect(self._roles.loader, encoding, self._prepared.transfer, asked_as=self._roles.superuser)

    @contextmanager
    def _open_superuser(self, encoding: str) -> Generator[Session | None, None, None]:
        if self._roles.superuser is None:
            yield None
            return
        with _connect(self._roles.superuser, encoding, self._prepared.transfer) as connection:
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
                        with self._open_config_table(segment, superuser):
                            self._copy(segment, segments, digest, loader)
                        continue
                self._run_all(splitter.feed(segment.data), loader, superuser)
            self._run_all(splitter.finish(), loader, superuser)
            facts = digest.facts()
        if facts.text_sha256 != dump.record.text_sha256 or [table.sha256 for table in facts.tables] != [
            table.sha256 for table in dump.tables
        ]:
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
            raise RestoreError(
                f"the rows of {start.schema_name}.{start.name} do not load: {_describe(error)}",
                hint=_hint(error),
            ) from error

    @contextmanager
    def _open_config_table(self, start: TableStart, superuser: Session | None) -> Generator[None, None, None]:
        """Let the loader add rows within the block, where the table is an extension's and the superuser's."""
        if superuser is None or (start.schema_name, start.name) not in self._config_tables:
            yield
            return
        schema, loader = sql.Identifier(start.schema_name), sql.Identifier(self._roles.loader.user)
        rights = (
            sql.SQL("INSERT ON TABLE {}").format(sql.Identifier(start.schema_name, start.name)),
            sql.SQL("USAGE ON SCHEMA {}").format(schema),
        )
        given = rights if self._config_tables[start.schema_name, start.name] else rights[:1]
        with translate_errors(self._roles.superuser or self._roles.loader):
            for right in given:
                superuser.execute(sql.SQL("GRANT {} TO {}").format(right, loader))
        yield
        with translate_errors(self._roles.superuser or self._roles.loader):
            for right in given:
                superuser.execute(sql.SQL("REVOKE {} FROM {}").format(right, loader))

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
        if text == _ROW_SECURITY or _TABLESPACE.fullmatch(text):
            return
        if _GRANTOR.fullmatch(text) or text == _NO_GRANTOR:
            self._has_grantor = text != _NO_GRANTOR
        text = self._roles.name_stand_ins(text)
        if self._is_put_off(text):
            return
        if superuser is not None and not self._has_grantor and gives_rights(text):
            # As the owner. The loader is a member of everybody: the server would take whoever of them may
            # give the right on (select_best_grantor).
            self._run_known(text, superuser)
        else:
            self._run_as_loader(text, loader, superuser)
        if superuser is not None and EXTENSION.fullmatch(text):
            rows = superuser.execute(_CONFIG_TABLES, {"loader": self._roles.loader.user}).fetchall()
            self._config_tables = {
                (str(schema), str(name)): bool(is_hidden) for schema, name, is_hidden in rows
            }
        if not _PREPARATIONS.fullmatch(text):
            self._has_objects = True

    def _is_put_off(self, text: bytes) -> bool:
        """Keep what is run last; return whether the statement is not to be run now."""
        if makes_event_trigger(text):
            self._late.append(text)
            return True
        owner = OWNER.fullmatch(text)
        if owner is not None and unquote_identifier(owner["new_owner"]) in self._roles.refused_owners:
            self._left_owners += 1
            return True
        return False

    def _run_as_loader(self, text: bytes, loader: Session, superuser: Session | None) -> None:
        self._is_without_effect = False
        try:
            _execute(loader, text)
        except psycopg.Error as error:
            if self._leaves_unfilled(text, error):
                return
            if not isinstance(error, psycopg.errors.InsufficientPrivilege) or superuser is None:
                raise explain(text, error) from error
            self._run_privileged(text, superuser, error)
        if self._is_without_effect:
            # The server warns, and goes on, where the loader has some right on the object, such as one that
            # PUBLIC has.
            if superuser is None or not is_known(text, is_server_shared=self._roles.is_server_shared):
                self._left_grants += 1
            else:
                self._run_privileged(
                    text, superuser, psycopg.errors.InsufficientPrivilege("privileges were not changed")
                )

    def _leaves_unfilled(self, text: bytes, error: psycopg.Error) -> bool:
        """Note a materialized view that reads another server, or what only a superuser may; return whether it
        is one, or reads one of them.
        """
        refresh, code = _REFRESH.fullmatch(text), error.sqlstate or ""
        is_closed = code.startswith(_UNREACHABLE_CLASS) or code in _REFUSED
        if refresh is None or not (is_closed or (self._unfilled and code == _NOT_POPULATED)):
            return False
        self._unfilled.append(refresh["view"].decode("utf-8", "replace"))
        return True

    def _run_privileged(self, text: bytes, superuser: Session, refusal: psycopg.Error) -> None:
        if EXTENSION.fullmatch(text):
            self._check_extension(text, refusal)
        elif not is_known(text, is_server_shared=self._roles.is_server_shared):
            if may_be_left_out(text):
                self._left_grants += 1
                return
            raise explain(text, refusal) from refusal
        elif self._roles.is_server_shared and OPERATOR_CLASS.fullmatch(text):
            raise RestoreError(
                "an operator class of a dump is not made on a server that others use, since it could "
                f"crash it: {_shorten(text)}",
                hint="Give the drill a server of its own: leave DRILL_DATABASE_URL empty.",
            ) from refusal
        self._run_known(text, superuser)

    def _run_known(self, text: bytes, superuser: Session) -> None:
        if gives_kept_function(text, superuser, is_server_shared=self._roles.is_server_shared):
            self._left_gifts += 1
            return
        try:
            _execute(superuser, text)
        except psycopg.errors.InsufficientPrivilege as error:
            if OWNER.fullmatch(text) is None:
                raise explain(text, error) from error
            self._late.append(text)
        except psycopg.Error as error:
            raise explain(text, error) from error

    def _check_extension(self, text: bytes, refusal: psycopg.Error) -> None:
        """Raise RestoreError unless the extension may be made: its script runs as superuser, meets nothing of
        the dump and gives nothing away.
        """
        extension = EXTENSION.fullmatch(text)
        name = unquote_identifier(extension["extension"]) if extension is not None else ""
        if self._has_objects or name not in HARMLESS_EXTENSIONS:
            raise RestoreError(
                f"the extension {name} is not installed for a dump: only a superuser may, and it is not "
                "among those known to be harmless",
                hint="Restore this point by hand on a server that you trust with it: schedgen-backups "
                "restore ID --database …",
            ) from refusal

    def _note_warning(self, warning: psycopg.errors.Diagnostic) -> None:
        self._is_without_effect = self._is_without_effect or warning.sqlstate in _WITHOUT_EFFECT

    def _run_late(self, text: bytes, superuser: Session | None) -> None:
        if superuser is None:
            raise RestoreError(
                f"only a superuser may run: {_shorten(text)}",
                hint="Give the drill a server of its own: leave DRILL_DATABASE_URL empty.",
            )
        owner = OWNER.fullmatch(text)
        role = unquote_identifier(owner["new_owner"]) if owner is not None else ""
        if owner is not None and role not in self._roles.made_roles:
            self._left_owners += 1
            return
        try:
            if owner is None:
                _execute(superuser, text)
                return
            # PostgreSQL lets only superusers own event triggers and publications of all tables. No other
            # session, such as one of autovacuum, which runs functions of indexes as their owner, ever sees
            # the role as one.
            with superuser.transaction():
                superuser.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(role)))
                _execute(superuser, text)
                superuser.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(role)))
        except psycopg.Error as error:
            raise explain(text, error) from error

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise RestoreError("the restore of the database was stopped")


@contextmanager
def _connect(
    settings: DatabaseSettings,
    encoding: str,
    transfer: TransferSettings,
    *,
    asked_as: DatabaseSettings | None = None,
) -> Generator[Session, None, None]:
    limit_seconds = transfer.stall_timeout_seconds
    with connect_database(
        settings,
        values=LOADED_SETTINGS,
        client_encoding=encoding,
        stall_timeout_seconds=limit_seconds,
        asked_as=asked_as,
    ) as connection:
        connection.autocommit = True
        yield connection


def _execute(connection: Session, text: bytes) -> None:
    # Binary results come by the extended protocol only, which takes one statement, whatever our reading of
    # the text made of it.
    connection.execute(text, binary=True)


def explain(text: bytes, error: psycopg.Error) -> RestoreError:
    """Return what is raised where the server refuses a statement, with the hint for its SQLSTATE."""
    return RestoreError(f"{_shorten(text)}: {_describe(error)}", hint=_hint(error))


def _hint(error: psycopg.Error) -> str:
    return {
        "42501": "Loading this takes superuser rights, which a drill does not give to the contents of a "
        "backup.",
        "42704": "Something that the dump refers to is not on this server: a role, an extension, a type.",
        "58P01": "The extension is not installed on this server: install its package.",
        "0A000": "The extension is not installed on this server: install its package.",
    }.get(error.sqlstate or "", "The server's message above says what it refused.")


def _describe(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def _shorten(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return words if len(words) <= _WORD_LIMIT else f"{words[:_WORD_LIMIT]}…"
