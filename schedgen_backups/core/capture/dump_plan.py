"""Decide which tables are dumped separately and where their rows belong in the dump.

Works on sizes and segments only, without a server; `table_dumps` runs the pg_dump processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.formats.dump_text import SECTION_END, Segment, TableEnd, TableStart, Text
from schedgen_backups.core.postgres.snapshot import TableName

LARGE_TABLE_BYTES = 64 << 20
"""Below this size, reading a table's rows takes hardly longer than another pg_dump needs to read the catalog
(2026-11-25: 0.1 s, at 250 MB/s)."""


def choose_separate_tables(
    size_bytes: Mapping[TableName, int], jobs: int
) -> tuple[tuple[TableName, ...], ...]:
    """Return the separately dumped tables in at most `jobs - 1` groups, one pg_dump each.

    Empty when that saves no time. They are the last of the large tables: the first ones stay in the main
    dump, so that the writer never waits for one table while it could write others.
    """
    # Names are compared byte by byte, as pg_dump orders them; for other alphabets the server's encoding would
    # matter.
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
    """Yield the segments of the main dump, and each separate table's name where its rows belong.

    `tables` are all tables of the dump. DumpError (retryable) when a place is not found: pg_dump's output is
    then not as expected.
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
            f"the output of pg_dump has no place for the rows of {lost[0].schema_name}.{lost[0].name}",
            hint="Set BACKUP_DUMP_JOBS=1, run the backup again, and report the version of pg_dump.",
        )


def _find_predecessors(
    tables: Sequence[TableName], separate_tables: Sequence[TableName]
) -> dict[tuple[str, str], list[TableName]]:
    """Return the separate tables by the table of the main dump that they follow."""
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
