"""The sensors for alerts, for the state of the points, and for verification.

A sensor's function returns within seconds (Dagster aborts it after 60). `outbox` sends the alerts.
`copy_sensor` and `retention_sensor` have their own modules.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from typing import TypeVar

import dagster as dg
from pydantic import ValidationError

from schedgen_backups import run_tags
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups.core.notify.ticks import record_tick
from schedgen_backups.core.verify.reread import find_unread
from schedgen_backups.defs.retention_sensor import make_retention_sensor
from schedgen_backups.defs.site_sensor import SensorKind, SiteAnswer, SiteSensor, SiteTick
from schedgen_backups.evidence.metrics import write_metrics_file
from schedgen_backups.monitoring.outbox import OutboxCursor, work_through_outbox
from schedgen_backups.monitoring.watch import WatchCursor, start_watch, watch_site
from schedgen_backups.site_names import (
    OUTBOX_SENSOR,
    VERIFY_JOB,
    WATCH_SENSOR,
    InstallationNames,
    SiteNames,
)

_Cursor = TypeVar("_Cursor", bound=FrozenModel)
_OUTBOX = SensorKind(
    OUTBOX_SENSOR,
    30,
    "Sends the alerts that no hook has sent, for failed and cancelled runs, failed ticks and warnings of "
    "checks, and reports resolved incidents.",
)
_FRESHNESS_WATCH = SensorKind(
    WATCH_SENSOR,
    300,
    "Sends an alert when no verified recovery point is younger than BACKUP_MAX_AGE_HOURS, when one is "
    "damaged, or when the clock is wrong, even if no run has started. It also sends one when the copies in a "
    "store are too old, damaged or no longer locked for long.",
)
_VERIFICATION = SensorKind(
    "verification_sensor",
    300,
    "Starts verify_job when files of a recovery point were copied or modified after they were read; for the "
    "same files at most once a day.",
)


def make_sensors(
    config: Config, checks: Iterable[dg.AssetChecksDefinition], installation: InstallationNames
) -> list[SiteSensor]:
    """Return this site's part in the sensors that every site has."""
    return [
        _make_outbox(config, [key for check in checks for key in check.check_keys], installation),
        SiteSensor(_FRESHNESS_WATCH, config, _watch),
        make_retention_sensor(config),
        SiteSensor(
            _VERIFICATION,
            config,
            _request_verification,
            (SiteNames(config.site_name).qualify(VERIFY_JOB),),
        ),
    ]


def _read_cursor(tick: SiteTick, kind: type[_Cursor]) -> _Cursor | None:
    """Return the cursor of the last tick; None if there is none or it has another version's format."""
    try:
        return kind.model_validate_json(tick.cursor or "")
    except ValidationError:
        return None


def _record_tick(config: Config, name: str) -> None:
    with suppress(ConfigurationError):  # runs report what is wrong with the settings
        record_tick(config.backup_directory, name, datetime.now(timezone.utc))


def _read_store_statuses(config: Config) -> list[StoreStatus] | None:
    """Return what is known of every store; None if the file cannot be read, which `copy_sensor` reports."""
    try:
        return config.read_store_statuses()
    except ConfigurationError:
        return None


def _make_outbox(
    config: Config, check_keys: list[dg.AssetCheckKey], installation: InstallationNames
) -> SiteSensor:
    def send_alerts(tick: SiteTick) -> str:
        cursor = _read_cursor(tick, OutboxCursor) or OutboxCursor()
        service = AlertService(tick.config)
        after = work_through_outbox(tick.instance, service, cursor, check_keys, installation)
        _record_tick(tick.config, OUTBOX_SENSOR)
        tick.update_cursor(after.model_dump_json())
        return "everything was reported" if after != cursor else "nothing new"

    return SiteSensor(_OUTBOX, config, send_alerts)


def _watch(tick: SiteTick) -> str:
    cursor = _read_cursor(tick, WatchCursor) or start_watch()
    # Before anything can fail: the age limit starts with the first tick if no point exists yet.
    tick.update_cursor(cursor.model_dump_json())
    cursor, summary = watch_site(
        tick.instance,
        AlertService(tick.config),
        cursor,
        datetime.now(timezone.utc),
        _read_store_statuses(tick.config),
    )
    _record_tick(tick.config, WATCH_SENSOR)
    write_metrics_file(tick.config)
    tick.update_cursor(cursor.model_dump_json())
    # Last: a tick that fails on its way must not count as a sign of life.
    ping_heartbeat(tick.config.alerts.daemon_heartbeat_url, Signal.SUCCESS, summary)
    return summary


def _request_verification(tick: SiteTick) -> SiteAnswer:
    due = find_unread(tick.config.make_catalog())
    if not due:
        return "no recovery point needs to be read again"
    described = " ".join(
        f"{artifact.path.name} {artifact.modified_ns}" for point in due for artifact in point.artifacts
    )
    key = hashlib.sha256(f"{datetime.now(timezone.utc):%Y-%m-%d} {described}".encode()).hexdigest()[:16]
    return dg.RunRequest(
        run_key=key,
        job_name=SiteNames(tick.config.site_name).qualify(VERIFY_JOB),
        tags={run_tags.VERIFICATION_PLAN: key},
    )
