"""Create and remove the empty database into which a drill restores, with the roles that load it."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from schedgen_backups.core.drill.database_servers import check_not_source, find_server_bin_dirs, note_version
from schedgen_backups.core.drill.scratch_folder import ScratchFolder, ServerDatabase
from schedgen_backups.core.errors import ConfigurationError, DatabaseError
from schedgen_backups.core.formats.dump_text import unquote_identifier
from schedgen_backups.core.formats.records import DumpRecord
from schedgen_backups.core.postgres.connection import connect_database, read_session_facts, translate_errors
from schedgen_backups.core.postgres.database_properties import UNKNOWN_LOCALE_ERRORS, make_locale_clause
from schedgen_backups.core.restore.load_roles import LoadRoles, StandIn
from schedgen_backups.core.restore.roles import parse_roles
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings

EVENT_TRIGGERS_SETTING_MAJOR = 17
"""PostgreSQL 17 introduced login triggers and the setting that turns event triggers off (release notes,
E.7.3)."""
_READER = "_reader"
_READ_ALL_MAJOR = 14
"""PostgreSQL 14 introduced pg_read_all_data (release notes)."""
_DATABASE_OWNER = "pg_database_owner"
"""Not a superuser; in the scratch database its only member is the loader (manual, 21.5)."""
_COMMENT = "made by a restore drill of schedgen-backups; may be dropped when no drill runs"


@dataclass(frozen=True)
class ScratchDatabase:
    """The empty database and a description of its server."""

    roles: LoadRoles
    """The roles that load into it and compare it."""
    description: str
    note: str = ""
    """What limits the drill's result; empty when nothing does."""


@contextmanager
def open_scratch_database(
    folder: ScratchFolder,
    record: DumpRecord,
    roles: str,
    drill: DrillSettings,
    source: DatabaseSettings | None,
) -> Generator[ScratchDatabase, None, None]:
    """Provide an empty database with the dump's encoding within the block.

    Removes database, roles and server afterwards. ConfigurationError when the server is the source's or none
    is available, DatabaseError when it refuses.
    """
    if drill.database is None:
        # Users who may log in over the source's Unix socket could do so from the drill's server, too, as the
        # same user.
        sockets = (Path(source.host),) if source is not None and source.host.startswith("/") else ()
        with _open_own_server(folder, record, roles, (*drill.hidden_paths, *sockets)) as made:
            yield made
        return
    server = drill.database
    major = check_not_source(server, record, drill, source)
    plan = _plan_roles(server, roles, loader_name=folder.database_name)
    made = ServerDatabase(host=server.host, port=server.port, name=folder.database_name, roles=plan.absent)
    folder.write_record(database=made)
    try:
        load_roles = _make_database(server, plan, folder.database_name, record, major)
        yield ScratchDatabase(
            load_roles, f"PostgreSQL {major} at {server.host}:{server.port}", note_version(major, record)
        )
    finally:
        drop_server_database(server, made)
        folder.write_record(database=None)


def drop_server_database(server: DatabaseSettings, made: ServerDatabase) -> None:
    """Drop the scratch database and its roles from the server; DatabaseError when that fails."""
    _open_to_us(server, made)
    _end_prepared_transactions(server, made)
    _drop_subscriptions(server, made)
    with connect_database(server) as connection, translate_errors(server):
        connection.autocommit = True
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(made.name))
        )
        query = (
            "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY(%s) AND "
            "pg_catalog.shobj_description(oid, 'pg_authid') = %s"
        )
        for (role,) in connection.execute(query, [list(made.roles), _describe_role(made.name)]).fetchall():
            # A role that owns something by now is kept.
            with suppress(psycopg.errors.DependentObjectsStillExist):
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(str(role))))


def _describe_role(database: str) -> str:
    """Return the comment that marks a role as made by this drill.

    It distinguishes the role from one that another user created with the same name.
    """
    return f"for {database}, {_COMMENT}"


