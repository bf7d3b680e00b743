"""Check the operation: what starts backups, the age of the proofs, whether alerts arrive, disk space."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import list_verified
from schedgen_backups.core.notify.channels import make_channels
from schedgen_backups.core.notify.deliveries import read_last_delivery
from schedgen_backups.core.notify.ticks import RECORD_INTERVAL, read_ticks
from schedgen_backups.core.retention.prune import plan_pruning
from schedgen_backups.core.units import count, format_age, name_some
from schedgen_backups.doctor.results import PreconditionResult, Verdict
from schedgen_backups.site_names import OUTBOX_SENSOR, WATCH_SENSOR

_TIMERS = (Path("/etc/systemd/system/timers.target.wants/schedgen-backup.timer"),)
_CRON_FILES = (Path("/etc/cron.d/schedgen-backups"),)
_SENSORS = frozenset({OUTBOX_SENSOR, WATCH_SENSOR})
_CLOCK_TOLERANCE = timedelta(minutes=1)
# With -c Python looks for modules in the current directory first, which may be anyone's.
_LOAD_DEFINITIONS = "import sys; sys.path = list(filter(None, sys.path)); import schedgen_backups.definitions"
_LOAD_TIMEOUT_SECONDS = 180
"""Dagster's own limit for the start of a code location; a load takes two seconds (2026-11-29)."""
_SENSOR_LIMIT = 3 * RECORD_INTERVAL
_DAEMON_WORDS = (
    b"dagster-daemon",
    b"dagster._daemon",
    b"schedgen-backups\0serve",
    b"schedgen_backups.cli.main\0serve",
)


def examine_starters(config: Config, catalog: Catalog, now: datetime) -> Iterator[PreconditionResult]:
    """Yield what starts backups on this machine, and the age of the newest backup."""
    found = [
        *(f"the systemd timer {path.name}" for path in _TIMERS if path.exists()),
        *(f"cron, by {path}" for path in _CRON_FILES if path.exists()),
        *(["a running Dagster daemon"] if _is_daemon_running() else []),
    ]
    points = [point for point in catalog.list_points() if point.manifest is not None]
    last = (
        f"; the newest backup is {format_age(now - points[-1].point_id.taken_at)} old"
        if points
        else "; no backup exists yet"
    )
    schedule = f"{config.schedule.cron} in {config.schedule.timezone}"
    if found:
        yield PreconditionResult(
            "schedule", Verdict.OK, f"{schedule}, started by {' and '.join(found)}{last}"
        )
    else:
        detail = (
            f"{schedule}, but nothing was found on this machine that starts it: no timer, no file in "
            f"/etc/cron.d, no running Dagster daemon{last}"
        )
        yield PreconditionResult(
            "schedule",
            Verdict.NOTE,
            detail,
            "Ignore this if another machine or container starts it; otherwise run `schedgen-backups setup` "
            "or `schedgen-backups serve`.",
        )


def examine_sensors(catalog: Catalog, now: datetime) -> Iterator[PreconditionResult]:
    """Yield when each sensor last ran.

    Yield nothing if none ever ran, or if a timer or cron starts the backups: they need no sensors.
    """
    if any(path.exists() for path in (*_TIMERS, *_CRON_FILES)):
        return
    ticks = read_ticks(catalog.directory)
    for name, ran_at in sorted((name, ticks[name]) for name in _SENSORS & ticks.keys()):
        age = now - ran_at
        if age < -_CLOCK_TOLERANCE:
            detail = (
                f"{name} last ran at {ran_at:%Y-%m-%d %H:%M} UTC, which is in the future: this machine's "
                "clock is wrong, or was then"
            )
            yield PreconditionResult(
                "sensors",
                Verdict.PROBLEM,
                detail,
                "Correct the clock (timedatectl); the sensor's next run records a new time.",
            )
        elif age <= _SENSOR_LIMIT:
            yield PreconditionResult("sensors", Verdict.OK, f"{name} last ran {format_age(age)} ago")
        else:
            detail = (
                f"{name} last ran {format_age(age)} ago: no alerts are sent for killed runs, or for missing "
                "or damaged recovery points"
            )
            yield PreconditionResult(
                "sensors",
                Verdict.PROBLEM,
                detail,
                "Restart the Dagster daemon, and check the sensor's page in the UI.",
            )


def examine_definitions() -> Iterator[PreconditionResult]:
    """Yield whether Dagster can load the definitions with these settings; otherwise no schedule runs."""
    command = [sys.executable, "-c", _LOAD_DEFINITIONS]
    fix = (
        "Until they load, neither the schedule nor the sensors run. Reinstall the package with its "
        "dependencies; if the error remains, report it."
    )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        detail = f"loading them took more than {_LOAD_TIMEOUT_SECONDS} seconds"
        yield PreconditionResult("Dagster definitions", Verdict.PROBLEM, detail, fix)
        return
    if done.returncode == 0:
        yield PreconditionResult("Dagster definitions", Verdict.OK, "they load with these settings")
    else:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield PreconditionResult("Dagster definitions", Verdict.PROBLEM, f"they do not load: {reason}", fix)


