"""Load a dump in several psql sessions: tables concurrently, large tables split, indexes after their rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from queue import Empty, Full, Queue
from threading import Event

from psycopg import sql

from schedgen_backups.core.concurrency.task_graph import Call, TaskGraph
from schedgen_backups.core.errors import BackupError, RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.dump_sections import PostDataItem, make_loadable, split_post_data
from schedgen_backups.core.formats.dump_text import DumpDigest, Rows, Segment, Text, split_table
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.psql import feed_psql
from schedgen_backups.core.restore.database import REMOVE_EVERYTHING, PreparedDatabase

_WIDE_ROW_BYTES = 2048
"""Approximate size at which PostgreSQL starts to compress a row's values and to store them separately
(manual, section 66.2, TOAST_TUPLE_THRESHOLD)."""
_WIDE_TABLE_BYTES = 8 << 20
_LOOK_SECONDS = 0.5

ReadTable = Callable[[DumpFile, TableEntry], Iterator[Segment]]


def is_wide(table: TableEntry) -> bool:
    """Return whether several sessions are worthwhile for the table: it is large and has large rows.

    Others would gain little and lose their row order, which the comparison needs.
    """
    return table.length >= _WIDE_TABLE_BYTES and table.size_bytes >= table.rows * _WIDE_ROW_BYTES


class RowSessions:
    """The load of one table's rows. Several sessions change the order of the rows."""

    def __init__(self, prepared: PreparedDatabase, table: TableEntry, head: str, *, count: int) -> None:
        self._prepared = prepared
        self._artifact, self._table, self._target, self._head, self._count = (
            prepared.artifact,
            table,
            prepared.target,
            head,
            count,
        )
        self._blocks: Queue[bytes | None] = Queue(maxsize=2 * count)

    def load(self, read_table: ReadTable) -> None:
        """Load the rows into the table.

        VerificationError if they differ from what was captured. Raises the server's errors; the table is then
        empty. Only a failure between the sessions' commits can leave some of the rows.
        """
        is_right: Future[bool] = Future()
        with ThreadPoolExecutor(max_workers=self._count, thread_name_prefix="rows") as pool:
            sessions = [pool.submit(self._copy, is_right) for _session in range(self._count)]
            try:
                self._read(read_table, sessions)
            except BaseException:
                is_right.set_result(False)
                # The sessions take blocks concurrently, so the queue may become empty at any time.
                with suppress(Empty):
                    while True:
                        self._blocks.get_nowait()
                for _session in sessions:
                    self._blocks.put(None)
                raise
            is_right.set_result(True)
        for session in sessions:
            session.result()

    def _read(self, read_table: ReadTable, sessions: Sequence[Future[None]]) -> None:
        contents = DumpDigest()
        pending: list[bytes] = []
        with self._artifact.read_as(DumpFile) as dump:
            for segment in read_table(dump, self._table):
                contents.add(segment)
                if isinstance(segment, Rows):
                    end = segment.data.rfind(b"\n") + 1
                    pending.append(segment.data[:end] if end else segment.data)
                    if end:
                        self._put(b"".join(pending), sessions)
                        pending = [segment.data[end:]]
        if [facts.sha256 for facts in contents.facts().tables] != [self._table.sha256]:
            raise VerificationError(f"the rows of {self._table.qualified_name} differ from what was captured")
        for _session in sessions:
            self._put(None, sessions)

    def _put(self, block: bytes | None, sessions: Sequence[Future[None]]) -> None:
        while True:
            for session in sessions:
                if session.done():  # done before its last block means an error
                    session.result()
            try:
                self._blocks.put(block, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return

    def _copy(self, is_right: Future[bool]) -> None:
        name = sql.Identifier(self._table.schema_name, self._table.name)
        columns = sql.SQL(self._table.columns)  # pyright: ignore[reportArgumentType] - as pg_dump quoted them
        opening = connect_database(
            self._target, stall_timeout_seconds=self._prepared.transfer.stall_timeout_seconds
        )
        with opening as connection, translate_errors(self._target):
            # Settings, and a name from pg_encoding_to_char.
            connection.execute(self._head)  # pyright: ignore[reportArgumentType, reportCallIssue]
            with connection.cursor().copy(sql.SQL("COPY {} {} FROM STDIN").format(name, columns)) as copy:
                for block in iter(self._blocks.get, None):
                    copy.write(block)
            if is_right.result():
                connection.commit()
            else:
                connection.rollback()


_MEMORY_SETTING = "SET maintenance_work_mem = '256MB'"
SESSION_SETTINGS = f"{_MEMORY_SETTING}; SET max_parallel_maintenance_workers = 4;\n"
"""For the session of a load only: indexes are sorted in memory and by several workers (PostgreSQL manual,
sections 14.4.5, 19.4.1 and 19.4.6)."""
_HEAD = "SET check_function_bodies = false; SET xmloption = content;\n"
"""The settings at the start of pg_dump's text (pg_backup_archiver.c, _doSetFixedOutputState), for sessions
that start after it."""


class ParallelLoad:
    """Loads an empty database in `jobs` sessions; removes everything if an error occurs.

    While rows of wide tables are shared, there are up to twice as many sessions, less one.
    """

    def __init__(
        self, prepared: PreparedDatabase, *, jobs: int, stop: Event, on_progress: Callable[[int], object]
    ) -> None:
        self._prepared, self._jobs, self._stop, self._on_progress = prepared, jobs, stop, on_progress
        self._has_failed = Event()
        self._calls = TaskGraph(jobs, "load")
        self._refusal = ""
        self.is_in_doubt = False

    def run(self, before_commit: Callable[[], object]) -> None:
        """Load the dump; `before_commit` returns if it may remain, and raises otherwise.

        RestoreError or VerificationError at the first error, or if `stop` is set.
        """
        try:
            with self._prepared.artifact.name_errors():
                self._load()
            before_commit()
        except BaseException:
            self._remove_contents()
            raise

    def describe_target(self) -> str:
        """Return what the target contains after an error."""
        if self._refusal:
            database = self._prepared.target.database
            return (
                f"What was loaded could not be removed ({self._refusal}): drop the database {database} "
                "before you try again."
            )
        return "The target is empty, as before."

    def _remove_contents(self) -> None:
        try:
            with self._prepared.session.use() as connection:
                connection.execute(REMOVE_EVERYTHING)
        except BackupError as refusal:
            self._refusal = refusal.message

    def _load(self) -> None:
        dump = self._prepared.dump
        contents = DumpDigest()
        schema = b"".join(dump.read_schema())
        rest = b"".join(dump.read_rest_of_text())
        contents.add(Text(schema))
        contents.add(Text(rest))
        if contents.facts().text_sha256 != dump.record.text_sha256:
            raise VerificationError("the schema differs from what was captured; nothing was loaded")
        tables = sorted(dump.tables, key=lambda table: table.length, reverse=True)
        schema, rest = (_join_text(text) for text in (schema, rest))
        self._run_psql((schema,))
        items = split_post_data(schema, rest)
        builds: defaultdict[tuple[str, str] | None, list[Call]] = defaultdict(list)
        for item in items:
            if item.is_build:
                builds[item.table].append(Call(partial(self._build, item)))
        self._calls.run(self._plan_tables(tables, builds), on_error=self._has_failed.set)
        self._calls.run(chain.from_iterable(builds.values()), on_error=self._has_failed.set)
        self._run_items([item for item in items if not item.is_build], SESSION_SETTINGS)

    def _plan_tables(
        self, tables: Sequence[TableEntry], builds: dict[tuple[str, str] | None, list[Call]]
    ) -> list[Call]:
        """Return the tasks: tables with wide rows one after another, the others in parallel, largest first.

        The index builds of each table follow it, and are removed from `builds`.
        """

        def plan(table: TableEntry, sessions: int, following: Iterable[Call]) -> Call:
            own = builds.pop((table.schema_name, table.name), [])
            return Call(partial(self._load_table, table, sessions=sessions), (*following, *own))

        wide: list[Call] = []
        for table in reversed([table for table in tables if is_wide(table)]):
            wide = [plan(table, self._jobs, wide)]
        return [*wide, *(plan(table, 1, ()) for table in tables if not is_wide(table))]

    def _build(self, item: PostDataItem) -> None:
        # Sessions and workers together do not exceed `jobs`: on two cores, two builds with workers took half
        # as long again (2026-11-25).
        workers = max(0, self._jobs // self._calls.unfinished_count - 1)
        self._run_items([item], f"{_MEMORY_SETTING}; SET max_parallel_maintenance_workers = {workers};\n")

    def _load_table(self, table: TableEntry, *, sessions: int) -> None:
        head = f"SET client_encoding = '{self._prepared.record.encoding}'; {_HEAD}"
        RowSessions(self._prepared, table, head, count=sessions).load(self._read_table)

    def _read_table(self, dump: DumpFile, table: TableEntry) -> Iterator[Segment]:
        for segment in split_table(dump.read_table(table)):
            if self._stop.is_set() or self._has_failed.is_set():
                raise RestoreError("the restore of the database was stopped")
            yield segment
        self._on_progress(table.length)

    def _run_items(self, items: Sequence[PostDataItem], settings: str) -> None:
        if self._stop.is_set():
            raise RestoreError("the restore of the database was stopped")
        if items:
            head = (
                f"{settings}{_HEAD}SET client_encoding = '{self._prepared.record.encoding}'; SET "
                "search_path = '';\n"
            )
            self._run_psql((head.encode(), *(part for item in items for part in (item.settings, item.text))))

    def _run_psql(self, texts: Iterable[bytes]) -> None:
        prepared = self._prepared
        feed_psql(prepared.client, prepared.target, prepared.facts.session, prepared.transfer, texts)


def _join_text(text: bytes) -> bytes:
    return b"".join(segment.data for segment in make_loadable([Text(text)]))
