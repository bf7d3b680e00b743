"""Loads a dump into an empty database in several sessions: the schema, then rows, each table's indexes behind its rows, then the rest.

Several sessions cannot be one transaction: after an error everything that was made is removed again, and a load that is killed leaves a database that
no restore takes for an empty one. So this is for databases that nobody uses yet; `database_restore` loads in one transaction otherwise.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Event

from schedgen_backups.core.concurrency.task_graph import Call, ChainedCalls
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_text import DumpDigest, Segment, Text, split_table
from schedgen_backups.core.formats.post_data import PostDataItem, split_post_data
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.psql import feed_psql
from schedgen_backups.core.restore.row_sessions import RowSessions, is_wide
from schedgen_backups.core.settings import BackupSettings, DatabaseSettings

_MEMORY_SETTING = "SET maintenance_work_mem = '256MB'"
SESSION_SETTINGS = f"{_MEMORY_SETTING}; SET max_parallel_maintenance_workers = 4;\n"
"""For the session of a load only: indexes are sorted in memory and by several workers (PostgreSQL manual, sections 14.4.5, 19.4.1 and 19.4.6)."""
_RESTRICT = re.compile(rb"^\\restrict [A-Za-z0-9]+\n", re.MULTILINE)
_UNRESTRICT = re.compile(rb"^\\unrestrict [A-Za-z0-9]+\s*\Z", re.MULTILINE)
_HEAD = "SET statement_timeout = 0; SET lock_timeout = 0; SET check_function_bodies = false; SET xmloption = content; SET row_security = off;\n"
"""What pg_dump sets at the head of its text (pg_backup_archiver.c, _doSetFixedOutputState), for the sessions that begin behind it."""


class ParallelLoad:
    """One load; `run` does it, in `jobs` sessions, or twice as many less one while rows of wide tables are shared."""

    def __init__(
        self,
        dump_path: Path,
        target: DatabaseSettings,
        backup: BackupSettings,
        client: ClientPrograms,
        *,
        jobs: int,
        stop: Event,
        observe: Callable[[int], object],
    ) -> None:
        self._path, self._target, self._backup, self._client = dump_path, target, backup, client
        self._jobs, self._stop, self._observe = jobs, stop, observe
        self._has_failed = Event()
        self._calls = ChainedCalls(jobs, "load")
        self._encoding = ""
        self._is_restricted = False

    def run(self) -> None:
        """The database holds the dump. RestoreError or VerificationError at the first error, or when `stop` is set.

        What was made until then may still be there.
        """
        with open_dump(self._path) as dump:
            contents = DumpDigest()
            schema = b"".join(dump.read_schema())
            rest = b"".join(dump.read_rest_of_text())
            contents.add(Text(schema))
            contents.add(Text(rest))
            if contents.facts().text_sha256 != dump.record.text_sha256:
                raise VerificationError("the schema differs from what was captured; nothing was loaded")
            self._encoding = dump.record.encoding
            self._is_restricted = _RESTRICT.search(schema) is not None
            tables = sorted(dump.tables, key=lambda table: table.length, reverse=True)
        schema = _RESTRICT.sub(b"", schema, count=1)
        rest = _UNRESTRICT.sub(b"", rest)
        self._run_psql((schema,))
        items = split_post_data(schema, rest)
        builds: defaultdict[tuple[str, str] | None, list[Call]] = defaultdict(list)
        for item in items:
            if item.is_build:
                builds[item.table].append(Call(partial(self._build, item)))
        self._calls.run(self._plan_tables(tables, builds), on_error=self._has_failed.set)
        self._calls.run(chain.from_iterable(builds.values()), on_error=self._has_failed.set)
        self._run_items([item for item in items if not item.is_build], SESSION_SETTINGS)

    def _plan_tables(self, tables: Sequence[TableEntry], builds: dict[tuple[str, str] | None, list[Call]]) -> list[Call]:
        """Tables with wide rows one after another, the others beside them, largest first; what is built of each follows it, and leaves `builds`."""

        def plan(table: TableEntry, sessions: int, following: Iterable[Call]) -> Call:
            own = builds.pop((table.schema_name, table.name), [])
            return Call(partial(self._load_table, table, sessions=sessions), (*following, *own))

        wide: list[Call] = []
        for table in reversed([table for table in tables if is_wide(table)]):
            wide = [plan(table, self._jobs, wide)]
        return [*wide, *(plan(table, 1, ()) for table in tables if not is_wide(table))]

    def _build(self, item: PostDataItem) -> None:
        # Sessions and workers together are as many as were asked for: on two cores, two builds with workers took half as long again (2026-11-25).
        workers = max(0, self._jobs // self._calls.unfinished_count - 1)
        self._run_items([item], f"{_MEMORY_SETTING}; SET max_parallel_maintenance_workers = {workers};\n")

    def _load_table(self, table: TableEntry, *, sessions: int) -> None:
        head = f"SET client_encoding = '{self._encoding}'; {_HEAD}"
        RowSessions(self._path, table, self._target, head, count=sessions).load(self._read_table)

    def _read_table(self, dump: DumpFile, table: TableEntry) -> Iterator[Segment]:
        for segment in split_table(dump.read_table(table)):
            if self._stop.is_set() or self._has_failed.is_set():
                raise RestoreError("the restore of the database was stopped")
            yield segment
        self._observe(table.length)

    def _run_items(self, items: Sequence[PostDataItem], settings: str) -> None:
        if self._stop.is_set():
            raise RestoreError("the restore of the database was stopped")
        if items:
            head = f"{settings}{_HEAD}SET client_encoding = '{self._encoding}'; SET search_path = '';\n"
            self._run_psql((head.encode(), *(part for item in items for part in (item.settings, item.text))))

    def _run_psql(self, texts: Iterable[bytes]) -> None:
        # As pg_dump does: what stands between is SQL and never a command of psql (CVE-2025-8714).
        key = secrets.token_hex(16)
        begin, end = (f"\\restrict {key}\n", f"\n\\unrestrict {key}\n") if self._is_restricted else ("", "")
        feed_psql(self._client, self._target, self._backup, chain([begin.encode()], texts, [end.encode()]))


def can_load_in_parallel(dump: DumpFile) -> bool:
    """Whether rows and the rest of the dump can be told apart for sure, and the rest fits into memory.

    Not with large objects, which are part of the rest, and not with a table that the snapshot did not count: an extension's, or the text of a
    function that looks like one.
    """
    return not dump.record.large_object_count and all(table.expected_rows is not None for table in dump.tables)


def remove_contents(target: DatabaseSettings, statement: str) -> None:
    """The database is empty again: `statement` removed what a load that failed had made. DatabaseError when even that is refused."""
    with connect_database(target) as connection, translate_errors(target):
        connection.execute(statement)  # type: ignore[arg-type] - a constant of ours
        connection.commit()
