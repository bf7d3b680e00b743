"""Turns the DRILL_ variables into settings for core and for the definitions of the drill.

Which variables there are stands in `variables`; reading one is `environment`'s. A value that cannot be used leaves the default in place where a
definition needs it, and the run tells what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from schedgen_backups.config.cron import find_longest_gap
from schedgen_backups.config.environment import find_project_folder, load_environment, parse_endpoint, read_backup_directory, read_weekly_schedule
from schedgen_backups.config.reader import Reader
from schedgen_backups.config.targets import read_database_target
from schedgen_backups.config.variables import DEFAULT_DRILL_SCHEDULE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings

_DEFAULT_FOLDER = ".drill"
_LONGEST_MINUTES = 7 * 24 * 60
_DEFAULT_MAX_MINUTES = 60
_GRACE = timedelta(hours=12)
"""For a drill that waits for a backup, or for a machine that was off at night."""


def read_drill_settings(environment: Mapping[str, str]) -> DrillSettings:
    """Where a drill restores to; ConfigurationError names every variable that is wrong."""
    reader = Reader(environment)
    folder = reader.text("DRILL_DIR")
    checks = reader.text("DRILL_SQL_CHECKS")
    settings = DrillSettings(
        directory=_from_project(folder) if folder else read_backup_directory(environment) / _DEFAULT_FOLDER,
        database=_read_server(environment, reader.text("DRILL_DATABASE_URL")),
        is_source_server_allowed=reader.yes_or_no("DRILL_ON_SOURCE_SERVER"),
        bucket=_read_s3_server(reader),
        max_minutes=reader.number("DRILL_MAX_MINUTES", 1, _LONGEST_MINUTES),
        sql_checks_path=_from_project(checks) if checks else None,
    )
    reader.check()
    return settings


def read_drill_schedule() -> tuple[str, str]:
    """When to drill, and in which time zone, for definitions."""
    return read_weekly_schedule("DRILL_SCHEDULE", DEFAULT_DRILL_SCHEDULE)


def read_drill_max_age() -> timedelta:
    """How old the last drill may be, for definitions."""
    schedule, timezone = read_drill_schedule()
    return find_longest_gap(schedule, ZoneInfo(timezone)) + _GRACE


def read_drill_max_minutes() -> int:
    """How long a drill may take, for definitions."""
    try:
        return read_drill_settings(load_environment()).max_minutes
    except ConfigurationError:
        return _DEFAULT_MAX_MINUTES


def _from_project(text: str) -> Path:
    return (find_project_folder() / Path(text).expanduser()).absolute()


def _read_server(environment: Mapping[str, str], url: str) -> DatabaseSettings | None:
    if not url:
        return None
    # The password of the database that is backed up goes to no other server.
    password = environment.get("DRILL_POSTGRES_PASSWORD", "")
    with suppress(ConfigurationError):  # it speaks of an option of the command line
        if "://" in url:
            return read_database_target(url, {**environment, "RESTORE_POSTGRES_PASSWORD": password, "POSTGRES_PASSWORD": password})
    hint = "It looks like postgresql://user@host:5432/postgres; the password is DRILL_POSTGRES_PASSWORD."
    raise ConfigurationError("DRILL_DATABASE_URL is no URL that PostgreSQL understands", hint=hint)


def _read_s3_server(reader: Reader) -> BucketSettings | None:
    if not reader.text("DRILL_MINIO_ENDPOINT"):
        return None
    return BucketSettings(
        endpoint=reader.parsed("DRILL_MINIO_ENDPOINT", parse_endpoint, "host:port without http://", ""),
        access_key=reader.required("DRILL_MINIO_ACCESS_KEY"),
        secret_key=reader.required("DRILL_MINIO_SECRET_KEY"),
        bucket="",
        is_secure=reader.yes_or_no("DRILL_MINIO_SECURE"),
        region=reader.text("MINIO_REGION"),
    )
