"""One recovery point of a small application and a place to restore it to.

Servers come from the fixtures of `conftest`. Add what several tests of restores and comparisons do with a
point.
"""

from __future__ import annotations

import io
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckResult
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.restore.point import RestoreReport, RestoreRequest, restore_point
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups_tests.support.artifacts import (
    POINT,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.restores import compare_bucket, compare_database
from schedgen_backups_tests.support.servers import client_of, run

ID = RecoveryPointId(POINT)
FILL = """
CREATE TABLE jobs (id int PRIMARY KEY, s3_key text, price float8, took interval, day date, kind regclass,
    "two {words} 100%" text);
INSERT INTO jobs SELECT n, 'k' || n, n / 3.0, n * interval '1 day 1 s', date '2026-01-01' + n, 'jobs',
    'x' FROM generate_series(1, 6) n;
CREATE TABLE empty_table (a int); CREATE SEQUENCE numbers; SELECT lo_from_bytea(70001, 'large');
"""
BROKEN_FOREIGN_KEY = """
CREATE TABLE upper (id int PRIMARY KEY); CREATE TABLE lower (upper_id int REFERENCES upper);
SELECT lo_from_bytea(70009, 'large');
SET session_replication_role = replica; INSERT INTO lower VALUES (7);
"""
"""Makes a database whose dump cannot be loaded: the error comes last, after rows and large objects."""
KEYS = tuple(f"k{number}" for number in range(1, 7))


class Backup:
    """A recovery point of one application, and a place to restore it to."""

    def __init__(
        self,
        source: tuple[DatabaseSettings, BucketSettings],
        target: tuple[DatabaseSettings, BucketSettings],
        catalog: Catalog,
    ) -> None:
        self.source_database, self.source_bucket = source
        self.database, self.bucket = target
        self.catalog = catalog
        self.settings = make_transfer()

    def capture(self, point_id: RecoveryPointId = ID) -> None:
        self.dump = publish_dump(self.catalog, self.source_database, point_id.text)
        self.archive = publish_archive(self.catalog, self.source_bucket, point_id.text)

    def commit(self, point_id: RecoveryPointId = ID) -> None:
        live = make_live(self.source_database, self.source_bucket)
        commit_point(self.catalog, point_id, origin=Origin(run_id=point_id.text), live=live)

    def request(
        self, *, replace_contents: bool = False, bucket: BucketSettings | None = None
    ) -> RestoreRequest:
        return RestoreRequest(
            self.catalog.get_point(ID),
            self.database,
            bucket or self.bucket,
            replace_contents=replace_contents,
        )

    def restore(self, *, replace_contents: bool = False) -> RestoreReport:
        return restore_point(self.request(replace_contents=replace_contents), self.settings)

    def assert_nothing_was_written(self) -> None:
        assert (
            run(self.database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            == []
        )
        assert list(client_of(self.bucket).list_objects(self.bucket.bucket, recursive=True)) == []

    def compare(self) -> tuple[CheckResult, ...]:
        return (
            *compare_database(self.dump, self.database, self.settings),
            *compare_bucket(self.archive, self.bucket, self.settings),
        )


def put(
    bucket: BucketSettings, key: str, data: bytes, content_type: str = "application/pdf", **metadata: str
) -> None:
    client = client_of(bucket)
    client.put_object(
        bucket.bucket,
        key,
        io.BytesIO(data),
        len(data),
        content_type=content_type,
        metadata=dict(metadata) or None,
    )


def make_backed_up(
    source: tuple[DatabaseSettings, BucketSettings],
    target: tuple[DatabaseSettings, BucketSettings],
    directory: Path,
) -> Backup:
    """Fill and capture the source; leave the target as it was."""
    catalog = Catalog(directory)
    catalog.prepare()
    database, bucket = source
    run(database, FILL)
    for key in KEYS:
        put(bucket, key, f"body of {key}".encode(), owner="somebody")
    backup = Backup(source, target, catalog)
    backup.capture()
    return backup
