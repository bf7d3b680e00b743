"""Load a possibly hostile dump on a connection without superuser privileges.

Everything that can run code of the dump (rows, defaults, checks, indexes, triggers, refreshes) runs as the
loader. The few statements that require a superuser run on a second connection, one at a time, and only in
forms that evaluate no expression and call no function of the dump. Objects never belong to a superuser: a
function or materialized view would run with its privileges. docs/decisions/0017 has the reasons. Before you
add a form, check what it could execute.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
from schedgen_backups.core.restore.load_roles import GRANTOR, NO_GRANTOR, LoadRoles
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.units import name_some

LOADED_SETTINGS: Mapping[str, str] = MappingProxyType({"search_path": ""})
"""Sent in the startup packet, in addition to the fixed settings: objects of a dump are found only with their
schema. For connections to what was loaded."""
_WITHOUT_EFFECT = frozenset({"01006", "01007"})
"""SQLSTATEs of the warnings that a GRANT or REVOKE changed nothing, or not everything, for lack of privileges
(manual, appendix A)."""
_TABLESPACE = make_form("SET default_tablespace = (?:<name>|'');")
"""This server need not have the source's tablespaces."""
_ROW_SECURITY = b"SET row_security = off;"
"""Written by `make_loadable`; it has no effect on a load."""
_PREPARATIONS = make_form(
    r"SET .*|SELECT pg_catalog\.set_config\(<string>, <string>, (?:true|false)\);|CREATE SCHEMA "
    r"<name>;|ALTER SCHEMA <name> OWNER TO <name>;"
    r"|CREATE COLLATION <name>\.<name> \((?:[^();']|<string>)*\);|ALTER COLLATION <name>\.<name> OWNER TO "
    r"<name>;"
    r"|COMMENT ON (?:SCHEMA|EXTENSION|COLLATION) <name>(?:\.<name>)? IS <string>;|CREATE EXTENSION .*"
)
"""Statements that create nothing that an extension's script could call."""
_CONFIG_TABLES = """
    SELECT n.nspname::text, c.relname::text, NOT pg_catalog.has_schema_privilege(%(loader)s, n.oid, 'USAGE')
    FROM pg_catalog.pg_extension e CROSS JOIN LATERAL pg_catalog.unnest(e.extconfig) AS config(relation)
    JOIN pg_catalog.pg_class c ON c.oid = config.relation JOIN pg_catalog.pg_namespace n
        ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND NOT pg_catalog.pg_has_role(%(loader)s, c.relowner, 'USAGE')"""
"""Extension tables whose rows are in a dump, unless the loader owns them (manual, 36.17.3), and whether the
loader lacks access to their schema."""
_REFRESH = make_form(r"REFRESH MATERIALIZED VIEW (?P<view><name>\.<name>);")
_UNREACHABLE_CLASS = "08"
_REFUSED = frozenset({"42501", "2F003"})
"""SQLSTATEs of reads or connections without a password (dblink, postgres_fdw) that only a superuser may
do."""
_NOT_POPULATED = "55000"
_WORD_LIMIT = 80


Session = psycopg.Connection[tuple[object, ...]]


