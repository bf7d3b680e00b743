"""Capture a database into a dump file.

pg_dump reads from an exported snapshot; its output is split at tables, compressed, digested and indexed while
it is written. Memory is bounded by a few blocks, whatever the size of a table or a row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import BinaryIO

from schedgen_backups.core.capture.dump_plan import choose_separate_tables, place_separate_tables
from schedgen_backups.core.capture.table_dumps import ParallelDumps
from schedgen_backups.core.concurrency.limits import RateLimit
from schedgen_backups.core.errors import ConfigurationError, DatabaseError, DumpError, VerificationError
from schedgen_backups.core.formats.dump_file import CapturedDump, DumpFileWriter
from schedgen_backups.core.formats.dump_text import split_dump
from schedgen_backups.core.formats.records import DumpRecord, ExcludedTable
from schedgen_backups.core.formats.sql_statements import LINE_BREAK, split_roles
from schedgen_backups.core.model import TOOL_VERSION, ArtifactName, ReferenceState
from schedgen_backups.core.postgres.client_programs import ClientPrograms, find_client
from schedgen_backups.core.postgres.connection import SessionFacts, make_client_environment
from schedgen_backups.core.postgres.exclusions import check_exclusions, find_tables
from schedgen_backups.core.postgres.object_keys import find_reference_problem, read_references
from schedgen_backups.core.postgres.pg_dump import (
    TRANSACTION_TIMEOUT_MAJOR,
    leave_out_rows,
    make_pattern,
    stream_dump,
)
from schedgen_backups.core.postgres.snapshot import DatabaseFacts, Snapshot, TableName, open_snapshot
from schedgen_backups.core.settings import CaptureSettings, DatabaseSettings
from schedgen_backups.core.system.process import Program, ProgramError, run_program

_ROLES_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class OpenedDatabase:
    """A database with its snapshot, whose tables are locked: what is dumped is settled."""

    settings: DatabaseSettings
    capture: CaptureSettings
    snapshot: Snapshot
    facts: DatabaseFacts
    client: ClientPrograms
    tables: tuple[TableName, ...]
    excluded: frozenset[TableName]
    reference_note: str

    @contextmanager
    def kept_alive(self) -> Generator[Callable[[], None], None, None]:
        """Keep the session alive within the block, until the yielded function is called.

        The server ends sessions that are idle, and routers forget them.
        """
        is_over = Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="keep alive") as pool:
            waiting = pool.submit(self.snapshot.keep_alive, is_over)

            def end() -> None:
                is_over.set()
                waiting.result()

            try:
                yield end
            finally:
                is_over.set()

    def write(self, name: ArtifactName, file: BinaryIO, *, folder: Path, restrict_key: str) -> CapturedDump:
        r"""Write a complete dump with record, index and footer to `file`.

        `folder` holds separately dumped tables until they are written to the file. `restrict_key` (letters
        and digits) is the key of pg_dump's `\restrict`; users who can only write into the database must not
        know it. DatabaseUnreachableError and DumpError are retryable; DatabaseError and ConfigurationError
        are permanent. The file is unusable after an error.
        """
        settings, capture, snapshot, facts = self.settings, self.capture, self.snapshot, self.facts
        with DumpFileWriter(file, threads=capture.transfer.compression_threads) as writer:
            source = _Source(
                settings,
                capture,
                self.client,
                snapshot,
                facts.session,
                RateLimit(capture.transfer.max_mb_per_second),
                restrict_key,
            )
            expected_rows = _dump_and_count(source, self.tables, self.excluded, writer, folder)
            if not sum(expected_rows.values()) and not capture.is_empty_allowed:
                raise _empty_error(settings, self.excluded)
            if not self.reference_note:
                for keys in read_references(snapshot, capture.references):
                    writer.add_references(keys)
            roles, roles_note = _read_roles(self.client, settings, facts.session)
            contents = writer.facts()
            record = DumpRecord(
                tool_version=TOOL_VERSION,
                point_id=name.point_id.text,
                database=settings.database,
                source_name=name.source_name if name.source_name != settings.database else "",
                server_version=facts.server_version,
                server_major=facts.server_major,
                system_identifier=facts.system_identifier,
                client_version=self.client.version,
                snapshot_at=snapshot.taken_at,
                snapshot_opened_at=snapshot.opened_at,
                finished_at=datetime.now(timezone.utc),
                encoding=facts.encoding,
                collation=facts.collation,
                table_count=len(contents.tables),
                row_count=sum(table.rows for table in contents.tables),
                relation_count=facts.relation_count,
                large_object_count=facts.large_object_count,
                size_bytes=contents.size_bytes,
                text_sha256=contents.text_sha256,
                comparable_sha256=contents.comparable_sha256,
                content_length=writer.content_length,
                excluded_patterns=capture.exclusions.tables,
                excluded_tables=tuple(
                    ExcludedTable(schema_name=table.schema_name, name=table.name)
                    for table in self.tables
                    if table in self.excluded
                ),
                left_out_settings=("transaction_timeout",)
                if facts.server_major < TRANSACTION_TIMEOUT_MAJOR <= self.client.major
                else (),
                reference_state=ReferenceState.NOT_CONFIGURED if self.reference_note else ReferenceState.READ,
                reference_query=capture.references.query,
                reference_count=writer.reference_count,
                reference_note=self.reference_note,
                role_count=roles.count("CREATE ROLE "),
                roles_note=roles_note,
                properties=snapshot.read_properties(),
            )
            counted = {(table.schema_name, table.name): rows for table, rows in expected_rows.items()}
            return writer.finish(record, counted, roles)


@contextmanager
def open_database(
    settings: DatabaseSettings, capture: CaptureSettings
) -> Generator[OpenedDatabase, None, None]:
    """Open a snapshot of the database within the block, and settle what a dump of it contains.

    DatabaseUnreachableError is retryable; ClientProgramError, DatabaseError (privileges, empty database) and
    ConfigurationError (reference query, tables that cannot be excluded) are permanent.
    """
    with open_snapshot(settings, stall_timeout_seconds=capture.transfer.stall_timeout_seconds) as snapshot:
        facts = snapshot.read_facts()
        client = find_client(settings, facts.server_major, capture.transfer.postgres_bin_dir)
        snapshot.check_privileges()
        tables = snapshot.list_tables()
        if not tables and not capture.is_empty_allowed:
            raise _empty_error(settings)
        snapshot.lock_tables(tables)
        excluded = find_tables(snapshot, capture.exclusions.tables)
        check_exclusions(snapshot, excluded, capture.references)
        _check_plain_names(excluded, facts.session.encoding)
        reference_note = find_reference_problem(snapshot, capture.references)
        yield OpenedDatabase(settings, capture, snapshot, facts, client, tables, excluded, reference_note)


@dataclass(frozen=True)
class _Source:
    """What all pg_dump processes of one capture share."""

    settings: DatabaseSettings
    capture: CaptureSettings
    client: ClientPrograms
    snapshot: Snapshot
    session: SessionFacts
    rate_limit: RateLimit
    restrict_key: str

    def stream(
        self, options: Sequence[str], on_start: Callable[[Program], object] = lambda _program: None
    ) -> Generator[bytes, None, None]:
        """Yield the output of a pg_dump of the snapshot with these options; may run in any thread."""
        return stream_dump(
            self.settings,
            self.client,
            session=self.session,
            stall_timeout_seconds=self.capture.transfer.stall_timeout_seconds,
            snapshot_id=self.snapshot.snapshot_id,
            # Every client that is not refused knows it: it came with `\restrict` itself.
            options=(f"--restrict-key={self.restrict_key}", *options),
            on_start=on_start,
            on_progress=self.rate_limit.wait_for,
        )

    def stream_tables(
        self, tables: Sequence[TableName], on_start: Callable[[Program], object]
    ) -> Generator[bytes, None, None]:
        """Yield the output of a pg_dump of only these tables' rows."""
        return self.stream(
            (
                "--data-only",
                "--strict-names",
                *(f"--table={make_pattern(table.schema_name, table.name)}" for table in tables),
            ),
            on_start,
        )


