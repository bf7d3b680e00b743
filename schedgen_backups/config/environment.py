"""Turns the environment (and the operators' .env beside the project) into settings for core, for Dagster and for the command line alike.

The only place that reads the environment; which variables there are stands in `variables`, those of alerts and drills become settings in
`alert_settings` and `drill_settings`. Nothing is read when the code location loads, but the schedule and the ages that definitions name: missing or
wrong values make a run that fails with a clear message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

from dotenv import dotenv_values, load_dotenv

from schedgen_backups.config.cron import parse_cron
from schedgen_backups.config.reader import DEFAULTS, Reader, read_value_files
from schedgen_backups.config.variables import DEFAULT_SCHEDULE
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.settings import (
    DEFAULT_REFERENCE_QUERY,
    BackupSettings,
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    References,
    TransferSettings,
)
from schedgen_backups.core.verify.live_system import LiveApplication

_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_MOST_THREADS = 64
_CORES_FOR_TWO_DUMPS = 4
"""One pg_dump, its server and the compression keep two cores busy: a second one gained nothing there (2026-11-25: 6.6 s with one and with two)."""


def open_catalog() -> Catalog:
    """Open the backup directory; ConfigurationError when it does not exist."""
    directory = read_backup_settings(load_environment()).directory
    if not directory.is_dir():
        raise ConfigurationError(f"BACKUP_DIR {directory} is not a directory", hint="Set BACKUP_DIR, or take a first backup.")
    return Catalog(directory)


def find_project_folder() -> Path:
    """The folder of workspace.yaml, from the current one upwards, otherwise the checkout this package lies in, otherwise the current folder."""
    here = Path.cwd()
    checkout = Path(__file__).resolve().parent.parent.parent
    for folder in (here, *here.parents, checkout):
        if (folder / "workspace.yaml").is_file():
            return folder
    return here


def load_environment() -> dict[str, str]:
    """The process's environment, with the project's .env where it says nothing, and with the contents of the files that NAME_FILE names."""
    from_file = {name: value for name, value in dotenv_values(find_project_folder() / ".env").items() if value is not None}
    return read_value_files({**from_file, **os.environ})


def export_environment() -> None:
    """The project's .env is in this process's environment where that said nothing, for libpq's own variables such as PGSSLROOTCERT."""
    load_dotenv(find_project_folder() / ".env", override=False)


def read_database_settings(environment: Mapping[str, str]) -> DatabaseSettings:
    """How the database is reached; ConfigurationError names every variable that is missing or wrong."""
    reader = Reader(environment)
    settings = DatabaseSettings(
        host=reader.text("POSTGRES_HOST"),
        port=reader.number("POSTGRES_PORT", 1, 65535),
        user=reader.text("POSTGRES_USER"),
        password=reader.required("POSTGRES_PASSWORD"),
        database=reader.text("POSTGRES_DB"),
        ssl_mode=reader.parsed("PGSSLMODE", _parse_ssl_mode, f"one of {', '.join(sorted(_SSL_MODES))}", "prefer"),
    )
    reader.check()
    return settings


def read_bucket_settings(environment: Mapping[str, str]) -> BucketSettings:
    """How the bucket is reached; ConfigurationError names every variable that is missing or wrong."""
    reader = Reader(environment)
    settings = BucketSettings(
        endpoint=reader.parsed("MINIO_ENDPOINT", parse_endpoint, "host:port without http://", ""),
        access_key=reader.required("MINIO_ACCESS_KEY"),
        secret_key=reader.required("MINIO_SECRET_KEY"),
        bucket=reader.text("MINIO_BUCKET"),
        is_secure=reader.yes_or_no("MINIO_SECURE"),
        region=reader.text("MINIO_REGION"),
    )
    reader.check()
    return settings


