"""The comparison after a restore: rows in another order are equal, and every difference is named.

Differences are made by hand in the target after a good restore.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from minio.commonconfig import Tags

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import get_status, get_summary
from schedgen_backups_tests.support.points import ID, Backup, make_backed_up, put
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration


@pytest.fixture
def restored(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    tmp_path: Path,
) -> Backup:
    """Return a backup that was restored."""
    backup = make_backed_up((database, bucket), (second_database, second_bucket), tmp_path / "backups")
    assert backup.restore().is_equal
    return backup


def test_rows_in_another_order_are_equal(restored: Backup) -> None:
    run(restored.database, "UPDATE jobs SET price = price WHERE id IN (1, 3)")
    results = restored.compare()
    assert [result.summary for result in results if not result.is_passed] == []
    equal = next(result for result in results if result.check is Check.DATABASE_IS_EQUAL)
    assert equal.figures["reordered_tables"] == 1


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE jobs SET s3_key = 'K3' WHERE id = 3", "public.jobs"),
        ("UPDATE jobs SET price = price + 1e-12 WHERE id = 3", "public.jobs"),
        ("DELETE FROM jobs WHERE id = 6", "public.jobs"),
        ("INSERT INTO jobs (id) VALUES (7)", "public.jobs"),
        ("UPDATE jobs SET id = id + 10 WHERE id = 2", "public.jobs"),
        (
            (
                "DELETE FROM jobs WHERE id = 6; INSERT INTO jobs SELECT 6, s3_key, price, took, day, kind, "
                "'x' FROM jobs WHERE id = 5"
            ),
            "public.jobs",
        ),
        ("INSERT INTO empty_table VALUES (1)", "public.empty_table"),
        ("DROP TABLE empty_table", "public.empty_table"),
        ("CREATE TABLE extra (a int)", "public.extra"),
        ("ALTER TABLE jobs DROP COLUMN day", "public.jobs"),
        ("SELECT nextval('numbers'); SELECT nextval('numbers')", "sequence"),
        ("SELECT lo_put(70001, 0, 'L')", "large object"),
        ("CREATE INDEX ON jobs (day)", "schema"),
        ("CREATE FUNCTION f() RETURNS int RETURN 1", "schema"),
    ],
)
def test_one_difference_in_the_database_is_found(restored: Backup, statement: str, named: str) -> None:
    run(restored.database, statement)
    results = restored.compare()
    assert get_status(results, Check.DATABASE_IS_EQUAL) is CheckStatus.FAILED
    assert named in get_summary(results, Check.DATABASE_IS_EQUAL)
    assert get_status(results, Check.BUCKET_IS_EQUAL) is CheckStatus.PASSED


@pytest.mark.parametrize(
    ("difference", "body", "content_type", "owner"),
    [
        ("bytes", b"Body of k3", "application/pdf", "somebody"),
        ("size", b"body of k3 and more", "application/pdf", "somebody"),
        ("content type", b"body of k3", "text/plain", "somebody"),
        ("metadata", b"body of k3", "application/pdf", "another client"),
    ],
)
def test_one_difference_in_an_object_is_found(
    restored: Backup, difference: str, body: bytes, content_type: str, owner: str
) -> None:
    put(restored.bucket, "k3", body, content_type=content_type, owner=owner)
    results = restored.compare()
    assert f"k3 ({difference})" in get_summary(results, Check.BUCKET_IS_EQUAL)
    assert get_status(results, Check.BUCKET_IS_EQUAL) is CheckStatus.FAILED
    assert (get_status(results, Check.BUCKET_IS_RESTORED) is CheckStatus.FAILED) == (difference == "size")
    assert get_status(results, Check.DATABASE_IS_EQUAL) is CheckStatus.PASSED


@pytest.mark.parametrize("difference", ["headers", "tags"])
def test_headers_and_tags_of_an_object_are_compared(restored: Backup, difference: str) -> None:
    client, body = client_of(restored.bucket), b"body of k3"
    tags = Tags.new_object_tags()
    tags["stage"] = "draft"
    headers = {"owner": "somebody"} | ({"Cache-Control": "no-store"} if difference == "headers" else {})
    client.put_object(
        restored.bucket.bucket,
        "k3",
        io.BytesIO(body),
        len(body),
        content_type="application/pdf",
        metadata=dict(headers),
        tags=tags if difference == "tags" else None,
    )
    results = restored.compare()
    assert f"k3 ({difference})" in get_summary(results, Check.BUCKET_IS_EQUAL)
    assert get_status(results, Check.BUCKET_IS_EQUAL) is CheckStatus.FAILED
    assert get_status(results, Check.BUCKET_IS_RESTORED) is CheckStatus.PASSED


def test_a_missing_object_is_found(restored: Backup) -> None:
    client_of(restored.bucket).remove_object(restored.bucket.bucket, "k3")
    results = restored.compare()
    assert "k3 (missing)" in get_summary(results, Check.BUCKET_IS_RESTORED)
    assert get_status(results, Check.BUCKET_IS_EQUAL) is CheckStatus.FAILED


def test_a_failed_comparison_makes_the_point_failed(restored: Backup) -> None:
    restored.commit()
    assert restored.catalog.get_point(ID).state is PointState.VERIFIED
    run(restored.database, "DELETE FROM jobs WHERE id = 1")
    restored.catalog.record_results(ID, restored.compare())
    assert restored.catalog.get_point(ID).state is PointState.FAILED


def test_different_properties_of_the_database_are_named(restored: Backup) -> None:
    equal = get_summary(restored.compare(), Check.DATABASE_IS_EQUAL)
    assert equal.endswith("the schema are equal")
    name = restored.database.database
    run(
        restored.database.with_database("postgres"),
        f'ALTER DATABASE "{name}" CONNECTION LIMIT 5; COMMENT ON DATABASE "{name}" IS \'x\'',
    )
    run(
        restored.database.with_database("postgres"),
        f'ALTER DATABASE "{name}" SET "app.key" = \'canary-7d1f\'',
    )
    equal = get_summary(restored.compare(), Check.DATABASE_IS_EQUAL)
    assert equal.endswith("; the database itself differs: connection limit 5 instead of -1, setting app.key")