def _dump_and_count(
    source: _Source,
    all_tables: tuple[TableName, ...],
    excluded: frozenset[TableName],
    writer: DumpFileWriter,
    folder: Path,
) -> dict[TableName, int]:
    """Dump the tables and count their rows in the same snapshot; return the row counts.

    Counting runs while pg_dump reads the same pages, so that they are read from disk only once.
    """
    capture, snapshot = source.capture, source.snapshot
    tables = tuple(table for table in all_tables if table not in excluded)
    sizes = {
        table: size_bytes
        for table, size_bytes in snapshot.read_table_sizes().items()
        if table not in excluded
    }
    groups = choose_separate_tables(
        sizes, capture.transfer.dump_jobs if _has_plain_names(tables, source.session.encoding) else 1
    )
    separate = [table for group in groups for table in group]
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="count") as pool,
        ParallelDumps(
            groups, source.stream_tables, folder, threads=capture.transfer.compression_threads
        ) as parallel_dumps,
    ):
        counting = pool.submit(snapshot.count_rows, tables)
        is_dumped = Event()
        waiting = pool.submit(snapshot.keep_alive, is_dumped)
        try:
            apart = leave_out_rows((table.schema_name, table.name) for table in (*separate, *excluded))
            with closing(source.stream(apart)) as blocks:
                for segment in place_separate_tables(split_dump(blocks), tables, separate):
                    if isinstance(segment, TableName):
                        writer.add_separate_table(parallel_dumps.take(segment))
                    else:
                        writer.add(segment)
                        parallel_dumps.check()
            parallel_dumps.wait()
            if not writer.facts().is_complete:
                raise DumpError(
                    "pg_dump ended with exit code 0, but its last line is missing: the dump is truncated",
                    hint="Check the server's log and the pg_dump program, then run the backup again.",
                )
            is_dumped.set()
            waiting.result()
        except BaseException:
            is_dumped.set()
            snapshot.cancel()
            raise
        return counting.result()


