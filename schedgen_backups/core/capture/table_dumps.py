"""Dumps large tables beside the rest of a database: by pg_dumps of their own, from the same snapshot, into
files that have no name.

Add what running several pg_dumps needs. Which tables they are and where their rows belong is `dump_plan`'s
business, what becomes of them that of `dump_file`. A file without a name is gone when its process is, however
that ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_file import SeparateTable
from schedgen_backups.core.formats.dump_text import (
    DumpDigest,
    Segment,
    TableFacts,
    TableStart,
    Text,
    split_dump,
)
from schedgen_backups.core.formats.gzip_writer import MemberWriter, PieceWriter
from schedgen_backups.core.postgres.snapshot import TableName
from schedgen_backups.core.system.process import Program

_COMMENT = b"--\n-- Data for Name: "
_COMMENT_LIMIT_BYTES = 64 * 1024

StreamTables = Callable[[Sequence[TableName], Callable[[Program], object]], Generator[bytes, None, None]]
"""Yields what pg_dump writes of these tables' data; the callable wants to know the program once it runs."""


class ParallelDumps:
    """A pg_dump for each group of tables, all begun at once, so that each has locked its tables; ended at the
    latest when the block is left.
    """

    def __init__(
        self, groups: Sequence[Sequence[TableName]], stream: StreamTables, folder: Path, *, threads: int
    ) -> None:
        self._stream, self._folder, self._threads = stream, folder, threads
        self._lock = threading.Lock()
        self._programs: list[Program] = []
        self._is_ending = False
        self._tables: dict[TableName, Future[SeparateTable]] = {
            table: Future() for group in groups for table in group
        }
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(groups)), thread_name_prefix="table")
        self._running = [self._pool.submit(self._dump, group) for group in groups]

    def take(self, table: TableName) -> SeparateTable:
        """The table's rows, once they are there; their file is the caller's to close.

        Errors of its pg_dump are raised.
        """
        return self._tables.pop(table).result()

    def check(self) -> None:
        """Nothing has failed so far; otherwise that error is raised."""
        for running in self._running:
            if running.done():
                running.result()

    def wait(self) -> None:
        """Every pg_dump has ended well; otherwise that error is raised.

        What was taken before may be of one that had not ended.
        """
        for running in self._running:
            running.result()

    def __enter__(self) -> ParallelDumps:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_ending = True
            programs = tuple(self._programs)
        for program in programs:
            program.stop()
        self._pool.shutdown(wait=True)
        for future in self._tables.values():
            if future.exception() is None:
                future.result().file.close()

    def _on_start(self, program: Program) -> None:
        with self._lock:
            self._programs.append(program)
            if self._is_ending:
                program.stop()

    def _dump(self, group: Sequence[TableName]) -> None:
        futures = {(table.schema_name, table.name): self._tables[table] for table in group}
        try:
            with SerialWorker("digest") as worker, closing(self._stream(group, self._on_start)) as blocks:
                digest = DumpDigest(worker)
                segments = split_dump(blocks)
                above = b""
                for segment in segments:
                    digest.add(segment)
                    if isinstance(segment, Text):
                        above = (above + segment.data)[-_COMMENT_LIMIT_BYTES:]
                    elif isinstance(segment, TableStart):
                        name = (segment.schema_name, segment.name)
                        if name not in futures or _COMMENT not in above:
                            break
                        table = self._write(segment, segments, digest, above[above.rindex(_COMMENT) :])
                        futures.pop(name).set_result(table)
                        above = b""
                whole = digest.facts()
            if futures or not whole.is_complete:
                names = ", ".join(f"{table.schema_name}.{table.name}" for table in group)
                raise DumpError(
                    f"pg_dump of the rows of {names} ended with exit code 0, but wrote something else",
                    hint="Look at the server's log; set BACKUP_DUMP_JOBS=1 and run the backup again.",
                )
        except BaseException as error:
            for future in futures.values():
                future.set_exception(error)
            raise

    def _write(
        self, start: TableStart, segments: Iterator[Segment], digest: DumpDigest, comment: bytes
    ) -> SeparateTable:
        """Reads on to the table's end."""
        with ExitStack() as stack:
            file = stack.enter_context(cast("BinaryIO", TemporaryFile(dir=self._folder)))  # noqa: SIM115 - it is one
            members = stack.enter_context(MemberWriter(file, threads=self._threads))
            pieces = PieceWriter(members)
            pieces.append(start.data)
            size_bytes = len(start.data)
            facts: TableFacts | None = None
            for segment in segments:
                pieces.append(segment.data)
                size_bytes += len(segment.data)
                facts = digest.add(segment)
                if facts is not None:
                    break
            if facts is None:
                raise DumpError(
                    f"the rows of {start.schema_name}.{start.name} ended too early",
                    hint="Look at the server's log; run the backup again.",
                )
            pieces.end_piece()
            length = members.flush()
            members.close()
            # The file is the caller's from here on.
            stack.pop_all()
            return SeparateTable(comment, facts, size_bytes, file, length)
