"""Dump large tables in parallel: several pg_dump processes read the same snapshot into unnamed files.

`dump_plan` decides which tables these are. An unnamed file disappears when its process ends.
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
"""Yields the pg_dump output for these tables' rows; calls the callable with the program once it runs."""


class ParallelDumps:
    """One pg_dump for each group of tables; a context manager that ends them at its exit.

    All start at once, so that each has locked its tables.
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
        """Return the table's rows once they are available; the caller closes their file.

        Raises the errors of its pg_dump.
        """
        return self._tables.pop(table).result()

    def check(self) -> None:
        """Raise the error of a pg_dump that has failed so far."""
        for running in self._running:
            if running.done():
                running.result()

    def wait(self) -> None:
        """Wait for every pg_dump and raise the error of one that failed.

        Rows may have been taken before their pg_dump ended.
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
                    f"pg_dump of the rows of {names} ended with exit code 0, but its output is unexpected",
                    hint="Check the server's log; set BACKUP_DUMP_JOBS=1 and run the backup again.",
                )
        except BaseException as error:
            for future in futures.values():
                future.set_exception(error)
            raise

    def _write(
        self, start: TableStart, segments: Iterator[Segment], digest: DumpDigest, comment: bytes
    ) -> SeparateTable:
        """Read on to the table's end and return its rows."""
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
                    hint="Check the server's log, then run the backup again.",
                )
            pieces.end_piece()
            length = members.flush()
            members.close()
            # The file is the caller's from here on.
            stack.pop_all()
            return SeparateTable(comment, facts, size_bytes, file, length)
