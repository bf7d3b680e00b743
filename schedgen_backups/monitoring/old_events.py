"""Remove what Dagster keeps of a deleted run, and old events without a run; no public function does.

`delete_run` leaves the run's evaluations of checks, and in SQLite the run's file. Events that no run wrote,
such as those of `freshness_watch`, stay for ever. Only this module uses Dagster's private tables for it.
"""

# Tables and connections of Dagster have partially unknown types.
# pyright: basic

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage


def remove_run_file(instance: dg.DagsterInstance, run_id: str) -> None:
    """Remove the SQLite file of a run that was deleted; do nothing on other storages."""
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        Path(storage.path_for_shard(run_id)).unlink(missing_ok=True)


def remove_old_events(instance: dg.DagsterInstance, before: datetime) -> int:
    """Remove evaluations of checks, and events without a run, of before this time; return how many.

    The last of each check and result, and of each asset and kind of event, stay: the UI shows them.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return 0
    # Both columns are in UTC and have no time zone.
    naive = before.astimezone(timezone.utc).replace(tzinfo=None)
    checks, events = AssetCheckExecutionsTable.c, SqlEventLogStorageTable.c
    is_runless = events.run_id == RUNLESS_RUN_ID
    shown_checks = sa.select(sa.func.max(checks.id)).group_by(
        checks.asset_key, checks.check_name, checks.execution_status
    )
    shown_events = (
        sa.select(sa.func.max(events.id))
        .where(is_runless)
        .group_by(events.asset_key, events.dagster_event_type)
    )
    old_checks = AssetCheckExecutionsTable.delete().where(
        checks.create_timestamp < naive, checks.id.not_in(shown_checks)
    )
    old_events = SqlEventLogStorageTable.delete().where(
        is_runless, events.timestamp < naive, events.id.not_in(shown_events)
    )
    with storage.index_connection() as index:
        removed = _execute(index, old_checks) + _execute(index, old_events)
    # In SQLite, events without a run have a file of their own, and the index has a copy.
    with storage.run_connection(RUNLESS_RUN_ID) as connection:
        _execute(connection, old_events)
    return removed


def _execute(connection: Any, statement: sa.Delete) -> int:
    return int(connection.execute(statement).rowcount)
