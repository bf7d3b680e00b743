"""The database half of a restore: opens and checks dump and connection, and decides how to load the dump."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import cast

import psycopg
from psycopg import sql

from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.records import ArtifactFile, DumpRecord
from schedgen_backups.core.model import OWN_VERSION
from schedgen_backups.core.postgres.client_programs import ClientPrograms, find_client
from schedgen_backups.core.postgres.connection import NO_VALUES, SessionFacts, read_session_facts
from schedgen_backups.core.postgres.database_properties import carry_properties, read_properties
from schedgen_backups.core.postgres.emptiness import count_user_objects
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.new_database import check_may_create
from schedgen_backups.core.restore.roles import parse_roles
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.units import count

MAINTENANCE_DATABASE = "postgres"
_LOCK_SHARE = 0.5
"""Share of the server's lock table that one restore may use; the rest is for other sessions."""
REMOVE_EVERYTHING = """
DO $remove$
DECLARE
    name text;
    entry record;
BEGIN
    -- One that works has a slot at its publisher, which must not be left there.
    FOR entry IN SELECT subname, subenabled FROM pg_catalog.pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    LOOP
        IF entry.subenabled THEN
            RAISE EXCEPTION 'the database has the subscription %: drop it first',
                pg_catalog.quote_ident(entry.subname);
        END IF;
        EXECUTE pg_catalog.format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', entry.subname);
        EXECUTE pg_catalog.format('DROP SUBSCRIPTION %I', entry.subname);
    END LOOP;
    FOR name IN SELECT evtname FROM pg_catalog.pg_event_trigger
        LOOP EXECUTE pg_catalog.format('DROP EVENT TRIGGER %I', name); END LOOP;
    FOR name IN SELECT pubname FROM pg_catalog.pg_publication
        LOOP EXECUTE pg_catalog.format('DROP PUBLICATION %I', name); END LOOP;
    FOR name IN SELECT extname FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql'
        LOOP EXECUTE pg_catalog.format('DROP EXTENSION IF EXISTS %I CASCADE', name); END LOOP;
    FOR name IN SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
        AND nspname <> 'information_schema'
        LOOP EXECUTE pg_catalog.format('DROP SCHEMA %I CASCADE', name); END LOOP;
    FOR name IN SELECT fdwname FROM pg_catalog.pg_foreign_data_wrapper
        LOOP EXECUTE pg_catalog.format('DROP FOREIGN DATA WRAPPER %I CASCADE', name); END LOOP;
    FOR name IN SELECT lanname FROM pg_catalog.pg_language WHERE oid >= 16384
        LOOP EXECUTE pg_catalog.format('DROP LANGUAGE %I CASCADE', name); END LOOP;
    FOR name IN SELECT amname FROM pg_catalog.pg_am WHERE oid >= 16384
        LOOP EXECUTE pg_catalog.format('DROP ACCESS METHOD %I CASCADE', name); END LOOP;
    FOR name IN SELECT pg_catalog.format('%s AS %s', pg_catalog.format_type(castsource, NULL),
        pg_catalog.format_type(casttarget, NULL))
        FROM pg_catalog.pg_cast WHERE oid >= 16384
        LOOP EXECUTE 'DROP CAST (' || name || ') CASCADE'; END LOOP;
    -- Default privileges of a role go when they are the system's again.
    FOR entry IN SELECT pg_catalog.pg_get_userbyid(d.defaclrole) AS owner, k.kind, k.everybody, (
            SELECT pg_catalog.string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
                ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, ', ')
                    FROM pg_catalog.aclexplode(d.defaclacl) a) AS grantees
        FROM pg_catalog.pg_default_acl d JOIN (VALUES ('r', 'TABLES', ''), ('S', 'SEQUENCES', ''),
            ('f', 'FUNCTIONS', 'EXECUTE'),
            ('T', 'TYPES', 'USAGE'), ('n', 'SCHEMAS', ''), ('L', 'LARGE OBJECTS', ''))
            AS k(letter, kind, everybody)
            ON k.letter = d.defaclobjtype::text
        WHERE d.defaclnamespace = 0
    LOOP
        IF entry.grantees IS NOT NULL THEN
            EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON %s FROM %s',
                entry.owner, entry.kind, entry.grantees);
        END IF;
        EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT ALL ON %s TO %I', entry.owner,
            entry.kind, entry.owner);
        IF entry.everybody <> '' THEN
            EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT %s ON %s TO PUBLIC',
                entry.owner, entry.everybody, entry.kind);
        END IF;
    END LOOP;
    PERFORM pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata;
    -- As initdb makes it: PostgreSQL 15 gave the schema to the database's owner and took CREATE from
    -- everybody.
    IF pg_catalog.current_setting('server_version_num')::int >= 150000 THEN
        CREATE SCHEMA public AUTHORIZATION pg_database_owner;
        GRANT USAGE ON SCHEMA public TO PUBLIC;
    ELSE
        CREATE SCHEMA public;
        GRANT ALL ON SCHEMA public TO PUBLIC;
    END IF;
END $remove$;
COMMENT ON SCHEMA public IS 'standard public schema';
"""
"""SQL that empties a database, in one transaction if sent as one query."""