class UnprivilegedLoad:
    """One load into an empty database without other users.

    It is not a transaction: drop the database after an error.
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
        """Parts of the schema's text that cannot be equal to the dump's; empty if all can."""
        left: list[str] = []
        if self._left_owners:
            left.append(
                f"{self._left_owners} objects belong to the loader instead of a superuser of this server"
            )
        if self._left_gifts:
            left.append(
                "privileges on functions that an extension protects were not granted on this server "
                f"({self._left_gifts} statements)"
                + (
                    "; the drill's own server grants those that only read: leave DRILL_DATABASE_URL empty"
                    if self._roles.is_server_shared
                    else ""
                )
            )
        if self._left_grants:
            left.append(
                f"privileges on system objects were neither granted nor revoked ({self._left_grants} "
                "statements)"
            )
        if self._unfilled:
            count = len(self._unfilled)
            left.append(
                f"{count} materialized views were not filled, since a drill may not read their sources: "
                f"{name_some(self._unfilled)}"
            )
        return " and ".join(left)

    def describe_target(self) -> str:
        """Return what the target contains after an error."""
        return "The scratch database is dropped."

    def run(self, before_commit: Callable[[], object] = lambda: None) -> None:
        """Load the dump, then call `before_commit`, whose errors are raised.

        RestoreError at the first statement that fails or may not be run. VerificationError if the dump's text
        is not what pg_dump writes, or changed while it was read.
        """
        dump = self._prepared.dump
        encoding = dump.record.encoding
        with self._prepared.artifact.name_errors():
            with self._open_loader(encoding) as loader, self._open_superuser(encoding) as superuser:
                loader.add_notice_handler(self._note_warning)
                self._close_to_others(superuser)
                self._load(dump, loader, superuser)
            with self._open_superuser(encoding) as superuser:
                # On servers before 17 a trigger would fire at every later statement, with the superuser's
                # privileges.
                for statement in sorted(self._late, key=makes_event_trigger):
                    self._run_late(statement, superuser)
        before_commit()

    def _close_to_others(self, superuser: Session | None) -> None:
        """Prevent further logins as the loader.

        The dump may change its password, and the loader may use other databases of the server.
        """
        if superuser is not None:
            with translate_errors(self._roles.superuser or self._roles.loader):
                superuser.execute(
                    sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(self._roles.loader.user))
                )

    def _open_loader(self, encoding: str) -> AbstractContextManager[Session]:
        # The loader cannot log in again, so another role queries the state of its session.
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
        """Let the loader add rows to an extension's table of the superuser within the block."""
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
        if GRANTOR.fullmatch(text) or text == NO_GRANTOR:
            self._has_grantor = text != NO_GRANTOR
        text = self._roles.name_stand_ins(text)
        if self._is_put_off(text):
            return
        if superuser is not None and not self._has_grantor and gives_rights(text):
            # As the owner. The loader is a member of all roles, so the server would choose any of them that
            # may grant the privilege (select_best_grantor).
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
        """Store statements that run last; return whether the statement must not run now."""
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
            # The server only warns if the loader has any privilege on the object, such as one of PUBLIC.
            if superuser is None or not is_known(text, is_server_shared=self._roles.is_server_shared):
                self._left_grants += 1
            else:
                self._run_privileged(
                    text, superuser, psycopg.errors.InsufficientPrivilege("privileges were not changed")
                )

    def _leaves_unfilled(self, text: bytes, error: psycopg.Error) -> bool:
        """Note a materialized view that cannot be refreshed here; return whether it is one.

        It reads another server, or data that only a superuser may read, or another such view.
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
                "an operator class of a dump is not created on a shared server, since it could "
                f"crash it: {_shorten(text)}",
                hint="Use a separate server for the drill: leave DRILL_DATABASE_URL empty.",
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
        """Raise RestoreError unless the extension may be created.

        Its script runs as superuser; it must not touch objects of the dump or grant anything.
        """
        extension = EXTENSION.fullmatch(text)
        name = unquote_identifier(extension["extension"]) if extension is not None else ""
        if self._has_objects or name not in HARMLESS_EXTENSIONS:
            raise RestoreError(
                f"the extension {name} is not created for a dump: this requires a superuser, and the "
                "extension is not on the list of harmless ones",
                hint="Restore this point by hand, on a server that may be exposed to it: schedgen-backups "
                "restore ID --database …",
            ) from refusal

    def _note_warning(self, warning: psycopg.errors.Diagnostic) -> None:
        self._is_without_effect = self._is_without_effect or warning.sqlstate in _WITHOUT_EFFECT

    def _run_late(self, text: bytes, superuser: Session | None) -> None:
        if superuser is None:
            raise RestoreError(
                f"this statement requires a superuser: {_shorten(text)}",
                hint="Use a separate server for the drill: leave DRILL_DATABASE_URL empty.",
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
            # PostgreSQL requires a superuser as the owner of event triggers and publications of all tables.
            # Within the transaction, no other session sees the role as a superuser, not even autovacuum,
            # which runs functions of indexes as their owner.
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
    # Binary results require the extended protocol, which accepts a single statement only, even if our parser
    # misread the text.
    connection.execute(text, binary=True)


def explain(text: bytes, error: psycopg.Error) -> RestoreError:
    """Return the error for a refused statement, with the hint for its SQLSTATE."""
    return RestoreError(f"{_shorten(text)}: {_describe(error)}", hint=_hint(error))


def _hint(error: psycopg.Error) -> str:
    return {
        "42501": "Loading this requires superuser privileges, which a drill does not give to the contents "
        "of a backup.",
        "42704": "The dump refers to something that this server lacks: a role, an extension, a type.",
        "58P01": "The extension is not installed on this server: install its package.",
        "0A000": "The extension is not installed on this server: install its package.",
    }.get(error.sqlstate or "", "See the server's message above.")


def _describe(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def _shorten(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return words if len(words) <= _WORD_LIMIT else f"{words[:_WORD_LIMIT]}…"
