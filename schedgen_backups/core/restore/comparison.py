"""Proves that a database equals a dump: dumps it again and compares digests, table by table and for everything that is not a row.

Rows may lie in another order after a restore (free space is filled as it comes), so a table whose digest differs is compared once more as a set of
rows. Add what must be equal. Objects are compared in `bucket_restore`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_text import DumpDigest, Rows, TableFacts, split_dump, split_table
from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.postgres.client_programs import find_client
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.postgres.pg_dump import stream_dump
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.units import name_some

_DIGEST_BITS = 256


def compare_database(
    dump_path: Path,
    target: DatabaseSettings,
    transfer: TransferSettings,
    *,
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> tuple[CheckResult, CheckResult]:
    """`database_is_restored` (the same tables with as many rows) and `database_is_equal` (every row and all else the same).

    Errors of the target and of its pg_dump are raised. `on_progress` gets the plain bytes of the second dump.
    """
    with open_dump(dump_path) as dump:
        with connect_database(target) as connection:
            target_major = connection.info.server_version // 10000
        client = find_client(target, target_major, transfer.postgres_bin_dir)
        contents = DumpDigest()
        blocks = stream_dump(target, client, server_major=target_major, stall_timeout_seconds=transfer.stall_timeout_seconds, on_progress=on_progress)
        with closing(blocks):
            for segment in split_dump(blocks):
                contents.add(segment)
        facts = contents.facts()
        found = {(table.schema_name, table.name): table for table in facts.tables}
        restored = _compare_counts(dump.tables, found)
        differing, reordered = _compare_rows(dump, found, target)
        figures: dict[str, Figure] = {"tables": len(dump.tables), "rows": dump.record.row_count, "reordered_tables": reordered}
        if differing or not restored.is_passed:
            names = name_some(differing) or restored.summary
            return restored, _make_result(Check.DATABASE_IS_EQUAL, CheckStatus.FAILED, f"rows differ: {names}", figures)
        if facts.text_sha256 == dump.record.text_sha256:
            summary = f"{len(dump.tables)} tables, {dump.record.row_count} rows and the schema are equal"
            return restored, _make_result(Check.DATABASE_IS_EQUAL, CheckStatus.PASSED, summary, figures)
        if (client.version, target_major) != (dump.record.client_version, dump.record.server_major):
            summary = (
                f"every row is equal; the schema's text cannot be compared: it was written by pg_dump {dump.record.client_version} of server "
                f"{dump.record.server_major}, and now by pg_dump {client.version} of server {target_major}"
            )
            return restored, _make_result(Check.DATABASE_IS_EQUAL, CheckStatus.UNKNOWN, summary, figures)
        return restored, _make_result(Check.DATABASE_IS_EQUAL, CheckStatus.FAILED, "the schema, a sequence or a large object differs", figures)


def _compare_counts(expected: tuple[TableEntry, ...], found: dict[tuple[str, str], TableFacts]) -> CheckResult:
    wrong: list[str] = []
    for table in expected:
        there = found.get((table.schema_name, table.name))
        if there is None or there.rows != table.rows:
            wrong.append(f"{table.qualified_name} ({there.rows if there else 'missing'} instead of {table.rows})")
    rows = sum(table.rows for table in expected)
    if wrong:
        return _make_result(Check.DATABASE_IS_RESTORED, CheckStatus.FAILED, f"row counts differ: {name_some(wrong)}", {})
    summary = f"{len(expected)} tables with {rows} rows are there"
    return _make_result(Check.DATABASE_IS_RESTORED, CheckStatus.PASSED, summary, {"tables": len(expected), "rows": rows})


def _compare_rows(dump: DumpFile, found: dict[tuple[str, str], TableFacts], target: DatabaseSettings) -> tuple[list[str], int]:
    """Names of tables with other rows, and how many have the same rows in another order."""
    differing: list[str] = []
    reordered = 0
    for table in dump.tables:
        there = found.get((table.schema_name, table.name))
        if there is None:
            differing.append(table.qualified_name)
        elif there.sha256 != table.sha256:
            if there.columns == table.columns and _add_up_rows(_dumped_rows(dump, table)) == _add_up_rows(_stored_rows(table, target)):
                reordered += 1
            else:
                differing.append(table.qualified_name)
    known = {(table.schema_name, table.name) for table in dump.tables}
    differing += [f"{schema}.{name} (not in the dump)" for schema, name in found if (schema, name) not in known]
    return differing, reordered


def _add_up_rows(blocks: Iterable[bytes]) -> tuple[int, int]:
    """The number of rows and the sum of their digests, which is the same in any order."""
    count = total = 0
    resumable = b""
    for block in blocks:
        *rows, resumable = (resumable + block).split(b"\n")
        for row in rows:
            total += int.from_bytes(hashlib.sha256(row).digest(), "big")
        count += len(rows)
    return count, total % (1 << _DIGEST_BITS)


def _dumped_rows(dump: DumpFile, table: TableEntry) -> Iterator[bytes]:
    return (segment.data for segment in split_table(dump.read_table(table)) if isinstance(segment, Rows))


def _stored_rows(table: TableEntry, target: DatabaseSettings) -> Iterator[bytes]:
    name = sql.Identifier(table.schema_name, table.name)
    columns = sql.SQL(cast("LiteralString", table.columns))
    with connect_database(target) as connection, translate_errors(target), connection.cursor() as cursor:
        # The same settings as pg_dump's session (pg_dump.c, setup_connection).
        for setting in ("DateStyle = ISO", "IntervalStyle = POSTGRES", "extra_float_digits = 3", "row_security = off", "search_path = ''"):
            cursor.execute(sql.SQL(f"SET {setting}"))
        encoding = connection.info.parameter_status("server_encoding") or "UTF8"
        cursor.execute(sql.SQL("SET client_encoding = {}").format(sql.Literal(encoding)))
        with cursor.copy(sql.SQL("COPY {} {} TO STDOUT").format(name, columns)) as copy:
            for block in copy:
                yield bytes(block)


def _make_result(check: Check, status: CheckStatus, summary: str, figures: dict[str, Figure]) -> CheckResult:
    return CheckResult(check=check, status=status, summary=summary, figures=figures, checked_at=datetime.now(timezone.utc))
