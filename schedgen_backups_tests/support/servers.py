"""Helpers for real servers: a client independent of the product's, and a plain way to run SQL.

Fixtures are in `conftest`; add here what test files import by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from minio import Minio

from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.s3_programs import ProgramServer

if TYPE_CHECKING:
    from schedgen_backups.core.settings import DatabaseSettings


@dataclass(frozen=True)
class SharedS3:
    """An S3 server that another process of this test run started: one per worker would take 150 MB each."""

    admin: BucketSettings
    reader: BucketSettings

    def settings(self, bucket: str) -> BucketSettings:
        """Return settings of one of its buckets, with unrestricted keys."""
        return replace(self.admin, bucket=bucket)

    def read_only_settings(self, bucket: str) -> BucketSettings:
        """Return settings of one of its buckets, with keys that may only list and read."""
        return replace(self.reader, bucket=bucket)


S3Server = EmbeddedS3 | ProgramServer | SharedS3
# Tests never need to survive a power failure.
FAST_SERVER_OPTIONS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def client_of(bucket: BucketSettings) -> Minio:
    """Return a client with the SDK's own defaults, independent of the product's client."""
    return Minio(
        bucket.endpoint,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        secure=bucket.is_secure,
        region=bucket.region,
    )


def connect(database: DatabaseSettings) -> psycopg.Connection[tuple[Any, ...]]:
    """Yield an open connection on which every statement is its own transaction."""
    return psycopg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        dbname=database.database,
        sslmode=database.ssl_mode,
        autocommit=True,
    )


def run(database: DatabaseSettings, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of one SQL text, or an empty list if it has no result."""
    with connect(database) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
