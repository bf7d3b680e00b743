"""Reads what a person names as the target of a restore: a database or a bucket, on the server of the backup or elsewhere.

Secrets come from the environment, so that nobody types them into a command. Add a form of naming a target here.
"""

from __future__ import annotations

from schedgen_backups.config.config import Config
from schedgen_backups.config.sources import parse_bucket_url, parse_database_url, read_bucket, read_database
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings


def read_database_target(text: str, config: Config) -> DatabaseSettings:
    """Return the database that `NAME` or `postgresql://user@host:port/name` means; ConfigurationError when it means none.

    A name alone is a database of the server that is backed up. The password is the URL's, RESTORE_POSTGRES_PASSWORD or POSTGRES_PASSWORD.
    """
    reader = config.open_reader()
    password = reader.text("RESTORE_POSTGRES_PASSWORD")
    reader.check()  # a file that cannot be read must not lead to another password
    password_name = "RESTORE_POSTGRES_PASSWORD" if password else "POSTGRES_PASSWORD"
    if "://" not in text:
        settings = read_database(reader, password_name=password_name)
        reader.check()
        return settings.with_database(text)
    try:
        settings = parse_database_url(text, reader.text(password_name), reader)
    except ValueError as error:
        raise ConfigurationError(f"--database {error}", hint="Use postgresql://user@host:5432/name.") from None
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
        try:
            endpoint, text, is_secure = parse_bucket_url(text)
        except ValueError:
            raise ConfigurationError("--bucket is no URL of a bucket", hint="Use http://host:9000/bucket or https://host/bucket.") from None
        values |= {"MINIO_ENDPOINT": endpoint, "MINIO_SECURE": str(is_secure)}
    reader = config.with_values(values).open_reader()
    settings = read_bucket(reader, bucket=text)
    reader.check()
    return settings
