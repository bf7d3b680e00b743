"""Compare restored with captured data: the database by a second dump's digests, each object by its bytes.

Rows may be in another order after a restore, since free space is filled in any order. A table whose digest
differs is therefore compared again as a set of rows. The judgements (`judge_database`, `judge_bucket`) are
separate from reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import cast

from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_items import ItemDigest
from schedgen_backups.core.formats.dump_text import (
    DumpDigest,
    DumpFacts,
    Rows,
    TableFacts,
    split_dump,
    split_table,
)
from schedgen_backups.core.formats.records import DumpRecord, ObjectEntry, TableEntry, describe_left_out
from schedgen_backups.core.postgres.database_properties import read_properties
from schedgen_backups.core.postgres.pg_dump import leave_out_rows, stream_dump
from schedgen_backups.core.postgres.session import Connection
from schedgen_backups.core.restore.bucket import PreparedBucket, find_difference, for_each_entry
from schedgen_backups.core.restore.database import PreparedDatabase
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.units import be, count, name_some

_DIGEST_BITS = 256
_ABSENT = frozenset({"missing", "size"})
"""Differences after which an object counts as not restored."""


@dataclass(frozen=True)
class DumpedBy:
    """The programs that wrote a dump; only the text of dumps by the same programs is comparable."""

    client_version: str
    server_major: int


@dataclass(frozen=True)
class ComparedRows:
    """How the rows of the second dump differ from the captured ones."""

    differing: tuple[str, ...] = ()
    """Names of tables with other or missing rows, or that were not captured at all."""
    reordered_count: int = 0
    """Number of tables with the same rows in another order."""


def compare_database(
    prepared: PreparedDatabase,
    *,
    roles: LoadRoles | None = None,
    uncompared: str = "",
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> tuple[CheckResult, CheckResult]:
    """Return `database_is_restored` (same tables and row counts) and `database_is_equal` (all the same).

    Raises errors of the target and of its pg_dump. `roles` are those of the load. `uncompared` names the
    parts of the schema's text that cannot be equal, if any. `on_progress` gets the plain bytes of the second
    dump.
    """
    items = ItemDigest()
    contents = DumpDigest(on_text=items.add) if roles is not None and roles.stand_ins else DumpDigest()
    blocks = stream_dump(
        prepared.target,
        prepared.client,
        session=prepared.facts.session,
        stall_timeout_seconds=prepared.transfer.stall_timeout_seconds,
        # Tables excluded from the captured dump are excluded here too; a database restored from it has no
        # such rows.
        options=leave_out_rows((table.schema_name, table.name) for table in prepared.record.excluded_tables),
        on_progress=on_progress,
    )
    with closing(blocks):
        segments = split_dump(blocks)
        for segment in segments if roles is None else roles.name_superusers(segments):
            contents.add(segment)
    facts = contents.facts()
    with prepared.artifact.name_errors():
        rows = compare_rows(prepared.dump.tables, facts.tables, partial(_has_same_rows, prepared))
    dumped_by = DumpedBy(prepared.client.version, prepared.facts.server_major)
    apart = _describe_apart(prepared, roles)
    # If others may have used the database meanwhile, an advanced sequence counts as a difference.
    if roles is not None and not uncompared and not _is_alike(prepared.record, facts):
        facts, uncompared = _compare_apart(prepared, facts, items.result())
    return judge_database(
        prepared.record, prepared.dump.tables, facts, rows, dumped_by, uncompared=uncompared, apart=apart
    )


def judge_database(
    record: DumpRecord,
    tables: Sequence[TableEntry],
    facts: DumpFacts,
    rows: ComparedRows,
    dumped_by: DumpedBy,
    *,
    uncompared: str = "",
    apart: str = "",
) -> tuple[CheckResult, CheckResult]:
    """Return `database_is_restored` and `database_is_equal` for a second dump.

    `facts` and `dumped_by` are the second dump's. `apart` describes what a dump does not contain; the result
    mentions it and does not depend on it.
    """
    restored = _judge_counts(tables, facts.tables)
    figures: dict[str, Figure] = {
        "tables": len(tables),
        "rows": record.row_count,
        "reordered_tables": rows.reordered_count,
    }

    def make_equal(status: CheckStatus, summary: str) -> tuple[CheckResult, CheckResult]:
        return restored, _make_result(Check.DATABASE_IS_EQUAL, status, summary, figures)

    if rows.differing or not restored.is_passed:
        return make_equal(CheckStatus.FAILED, f"rows differ: {name_some(rows.differing) or restored.summary}")
    if _is_alike(record, facts):
        left_out = describe_left_out(record.left_out)
        summary = f"{count(len(tables), 'table')}, {count(record.row_count, 'row')} and the schema are equal"
        return make_equal(
            CheckStatus.PASSED,
            "; ".join(filter(None, (summary, left_out and f"left out: {left_out}", apart))),
        )
    if uncompared:
        return make_equal(
            CheckStatus.UNKNOWN, f"every row is equal; the schema's text is not comparable: {uncompared}"
        )
    captured_by = DumpedBy(record.client_version, record.server_major)
    if dumped_by != captured_by:
        return make_equal(
            CheckStatus.UNKNOWN,
            "every row is equal; the schema's text cannot be compared: it was written by pg_dump "
            f"{captured_by.client_version} of server "
            f"{captured_by.server_major}, now by pg_dump {dumped_by.client_version} of server "
            f"{dumped_by.server_major}",
        )
    return make_equal(CheckStatus.FAILED, "the schema, a sequence or a large object differs")


def _is_alike(record: DumpRecord, facts: DumpFacts) -> bool:
    if record.comparable_sha256:
        return facts.comparable_sha256 == record.comparable_sha256
    return facts.text_sha256 == record.text_sha256


def _compare_apart(
    prepared: PreparedDatabase, facts: DumpFacts, items: tuple[int, int]
) -> tuple[DumpFacts, str]:
    """Compare the schema's text without the order of its items and the values of sequences.

    `items` are those of the second dump. Return the facts, with the captured text's digests if only the order
    differs. If otherwise only sequences moved, also return their names in a text: a refreshed view, an index
    or a check may call nextval during the load. Otherwise the text is empty.
    """
    captured_items = ItemDigest()
    captured = DumpDigest(on_text=captured_items.add)
    with prepared.artifact.name_errors():
        for segment in split_dump(prepared.dump.read_contents(on_progress=lambda _block: None)):
            captured.add(segment)
    before = captured.facts()
    # Without stand-ins, nothing was added to the digest of items.
    is_reordered = captured_items.result() == items
    is_same = is_reordered or before.unmoved_sha256 == facts.unmoved_sha256
    if not is_same or before.sequences.keys() != facts.sequences.keys():
        return facts, ""
    # The direction says nothing: a sequence may descend, cycle, or have been reset after the view's last
    # refresh.
    moved = [
        name.decode("utf-8", "replace")
        for name, state in before.sequences.items()
        if facts.sequences[name] != state
    ]
    if moved:
        return (
            facts,
            (
                "sequences advanced during the load, because something in the dump calls them: "
                f"{name_some(moved)}"
            ),
        )
    if not is_reordered:
        return facts, ""
    record = prepared.record
    return replace(facts, text_sha256=record.text_sha256, comparable_sha256=record.comparable_sha256), ""


def _describe_apart(prepared: PreparedDatabase, roles: LoadRoles | None) -> str:
    """Return how the database's own properties differ: owner, privileges, settings and collation.

    Empty if they are as captured. A swap sets them last and compares them with the live database's.
    """
    captured = prepared.record.properties
    if prepared.is_fresh:
        return ""
    if captured is None:
        return (
            "unknown: owner, privileges, settings and collation of the database itself, which this "
            "point does not contain"
        )
    with prepared.session.use() as connection:
        present = read_properties(connection, prepared.target.database)
    if present is None:
        return ""
    return describe_properties(present, captured) if roles is None else describe_collation(present, captured)


def describe_properties(present: DatabaseProperties, captured: DatabaseProperties) -> str:
    """Return which properties of the restored database differ from the captured ones; empty if none."""
    differences = present.list_differences(captured)
    return f"the database itself differs: {', '.join(differences)}" if differences else ""


def describe_collation(present: DatabaseProperties, captured: DatabaseProperties) -> str:
    """Return the same for a drill's database, which gets neither owner nor privileges: these stay unknown."""
    unknown = "unknown: owner, privileges and settings of the database itself"
    is_alike = present.has_collation_of(captured)
    return (
        unknown
        if is_alike
        else f"{unknown}, and the order of {captured.collation_label}: it was {present.collation_label} here"
    )


