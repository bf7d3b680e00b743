"""Reads what a person names as the target of a restore: a database or a bucket, on the server of the backup or elsewhere.

Secrets come from the environment, so that nobody types them into a command, and the password of the source goes to no other server: whoever may name
a target must not choose who gets it. Add a form of naming a target here.
"""

from __future__ import annotations

from dataclasses import replace

from schedgen_backups.config.config import Config
from schedgen_backups.config.sources import parse_bucket_url, parse_database_url, read_bucket, read_database
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings


def read_database_target(text: str, config: Config) -> DatabaseSettings:
    """Return the database that `NAME` or `postgresql://user@host:port/name` means; ConfigurationError when it means none.

    A name alone is a database of the server that is backed up. The password is RESTORE_POSTGRES_PASSWORD or, on the server that is backed up only,
    POSTGRES_PASSWORD; a URL that holds one is refused.
    """
    reader = config.open_reader()
    password = reader.text("RESTORE_POSTGRES_PASSWORD")
    reader.check()  # a file that cannot be read must not lead to another password
    if "://" not in text:
        settings = read_database(reader, password_name="RESTORE_POSTGRES_PASSWORD" if password else "POSTGRES_PASSWORD")
        reader.check()
        return settings.with_database(text)
    try:
        settings = parse_database_url(text, "", reader)
    except ValueError as error:
        raise ConfigurationError(f"--database {error}", hint="Use postgresql://user@host:5432/name.") from None
    if settings.password:
        raise ConfigurationError(
            "the URL of the database holds a password, which shells, process lists and run histories would keep",
            hint="Name postgresql://user@host:5432/name, and set RESTORE_POSTGRES_PASSWORD. Change the password if others can read those.",
        )
    is_source = (settings.host.lower(), settings.port) == (reader.text("POSTGRES_HOST").lower(), reader.number("POSTGRES_PORT", 1, 65535))
    settings = replace(settings, password=password or (reader.required("POSTGRES_PASSWORD") if is_source else ""))
    reader.check()
    return settings


def read_bucket_target(text: str, config: Config) -> BucketSettings:
    """Return the bucket that `NAME` or `http(s)://host:port/name` means; ConfigurationError when it means none.

    A name alone is a bucket of the server that is backed up. The keys are RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY, or MINIO_…
    """
    reader = config.open_reader()
    keys = {"MINIO_ACCESS_KEY": reader.text("RESTORE_MINIO_ACCESS_KEY"), "MINIO_SECRET_KEY": reader.text("RESTORE_MINIO_SECRET_KEY")}
    reader.check()  # a file that cannot be read must not lead to another key
    values = {name: value for name, value in keys.items() if value}
    if "://" in text:
        if "@" in text:
            raise ConfigurationError(
                "the URL of the bucket holds a login", hint="Set RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY in place of it."
            )
        try:
            endpoint, text, is_secure = parse_bucket_url(text)
        except ValueError:
            raise ConfigurationError("--bucket is no URL of a bucket", hint="Use http://host:9000/bucket or https://host/bucket.") from None
        values |= {"MINIO_ENDPOINT": endpoint, "MINIO_SECURE": str(is_secure)}
    reader = config.with_values(values).open_reader()
    settings = read_bucket(reader, bucket=text)
    reader.check()
    return settings
