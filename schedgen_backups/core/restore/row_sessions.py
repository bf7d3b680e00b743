"""Loads one table's rows from its members of a dump, in one session of the server or in several that share them.

Several gain where a row costs the server much: large values that it takes apart and compresses. What else a load needs, and what a failure leaves
behind, is the business of `parallel_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Full, Queue

from psycopg import sql

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_text import DumpDigest, Rows, Segment
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.settings import DatabaseSettings

_WIDE_ROW_BYTES = 2048
"""About where PostgreSQL begins to compress a row's values and to move them out of it (manual, section 66.2, TOAST_TUPLE_THRESHOLD)."""
_WIDE_TABLE_BYTES = 8 << 20
_LOOK_SECONDS = 0.5

ReadTable = Callable[[DumpFile, TableEntry], Iterator[Segment]]


def is_wide(table: TableEntry) -> bool:
    """Whether the table is worth several sessions: large, and of large rows. Small ones would lose their order for little, and equality needs it."""
    return table.length >= _WIDE_TABLE_BYTES and table.size_bytes >= table.rows * _WIDE_ROW_BYTES


class RowSessions:
    """The load of one table's rows; with several sessions they come to lie in another order than in the dump."""

    def __init__(self, dump_path: Path, table: TableEntry, target: DatabaseSettings, head: str, *, count: int) -> None:
        self._path, self._table, self._target, self._head, self._count = dump_path, table, target, head, count
        self._blocks: Queue[bytes | None] = Queue(maxsize=2 * count)

    def load(self, read_table: ReadTable) -> None:
        """The table holds the rows. VerificationError when they are not those that were captured; the server's errors are raised: then it holds none.

        Only between the sessions' commits can it be cut short so that some rows stay.
        """
        is_right: Future[bool] = Future()
        with ThreadPoolExecutor(max_workers=self._count, thread_name_prefix="rows") as pool:
            sessions = [pool.submit(self._copy, is_right) for _session in range(self._count)]
            try:
                self._read(read_table, sessions)
            except BaseException:
                while not self._blocks.empty():
                    self._blocks.get_nowait()
                is_right.set_result(False)
                for _session in sessions:
                    self._blocks.put(None)
                raise
            is_right.set_result(True)
        for session in sessions:
            session.result()

    def _read(self, read_table: ReadTable, sessions: Sequence[Future[None]]) -> None:
        contents = DumpDigest()
        unfinished: list[bytes] = []
        with open_dump(self._path) as dump:
            for segment in read_table(dump, self._table):
                contents.add(segment)
                if isinstance(segment, Rows):
                    end = segment.data.rfind(b"\n") + 1
                    unfinished.append(segment.data[:end] if end else segment.data)
                    if end:
                        self._put(b"".join(unfinished), sessions)
                        unfinished = [segment.data[end:]]
        if [facts.sha256 for facts in contents.facts().tables] != [self._table.sha256]:
            raise VerificationError(f"the rows of {self._table.qualified_name} are not what was captured")
        for _session in sessions:
            self._put(None, sessions)

    def _put(self, block: bytes | None, sessions: Sequence[Future[None]]) -> None:
        while True:
            for session in sessions:
                if session.done():  # before its last block: with an error
                    session.result()
            try:
                self._blocks.put(block, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return

    def _copy(self, is_right: Future[bool]) -> None:
        name = sql.Identifier(self._table.schema_name, self._table.name)
        columns = sql.SQL(self._table.columns)  # type: ignore[arg-type] - as pg_dump quoted them
        with connect_database(self._target) as connection, translate_errors(self._target):
            connection.execute(self._head)  # type: ignore[arg-type] - settings, and pg_encoding_to_char's own word
            with connection.cursor().copy(sql.SQL("COPY {} {} FROM STDIN").format(name, columns)) as copy:
                for block in iter(self._blocks.get, None):
                    copy.write(block)
            if is_right.result():
                connection.commit()
            else:
                connection.rollback()