def _make_role(
    connection: psycopg.Connection[tuple[object, ...]], statement: sql.Composed, role: str, database: str
) -> None:
    """Create the role together with its comment."""
    with connection.transaction():
        connection.execute(statement)
        connection.execute(
            sql.SQL("COMMENT ON ROLE {} IS {}").format(
                sql.Identifier(role), sql.Literal(_describe_role(database))
            )
        )


def _open_to_us(server: DatabaseSettings, made: ServerDatabase) -> None:
    """Undo what code of the dump may have done to the database, which its loader owns.

    Otherwise the database might refuse logins or could not be dropped.
    """
    database = sql.Identifier(made.name)
    with connect_database(server) as connection, translate_errors(server):
        if not connection.execute(
            "SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", [made.name]
        ).fetchone():
            return
        connection.execute(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1 IS_TEMPLATE false").format(database)
        )
        connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(database))
        facts = read_session_facts(connection)
        _close_to_triggers(connection, made.name, is_superuser=facts.is_superuser, major=facts.server_major)
        connection.commit()


def _close_to_triggers(
    connection: psycopg.Connection[tuple[object, ...]], database: str, *, is_superuser: bool, major: int
) -> None:
    if is_superuser and major >= EVENT_TRIGGERS_SETTING_MAJOR:
        # A login trigger would run with the rights of the connecting role.
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET event_triggers = off").format(sql.Identifier(database))
        )


def _end_prepared_transactions(server: DatabaseSettings, made: ServerDatabase) -> None:
    """Roll back transactions that code of the dump prepared: they would block dropping the database."""
    with connect_database(server) as connection, translate_errors(server):
        rows = connection.execute(
            "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = %s", [made.name]
        ).fetchall()
    if rows:
        scratch = server.with_database(made.name)
        with connect_database(scratch) as connection, translate_errors(scratch):
            connection.autocommit = True
            for (gid,) in rows:
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(str(gid))))


def _drop_subscriptions(server: DatabaseSettings, made: ServerDatabase) -> None:
    """Drop the scratch database's subscriptions, which block dropping it; they never had a slot."""
    with connect_database(server) as connection, translate_errors(server):
        query = (
            "SELECT subname FROM pg_catalog.pg_subscription WHERE subdbid = "
            "(SELECT oid FROM pg_catalog.pg_database WHERE datname = %s)"
        )
        try:
            names = [str(name) for (name,) in connection.execute(query, [made.name]).fetchall()]
        except psycopg.errors.InsufficientPrivilege:  # not a superuser, so it could not create one either
            return
    if not names:
        return
    scratch = server.with_database(made.name)
    with connect_database(scratch) as connection, translate_errors(scratch):
        connection.autocommit = True
        # Event triggers would fire at the next statements with this role's rights; dropping one fires none.
        for (trigger,) in connection.execute(
            "SELECT evtname::text FROM pg_catalog.pg_event_trigger"
        ).fetchall():
            connection.execute(sql.SQL("DROP EVENT TRIGGER {}").format(sql.Identifier(str(trigger))))
        for name in map(sql.Identifier, names):
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(name))
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(name))
            connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(name))


@contextmanager
def _open_own_server(
    folder: ScratchFolder, record: DumpRecord, roles: str, hidden_paths: Sequence[Path]
) -> Generator[ScratchDatabase, None, None]:
    candidates = find_server_bin_dirs(record.server_major)
    if not candidates:
        raise ConfigurationError(
            f"this machine has no PostgreSQL server of version {record.server_major} or newer",
            hint=f"Install postgresql-{record.server_major}, or pip install 'schedgen-backups[drill]'; in "
            "containers, use the image's stage `drill`. Or set DRILL_DATABASE_URL and DRILL_MINIO_ENDPOINT.",
        )
    bin_dir, major = candidates[0]
    # The dump cannot name or use this superuser; each role of the source is created without such rights.
    superuser = f"zz_{secrets.token_hex(8)}"
    options = _THROWAWAY_OPTIONS | (
        {"event_triggers": "off"} if major >= EVENT_TRIGGERS_SETTING_MAJOR else {}
    )
    with EmbeddedPostgres(
        folder.path / "postgres",
        bin_dir=bin_dir,
        user=superuser,
        server_options=options,
        hidden_paths=hidden_paths,
    ) as server:
        settings = server.settings("postgres")
        plan = _plan_roles(settings, roles, loader_name=folder.database_name)
        load_roles = _make_database(settings, plan, folder.database_name, record, major)
        _raise_readers(settings, plan, major)
        yield ScratchDatabase(
            replace(load_roles, is_server_shared=False),
            f"PostgreSQL {major} from {bin_dir}",
            note_version(major, record),
        )


