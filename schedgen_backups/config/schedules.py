"""When runs start, how long they may take, how old their results may get, and how long points are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

from schedgen_backups.config.cron import find_max_gap, parse_cron
from schedgen_backups.config.presets import NO_PRESET
from schedgen_backups.config.reader import Reader
from schedgen_backups.config.stores import STORES_VARIABLE
from schedgen_backups.config.variables import (
    DEFAULT_AUDIT_SCHEDULE,
    DEFAULT_DRILL_SCHEDULE,
    DEFAULT_REPORT_SCHEDULE,
    DEFAULT_SCHEDULE,
)
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.settings import Layout

_MAX_DRILL_MINUTES = 7 * 24 * 60
_BACKUP_GRACE = timedelta(hours=2)
_DRILL_GRACE = timedelta(hours=12)
"""Allows for a drill that waits for a backup, and for a machine that was off at night."""
_UTC = ZoneInfo("UTC")


@dataclass(frozen=True)
class ScheduleSettings:
    """When backups run, and their limits on this machine."""

    cron: str
    timezone: ZoneInfo
    nice: int
    """Niceness of a run, 0 to 19."""
    max_hours: int


@dataclass(frozen=True)
class HousekeepingSettings:
    """When a report is made, and how long Dagster keeps runs; no backup depends on them."""

    report_cron: str
    keep_days: int
    """Days to keep runs in Dagster's history; 0 keeps all."""


@dataclass(frozen=True)
class DefinitionSettings:
    """What Dagster needs when the code location loads.

    An invalid value is replaced by its default, so that the location loads and a run fails with the reason.
    """

    timezone: str
    """Time zone of the weekly schedules."""
    backup_cron: str
    backup_timezone: str
    drill_cron: str
    audit_cron: str
    report_cron: str
    max_age: timedelta
    """Maximum age of the newest verified recovery point."""
    schedule_gap: timedelta
    """Longest time between two scheduled backups."""
    max_hours: int
    """Longest duration of a backup."""
    drill_max_age: timedelta
    """Longest time between two drills."""
    drill_max_minutes: int
    """Longest duration of a drill."""
    has_references: bool
    """Whether a reference query is configured."""
    has_operator_checks: bool
    """Whether SQL checks for drills are configured."""
    is_each_point_drilled: bool
    """Whether each recovery point is drilled once it is committed."""
    layout: Layout
    """Layout of new recovery points."""
    has_stores: bool
    """Whether a file of stores is configured, readable or not."""


def read_schedule(reader: Reader) -> ScheduleSettings:
    """Return when backups run, and their limits."""
    return ScheduleSettings(
        cron=_read_cron(reader),
        timezone=read_timezone(reader),
        nice=reader.number("BACKUP_NICE", 0, 19),
        max_hours=_read_max_hours(reader),
    )


def read_housekeeping(reader: Reader) -> HousekeepingSettings:
    """Return the settings of housekeeping."""
    return HousekeepingSettings(
        report_cron=_read_report_cron(reader), keep_days=reader.number("DAGSTER_KEEP_DAYS", 0, 36500)
    )


def read_retention(reader: Reader) -> RetentionPolicy:
    """Return the rules for keeping recovery points."""
    return RetentionPolicy(
        keep_days=reader.number("BACKUP_RETENTION_DAYS", 1, 36500),
        keep_hours=reader.number("BACKUP_RETENTION_HOURS", 1, 24 * 366)
        if reader.text("BACKUP_RETENTION_HOURS")
        else 0,
        keep_last=reader.number("BACKUP_RETENTION_KEEP_LAST", 1, 10000),
        keep_weeks=reader.number("BACKUP_RETENTION_WEEKS", 0, 10000),
        keep_months=reader.number("BACKUP_RETENTION_MONTHS", 0, 10000),
        keep_years=reader.number("BACKUP_RETENTION_YEARS", 0, 1000),
        timezone=read_timezone(reader),
    )