class LoadWay(str, Enum):
    """How a dump is loaded into a database."""

    ONE_TRANSACTION = "one transaction"
    SEVERAL_SESSIONS = "several sessions"
    NO_TRANSACTION = "no transaction"
    """For a dump whose relations need more locks than the server can spare."""


@dataclass(frozen=True)
class TargetFacts:
    """Facts about the target's server at preparation."""

    session: SessionFacts
    encoding: str
    relation_count: int
    """Number of tables, functions, types, large objects and other user objects; 0 means empty."""
    lock_capacity: int
    """Number of objects that all transactions together can lock (PostgreSQL manual, section 19.12,
    max_locks_per_transaction)."""
    roles: frozenset[str]
    """Names as stored and, if different, as SQL quotes them."""

    properties: DatabaseProperties | None = None
    """Properties of the target database; None for one that is created later."""

    @property
    def server_major(self) -> int:
        """The server's major version."""
        return self.session.server_major


@dataclass(frozen=True)
class PreparedDatabase:
    """A dump and its target database, both open and checked."""

    artifact: ArtifactFile
    dump: DumpFile
    """For one thread at a time; other threads use readers of `artifact`."""
    session: DatabaseSession
    client: ClientPrograms
    facts: TargetFacts
    transfer: TransferSettings
    is_fresh: bool = False
    """Whether the database was or will be created for this restore."""
    maintenance: DatabaseSession | None = None
    """A session with the server's maintenance database, if the load creates the target."""

    @property
    def target(self) -> DatabaseSettings:
        """The target database."""
        return self.session.settings

    @property
    def record(self) -> DumpRecord:
        """The dump's own record."""
        return self.dump.record

    @property
    def missing_roles(self) -> tuple[str, ...]:
        """Roles of the dump that the server lacks, as SQL quotes them."""
        return tuple(name for name in parse_roles(self.dump.roles).attributes if name not in self.facts.roles)

    @property
    def collation_note(self) -> str:
        """Consequences of a different collation of the target; empty if it is the same or unknown."""
        captured, present = self.record.properties, self.facts.properties
        if captured is None or present is None or present.has_collation_of(captured):
            return ""
        return (
            f"the database's collation is {present.collation_label}, the captured one's was "
            f"{captured.collation_label}: text is sorted and compared "
            "differently, and constraints, unique indexes or partitions on text may refuse rows"
        )

    def list_versions(self) -> dict[str, str]:
        """Return the versions of this program, the target's server and the client that loads."""
        server_version = self.facts.session.server_version
        return {**OWN_VERSION, "PostgreSQL (target)": server_version, "psql": self.client.version}

    def choose_way(self, jobs: int) -> LoadWay:
        """Return how the dump would be loaded if this many sessions are requested."""
        return choose_way(self.record, self.facts, jobs=jobs if can_load_in_parallel(self.dump) else 1)

    def carry_properties(self) -> tuple[str, ...]:
        """Give a database created for this restore its captured properties; return notes on failures."""
        captured = self.record.properties
        if self.maintenance is None or captured is None:
            return ()
        with self.maintenance.use() as connection:
            carried = carry_properties(connection, self.target.database, captured)
            if captured.comment:
                name, comment = sql.Identifier(self.target.database), sql.Literal(captured.comment)
                with suppress(
                    psycopg.errors.InsufficientPrivilege
                ):  # it already belongs to its captured owner
                    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, comment))
        because = f" ({carried.problem})" if carried.problem else ""
        differences = ", ".join(carried.differences)
        return (
            (f"the database itself differs from what was captured: {differences}{because}",)
            if differences
            else ()
        )

    @contextmanager
    def aim_at(self, fresh: DatabaseSettings) -> Generator[PreparedDatabase, None, None]:
        """Prepare the same dump for another, empty database of the same server, within the block."""
        with DatabaseSession(fresh, stall_timeout_seconds=self.transfer.stall_timeout_seconds) as session:
            yield replace(self, session=session, is_fresh=True)


