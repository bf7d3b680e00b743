"""The sensor that starts the copy job of each store: for a point that the store lacks, and for a daily proof.

It asks no store. A failed run is followed by another one after a pause, for as long as something is due.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import StoreEntry
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import CLOCK_TOLERANCE
from schedgen_backups.core.copies.local_folder import now_utc
from schedgen_backups.core.copies.service import CopyService
from schedgen_backups.core.copies.status import PROOF_INTERVAL
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify.ticks import record_tick
from schedgen_backups.defs.copies import StorePlace
from schedgen_backups.defs.site_sensor import SensorKind, SiteAnswer, SiteSensor, SiteTick

_COPY = SensorKind(
    "copy_sensor",
    60,
    "Starts the copy job of a store when the store lacks a verified recovery point, and once a day to prove "
    "what it holds. After a failure, it starts the job again every 30 minutes. A file of stores that cannot "
    "be read raises an alert.",
)
RETRY_PAUSE = timedelta(minutes=30)


def make_copy_sensor(config: Config, places: Sequence[StorePlace]) -> SiteSensor:
    """Return this site's part in the sensor, for these stores."""

    def request_copies(tick: SiteTick) -> SiteAnswer:
        current, now = tick.config, now_utc()
        entries = {entry.name: entry for entry in current.stores}
        with suppress(ConfigurationError):  # runs report what is wrong with the settings
            record_tick(current.backup_directory, _COPY.name, now)
        catalog = current.make_catalog()
        if not catalog.directory.is_dir():
            return "no recovery points yet"
        requests: list[dg.RunRequest] = []
        reasons: list[str] = []
        for place in places:
            entry = entries.pop(place.name, None)
            if entry is None:
                reasons.append(f"{place.name} was removed from the file")
                continue
            answer = decide_run(tick.instance, catalog, place, entry, now)
            if isinstance(answer, dg.RunRequest):
                requests.append(answer)
            else:
                reasons.append(f"{place.name}: {answer}")
        reasons += [f"{name} is new: reload the code location" for name in entries]
        return requests or "; ".join(reasons) or "no store is described"

    return SiteSensor(_COPY, config, request_copies, tuple(place.job_name for place in places))


def decide_run(
    instance: dg.DagsterInstance, catalog: Catalog, place: StorePlace, entry: StoreEntry, now: datetime
) -> dg.RunRequest | str:
    """Return the run that is due for this store, or why none is."""
    plan = _find_due(catalog, entry, now)
    if not plan:
        return "nothing is due"
    records = instance.get_run_records(dg.RunsFilter(job_name=place.job_name), limit=1)
    if not records:
        return _request(place, plan, now)
    last = records[0]
    if not last.dagster_run.is_finished:
        return "its job is running"
    has_worked = last.dagster_run.status is dg.DagsterRunStatus.SUCCESS
    if has_worked and last.dagster_run.tags.get(run_tags.COPY_PLAN) != plan:
        return _request(place, plan, now)
    ended_at = datetime.fromtimestamp(last.end_time or last.create_timestamp.timestamp(), timezone.utc)
    # A description that is wrong stays wrong until somebody edits the file.
    pause = RETRY_PAUSE if entry.settings is not None else timedelta(days=1)
    is_same = last.dagster_run.tags.get(run_tags.COPY_PLAN) == plan
    if now - ended_at < (pause if is_same else RETRY_PAUSE):
        return f"the last run ended at {ended_at:%H:%M} UTC; the next one follows after a pause"
    return _request(place, plan, now)


def _find_due(catalog: Catalog, entry: StoreEntry, now: datetime) -> str:
    """Return what is due, as a text that changes when something else is; empty if nothing is."""
    if entry.settings is None:
        error = entry.error.message if entry.error is not None else ""
        return _digest(f"described wrongly: {error}")
    service = CopyService(catalog, entry.settings)
    points = [point.point_id.text for point in service.list_due()]
    if points:
        return _digest(f"copy {' '.join(points)}")
    listed_at = service.state.listed_at
    has_copies = bool(service.state.points)
    # A time ahead of the clock was written while the clock was wrong.
    is_proved = listed_at is not None and -CLOCK_TOLERANCE <= now - listed_at < PROOF_INTERVAL
    if has_copies and not is_proved:
        return _digest(f"prove after {listed_at}")
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _request(place: StorePlace, plan: str, now: datetime) -> dg.RunRequest:
    # The minute is part of the key: Dagster starts only one run per key, and a failed run has to be repeated.
    return dg.RunRequest(
        run_key=f"{place.job_name} {plan} {now:%Y%m%d_%H%M}",
        job_name=place.job_name,
        tags={run_tags.COPY_PLAN: plan},
    )
