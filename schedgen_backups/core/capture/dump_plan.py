"""Decides which tables are dumped beside the rest of a database, by pg_dumps of their own, and where in the
text their rows belong.

No server is asked here: sizes and segments come in, names and segments go out. The pg_dumps themselves are
run by `parallel_dump`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_text import SECTION_END, Segment, TableEnd, TableStart, Text
from schedgen_backups.core.postgres.snapshot import TableName

LARGE_TABLE_BYTES = 64 << 20
"""Below this a table's rows take hardly longer than another pg_dump needs to read the catalogue (2026-11-25:
0.1 s, at 250 MB/s)."""


def choose_separate_tables(
    size_bytes: Mapping[TableName, int], jobs: int
) -> tuple[tuple[TableName, ...], ...]:
    """The tables that are dumped beside the rest, in at most `jobs - 1` groups with a pg_dump each; none
    where nothing is gained.

    They are the last of the large ones: the first stay with the rest, so that whoever writes the file is
    never kept waiting for a table while others could be written.
    """
    # Names are compared as pg_dump orders them, byte by byte; of other alphabets the server's encoding would
    # have to be known.
    large = sorted(
        (
            table
            for table, size in size_bytes.items()
            if size >= LARGE_TABLE_BYTES and f"{table.schema_name}{table.name}".isascii()
        ),
        key=_order_of,
    )
    if jobs == 1 or len(large) <= 1:
        return ()

    def divide(first: int) -> list[list[TableName]]:
        groups: list[list[TableName]] = [[] for _job in range(min(jobs - 1, len(large) - first))]
        for table in large[first:]:
            min(groups, key=lambda group: (sum_up(group), len(group))).append(table)
        return groups

    def sum_up(tables: Iterable[TableName]) -> int:
        return sum(size_bytes[table] for table in tables)

    def finish(first: int) -> int:
        separate = [sum_up(group) for group in divide(first)]
        return max(sum(size_bytes.values()) - sum(separate), *separate)

    return tuple(tuple(group) for group in divide(min(range(1, len(large)), key=finish)))


def place_separate_tables(
    segments: Iterable[Segment], tables: Sequence[TableName], separate_tables: Sequence[TableName]
) -> Iterator[Segment | TableName]:
    """Yields the segments of the rest, and the name of each side table where pg_dump would have written its
    rows.

    `tables` are all tables of the dump. DumpError (retryable) when a place does not come: then pg_dump wrote
    something else than is known of it.
    """
    waiting = _find_predecessors(tables, separate_tables)
    current = ("", "")
    due: list[TableName] = []
    held = b""
    for segment in segments:
        rest = segment
        if due and isinstance(segment, Text):
            held += segment.data
            if len(held) < len(SECTION_END):
                continue
            if not held.startswith(SECTION_END):
                break
            yield Text(SECTION_END)
            yield from due
            rest = Text(held[len(SECTION_END) :])
            due, held = [], b""
        if rest.data:
            yield rest
        if isinstance(segment, TableStart):
            current = (segment.schema_name, segment.name)
        elif isinstance(segment, TableEnd):
            due = waiting.pop(current, [])
    lost = [*due, *(table for names in waiting.values() for table in names)]
    if lost:
        raise DumpError(
            f"the rows of {lost[0].schema_name}.{lost[0].name} have no place in what pg_dump wrote",
            hint="Set BACKUP_DUMP_JOBS=1, run the backup again, and report the version of pg_dump.",
        )


def _find_predecessors(
    tables: Sequence[TableName], separate_tables: Sequence[TableName]
) -> dict[tuple[str, str], list[TableName]]:
    """Table of the rest → the side tables that follow it in the dump."""
    separate = set(separate_tables)
    followers: dict[tuple[str, str], list[TableName]] = {}
    before = ("", "")
    for table in sorted(tables, key=_order_of):
        if table in separate:
            followers.setdefault(before, []).append(table)
        else:
            before = _order_of(table)
    return followers


def _order_of(table: TableName) -> tuple[str, str]:
    return table.schema_name, table.name