@contextmanager
def prepare_database(
    path: Path,
    target: DatabaseSettings,
    transfer: TransferSettings,
    *,
    keys: PackKeys = NO_KEYS,
    values: Mapping[str, str] = NO_VALUES,
) -> Generator[PreparedDatabase, None, None]:
    """Open dump, connection and client programs within the block; the target can take the dump.

    RestoreError (permanent) says why it cannot. The caller decides whether it must be empty. `values` are
    settings of the connection.
    """
    with _open_half(path, target, transfer, keys, values) as prepared:
        check_encoding(prepared.record, prepared.facts, target)
        yield prepared


@contextmanager
def prepare_new_database(
    path: Path, live: DatabaseSettings, transfer: TransferSettings, *, keys: PackKeys = NO_KEYS
) -> Generator[PreparedDatabase, None, None]:
    """Like `prepare_database`, for an empty database that will be created on the server of `live`.

    The connection is to the server's maintenance database. DatabaseError (permanent) if the role may not
    create databases.
    """
    with _open_half(path, live.with_database(MAINTENANCE_DATABASE), transfer, keys) as prepared:
        with prepared.session.use() as connection:
            check_may_create(connection, prepared.target)
        # The encoding of the future database, not of the maintenance database: pg_dump writes the second dump
        # in it.
        session = replace(prepared.facts.session, encoding=prepared.record.encoding)
        facts = replace(
            prepared.facts,
            session=session,
            relation_count=0,
            encoding=prepared.record.encoding,
            properties=None,
        )
        yield replace(prepared, facts=facts)


@contextmanager
def prepare_missing_database(
    path: Path, target: DatabaseSettings, transfer: TransferSettings, *, keys: PackKeys = NO_KEYS
) -> Generator[PreparedDatabase, None, None]:
    """Like `prepare_new_database`, for one with the target's name that the load creates."""
    with (
        prepare_new_database(path, target, transfer, keys=keys) as prepared,
        DatabaseSession(target, stall_timeout_seconds=transfer.stall_timeout_seconds) as session,
    ):
        yield replace(prepared, session=session, maintenance=prepared.session, is_fresh=True)


@contextmanager
def _open_half(
    path: Path,
    target: DatabaseSettings,
    transfer: TransferSettings,
    keys: PackKeys,
    values: Mapping[str, str] = NO_VALUES,
) -> Generator[PreparedDatabase, None, None]:
    limit_seconds = transfer.stall_timeout_seconds
    with (
        ArtifactFile(path, keys) as artifact,
        DatabaseSession(target, values=values, stall_timeout_seconds=limit_seconds) as session,
    ):
        with artifact.name_errors():
            dump = DumpFile(artifact.open_reader())
            record = dump.record
        with session.use() as connection:
            facts = _read_facts(connection)
        if facts.server_major < record.server_major:
            raise RestoreError(
                f"the dump is from PostgreSQL {record.server_major} and the target is PostgreSQL "
                f"{facts.server_major}: a dump does not load into an older version",
                hint=f"Restore into a server of version {record.server_major} or newer.",
            )
        yield PreparedDatabase(
            artifact,
            dump,
            session,
            find_client(target, facts.server_major, transfer.postgres_bin_dir),
            facts,
            transfer,
        )


