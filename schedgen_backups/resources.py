"""Turns the environment (and the operators' .env beside the project) into settings for core, for Dagster and for the command line alike.

The only place that reads the environment. Add a variable here, in .env.example and in the README's table; a test compares the three. Nothing is
read when the code location loads, but the schedule: missing or wrong values make a run that fails with a clear message, not a location
that does not load. No Dagster `EnvVar`: a missing one makes no run at all, only a failed tick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import dagster as dg
from dotenv import dotenv_values, load_dotenv
from pydantic import PrivateAttr

from schedgen_backups.core.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.live import LiveApplication
from schedgen_backups.core.settings import DEFAULT_REFERENCE_QUERY, BackupSettings, BucketSettings, DatabaseSettings

DEFAULT_SCHEDULE = "0 2 * * *"
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off", ""})
_MOST_THREADS = 64
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Variable:
    """One environment variable, for the reader of `doctor` and of the documentation."""

    name: str
    default: str
    meaning: str
    is_secret: bool = False


VARIABLES = (
    Variable("POSTGRES_HOST", "postgres", "database server"),
    Variable("POSTGRES_PORT", "5432", "its port"),
    Variable("POSTGRES_USER", "schedgen", "role that reads the database; pg_read_all_data is enough"),
    Variable("POSTGRES_PASSWORD", "", "its password; required", is_secret=True),
    Variable("POSTGRES_DB", "schedgen", "database to back up"),
    Variable("PGSSLMODE", "prefer", "libpq's word for TLS to the database: disable, prefer, require, verify-ca, verify-full"),
    Variable("PG_BIN_DIR", "", "folder with pg_dump, pg_dumpall and psql; by default the machine is searched for the server's version"),
    Variable("MINIO_ENDPOINT", "minio:9000", "S3 server as host:port"),
    Variable("MINIO_ACCESS_KEY", "", "access key that may list and read; required"),
    Variable("MINIO_SECRET_KEY", "", "its secret key; required", is_secret=True),
    Variable("MINIO_BUCKET", "schedgen-pdfs", "bucket to back up"),
    Variable("MINIO_SECURE", "false", "true for https to the S3 server"),
    Variable("MINIO_REGION", "us-east-1", "region that requests are signed for"),
    Variable("RESTORE_POSTGRES_PASSWORD", "", "password for `restore --database`; by default POSTGRES_PASSWORD", is_secret=True),
    Variable("RESTORE_MINIO_ACCESS_KEY", "", "access key that may write, for `restore --bucket`; by default MINIO_ACCESS_KEY"),
    Variable("RESTORE_MINIO_SECRET_KEY", "", "its secret key; by default MINIO_SECRET_KEY", is_secret=True),
    Variable("BACKUP_DIR", "./backups", "where recovery points are kept; a relative path starts at the project's folder"),
    Variable("BACKUP_SCHEDULE", DEFAULT_SCHEDULE, "when to back up, as a cron string"),
    Variable("BACKUP_TIMEZONE", "UTC", "time zone of the schedule, such as Africa/Johannesburg"),
    Variable("BACKUP_REFERENCE_QUERY", DEFAULT_REFERENCE_QUERY, "one SELECT of one column: the object keys that the database refers to"),
    Variable("BACKUP_ALLOW_EMPTY", "false", "true to accept a database without a single row"),
    Variable("BACKUP_COMPRESSION_THREADS", "", "threads that compress; by default one per core, at most 8"),
    Variable("BACKUP_DOWNLOAD_THREADS", "8", "objects that are read or written at the same time"),
    Variable("BACKUP_STALL_TIMEOUT_SECONDS", "600", "without a byte for so long, pg_dump, psql or the S3 server counts as hanging"),
)
_DEFAULTS = {variable.name: variable.default for variable in VARIABLES}


def find_project_folder() -> Path:
    """The folder of workspace.yaml, from the current one upwards, otherwise the checkout this package lies in, otherwise the current folder."""
    here = Path.cwd()
    checkout = Path(__file__).resolve().parent.parent
    for folder in (here, *here.parents, checkout):
        if (folder / "workspace.yaml").is_file():
            return folder
    return here


def load_environment() -> dict[str, str]:
    """The process's environment, with the project's .env where it says nothing."""
    from_file = {name: value for name, value in dotenv_values(find_project_folder() / ".env").items() if value is not None}
    return {**from_file, **os.environ}


def export_environment() -> None:
    """The project's .env is in this process's environment where that said nothing, for libpq's own variables such as PGSSLROOTCERT."""
    load_dotenv(find_project_folder() / ".env", override=False)