def read_backup_settings(environment: Mapping[str, str]) -> BackupSettings:
    """Where and how recovery points are kept; ConfigurationError names every variable that is wrong."""
    reader = Reader(environment)
    query = reader.text("BACKUP_REFERENCE_QUERY")
    schedule, timezone = _parse_schedule(reader)
    reader.number("BACKUP_MAX_HOURS", 1, 24 * 31)  # used by definitions; here only to tell what is wrong
    threads, jobs = reader.text("BACKUP_COMPRESSION_THREADS"), reader.text("BACKUP_DUMP_JOBS")
    cores = os.cpu_count() or 1
    transfer = TransferSettings(
        compression_threads=reader.number("BACKUP_COMPRESSION_THREADS", 1, _MOST_THREADS) if threads else min(cores, 8),
        dump_jobs=reader.number("BACKUP_DUMP_JOBS", 1, _MOST_THREADS) if jobs else 1 + (cores >= _CORES_FOR_TWO_DUMPS),
        download_threads=reader.number("BACKUP_DOWNLOAD_THREADS", 1, _MOST_THREADS),
        stall_timeout_seconds=reader.number("BACKUP_STALL_TIMEOUT_SECONDS", 1, 24 * 3600),
        max_mb_per_second=reader.number("BACKUP_MAX_MB_PER_SECOND", 0, 100_000),
        postgres_bin_dir=Path(reader.text("PG_BIN_DIR")) if reader.text("PG_BIN_DIR") else None,
    )
    capture = CaptureSettings(
        transfer=transfer,
        references=References(query, is_default=query == DEFAULT_REFERENCE_QUERY),
        is_empty_allowed=reader.yes_or_no("BACKUP_ALLOW_EMPTY"),
        reread_days=reader.number("BACKUP_REREAD_DAYS", 0, 3650),
    )
    settings = BackupSettings(
        directory=read_backup_directory(environment),
        capture=capture,
        schedule=schedule,
        timezone=timezone,
        nice=reader.number("BACKUP_NICE", 0, 19),
    )
    reader.check()
    return settings


def read_live_application(environment: Mapping[str, str]) -> LiveApplication:
    """Return the database and the bucket to ask about the live system."""
    capture = read_backup_settings(environment).capture
    return LiveApplication(read_database_settings(environment), read_bucket_settings(environment), capture.transfer, capture.references)


def read_backup_directory(environment: Mapping[str, str]) -> Path:
    """The absolute path of BACKUP_DIR, whatever else is wrong: alerts of what is wrong need it."""
    return (find_project_folder() / Path(Reader(environment).text("BACKUP_DIR")).expanduser()).absolute()


def read_schedule(environment: Mapping[str, str]) -> tuple[str, ZoneInfo]:
    """When to back up, whatever else is wrong; ConfigurationError names what is wrong with the time itself."""
    reader = Reader(environment)
    schedule = _parse_schedule(reader)
    reader.check()
    return schedule


def read_weekly_schedule(name: str, default: str) -> tuple[str, str]:
    """Cron string and time zone of a schedule beside the backup's, for definitions: a value that cannot be used leaves the default."""
    reader = Reader(load_environment())
    schedule = reader.parsed(name, parse_cron, "a cron string", default)
    return schedule, str(reader.parsed("BACKUP_TIMEZONE", ZoneInfo, "a time zone's name", ZoneInfo("UTC")))


def _parse_schedule(reader: Reader) -> tuple[str, ZoneInfo]:
    return (
        reader.parsed("BACKUP_SCHEDULE", parse_cron, "a cron string of five fields such as '0 2 * * *'", DEFAULT_SCHEDULE),
        reader.parsed("BACKUP_TIMEZONE", ZoneInfo, "a time zone's name such as Africa/Johannesburg", ZoneInfo("UTC")),
    )


def read_retention_policy(environment: Mapping[str, str]) -> RetentionPolicy:
    """What is kept; ConfigurationError names every variable that is wrong."""
    reader = Reader(environment)
    policy = RetentionPolicy(
        keep_days=reader.number("BACKUP_RETENTION_DAYS", 1, 36500),
        keep_last=reader.number("BACKUP_RETENTION_KEEP_LAST", 1, 10000),
        keep_weeks=reader.number("BACKUP_RETENTION_WEEKS", 0, 10000),
        keep_months=reader.number("BACKUP_RETENTION_MONTHS", 0, 10000),
        timezone=_parse_schedule(reader)[1],
    )
    reader.check()
    return policy


def read_max_hours() -> int:
    """How many hours a backup may take, for definitions: a value that cannot be used leaves the default, and the run tells what is wrong."""
    reader = Reader(load_environment())
    hours = reader.number("BACKUP_MAX_HOURS", 1, 24 * 31)
    try:
        reader.check()
    except ConfigurationError:
        return int(DEFAULTS["BACKUP_MAX_HOURS"])
    return hours


def _parse_ssl_mode(text: str) -> str:
    if text not in _SSL_MODES:
        raise ValueError(text)
    return text


def parse_endpoint(text: str) -> str:
    """`host:port` as it is; ValueError otherwise."""
    if "://" in text or "/" in text or not text.rpartition(":")[2].isdigit():
        raise ValueError(text)
    return text