def check_encoding(record: DumpRecord, facts: TargetFacts, target: DatabaseSettings) -> None:
    """Raise RestoreError (permanent) if the target has another encoding."""
    if facts.encoding != record.encoding:
        raise RestoreError(
            f"the dump's encoding is {record.encoding}, the target's is {facts.encoding}",
            hint=f"Create the target again: CREATE DATABASE {target.database} ENCODING '{record.encoding}' "
            "TEMPLATE template0;",
        )


def check_empty(target: DatabaseSettings, relation_count: int) -> None:
    """Raise TargetNotEmptyError if the database is not empty."""
    if relation_count:
        raise TargetNotEmptyError(
            f"the database {target.label} is not empty: it contains {relation_count} tables, functions, "
            "types or other objects",
            hint="Restore into a new database (createdb -T template0 NAME), or replace everything in this "
            "one with --into-nonempty.",
        )


def can_load_in_parallel(dump: DumpFile) -> bool:
    """Return whether rows can be separated reliably from the rest of the dump, and the rest fits into memory.

    Not with large objects, which are part of the rest. Not with names that have other bytes in an encoding
    other than UTF-8. Not with a table that the snapshot did not count, such as an extension's.
    """
    has_plain_names = dump.record.encoding == "UTF8" or all(
        table.qualified_name.isascii() for table in dump.tables
    )
    # Rows that are loaded through their root may belong to another partition than in the source.
    has_own_rows = not any(table.root for table in dump.tables)
    return (
        has_plain_names
        and has_own_rows
        and not dump.record.large_object_count
        and all(table.expected_rows is not None for table in dump.tables)
    )


def choose_way(record: DumpRecord, facts: TargetFacts, *, jobs: int) -> LoadWay:
    """Return how a dump is loaded; `jobs` is 1 if several sessions cannot share it."""
    if jobs > 1 and not facts.relation_count:
        return LoadWay.SEVERAL_SESSIONS
    # One lock per relation and large object.
    needed = record.relation_count + record.large_object_count
    return LoadWay.ONE_TRANSACTION if needed < facts.lock_capacity * _LOCK_SHARE else LoadWay.NO_TRANSACTION


def describe_load(
    record: DumpRecord, facts: TargetFacts, place: str, way: LoadWay, *, jobs: int
) -> tuple[str, ...]:
    """Return what loading the dump does to the database that `place` names, one line each."""
    lines: list[str] = []
    if facts.relation_count:
        when = (
            "in the same transaction as the load"
            if way is LoadWay.ONE_TRANSACTION
            else "permanently, before the load begins"
        )
        lines.append(f"remove everything that {place} contains now, {when}")
    load = f"load {count(record.table_count, 'table')} with {count(record.row_count, 'row')} into {place}"
    if way is LoadWay.ONE_TRANSACTION:
        lines.append(f"{load}, in one transaction, committed last")
        if jobs > 1:
            lines.append(
                f"use one session instead of {jobs}: several need an empty database and a dump without "
                "large objects"
            )
    elif way is LoadWay.SEVERAL_SESSIONS:
        lines.append(
            f"{load}, in {jobs} sessions and NOT in one transaction: an error removes what was loaded, a "
            "killed restore leaves part of it"
        )
    else:
        lines.append(
            f"{load}, WITHOUT a transaction, after everything else was written: {record.relation_count} "
            f"relations and {record.large_object_count} "
            f"large objects need more locks than half of the server's {facts.lock_capacity} "
            "(max_locks_per_transaction); "
            "an error leaves part of the database"
        )
    return tuple(lines)


def _read_facts(connection: Connection) -> TargetFacts:
    row = connection.execute(
        "SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint"
        " * (pg_catalog.current_setting('max_connections')::bigint + "
        "pg_catalog.current_setting('max_prepared_transactions')::bigint)"
    ).fetchone()
    roles = connection.execute(
        "SELECT pg_catalog.quote_ident(rolname), rolname FROM pg_catalog.pg_roles"
    ).fetchall()
    return TargetFacts(
        session=read_session_facts(connection),
        encoding=connection.info.parameter_status("server_encoding") or "",
        relation_count=count_user_objects(connection),
        lock_capacity=cast("int", row[0]) if row else 0,
        roles=frozenset(str(name) for names in roles for name in names),
        properties=read_properties(connection, connection.info.dbname),
    )