def _has_plain_names(tables: Iterable[TableName], encoding: str) -> bool:
    """Return whether these names can be passed to pg_dump.

    pg_dump reads its arguments, and sorts tables, in the database's encoding.
    """
    return encoding == "UTF8" or all(f"{table.schema_name}{table.name}".isascii() for table in tables)


def _check_plain_names(excluded: frozenset[TableName], encoding: str) -> None:
    if not _has_plain_names(excluded, encoding):
        raise ConfigurationError(
            "BACKUP_EXCLUDE_TABLE_DATA matches a table whose name is not ASCII; pg_dump cannot exclude it in "
            f"a database with encoding {encoding}",
            hint="Keep that table in the backup.",
        )


def _read_roles(client: ClientPrograms, settings: DatabaseSettings, session: SessionFacts) -> tuple[str, str]:
    """Return the SQL that creates the cluster's roles without passwords, or no SQL and the reason."""
    try:
        code, output, stderr = run_program(
            [
                client.pg_dumpall,
                "--roles-only",
                "--no-role-passwords",
                "--no-password",
                f"--database={settings.database}",
            ],
            # The output is read as UTF-8, whatever the encoding of the database.
            environment={**make_client_environment(settings, session), "PGCLIENTENCODING": "UTF8"},
            timeout_seconds=_ROLES_TIMEOUT_SECONDS,
        )
    except ProgramError as error:
        return "", error.message
    if code != 0:
        return "", f"pg_dumpall failed with exit code {code}: {stderr.strip()[-500:]}"
    try:
        statements = split_roles(output)
    except VerificationError as error:
        return "", f"the output of pg_dumpall cannot be read: {error.message}"
    kept = [statement for statement in statements if LINE_BREAK.search(statement) is None]
    left_out = len(statements) - len(kept)
    return "\n".join(
        kept
    ), f"{left_out} statements with a line break in a name or value are not kept" if left_out else ""


def _empty_error(settings: DatabaseSettings, excluded: frozenset[TableName] = frozenset()) -> DatabaseError:
    if excluded:
        return DatabaseError(
            f"no table of the database {settings.database} has any rows except those that "
            "BACKUP_EXCLUDE_TABLE_DATA excludes",
            hint="Exclude fewer tables. If this is intended, set BACKUP_ALLOW_EMPTY=true.",
        )
    return DatabaseError(
        f"the database {settings.database} is empty: no table has any rows",
        hint="Is POSTGRES_DB correct? If the database should be empty, set BACKUP_ALLOW_EMPTY=true.",
    )