class _Reader:
    """Reads values one by one and remembers everything that is wrong, so that one message names it all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._problems: list[str] = []

    def text(self, name: str) -> str:
        return self._environment.get(name, "").strip() or _DEFAULTS[name]

    def required(self, name: str) -> str:
        value = self._environment.get(name, "").strip()
        if not value:
            self._problems.append(f"{name} is not set")
        return value

    def parsed(self, name: str, parse: Callable[[str], _Value], expected: str, fallback: _Value) -> _Value:
        value = self.text(name)
        try:
            return parse(value)
        except (ValueError, KeyError, OSError):
            self._problems.append(f"{name} is {value!r}, expected {expected}")
            return fallback

    def number(self, name: str, lowest: int, highest: int) -> int:
        def parse(value: str) -> int:
            number = int(value)
            if not lowest <= number <= highest:
                raise ValueError(value)
            return number

        return self.parsed(name, parse, f"a whole number from {lowest} to {highest}", lowest)

    def yes_or_no(self, name: str) -> bool:
        def parse(value: str) -> bool:
            if value.lower() not in _TRUE_WORDS | _FALSE_WORDS:
                raise ValueError(value)
            return value.lower() in _TRUE_WORDS

        return self.parsed(name, parse, "true or false", fallback=False)

    def check(self) -> None:
        """ConfigurationError when anything was wrong; values of secrets are never in it."""
        if self._problems:
            raise ConfigurationError("; ".join(self._problems), hint="Set it in .env or in the environment; `schedgen-backups doctor` checks all.")


def read_database_settings(environment: Mapping[str, str]) -> DatabaseSettings:
    """How the database is reached; ConfigurationError names every variable that is missing or wrong."""
    reader = _Reader(environment)
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
    reader = _Reader(environment)
    settings = BucketSettings(
        endpoint=reader.parsed("MINIO_ENDPOINT", _parse_endpoint, "host:port without http://", ""),
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
    reader = _Reader(environment)
    query = reader.text("BACKUP_REFERENCE_QUERY")
    schedule, timezone = _parse_schedule(reader)
    settings = BackupSettings(
        directory=(find_project_folder() / Path(reader.text("BACKUP_DIR")).expanduser()).absolute(),
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
        download_threads=reader.number("BACKUP_DOWNLOAD_THREADS", 1, _MOST_THREADS),
        stall_timeout_seconds=reader.number("BACKUP_STALL_TIMEOUT_SECONDS", 1, 24 * 3600),
        postgres_bin_dir=Path(reader.text("PG_BIN_DIR")) if reader.text("PG_BIN_DIR") else None,
    )
    reader.check()
    return settings


def read_schedule(environment: Mapping[str, str]) -> tuple[str, ZoneInfo]:
    """When to back up, whatever else is wrong; ConfigurationError names what is wrong with the time itself."""
    reader = _Reader(environment)
    schedule = _parse_schedule(reader)
    reader.check()
    return schedule


def _parse_schedule(reader: _Reader) -> tuple[str, ZoneInfo]:
    return (
        reader.parsed("BACKUP_SCHEDULE", parse_cron, "a cron string of five fields such as '0 2 * * *'", DEFAULT_SCHEDULE),
        reader.parsed("BACKUP_TIMEZONE", ZoneInfo, "a time zone's name such as Africa/Johannesburg", ZoneInfo("UTC")),
    )


def parse_cron(text: str) -> str:
    """The cron string as it is; ValueError when Dagster would refuse it."""
    try:
        dg.ScheduleDefinition(name="probe", cron_schedule=text, job_name="probe")
    except dg.DagsterInvalidDefinitionError as error:
        raise ValueError(text) from error
    return text


def _parse_ssl_mode(text: str) -> str:
    if text not in _SSL_MODES:
        raise ValueError(text)
    return text


def _parse_endpoint(text: str) -> str:
    if "://" in text or "/" in text or not text.rpartition(":")[2].isdigit():
        raise ValueError(text)
    return text


class BackupResource(dg.ConfigurableResource[object]):
    """The database, the bucket and the backup directory as the environment names them at the moment of the run."""

    _catalog: Catalog | None = PrivateAttr(default=None)

    def read_database(self) -> DatabaseSettings:
        """How the database is reached; ConfigurationError otherwise."""
        return read_database_settings(load_environment())

    def read_bucket(self) -> BucketSettings:
        """How the bucket is reached; ConfigurationError otherwise."""
        return read_bucket_settings(load_environment())

    def read_backup(self) -> BackupSettings:
        """Where and how recovery points are kept; ConfigurationError otherwise."""
        return read_backup_settings(load_environment())

    def read_live(self) -> LiveApplication:
        """The live system that missing references are asked about."""
        return LiveApplication(self.read_database(), self.read_bucket(), self.read_backup())

    def open_catalog(self, holder: str) -> Catalog:
        """The backup directory, writable and locked until the run's end; what dead runs left in it is gone. LockHeldError otherwise."""
        if self._catalog is None:
            catalog = Catalog(self.read_backup().directory)
            catalog.prepare()
            if catalog.lock.acquire(holder):
                catalog.sweep_staging()
            self._catalog = catalog
        return self._catalog

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """The lock is free again."""
        del context
        if self._catalog is not None:
            self._catalog.lock.release()
            self._catalog = None