_THROWAWAY_OPTIONS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""The drill's own server is removed at its end, and a drill that a power failure ends has proven nothing
(PostgreSQL manual, section 14.5)."""


@dataclass(frozen=True)
class _RolePlan:
    """The roles of the dump that the server lacks, and stand-ins for those that it has."""

    is_superuser: bool
    absent: tuple[str, ...]
    """Starts with the names of the loader and the reader when these are created."""
    loader_name: str
    stand_ins: tuple[StandIn, ...]
    refused: frozenset[str]
    memberships: tuple[tuple[str, str], ...] = ()
    """Role and member, both in `absent`. An owner may have access only through these to what the dump's
    objects read when they are refreshed."""
    readers: tuple[str, ...] = ()
    """Roles that could read everything in the source: superusers and members of pg_read_all_data."""
    row_readers: tuple[str, ...] = ()
    """Roles to which row-level security did not apply in the source."""

    @property
    def reader_name(self) -> str:
        return f"{self.loader_name}{_READER}"

    @property
    def of_dump(self) -> tuple[str, ...]:
        """Roles in `absent` that represent roles of the source."""
        return tuple(name for name in self.absent if name not in {self.loader_name, self.reader_name})


def _plan_roles(server: DatabaseSettings, roles: str, *, loader_name: str) -> _RolePlan:
    captured = parse_roles(roles)
    wanted = {unquote_identifier(name.encode()): name for name in captured.attributes}
    query = "SELECT rolname, rolname = current_user AND rolsuper FROM pg_catalog.pg_roles"
    with connect_database(server) as connection, translate_errors(server):
        rows = connection.execute(query).fetchall()
    is_superuser = any(row[1] for row in rows)
    present = frozenset(str(row[0]) for row in rows)
    absent = tuple(name for name in wanted if name not in present)
    stand_ins: tuple[StandIn, ...] = ()
    if is_superuser:
        # Members of a role can act as that role in every database of the server, so each existing role gets a
        # stand-in.
        refused = [name for name in wanted if name in present]
        stand_ins = tuple(
            StandIn(wanted[name], name, f"{loader_name}_{number}") for number, name in enumerate(refused)
        )
        absent = (loader_name, f"{loader_name}{_READER}", *absent, *(each.stand_in for each in stand_ins))
    made = {name: name for name in wanted if name in absent} | {
        each.name: each.stand_in for each in stand_ins
    }
    pairs = [
        (unquote_identifier(each.role.encode()), unquote_identifier(each.member.encode()))
        for each in captured.memberships
    ]
    superusers = {name for name, quoted in wanted.items() if captured.has_attribute(quoted, "SUPERUSER")}
    readers = superusers | {member for role, member in pairs if role == "pg_read_all_data"}
    return _RolePlan(
        memberships=tuple(
            (made[role], made[member]) for role, member in pairs if role in made and member in made
        ),
        readers=tuple(made[name] for name in wanted if name in readers and name in made),
        row_readers=tuple(
            made[name]
            for name, quoted in wanted.items()
            if name in made and (name in superusers or captured.has_attribute(quoted, "BYPASSRLS"))
        ),
        is_superuser=is_superuser,
        absent=absent,
        stand_ins=stand_ins,
        loader_name=loader_name,
        refused=present - {_DATABASE_OWNER} if is_superuser else frozenset(),
    )


def _make_database(
    server: DatabaseSettings, plan: _RolePlan, name: str, record: DumpRecord, major: int
) -> LoadRoles:
    """Create the roles and the empty database; return the roles that load.

    Without a superuser, the given role loads and owns what it creates.
    """
    loader = (
        replace(server, user=plan.loader_name, password=secrets.token_urlsafe(24))
        if plan.is_superuser
        else server
    )
    reader = (
        replace(loader, user=plan.reader_name, password=secrets.token_urlsafe(24))
        if plan.is_superuser
        else loader
    )
    database, owner = sql.Identifier(name), sql.Identifier(loader.user)
    with connect_database(server) as connection:
        connection.autocommit = True
        try:
            if plan.is_superuser:
                # Rows behind row-level security are loaded unchanged. Once its session is open, no one else
                # can log in as the loader.
                statement = sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS CONNECTION LIMIT 1 PASSWORD {}").format(
                    owner, sql.Literal(loader.password)
                )
                _make_role(connection, statement, loader.user, name)
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}")
                statement = statement.format(sql.Identifier(reader.user), sql.Literal(reader.password), owner)
                _make_role(connection, statement, reader.user, name)
            for role in plan.of_dump:
                _make_role(connection, sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)), role, name)
            if plan.is_superuser:
                for role in plan.of_dump:
                    connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), owner))
                _grant_memberships(connection, plan)
            statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {}").format(
                database, owner, sql.Literal(record.encoding)
            )
            _create_database(connection, statement, record, major)
            connection.execute(
                sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(_COMMENT))
            )
            _close_to_triggers(connection, name, is_superuser=plan.is_superuser, major=major)
        except psycopg.Error as error:
            raise DatabaseError(
                f"cannot create a scratch database at {server.host}:{server.port}: "
                f"{' '.join(str(error).split())}",
                hint="The role of DRILL_DATABASE_URL needs CREATEDB, and superuser if the dump needs "
                "extensions or roles.",
            ) from error
    return LoadRoles(
        loader.with_database(name),
        server.with_database(name) if plan.is_superuser else None,
        reader.with_database(name),
        made_roles=frozenset(plan.of_dump),
        refused_owners=plan.refused,
        stand_ins=plan.stand_ins,
    )


def _grant_memberships(connection: psycopg.Connection[tuple[object, ...]], plan: _RolePlan) -> None:
    """Grant the created roles read access to each other.

    All of them are new and own nothing outside the scratch database.
    """
    everything = ((role, reader) for reader in plan.readers for role in plan.of_dump if role != reader)
    for role, member in (*plan.memberships, *everything):
        # Of two roles that may read everything, one is already a member of the other.
        with suppress(psycopg.errors.InvalidGrantOperation):
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(member)))


def _raise_readers(server: DatabaseSettings, plan: _RolePlan, major: int) -> None:
    """Let roles that could read everything in the source do so on the drill's own server."""
    with connect_database(server) as connection, translate_errors(server):
        for role in plan.readers if major >= _READ_ALL_MAJOR else ():
            connection.execute(sql.SQL("GRANT pg_read_all_data TO {}").format(sql.Identifier(role)))
        for role in (*plan.row_readers, plan.reader_name):
            connection.execute(sql.SQL("ALTER ROLE {} BYPASSRLS").format(sql.Identifier(role)))


def _create_database(
    connection: psycopg.Connection[tuple[object, ...]],
    statement: sql.Composed,
    record: DumpRecord,
    major: int,
) -> None:
    if record.properties is not None:
        try:
            connection.execute(statement + make_locale_clause(record.properties, major))
        except UNKNOWN_LOCALE_ERRORS:
            pass  # the drill's result names the locale used instead
        else:
            return
    # UTF-8 works with every locale; every other encoding works only with C.
    connection.execute(statement if record.encoding == "UTF8" else statement + sql.SQL(" LOCALE 'C'"))
