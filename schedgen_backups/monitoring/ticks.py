"""Read which ticks of schedules and sensors failed, which Dagster's public API does not offer.

Only this module uses Dagster's private names for it; if Dagster renames them, only this module breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

_LIMIT = 20


@dataclass(frozen=True)
class FailedTick:
    """One failed tick; it started no run."""

    name: str
    """Name of the schedule or sensor."""
    source: str
    """Identifies the schedule or sensor."""
    at_seconds: float
    """Seconds since 1970."""
    reason: str


@dataclass(frozen=True)
class EndedTick:
    """One tick of a schedule that did not fail."""

    at: datetime
    """When it was due."""
    reason: str
    """Why it started no run; empty if it started one."""
    run_ids: tuple[str, ...]


def list_skipped_ticks(instance: dg.DagsterInstance, name: str, *, after_seconds: float) -> list[EndedTick]:
    """Return the ticks of the schedule that started no run after this time, oldest first."""
    found = [
        _read_tick(tick)
        for state in instance.all_instigator_state()
        if state.instigator_name == name
        for tick in instance.get_ticks(
            state.instigator_origin_id,
            state.selector_id,
            after=after_seconds,
            limit=_LIMIT,
            statuses=[TickStatus.SKIPPED],
        )
    ]
    return sorted(found, key=lambda tick: tick.at)


def read_newest_tick(instance: dg.DagsterInstance, name: str) -> EndedTick | None:
    """Return the schedule's newest tick that has ended; None if there is none, or it failed."""
    ended = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
    for state in instance.all_instigator_state():
        if state.instigator_name == name:
            newest = instance.get_ticks(
                state.instigator_origin_id, state.selector_id, limit=1, statuses=ended
            )
            if newest and newest[0].status is not TickStatus.FAILURE:
                return _read_tick(newest[0])
    return None


def _read_tick(tick: InstigatorTick) -> EndedTick:
    return EndedTick(
        at=datetime.fromtimestamp(tick.timestamp, timezone.utc),
        reason=tick.skip_reason or "",
        run_ids=tuple(tick.run_ids),
    )


def list_failed_ticks(
    instance: dg.DagsterInstance,
    *,
    after_seconds: Mapping[str, float],
    floor_seconds: float,
    is_wanted: Callable[[str], bool],
) -> list[FailedTick]:
    """Return the failed ticks of each source after its time and after the floor, oldest first.

    `is_wanted` is asked for the name of each schedule and sensor.
    """
    found: list[FailedTick] = []
    for state in instance.all_instigator_state():
        if not is_wanted(state.instigator_name):
            continue
        after = max(after_seconds.get(state.selector_id, 0.0), floor_seconds)
        ticks = instance.get_ticks(
            state.instigator_origin_id,
            state.selector_id,
            after=after,
            limit=_LIMIT,
            statuses=[TickStatus.FAILURE],
        )
        found += [
            FailedTick(
                state.instigator_name,
                state.selector_id,
                tick.timestamp,
                (tick.error.cause or tick.error).message.strip() if tick.error else "no reason is known",
            )
            for tick in ticks
        ]
    return sorted(found, key=lambda tick: tick.at_seconds)


def list_resolved(instance: dg.DagsterInstance, is_wanted: Callable[[str], bool]) -> frozenset[str]:
    """Return the wanted schedules and sensors whose newest finished tick did not fail."""
    resolved: set[str] = set()
    finished = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
    for state in instance.all_instigator_state():
        if is_wanted(state.instigator_name):
            newest = instance.get_ticks(
                state.instigator_origin_id, state.selector_id, limit=1, statuses=finished
            )
            if newest and newest[0].status is not TickStatus.FAILURE:
                resolved.add(state.instigator_name)
    return frozenset(resolved)


def read_last_cursor(instance: dg.DagsterInstance, name: str) -> str | None:
    """Return the cursor of the sensor with this name, even if it has no definition any more."""
    for state in instance.all_instigator_state():
        data = state.sensor_instigator_data
        if state.instigator_name == name and data is not None and data.cursor:
            return data.cursor
    return None
