"""What a backup leaves out by BACKUP_EXCLUDE_TABLE_DATA, and whether the rest can be restored without it."""

from __future__ import annotations

from collections.abc import Sequence

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.patterns import matches_table
from schedgen_backups.core.postgres.object_keys import find_reference_tables
from schedgen_backups.core.postgres.snapshot import USER_RELATIONS, Snapshot, TableName
from schedgen_backups.core.settings import References
from schedgen_backups.core.units import name_some

# A leaf counts like its partitioned tables.
_NAMES_OF_TABLES = f"""
WITH RECURSIVE named(table_oid, oid) AS (
    SELECT c.oid, c.oid {USER_RELATIONS} AND c.relkind = 'r'
    UNION SELECT named.table_oid, i.inhparent FROM named JOIN pg_catalog.pg_inherits i
        ON i.inhrelid = named.oid
    JOIN pg_catalog.pg_class p ON p.oid = i.inhparent AND p.relkind = 'p')
SELECT n.nspname, c.relname, m.nspname, d.relname FROM named
JOIN pg_catalog.pg_class c ON c.oid = named.table_oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class d ON d.oid = named.oid JOIN pg_catalog.pg_namespace m ON m.oid = d.relnamespace"""  # noqa: S608 - no value of others
_FOREIGN_KEYS = """
SELECT n.nspname, c.relname, m.nspname, d.relname, k.conname FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class d ON d.oid = k.confrelid JOIN pg_catalog.pg_namespace m ON m.oid = d.relnamespace
WHERE k.contype = 'f' ORDER BY 1, 2, 5"""
# Rows of a table partitioned by hash are loaded through it, and may end up in another partition (pg_dump,
# forcePartitionRootLoad).
_HASHED = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_partitioned_table t JOIN pg_catalog.pg_class c
    ON c.oid = t.partrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE t.partstrat = 'h' ORDER BY 1, 2"""
# Tables that a materialized view reads, also through other views.
_READ_BY_VIEWS = """
WITH RECURSIVE reads(view_oid, oid) AS (
    SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'm'
    UNION SELECT reads.view_oid, d.refobjid FROM reads JOIN pg_catalog.pg_rewrite w ON w.ev_class = reads.oid
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        AND d.objid = w.oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
SELECT DISTINCT pg_catalog.format('%I.%I', m.nspname, v.relname), n.nspname, c.relname FROM reads
JOIN pg_catalog.pg_class v ON v.oid = reads.view_oid JOIN pg_catalog.pg_namespace m ON m.oid = v.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = reads.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    ORDER BY 1"""


def find_tables(snapshot: Snapshot, patterns: Sequence[str]) -> frozenset[TableName]:
    """Return the tables that match the patterns; a partitioned table matches with its partitions."""
    if not patterns:
        return frozenset()
    return frozenset(
        leaf
        for named, leaves in _read_leaves(snapshot).items()
        if any(matches_table(pattern, named.schema_name, named.name) for pattern in patterns)
        for leaf in leaves
    )


def check_exclusions(snapshot: Snapshot, excluded: frozenset[TableName], references: References) -> None:
    """Check that no remaining row needs rows of these tables; ConfigurationError (permanent) otherwise.

    Foreign keys refer to rows, and the built-in query reads object keys from its tables. What a custom
    query reads is unknown.
    """
    if not excluded:
        return
    leaves = _read_leaves(snapshot)
    needed: list[str] = []
    for own_schema, own_name, schema, name, constraint in snapshot.rows(_FOREIGN_KEYS):
        own = leaves.get(TableName(str(own_schema), str(own_name)), frozenset())
        if own - excluded and leaves.get(TableName(str(schema), str(name)), frozenset()) & excluded:
            needed.append(f"{own_schema}.{own_name} refers to {schema}.{name} ({constraint})")
    for schema, name in snapshot.rows(_HASHED):
        parts = leaves.get(TableName(str(schema), str(name)), frozenset())
        if parts & excluded and parts - excluded:
            needed.append(
                f"{schema}.{name} is partitioned by hash, and remaining rows may belong to an "
                "excluded partition"
            )
    if references.built_in is not None:
        with_keys = excluded.intersection(find_reference_tables(snapshot, references.built_in)[0])
        needed += [
            f"object keys are read from {table.schema_name}.{table.name}"
            for table in sorted(with_keys, key=_order_of)
        ]
    if needed:
        raise ConfigurationError(
            "BACKUP_EXCLUDE_TABLE_DATA excludes rows that others need, so the dump could not "
            f"be restored: {name_some(needed)}",
            hint="Exclude the tables that refer to them as well, or do not exclude these.",
        )


def find_views_of(snapshot: Snapshot, tables: frozenset[TableName]) -> tuple[str, ...]:
    """Return the materialized views that read one of these tables.

    Without its rows, a restore fills the views with other data, or fails.
    """
    leaves = _read_leaves(snapshot)
    read = (
        (str(view), leaves.get(TableName(str(schema), str(name)), frozenset()))
        for view, schema, name in snapshot.rows(_READ_BY_VIEWS)
    )
    return tuple(dict.fromkeys(view for view, parts in read if parts & tables))


def _read_leaves(snapshot: Snapshot) -> dict[TableName, frozenset[TableName]]:
    """Return each table with itself, and each partitioned one with the partitions that hold its rows."""
    leaves: dict[TableName, frozenset[TableName]] = {}
    for schema, name, named_schema, named in snapshot.rows(_NAMES_OF_TABLES):
        above = TableName(str(named_schema), str(named))
        leaves[above] = leaves.get(above, frozenset()) | {TableName(str(schema), str(name))}
    return leaves


def _order_of(table: TableName) -> tuple[str, str]:
    return table.schema_name, table.name
