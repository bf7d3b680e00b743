"""Captures a database into a dump file: pg_dump from an exported snapshot, cut at tables, compressed, digested and indexed on the way.

Add what belongs to taking a dump. How the file is laid out and read back is `dump_file`'s business, what is asked in the snapshot
`snapshot`'s. Memory stays bounded by a few blocks, whatever the size of a table or a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import BinaryIO

from schedgen_backups.core.clients import ClientPrograms, find_client
from schedgen_backups.core.command import Program, ProgramError, run_program
from schedgen_backups.core.dump_file import CapturedDump, DumpFileWriter
from schedgen_backups.core.dump_text import split_dump
from schedgen_backups.core.errors import DatabaseError, DumpError
from schedgen_backups.core.model import RecoveryPointId, ReferenceState
from schedgen_backups.core.postgres import make_client_environment
from schedgen_backups.core.records import DumpRecord
from schedgen_backups.core.settings import BackupSettings, DatabaseSettings
from schedgen_backups.core.snapshot import DatabaseFacts, Snapshot, TableName, open_snapshot
from schedgen_backups.core.throttle import Throttle
from schedgen_backups.core.version import TOOL_VERSION

TRANSACTION_TIMEOUT_MAJOR = 17
"""The first server that knows `transaction_timeout` (PostgreSQL 17 release notes); newer pg_dumps set it in every dump."""
_TRANSACTION_TIMEOUT = b"SET transaction_timeout = 0;\n"
_HEAD_LIMIT_BYTES = 64 * 1024
_ROLES_TIMEOUT_SECONDS = 120


def capture_database(
    settings: DatabaseSettings,
    backup: BackupSettings,
    point_id: RecoveryPointId,
    file: BinaryIO,
    *,
    observe: Callable[[int], object] = lambda _size_bytes: None,
) -> CapturedDump:
    """The file holds a whole dump with record, index and footer; `observe` gets the plain bytes of each block as it passes.

    DatabaseUnreachableError and DumpError are retryable; ClientProgramError, DatabaseError (privileges, empty database) and
    ConfigurationError (reference query) are permanent. After an error the file's content is worthless.
    """
    with open_snapshot(settings, lock_timeout_seconds=backup.stall_timeout_seconds) as snapshot:
        facts = snapshot.read_facts()
        client = find_client(settings, facts.server_major, backup.postgres_bin_dir)
        snapshot.check_privileges()
        tables = snapshot.list_tables()
        if not tables and not backup.is_empty_allowed:
            raise _empty_error(settings)
        snapshot.lock_tables(tables)
        reference_note = snapshot.find_reference_problem(backup)
        with DumpFileWriter(file, threads=backup.compression_threads) as writer:
            expected_rows = _dump_and_count(settings, backup, client, snapshot, tables, facts, writer, observe)
            if not sum(expected_rows.values()) and not backup.is_empty_allowed:
                raise _empty_error(settings)
            if not reference_note:
                for keys in snapshot.read_references(backup):
                    writer.add_references(keys)
            roles, roles_note = _read_roles(client, settings)
            contents = writer.facts()
            record = DumpRecord(
                tool_version=TOOL_VERSION,
                point_id=point_id.text,
                database=settings.database,
                server_version=facts.server_version,
                server_major=facts.server_major,
                system_identifier=facts.system_identifier,
                client_version=client.version,
                snapshot_at=snapshot.taken_at,
                finished_at=datetime.now(timezone.utc),
                encoding=facts.encoding,
                collation=facts.collation,
                table_count=len(contents.tables),
                row_count=sum(table.rows for table in contents.tables),
                relation_count=facts.relation_count,
                large_object_count=facts.large_object_count,
                size_bytes=contents.size_bytes,
                text_sha256=contents.text_sha256,
                content_length=writer.content_length,
                left_out_settings=("transaction_timeout",) if facts.server_major < TRANSACTION_TIMEOUT_MAJOR <= client.major else (),
                reference_state=ReferenceState.NOT_CONFIGURED if reference_note else ReferenceState.READ,
                reference_query=backup.reference_query,
                reference_count=writer.reference_count,
                reference_note=reference_note,
                role_count=roles.count("CREATE ROLE "),
                roles_note=roles_note,
            )
            counted = {(table.schema_name, table.name): rows for table, rows in expected_rows.items()}
            return writer.finish(record, counted, roles)


def stream_dump(
    settings: DatabaseSettings,
    client: ClientPrograms,
    *,
    server_major: int,
    stall_timeout_seconds: float,
    snapshot_id: str | None = None,
    observe: Callable[[int], object] = lambda _size_bytes: None,
) -> Iterator[bytes]:
    """Yields the plain dump as pg_dump writes it; DumpError (retryable) when pg_dump fails, hangs or is killed, at the latest at the end."""
    arguments = [
        client.pg_dump,
        "--format=plain",
        "--no-password",
        f"--lock-wait-timeout={int(stall_timeout_seconds)}s",
        *([f"--snapshot={snapshot_id}"] if snapshot_id else []),
    ]
    try:
        with Program(arguments, environment=make_client_environment(settings), stall_timeout_seconds=stall_timeout_seconds) as program:
            blocks = program.read_blocks()
            if server_major < TRANSACTION_TIMEOUT_MAJOR:
                blocks = _leave_out_transaction_timeout(blocks)
            for block in blocks:
                observe(len(block))
                yield block
            code = program.wait()
            if code != 0:
                ending = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
                raise DumpError(
                    f"pg_dump {ending}: {program.stderr_tail or 'it said nothing'}",
                    hint="Look at the server's log; run the backup again.",
                )
    except ProgramError as error:
        raise DumpError(error.message, hint=error.hint) from error


def _dump_and_count(
    settings: DatabaseSettings,
    backup: BackupSettings,
    client: ClientPrograms,
    snapshot: Snapshot,
    tables: tuple[TableName, ...],
    facts: DatabaseFacts,
    writer: DumpFileWriter,
    observe: Callable[[int], object],
) -> dict[TableName, int]:
    """Rows are counted in the snapshot while pg_dump reads the same pages, so that they come from memory once."""
    throttle = Throttle(backup.max_mb_per_second)

    def pass_on(size_bytes: int) -> None:
        throttle.wait_for(size_bytes)
        observe(size_bytes)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="count") as pool:
        counting = pool.submit(snapshot.count_rows, tables)
        try:
            blocks = stream_dump(
                settings,
                client,
                server_major=facts.server_major,
                stall_timeout_seconds=backup.stall_timeout_seconds,
                snapshot_id=snapshot.snapshot_id,
                observe=pass_on,
            )
            for segment in split_dump(blocks):
                writer.add(segment)
            if not writer.facts().is_complete:
                raise DumpError(
                    "pg_dump ended with exit code 0, but its last line is missing: the dump is cut short",
                    hint="Look at the server's log and at the pg_dump program; run the backup again.",
                )
        except BaseException:
            snapshot.cancel()
            raise
        return counting.result()


def _leave_out_transaction_timeout(blocks: Iterable[bytes]) -> Iterator[bytes]:
    # The statement stands in the dump's head, before the first object. A server older than 17 stops at it.
    head = b""
    is_in_head = True
    for block in blocks:
        if not is_in_head:
            yield block
            continue
        head += block
        if b"\nSELECT pg_catalog.set_config(" in head or len(head) > _HEAD_LIMIT_BYTES:
            is_in_head = False
            yield head.replace(_TRANSACTION_TIMEOUT, b"", 1)
    if is_in_head and head:
        yield head.replace(_TRANSACTION_TIMEOUT, b"", 1)


def _read_roles(client: ClientPrograms, settings: DatabaseSettings) -> tuple[str, str]:
    """The SQL that makes the cluster's roles, without passwords, and why there is none where there is none."""
    try:
        code, output, stderr = run_program(
            [client.pg_dumpall, "--roles-only", "--no-role-passwords", "--no-password", f"--database={settings.database}"],
            environment=make_client_environment(settings),
            timeout_seconds=_ROLES_TIMEOUT_SECONDS,
        )
    except ProgramError as error:
        return "", error.message
    if code != 0:
        return "", f"pg_dumpall failed with exit code {code}: {stderr.strip()[-500:]}"
    unwanted = ("--", "\\", "SET ")
    return "\n".join(line for line in output.splitlines() if line and not line.startswith(unwanted)), ""


def _empty_error(settings: DatabaseSettings) -> DatabaseError:
    return DatabaseError(
        f"the database {settings.database} is empty: not one row in any table",
        hint="Is POSTGRES_DB right? If it is meant to be empty, set BACKUP_ALLOW_EMPTY=true.",
    )
