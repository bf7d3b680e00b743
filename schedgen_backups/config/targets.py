"""Reads what a person names as the target of a restore: a database or a bucket, on the server of the backup or elsewhere.

Secrets come from the environment, so that none need be typed into a command. Add a form of naming a target here.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schedgen_backups.config.environment import read_bucket_settings, read_database_settings
from schedgen_backups.config.reader import list_file_problems
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

_DEFAULT_PORT = 5432


def read_database_target(text: str, environment: Mapping[str, str]) -> DatabaseSettings:
    """The database that `NAME` or `postgresql://user@host:port/name` means; ConfigurationError when it means none.

    A name alone is a database of the server that is backed up. The password is the URL's, RESTORE_POSTGRES_PASSWORD or POSTGRES_PASSWORD.
    """
    password = _read(environment, "RESTORE_POSTGRES_PASSWORD") or _read(environment, "POSTGRES_PASSWORD")
    if "://" not in text:
        return read_database_settings({**environment, "POSTGRES_PASSWORD": password}).with_database(text)
    try:
        parts = conninfo_to_dict(text)
        port = int(parts.get("port") or _DEFAULT_PORT)
    except (psycopg.ProgrammingError, ValueError) as error:
        raise ConfigurationError("--database is no URL that PostgreSQL understands", hint="Use postgresql://user@host:5432/name.") from error
    if not parts.get("dbname") or not parts.get("user"):
        raise ConfigurationError("--database names no user or no database", hint="Use postgresql://user@host:5432/name.")
    return DatabaseSettings(
        host=str(parts.get("host") or "127.0.0.1"),
        port=port,
        user=str(parts["user"]),
        password=str(parts.get("password") or password),
        database=str(parts["dbname"]),
        ssl_mode=str(parts.get("sslmode") or environment.get("PGSSLMODE") or "prefer"),
    )


def read_bucket_target(text: str, environment: Mapping[str, str]) -> BucketSettings:
    """The bucket that `NAME` or `http(s)://host:port/name` means; ConfigurationError when it means none.

    A name alone is a bucket of the server that is backed up. The keys are RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY, or MINIO_…
    """
    overrides = {f"MINIO_{name}": value for name in ("ACCESS_KEY", "SECRET_KEY") if (value := _read(environment, f"RESTORE_MINIO_{name}").strip())}
    if "://" in text:
        try:
            parts = urlsplit(text)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise _make_bucket_error() from error
        bucket = parts.path.strip("/")
        if parts.scheme not in {"http", "https"} or not parts.hostname or not bucket or "/" in bucket:
            raise _make_bucket_error()
        overrides |= {"MINIO_ENDPOINT": f"{parts.hostname}:{port}", "MINIO_SECURE": str(parts.scheme == "https")}
        text = bucket
    return read_bucket_settings({**environment, **overrides}).with_bucket(text)


def _read(environment: Mapping[str, str], name: str) -> str:
    """The value, or an empty text. ConfigurationError when it is to come from a file and does not: another password must not be taken for it."""
    if problems := list_file_problems(environment, name):
        raise ConfigurationError("; ".join(problems), hint="Give the file to the user that runs this.")
    return environment.get(name, "")


def _make_bucket_error() -> ConfigurationError:
    return ConfigurationError("--bucket is no URL of a bucket", hint="Use http://host:9000/bucket or https://host/bucket.")
