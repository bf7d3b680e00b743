"""Dumps large tables beside the rest of a database: a pg_dump for each, from the same snapshot, into files that have no name.

Add what running several pg_dumps needs. Which tables they are and where their rows belong is `dump_plan`'s business, what becomes of them that of
`dump_file`. A file without a name is gone when its process is, however that ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from schedgen_backups.core.block_writer import BlockWriter
from schedgen_backups.core.command import Program
from schedgen_backups.core.dump_file import SideTable
from schedgen_backups.core.dump_text import DumpDigest, TableFacts, Text, split_dump
from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.member_writer import MemberWriter
from schedgen_backups.core.ordered_worker import OrderedWorker
from schedgen_backups.core.snapshot import TableName

_COMMENT = b"--\n-- Data for Name: "
_COMMENT_LIMIT_BYTES = 64 * 1024

StreamTable = Callable[[TableName, Callable[[Program], object]], Iterator[bytes]]
"""Yields what pg_dump writes of one table's data; the callable wants to know the program once it runs."""


class SideDumps:
    """Tables that are being dumped beside the rest, in their order, so many at a time; ended at the latest when the `with` block is left."""

    def __init__(self, tables: Sequence[TableName], stream: StreamTable, folder: Path, *, workers: int, threads: int) -> None:
        self._stream, self._folder, self._threads = stream, folder, threads
        self._lock = threading.Lock()
        self._programs: list[Program] = []
        self._is_ending = False
        self._pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="table")
        self._running: dict[TableName, Future[SideTable]] = {table: self._pool.submit(self._dump, table) for table in tables}

    def take(self, table: TableName) -> SideTable:
        """The table's rows, once they are there; their file is the caller's to close. Errors of its pg_dump are raised."""
        return self._running.pop(table).result()

    def __enter__(self) -> SideDumps:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_ending = True
            programs = tuple(self._programs)
        for program in programs:
            program.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for future in self._running.values():
            if not future.cancelled() and future.exception() is None:
                future.result().file.close()

    def _notice(self, program: Program) -> None:
        with self._lock:
            self._programs.append(program)
            if self._is_ending:
                program.stop()

    def _dump(self, table: TableName) -> SideTable:
        file = cast("BinaryIO", TemporaryFile(dir=self._folder))  # noqa: SIM115 - the caller of `take` closes it
        try:
            return self._write(table, file)
        except BaseException:
            file.close()
            raise

    def _write(self, table: TableName, file: BinaryIO) -> SideTable:
        above = b""
        size_bytes = 0
        facts: TableFacts | None = None
        with MemberWriter(file, threads=self._threads) as members, OrderedWorker("digest") as worker:
            blocks = BlockWriter(members)
            digest = DumpDigest(worker)
            for segment in split_dump(self._stream(table, self._notice)):
                facts = digest.add(segment) or facts
                if not isinstance(segment, Text):
                    blocks.append(segment.data)
                    size_bytes += len(segment.data)
                elif not size_bytes:
                    above = (above + segment.data)[-_COMMENT_LIMIT_BYTES:]
            blocks.end_block()
            length = members.flush()
            whole = digest.facts()
        found = [(each.schema_name, each.name) for each in whole.tables]
        if facts is None or not whole.is_complete or found != [(table.schema_name, table.name)] or _COMMENT not in above:
            raise DumpError(
                f"pg_dump of the table {table.schema_name}.{table.name} alone ended with exit code 0, but wrote something else than its rows",
                hint="Look at the server's log; set BACKUP_DUMP_JOBS=1 and run the backup again.",
            )
        return SideTable(above[above.rindex(_COMMENT) :], facts, size_bytes, file, length)