def compare_bucket(
    prepared: PreparedBucket, *, on_progress: Callable[[int], object] = lambda _size_bytes: None
) -> tuple[CheckResult, CheckResult]:
    """Return `bucket_is_restored` (all objects exist with their size) and `bucket_is_equal`.

    The latter compares bytes, content type, headers, metadata and tags. Every object is read back from the
    bucket. Raises errors of the bucket. `on_progress` gets each object's size.
    """
    differences: dict[str, str] = {}
    object_count = size_bytes = unread_tags_count = 0
    tags_note = ""

    def compare(entry: ObjectEntry) -> tuple[ObjectEntry, str]:
        return entry, find_difference(prepared.client, entry)

    for entry, difference in for_each_entry(prepared, compare):
        on_progress(entry.size_bytes)
        object_count += 1
        size_bytes += entry.size_bytes
        if difference:
            differences[entry.key] = difference
        if entry.tags_note:
            unread_tags_count += 1
            tags_note = tags_note or entry.tags_note
    listed = sum(1 for _listed in prepared.client.list_objects())
    return judge_bucket(
        object_count,
        size_bytes,
        differences,
        listed_count=listed,
        unread_tags_count=unread_tags_count,
        tags_note=tags_note,
        left_out=describe_left_out(prepared.record.left_out),
    )


