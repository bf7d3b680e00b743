"""What tests share about the real servers: a client that is not the product's, and a plain way to run SQL.

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
    """An S3 server that another process of the same test run has started: each worker would have one of 150
    MB.
    """

    admin: BucketSettings
    reader: BucketSettings

    def settings(self, bucket: str) -> BucketSettings:
        """One of its buckets, with the keys that may do everything."""
        return replace(self.admin, bucket=bucket)

    def read_only_settings(self, bucket: str) -> BucketSettings:
        """One of its buckets, with keys that may only list and read."""
        return replace(self.reader, bucket=bucket)


S3Server = EmbeddedS3 | ProgramServer | SharedS3
# Tests never need to survive a power cut.
FAST_SERVER_OPTIONS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def client_of(bucket: BucketSettings) -> Minio:
    """A client with the SDK's own defaults, to look at a bucket with eyes other than the product's."""
    return Minio(
        bucket.endpoint,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        secure=bucket.is_secure,
        region=bucket.region,
    )


def connect(database: DatabaseSettings) -> psycopg.Connection[tuple[Any, ...]]:
    """An open connection on which every statement is its own transaction."""
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
    """The rows of one SQL text, or none when it has no result."""
    with connect(database) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
