"""Settings of restore drills: target servers, checks and limits."""

from __future__ import annotations

from pathlib import Path

from schedgen_backups.config.reader import Reader
from schedgen_backups.config.schedules import read_drill_max_minutes
from schedgen_backups.config.sources import parse_database_url, read_bucket
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillObjects, DrillSettings

_MAX_SAMPLE = 1_000_000
"""Keys of a sample are held in memory."""
_DEFAULT_FOLDER = ".drill"
_OTHER_SECRETS = (Path("/run/docker.sock"), Path("/run/secrets"))
"""Paths of a container that hold secrets or give access to its host."""


def read_drill(reader: Reader, backup_directory: Path, *, hidden_paths: tuple[Path, ...]) -> DrillSettings:
    """Return the settings of drills; by default a drill starts its own servers below the backup directory.

    Such servers cannot access `hidden_paths`, the backup directory and the Docker engine.
    """
    # Read when the code location loads, with a default for what is wrong: here it fails the drill.
    reader.yes_or_no("DRILL_AFTER_EACH_POINT")
    return DrillSettings(
        directory=reader.path("DRILL_DIR") or backup_directory / _DEFAULT_FOLDER,
        database=_read_server(reader),
        is_source_server_allowed=reader.yes_or_no("DRILL_ON_SOURCE_SERVER"),
        bucket=_read_s3_server(reader),
        max_minutes=read_drill_max_minutes(reader),
        objects=reader.parsed(
            "DRILL_OBJECTS", parse_objects, "all, sample:N or referenced:N", DrillObjects()
        ),
        sql_checks_path=reader.path("DRILL_SQL_CHECKS"),
        hidden_paths=(backup_directory, *hidden_paths, *_OTHER_SECRETS),
    )


def parse_objects(text: str) -> DrillObjects:
    """Return which objects a drill restores; raise ValueError for another text."""
    kind, colon, number = text.partition(":")
    if text == "all":
        return DrillObjects()
    if kind not in {"sample", "referenced"} or not colon or not number.isascii() or not number.isdecimal():
        raise ValueError(text)
    if not 1 <= int(number) <= _MAX_SAMPLE:
        raise ValueError(text)
    return DrillObjects("sample" if kind == "sample" else "referenced", int(number))


def _read_server(reader: Reader) -> DatabaseSettings | None:
    url = reader.text("DRILL_DATABASE_URL")
    if not url:
        return None
    try:
        # The password of the database that is backed up is sent to no other server.
        return parse_database_url(url, reader.text("DRILL_POSTGRES_PASSWORD"), reader)
    except ValueError as error:
        hint = "Use postgresql://user@host:5432/postgres; the password is DRILL_POSTGRES_PASSWORD."
        raise ConfigurationError(f"DRILL_DATABASE_URL {error}", hint=hint) from None


def _read_s3_server(reader: Reader) -> BucketSettings | None:
    return read_bucket(reader, prefix="DRILL_", bucket="") if reader.text("DRILL_MINIO_ENDPOINT") else None