def examine_proofs(config: Config, catalog: Catalog, now: datetime) -> Iterator[PreconditionResult]:
    """Yield the age of the newest verified point, and when a point last passed a restore drill."""
    verified = list_verified(catalog)
    max_age = config.definitions.max_age
    if not verified:
        yield PreconditionResult("verified point", Verdict.NOTE, "none yet", "schedgen-backups backup")
        return
    age = now - verified[-1].point_id.taken_at
    is_fresh = age <= max_age
    detail = f"the newest, {verified[-1].point_id}, is {format_age(age)} old (limit {format_age(max_age)})"
    yield PreconditionResult(
        "verified point",
        Verdict.OK if is_fresh else Verdict.PROBLEM,
        detail,
        "" if is_fresh else "schedgen-backups backup",
    )
    restored = max(
        (moment for point in verified if (moment := _find_restored(point)) is not None), default=None
    )
    limit = config.definitions.drill_max_age
    if restored is None:
        yield PreconditionResult(
            "restore proven",
            Verdict.NOTE,
            "no recovery point has been restored and found equal yet",
            "schedgen-backups drill",
        )
    elif now - restored > limit:
        detail = (
            f"a recovery point was last restored and found equal {format_age(now - restored)} ago "
            f"(limit {format_age(limit)})"
        )
        yield PreconditionResult("restore proven", Verdict.NOTE, detail, "schedgen-backups drill")
    else:
        yield PreconditionResult(
            "restore proven",
            Verdict.OK,
            f"a recovery point was last restored and found equal {format_age(now - restored)} ago",
        )


def examine_retention(config: Config, catalog: Catalog, now: datetime) -> Iterator[PreconditionResult]:
    """Yield which points the rules would remove now."""
    plan = plan_pruning(catalog, config.retention, now)
    if not plan.decisions:
        return
    kept = f"{count(len(plan.kept), 'recovery point')} kept"
    ids = [decision.candidate.point_id.text for decision in plan.removed]
    detail = (
        f"{kept}, {len(ids)} to remove: {name_some(ids)} (`schedgen-backups prune --dry-run` prints why)"
        if ids
        else f"{kept}, nothing to remove{f': {plan.refusal}' if plan.refusal else ''}"
    )
    yield PreconditionResult("retention", Verdict.OK, detail)


def examine_channels(config: Config) -> Iterator[PreconditionResult]:
    """Yield the result of each channel's last delivery; send nothing."""
    settings = config.alerts
    channels = make_channels(settings.webhook_urls, settings.mail_recipients, settings.mail)
    if not channels:
        yield PreconditionResult(
            "alerts",
            Verdict.NOTE,
            "no channel is configured: no alert is sent when a backup fails",
            "Set BACKUP_ALERT_WEBHOOK_URL.",
        )
    for channel in channels:
        last = read_last_delivery(config.backup_directory, channel)
        subject = f"alerts by {channel.name}"
        if last is None:
            yield PreconditionResult(
                subject,
                Verdict.NOTE,
                "no message has been sent for this backup directory yet",
                "schedgen-backups alert-test",
            )
        elif last.is_accepted:
            yield PreconditionResult(
                subject, Verdict.OK, f"the last message was accepted at {last.accepted_at:%Y-%m-%d %H:%M} UTC"
            )
        else:
            detail = f"the last message was refused at {last.refused_at:%Y-%m-%d %H:%M} UTC: {last.answer}"
            yield PreconditionResult(
                subject, Verdict.PROBLEM, detail, "Fix the channel, then run: schedgen-backups alert-test"
            )
    if not settings.heartbeat_url:
        detail = "BACKUP_HEARTBEAT_URL is not set: no alert is sent when this machine is down"
        yield PreconditionResult(
            "heartbeat",
            Verdict.NOTE,
            detail,
            "Set it to a check of a monitoring service, or run `schedgen-backups status` from another "
            "machine.",
        )


def _find_restored(point: PointListing) -> datetime | None:
    """Return when the point was last found equal after a restore."""
    level = point.verification.level(VerificationLevel.EQUAL)
    return level.proved_at if level.status is CheckStatus.PASSED else None


def _is_daemon_running() -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has exited, or belongs to another user
            continue
        if int(folder.name) != os.getpid() and any(words in command for words in _DAEMON_WORDS):
            return True
    return False


def now_utc() -> datetime:
    """Return this machine's time."""
    return datetime.now(timezone.utc)
