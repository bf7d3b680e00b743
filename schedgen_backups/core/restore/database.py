"""Loads a dump into a database, all of it or nothing, and compares what is there afterwards with what was captured.

One transaction carries the whole load: an error, a damaged file or a killed process leaves the target as it was. What a restore needs before and
beside this (bucket, report) belongs to `restore`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import BackupError, RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_sections import LargeObjectFilter
from schedgen_backups.core.formats.dump_text import DumpDigest, Text, split_dump
from schedgen_backups.core.formats.records import DumpRecord
from schedgen_backups.core.postgres.client_programs import ClientPrograms, find_client
from schedgen_backups.core.postgres.connection import connect_database, count_user_relations, make_client_environment, translate_errors
from schedgen_backups.core.restore.parallel_load import SESSION_SETTINGS, ParallelLoad, can_load_in_parallel, remove_contents
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.system.process import Program, ProgramError

CREATE_ROLE = re.compile(r'CREATE ROLE (?P<name>"(?:[^"]|"")+"|[^\s;]+);')
_LOCK_SHARE = 0.5
"""How much of the server's lock table one restore may fill; the rest is for everybody else."""
_REMOVE_EVERYTHING = """
DO $remove$
DECLARE name text;
BEGIN
    FOR name IN SELECT evtname FROM pg_catalog.pg_event_trigger LOOP EXECUTE pg_catalog.format('DROP EVENT TRIGGER %I', name); END LOOP;
    FOR name IN SELECT pubname FROM pg_catalog.pg_publication LOOP EXECUTE pg_catalog.format('DROP PUBLICATION %I', name); END LOOP;
    FOR name IN SELECT extname FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql'
        LOOP EXECUTE pg_catalog.format('DROP EXTENSION IF EXISTS %I CASCADE', name); END LOOP;
    FOR name IN SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        LOOP EXECUTE pg_catalog.format('DROP SCHEMA %I CASCADE', name); END LOOP;
    PERFORM pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata;
    -- As initdb makes it: PostgreSQL 15 gave the schema to the database's owner and took CREATE from everybody.
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


def check_database_target(record: DumpRecord, target: DatabaseSettings, transfer: TransferSettings) -> tuple[ClientPrograms, int]:
    """The target can take the dump: reachable, not older than the source, same encoding, a psql at hand.

    Returns psql and the target's number of user relations. RestoreError (permanent) says why not.
    """
    with connect_database(target) as connection:
        major = connection.info.server_version // 10000
        encoding = connection.info.parameter_status("server_encoding") or ""
    if major < record.server_major:
        raise RestoreError(
            f"the dump is of PostgreSQL {record.server_major} and the target is PostgreSQL {major}: newer does not load into older",
            hint=f"Restore into a server of version {record.server_major} or newer.",
        )
    if encoding != record.encoding:
        raise RestoreError(
            f"the dump's encoding is {record.encoding}, the target's is {encoding}",
            hint=f"Make the target anew: CREATE DATABASE {target.database} ENCODING '{record.encoding}' TEMPLATE template0;",
        )
    return find_client(target, major, transfer.postgres_bin_dir), count_user_relations(target)


def restore_database(
    dump_path: Path,
    target: DatabaseSettings,
    transfer: TransferSettings,
    *,
    replace_contents: bool,
    stop: Event,
    jobs: int = 1,
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> tuple[str, ...]:
    """The target holds the dump, and nothing else if `replace_contents`; returns notes on roles that could not be made.

    TargetNotEmptyError when it holds something and `replace_contents` is not set; RestoreError at the first error of psql or when `stop` is set:
    then the target is as it was. With several `jobs` an empty target is loaded in so many sessions (see `parallel_load`). `on_progress` gets the
    compressed bytes that were read.
    """
    with open_dump(dump_path) as dump:
        client, relation_count = check_database_target(dump.record, target, transfer)
        if relation_count and not replace_contents:
            raise make_not_empty_error(target, relation_count)
        notes = _make_missing_roles(dump.roles, target)
        if jobs > 1 and not relation_count and can_load_in_parallel(dump):
            load = ParallelLoad(dump_path, target, transfer, client, jobs=jobs, stop=stop, on_progress=on_progress)
            try:
                load.run()
            except BaseException as error:
                try:
                    remove_contents(target, _REMOVE_EVERYTHING)
                except BackupError as refusal:
                    raise RestoreError(
                        f"{error}\nand what had been loaded by then could not be removed: {refusal.message}",
                        hint=f"Drop the database {target.database} before the next try.",
                    ) from error
                raise
            return notes
        is_atomic = _fits_one_transaction(dump.record, target)
        try:
            with Program(
                [client.psql, "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"],
                environment=make_client_environment(target),
                stall_timeout_seconds=transfer.stall_timeout_seconds,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            ) as psql:
                try:
                    _feed(psql, dump, is_atomic=is_atomic, replace_contents=replace_contents, stop=stop, on_progress=on_progress)
                except ProgramError as error:
                    code = psql.wait()
                    said = psql.stderr_tail or f"exit code {code}"
                    raise RestoreError(f"psql stopped at the first error: {said}", hint=_make_load_hint(is_atomic=is_atomic)) from error
                code = psql.wait()
                if code != 0:
                    raise RestoreError(f"psql failed with exit code {code}: {psql.stderr_tail}", hint=_make_load_hint(is_atomic=is_atomic))
        except ProgramError as error:
            raise RestoreError(error.message, hint=error.hint) from error
    return notes


def make_not_empty_error(target: DatabaseSettings, relation_count: int) -> TargetNotEmptyError:
    """The refusal to write into a database that holds something."""
    return TargetNotEmptyError(
        f"the database {target.label} is not empty: it holds {relation_count} tables, functions, types or large objects",
        hint="Restore into a new database (createdb NAME), or replace everything in this one with --into-nonempty.",
    )


def _feed(psql: Program, dump: DumpFile, *, is_atomic: bool, replace_contents: bool, stop: Event, on_progress: Callable[[int], object]) -> None:
    psql.write(SESSION_SETTINGS.encode())
    if is_atomic:
        psql.write(b"BEGIN;\n")
    if replace_contents:
        psql.write(_REMOVE_EVERYTHING.encode())
    large_objects = LargeObjectFilter()
    with SerialWorker("digest") as worker:
        contents = DumpDigest(worker)
        for segment in split_dump(dump.read_contents(on_progress=lambda block: on_progress(len(block)))):
            if stop.is_set():
                raise RestoreError("the restore of the database was stopped")
            contents.add(segment)
            if not is_atomic:
                psql.write(segment.data)
            elif isinstance(segment, Text):
                psql.write(large_objects.filter_text(segment.data))
            else:
                psql.write(large_objects.flush())
                psql.write(segment.data)
        psql.write(large_objects.flush())
        facts = contents.facts()
    if facts.text_sha256 != dump.record.text_sha256 or [table.sha256 for table in facts.tables] != [table.sha256 for table in dump.tables]:
        raise VerificationError("the dump changed while it was read; the target is as it was")
    # Without this line, psql's end would be a rollback: a feeder that is killed commits nothing.
    if is_atomic:
        psql.write(b"COMMIT;\n")
    psql.close_stdin()


def _fits_one_transaction(record: DumpRecord, target: DatabaseSettings) -> bool:
    # One lock per relation and large object; PostgreSQL manual, section 19.12, max_locks_per_transaction.
    query = (
        "SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint * "
        "(pg_catalog.current_setting('max_connections')::bigint + pg_catalog.current_setting('max_prepared_transactions')::bigint)"
    )
    with connect_database(target) as connection, translate_errors(target), connection.cursor() as cursor:
        row = cursor.execute(query).fetchone()
    capacity = cast("int", row[0]) if row else 0
    return record.relation_count + record.large_object_count < capacity * _LOCK_SHARE


def _make_missing_roles(roles: str, target: DatabaseSettings) -> tuple[str, ...]:
    """Roles of the source that the target lacks are made, without passwords; what was refused is told, since the load may not need it."""
    statements = roles.splitlines()
    notes: list[str] = []
    with connect_database(target) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            rows = cursor.execute("SELECT pg_catalog.quote_ident(rolname), rolname FROM pg_catalog.pg_roles").fetchall()
            present = {str(name) for row in rows for name in row}
            for match in map(CREATE_ROLE.fullmatch, statements):
                if match is None or match["name"] in present:
                    continue
                prefix = f"ALTER ROLE {match['name']} WITH "
                wanted = [match[0], *(line for line in statements if line.startswith(prefix))]
                try:
                    for statement in wanted:
                        cursor.execute(sql.SQL(cast("LiteralString", statement)))
                except psycopg.Error as error:
                    notes.append(f"role {match['name']} could not be made as it was: {' '.join(str(error).split())}")
    return tuple(notes)


def _make_load_hint(*, is_atomic: bool) -> str:
    if is_atomic:
        return "The target is as it was. Missing roles or extensions: make or install them there, then restore again."
    return "The load was too large for one transaction: drop the target database before the next try."