def judge_bucket(
    object_count: int,
    size_bytes: int,
    differences: dict[str, str],
    *,
    listed_count: int,
    unread_tags_count: int = 0,
    tags_note: str = "",
    left_out: str = "",
) -> tuple[CheckResult, CheckResult]:
    """Return `bucket_is_restored` and `bucket_is_equal` for `object_count` captured objects.

    `differences` maps keys to what differs. For `unread_tags_count` objects the tags were never read;
    `tags_note` is the reason for the first. `left_out` names what the capture excluded.
    """
    figures: dict[str, Figure] = {
        "objects": object_count,
        "size_bytes": size_bytes,
        "other_objects": max(0, listed_count - object_count),
    }
    absent = [f"{key} ({difference})" for key, difference in differences.items() if difference in _ABSENT]
    differing = [f"{key} ({difference})" for key, difference in differences.items()]
    restored = _judge_objects(
        Check.BUCKET_IS_RESTORED,
        absent,
        f"{count(object_count, 'object')} with {size_bytes} bytes {be(object_count)} there",
        "missing or of another size",
        figures,
    )
    if unread_tags_count and not differing:
        equal_but = f"{count(object_count, 'object')} {be(object_count)} equal but for tags"
        summary = (
            f"{equal_but}: those of {unread_tags_count} could not be read when they were captured: "
            f"{tags_note}"
        )
        return restored, _make_result(Check.BUCKET_IS_EQUAL, CheckStatus.UNKNOWN, summary, figures)
    success = (
        f"{count(object_count, 'object')} {be(object_count)} equal in bytes, content type, metadata and tags"
        + (f"; left out: {left_out}" if left_out else "")
    )
    equal = _judge_objects(Check.BUCKET_IS_EQUAL, differing, success, "different", figures)
    return restored, equal


def _judge_counts(expected: Sequence[TableEntry], found: Sequence[TableFacts]) -> CheckResult:
    by_name = _index(found)
    wrong: list[str] = []
    rows_by_root: dict[str, list[int]] = {}
    for table in expected:
        there = by_name.get((table.schema_name, table.name))
        if there is not None and table.root:
            captured, restored = rows_by_root.get(table.root, [0, 0])
            rows_by_root[table.root] = [captured + table.rows, restored + there.rows]
        elif there is None or there.rows != table.rows:
            wrong.append(
                f"{table.qualified_name} ({there.rows if there else 'missing'} instead of {table.rows})"
            )
    wrong += [
        f"{root} ({restored} instead of {captured})"
        for root, (captured, restored) in rows_by_root.items()
        if captured != restored
    ]
    rows = sum(table.rows for table in expected)
    if wrong:
        return _make_result(
            Check.DATABASE_IS_RESTORED, CheckStatus.FAILED, f"row counts differ: {name_some(wrong)}", {}
        )
    summary = f"{count(len(expected), 'table')} with {count(rows, 'row')} {be(len(expected))} there"
    return _make_result(
        Check.DATABASE_IS_RESTORED, CheckStatus.PASSED, summary, {"tables": len(expected), "rows": rows}
    )


