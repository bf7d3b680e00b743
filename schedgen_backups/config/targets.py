"""Parse the target of a restore: a database or bucket, on the server that is backed up or elsewhere.

Secrets come from the environment, so that they are never part of a command. The password of the source is
sent to no other server: a user who can choose a target must not choose who gets it.
"""

from __future__ import annotations

from dataclasses import replace

from schedgen_backups.config.config import Config
from schedgen_backups.config.sources import (
    SSL_MODES,
    parse_bucket_url,
    parse_database_url,
    read_bucket,
    read_database,
    read_ssl_mode,
)
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

_DEFAULT_PORT = 5432


def read_database_target(text: str, config: Config) -> DatabaseSettings:
    """Return the database of `NAME` or `postgresql://user@host:port/name`; raise ConfigurationError.

    A name alone is a database on the server that is backed up. RESTORE_POSTGRES_USER and
    RESTORE_POSTGRES_PASSWORD are used only for RESTORE_POSTGRES_HOST and RESTORE_POSTGRES_PORT, by default
    the server that is backed up. POSTGRES_PASSWORD is used only for that server. A URL can contain a user; a
    URL with a password is refused.
    """
    reader = config.open_reader()
    user, password, host = (
        reader.text("RESTORE_POSTGRES_USER"),
        reader.text("RESTORE_POSTGRES_PASSWORD"),
        reader.host("RESTORE_POSTGRES_HOST"),
    )
    source = (reader.text("POSTGRES_HOST").lower(), reader.number("POSTGRES_PORT", 1, 65535))
    default_port = _DEFAULT_PORT if host else source[1]
    port = (
        reader.number("RESTORE_POSTGRES_PORT", 1, 65535)
        if reader.text("RESTORE_POSTGRES_PORT")
        else default_port
    )
    owner = ((host or source[0]).lower(), port)
    reader.check()  # a file that cannot be read must not lead to another password
    if "://" not in text:
        uses_own = bool(user or password) and owner == source
        settings = read_database(
            reader, password_name="RESTORE_POSTGRES_PASSWORD" if uses_own else "POSTGRES_PASSWORD"
        )
        reader.check()
        return replace(settings, user=user if user and uses_own else settings.user, database=text)
    try:
        settings = parse_database_url(text, "", reader, user=user)
    except ValueError as error:
        raise ConfigurationError(
            f"--database {error}", hint="Use postgresql://user@host:5432/name."
        ) from None
    if settings.password:
        raise ConfigurationError(
            "the database URL contains a password, which shells, process lists and run histories would "
            "expose",
            hint="Use postgresql://user@host:5432/name, and set RESTORE_POSTGRES_PASSWORD. Change the "
            "password if other users can read those.",
        )
    least = read_ssl_mode(reader)
    if SSL_MODES.index(settings.ssl_mode) < SSL_MODES.index(least):
        raise ConfigurationError(
            f"the database URL has sslmode={settings.ssl_mode}, which is weaker than PGSSLMODE={least}",
            hint="Remove sslmode from the URL, or set PGSSLMODE for this command.",
        )
    target = (settings.host.lower(), settings.port)
    if password and target == owner:
        settings = replace(settings, password=password)
    elif target == source and not (user and settings.user == user):
        settings = replace(settings, password=reader.required("POSTGRES_PASSWORD"))
    elif password:
        raise ConfigurationError(
            f"RESTORE_POSTGRES_PASSWORD belongs to {owner[0]}:{owner[1]} and is not sent to "
            f"{target[0]}:{target[1]}, the server in the URL",
            hint="If it is meant for that server, set RESTORE_POSTGRES_HOST and RESTORE_POSTGRES_PORT to it.",
        )
    reader.check()
    return settings


def read_live_database(text: str, config: Config) -> DatabaseSettings:
    """Return the database of the text; for an empty text, the database that is backed up.

    The user is RESTORE_POSTGRES_USER if it is set.
    """
    reader = config.open_reader()
    if not text and not reader.text("RESTORE_POSTGRES_USER"):
        return config.database
    return read_database_target(text or config.database.database, config)


def read_bucket_target(text: str, config: Config) -> BucketSettings:
    """Return the bucket of `NAME` or `http(s)://host:port/name`; raise ConfigurationError.

    A name alone is a bucket on the server that is backed up. The keys are RESTORE_MINIO_ACCESS_KEY and
    RESTORE_MINIO_SECRET_KEY, by default MINIO_ACCESS_KEY and MINIO_SECRET_KEY.
    """
    reader = config.open_reader()
    keys = {
        "MINIO_ACCESS_KEY": reader.text("RESTORE_MINIO_ACCESS_KEY"),
        "MINIO_SECRET_KEY": reader.text("RESTORE_MINIO_SECRET_KEY"),
    }
    reader.check()  # a file that cannot be read must not lead to another key
    values = {name: value for name, value in keys.items() if value}
    if "://" in text:
        if "@" in text:
            raise ConfigurationError(
                "the bucket URL contains a login",
                hint="Set RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY instead.",
            )
        try:
            endpoint, text, is_secure = parse_bucket_url(text)
        except ValueError as error:
            raise ConfigurationError(
                f"--bucket is not a valid bucket URL: it {error}",
                hint="Use http://host:9000/bucket or https://host/bucket.",
            ) from None
        values |= {"MINIO_ENDPOINT": endpoint, "MINIO_SECURE": str(is_secure)}
    reader = config.with_values(values).open_reader()
    settings = read_bucket(reader, bucket=text)
    reader.check()
    return settings
