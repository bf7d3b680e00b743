"""Fill the configured database and bucket with demo data, once: `python -m schedgen_backups.demo.fill`.

Used by docker/compose.demo.yaml, never in production. It waits for the two servers, and does not change a
database that contains data.
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
    """Fill the database and the bucket with demo data; return None if the database already had tables.

    Raise the errors of the servers after two minutes.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return None if _holds_tables(database) else seed_application(database, bucket)
        except (DatabaseUnreachableError, S3Error, HTTPError):
            # The servers are starting. The seed gives the same objects: a retry writes them again.
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
        else "the database already contains data\n"
    )
