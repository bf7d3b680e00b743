"""Turns the environment (and the operators' .env beside the project) into settings for core, for Dagster and for the command line alike.

The only place that reads the environment; which variables there are stands in `variables`. Nothing is read when the code location loads, but
the schedule and the ages that definitions name: missing or wrong values make a run that fails with a clear message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from dotenv import dotenv_values, load_dotenv

from schedgen_backups.core.channels import Channel, MailSettings, make_channel, make_mail_channel
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.retention import RetentionPolicy
from schedgen_backups.core.settings import DEFAULT_REFERENCE_QUERY, LOOPBACK_HOSTS, BackupSettings, BucketSettings, DatabaseSettings
from schedgen_backups.cron import find_longest_gap, parse_cron
from schedgen_backups.value_files import read_value_files
from schedgen_backups.variable_reader import DEFAULTS, Reader
from schedgen_backups.variables import DEFAULT_SCHEDULE

_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_MOST_THREADS = 64
_GRACE = timedelta(hours=2)


def find_project_folder() -> Path:
    """The folder of workspace.yaml, from the current one upwards, otherwise the checkout this package lies in, otherwise the current folder."""
    here = Path.cwd()
    checkout = Path(__file__).resolve().parent.parent
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
    settings = BackupSettings(
        directory=read_backup_directory(environment),
        reference_query=query,
        is_reference_query_default=query == DEFAULT_REFERENCE_QUERY,
        is_empty_allowed=reader.yes_or_no("BACKUP_ALLOW_EMPTY"),
        schedule=schedule,
        timezone=timezone,
        compression_threads=(
            reader.number("BACKUP_COMPRESSION_THREADS", 1, _MOST_THREADS)
            if reader.text("BACKUP_COMPRESSION_THREADS")
            else min(os.cpu_count() or 1, 8)
        ),
        dump_jobs=reader.number("BACKUP_DUMP_JOBS", 1, _MOST_THREADS),
        download_threads=reader.number("BACKUP_DOWNLOAD_THREADS", 1, _MOST_THREADS),
        reread_days=reader.number("BACKUP_REREAD_DAYS", 0, 3650),
        max_mb_per_second=reader.number("BACKUP_MAX_MB_PER_SECOND", 0, 100_000),
        nice=reader.number("BACKUP_NICE", 0, 19),
        stall_timeout_seconds=reader.number("BACKUP_STALL_TIMEOUT_SECONDS", 1, 24 * 3600),
        postgres_bin_dir=Path(reader.text("PG_BIN_DIR")) if reader.text("PG_BIN_DIR") else None,
    )
    reader.check()
    return settings


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


@dataclass(frozen=True)
class AlertSettings:
    """Who is told, by what, and when silence is too long."""

    webhook_urls: tuple[str, ...] = field(repr=False)
    mail_recipients: tuple[str, ...]
    mail: MailSettings | None
    is_success_told: bool
    heartbeat_url: str = field(repr=False)
    webserver_url: str
    max_age: timedelta
    """Without a verified recovery point younger than this, something is wrong."""

    def make_channels(self) -> tuple[Channel, ...]:
        """Every configured channel; ConfigurationError names what cannot be one."""
        channels = [make_channel(url) for url in self.webhook_urls]
        if self.mail is not None:
            channels.append(make_mail_channel(self.mail_recipients, self.mail))
        return tuple(channels)


def read_alert_settings(environment: Mapping[str, str]) -> AlertSettings:
    """Who is told of failures; ConfigurationError names every variable that is wrong. No channel at all is allowed."""
    reader = Reader(environment)
    recipients = tuple(part.strip() for part in reader.text("BACKUP_ALERT_EMAIL").split(",") if part.strip())
    mail = None
    if recipients:
        mail = MailSettings(
            host=reader.required("SMTP_HOST"),
            port=reader.number("SMTP_PORT", 1, 65535),
            user=reader.text("SMTP_USER"),
            password=reader.text("SMTP_PASSWORD"),
            sender=reader.text("SMTP_FROM") or reader.text("SMTP_USER") or recipients[0],
            security=reader.parsed("SMTP_SECURITY", _parse_mail_security, "starttls, ssl or insecure", "starttls"),
        )
    hours = reader.number("BACKUP_MAX_AGE_HOURS", 1, 24 * 366) if reader.text("BACKUP_MAX_AGE_HOURS") else None
    settings = AlertSettings(
        webhook_urls=tuple(reader.text("BACKUP_ALERT_WEBHOOK_URL").split()),
        mail_recipients=recipients,
        mail=mail,
        is_success_told=reader.yes_or_no("BACKUP_ALERT_ON_SUCCESS"),
        heartbeat_url=reader.parsed("BACKUP_HEARTBEAT_URL", _parse_heartbeat_url, "an https address", ""),
        webserver_url=reader.text("DAGSTER_WEBSERVER_URL").rstrip("/"),
        max_age=timedelta(hours=hours) if hours else _derive_max_age(environment),
    )
    reader.check()
    settings.make_channels()
    return settings


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


def read_max_age() -> timedelta:
    """How old the newest verified point may be, for definitions: a value that cannot be used leaves the default, and the run tells what is wrong."""
    environment = load_environment()
    try:
        return read_alert_settings(environment).max_age
    except ConfigurationError:
        return _derive_max_age(environment)


def _derive_max_age(environment: Mapping[str, str]) -> timedelta:
    # A schedule that cannot be used must not silence the alerts that tell of it.
    try:
        return find_longest_gap(*read_schedule(environment)) + _GRACE
    except ConfigurationError:
        return find_longest_gap(DEFAULT_SCHEDULE, ZoneInfo("UTC")) + _GRACE


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


def _parse_mail_security(text: str) -> str:
    if text not in {"starttls", "ssl", "insecure"}:
        raise ValueError(text)
    return text


def _parse_heartbeat_url(text: str) -> str:
    parts = urlsplit(text)
    if text and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS):
        raise ValueError(text)
    return text.rstrip("/")


def parse_endpoint(text: str) -> str:
    """`host:port` as it is; ValueError otherwise."""
    if "://" in text or "/" in text or not text.rpartition(":")[2].isdigit():
        raise ValueError(text)
    return text