def _judge_objects(
    check: Check, wrong: list[str], success: str, failure: str, figures: dict[str, Figure]
) -> CheckResult:
    if wrong:
        return _make_result(
            check, CheckStatus.FAILED, f"{count(len(wrong), 'object')} {failure}: {name_some(wrong)}", figures
        )
    return _make_result(check, CheckStatus.PASSED, success, figures)


def compare_rows(
    expected: Sequence[TableEntry],
    facts: Sequence[TableFacts],
    has_same_rows: Callable[[Sequence[TableEntry]], bool],
) -> ComparedRows:
    """Return how the rows of a second dump differ.

    `has_same_rows` compares tables whose digest differs; the partitions of a root together.
    """
    found = _index(facts)
    differing: list[str] = []
    reordered = 0
    partitions: dict[str, list[TableEntry]] = {}
    for table in expected:
        there = found.get((table.schema_name, table.name))
        if there is None:
            differing.append(table.qualified_name)
        elif table.root:
            partitions.setdefault(table.root, []).append(table)
        elif there.sha256 != table.sha256:
            if there.columns == table.columns and has_same_rows([table]):
                reordered += 1
            else:
                differing.append(table.qualified_name)
    for root, tables in partitions.items():
        if any(found[(table.schema_name, table.name)].sha256 != table.sha256 for table in tables):
            if has_same_rows(tables):
                reordered += len(tables)
            else:
                differing.append(root)
    known = {(table.schema_name, table.name) for table in expected}
    differing += [
        f"{schema}.{name} (not in the dump)" for schema, name in found if (schema, name) not in known
    ]
    return ComparedRows(tuple(differing), reordered)


def _has_same_rows(prepared: PreparedDatabase, tables: Sequence[TableEntry]) -> bool:
    """Return whether the tables together contain their captured rows, in any order and partition."""
    dumped = (
        segment.data
        for table in tables
        for segment in split_table(prepared.dump.read_table(table), root=table.root)
        if isinstance(segment, Rows)
    )
    with prepared.session.use() as connection:
        return add_up_rows(dumped) == add_up_rows(
            block for table in tables for block in _read_stored_rows(table, connection)
        )


def _index(tables: Sequence[TableFacts]) -> dict[tuple[str, str], TableFacts]:
    return {(table.schema_name, table.name): table for table in tables}


def add_up_rows(blocks: Iterable[bytes]) -> tuple[int, int]:
    """Return the number of rows and the sum of their digests, which does not depend on the order."""
    count = total = 0
    unfinished = b""
    for block in blocks:
        *rows, unfinished = (unfinished + block).split(b"\n")
        for row in rows:
            total += int.from_bytes(hashlib.sha256(row).digest(), "big")
        count += len(rows)
    return count, total % (1 << _DIGEST_BITS)


def _read_stored_rows(table: TableEntry, connection: Connection) -> Iterator[bytes]:
    name = sql.Identifier(*_find_name(table, connection))
    columns = sql.SQL(cast("LiteralString", table.columns))
    encoding = connection.info.parameter_status("server_encoding") or "UTF8"
    with connection.transaction(), connection.cursor() as cursor:
        # Like pg_dump's session (pg_dump.c, setup_connection), in addition to every session's settings.
        for setting in ("row_security = off", "search_path = ''"):
            cursor.execute(sql.SQL("SET LOCAL {}").format(sql.SQL(setting)))
        cursor.execute(sql.SQL("SET LOCAL client_encoding = {}").format(sql.Literal(encoding)))
        with cursor.copy(sql.SQL("COPY {} {} TO STDOUT").format(name, columns)) as copy:
            for block in copy:
                yield bytes(block)


def _find_name(table: TableEntry, connection: Connection) -> tuple[str, str]:
    """Return schema and name in the catalog.

    For a table that is loaded through its root, the dump has them without their line breaks.
    """
    row = None
    if table.root:
        row = connection.execute(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN "
            "pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relispartition AND pg_catalog.translate(n.nspname, E'\\n\\r', '  ') = %s"
            " AND pg_catalog.translate(c.relname, E'\\n\\r', '  ') = %s",
            (table.schema_name, table.name),
        ).fetchone()
    return (str(row[0]), str(row[1])) if row is not None else (table.schema_name, table.name)


def _make_result(check: Check, status: CheckStatus, summary: str, figures: dict[str, Figure]) -> CheckResult:
    return CheckResult(
        check=check, status=status, summary=summary, figures=figures, checked_at=datetime.now(timezone.utc)
    )
