"""Fills the application that the environment names with the demo's data, once: `python -m
schedgen_backups.demo.fill`, in docker/compose.demo.yaml.

Waits for the two servers, and leaves a database alone that holds anything. What the data is like belongs to
`seed`; production never runs this.
"""

from __future__ import annotations

import sys
import time

from minio.error import S3Error
from urllib3.exceptions import HTTPError

from schedgen_backups.config.config import load_config
from schedgen_backups.core.errors import DatabaseUnreachableError
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import SeedSummary, seed_application

_TRIES = 60
_PAUSE_SECONDS = 2


def fill_once(database: DatabaseSettings, bucket: BucketSettings) -> SeedSummary | None:
    """The database and the bucket hold the demo's data.

    None when the database held something before. Errors of the servers after two minutes.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return None if _holds_tables(database) else seed_application(database, bucket)
        except (DatabaseUnreachableError, S3Error, HTTPError):
            # They are being started. Objects go first, in one order: what a try has left is written again.
            if attempt == _TRIES:
                raise
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError


def _holds_tables(database: DatabaseSettings) -> bool:
    with connect_database(database) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone()
    return row is not None and int(row[0]) > 0


if __name__ == "__main__":
    config = load_config()
    filled = fill_once(config.database, config.bucket)
    sys.stdout.write(
        f"{filled.users} users, {filled.jobs} jobs, {filled.objects} objects\n"
        if filled
        else "the database holds data already\n"
    )