def read_definition_settings(reader: Reader) -> DefinitionSettings:
    """Return what definitions need, with defaults for invalid values."""
    timezone = read_timezone(reader)
    cron, cron_timezone = _read_usable_schedule(reader)
    drill_cron = reader.parsed("DRILL_SCHEDULE", parse_cron, "a cron string", DEFAULT_DRILL_SCHEDULE)
    return DefinitionSettings(
        timezone=str(timezone),
        backup_cron=cron,
        backup_timezone=str(cron_timezone),
        drill_cron=drill_cron,
        audit_cron=reader.parsed("AUDIT_SCHEDULE", parse_cron, "a cron string", DEFAULT_AUDIT_SCHEDULE),
        report_cron=_read_report_cron(reader),
        max_age=read_max_age(reader),
        schedule_gap=find_max_gap(cron, cron_timezone),
        max_hours=_read_max_hours(reader),
        drill_max_age=find_max_gap(drill_cron, timezone) + _DRILL_GRACE,
        drill_max_minutes=read_drill_max_minutes(reader),
        has_references=bool(reader.text("BACKUP_REFERENCE_QUERY"))
        or reader.text("BACKUP_PRESET") != NO_PRESET,
        has_operator_checks=bool(reader.text("DRILL_SQL_CHECKS")),
        is_each_point_drilled=reader.yes_or_no("DRILL_AFTER_EACH_POINT"),
        layout=read_layout(reader),
        has_stores=bool(reader.text(STORES_VARIABLE)),
    )


def read_max_age(reader: Reader) -> timedelta:
    """Return the maximum age of the newest verified point.

    It is BACKUP_MAX_AGE_HOURS, by default the schedule's longest gap plus two hours.
    """
    if reader.text("BACKUP_MAX_AGE_HOURS"):
        hours = reader.parsed("BACKUP_MAX_AGE_HOURS", _parse_hours, f"a whole number from 1 to {24 * 366}", 0)
        if hours:
            return timedelta(hours=hours)
    return find_max_gap(*_read_usable_schedule(reader)) + _BACKUP_GRACE


def read_drill_max_minutes(reader: Reader) -> int:
    """Return the maximum duration of a drill."""
    return reader.number("DRILL_MAX_MINUTES", 1, _MAX_DRILL_MINUTES)


def read_layout(reader: Reader) -> Layout:
    """Return the layout of new recovery points."""
    return reader.parsed("BACKUP_LAYOUT", Layout, "files or packs", Layout.FILES)


def read_timezone(reader: Reader) -> ZoneInfo:
    """Return the time zone of all schedules."""
    return reader.parsed("BACKUP_TIMEZONE", ZoneInfo, "a time zone such as Africa/Johannesburg", _UTC)


def _read_cron(reader: Reader) -> str:
    return reader.parsed(
        "BACKUP_SCHEDULE", parse_cron, "a cron string of five fields such as '0 2 * * *'", DEFAULT_SCHEDULE
    )


def _read_report_cron(reader: Reader) -> str:
    return reader.parsed("REPORT_SCHEDULE", parse_cron, "a cron string", DEFAULT_REPORT_SCHEDULE)


def _read_max_hours(reader: Reader) -> int:
    return reader.number("BACKUP_MAX_HOURS", 1, 24 * 31)


def _read_usable_schedule(reader: Reader) -> tuple[str, ZoneInfo]:
    """Return cron string and time zone of the backup: both as set or both the default.

    One without the other would mean another time.
    """
    try:
        return parse_cron(reader.text("BACKUP_SCHEDULE")), ZoneInfo(reader.text("BACKUP_TIMEZONE"))
    except (ValueError, KeyError, OSError):
        return DEFAULT_SCHEDULE, _UTC


def _parse_hours(text: str) -> int:
    if not 1 <= int(text) <= 24 * 366:
        raise ValueError(text)
    return int(text)
