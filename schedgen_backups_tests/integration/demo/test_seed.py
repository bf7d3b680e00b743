"""The demo's data: plausible, consistent, reproducible, and deleted on loopback only."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pypdf
import pytest

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.demo.seed import SeedSummary, destroy_application, seed_application
from schedgen_backups_tests.support.servers import client_of, run

if TYPE_CHECKING:
    from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

pytestmark = pytest.mark.integration


def contents(bucket: BucketSettings) -> dict[str, bytes]:
    client = client_of(bucket)
    found = {}
    for entry in client.list_objects(bucket.bucket, recursive=True):
        assert entry.object_name is not None
        with client.get_object(bucket.bucket, entry.object_name) as response:
            found[entry.object_name] = response.read()
    return found


def test_every_key_in_the_database_is_an_object_and_vice_versa(
    database: DatabaseSettings, bucket: BucketSettings, seeded: SeedSummary
) -> None:
    objects = contents(bucket)
    keys = {row[0] for row in run(database, "SELECT s3_key FROM jobs WHERE s3_key IS NOT NULL")}
    assert keys == set(objects)
    assert seeded == SeedSummary(20, 40, len(objects), sum(map(len, objects.values())))
    assert run(database, "SELECT count(*) FROM users") == [(20,)]
    assert run(database, "SELECT count(*) FROM jobs") == [(40,)]


def test_every_object_is_a_different_pdf_that_opens(bucket: BucketSettings, seeded: SeedSummary) -> None:
    objects = contents(bucket)
    assert len({hashlib.sha256(content).digest() for content in objects.values()}) == seeded.objects
    for key, content in objects.items():
        document = pypdf.PdfReader(io.BytesIO(content), strict=True)
        assert "Lecture timetable, week 1" in document.pages[0].extract_text()
        assert document.metadata is not None
        assert document.metadata.title == key.split("/")[2]


def test_objects_carry_type_metadata_and_some_tags(
    database: DatabaseSettings, bucket: BucketSettings, seeded: SeedSummary
) -> None:
    client = client_of(bucket)
    tagged = 0
    for key, user_id in run(database, "SELECT s3_key, user_id FROM jobs WHERE s3_key IS NOT NULL"):
        entry = client.stat_object(bucket.bucket, key)
        assert entry.content_type == "application/pdf"
        assert entry.metadata is not None
        assert entry.metadata["x-amz-meta-uploaded-by"] == str(user_id)
        assert entry.metadata["x-amz-meta-original-filename"].isascii()
        tagged += client.get_object_tags(bucket.bucket, key) is not None
    assert 0 < tagged < seeded.objects


def test_the_same_seed_gives_the_same_rows_and_bytes(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
) -> None:
    seed_application(database, bucket, user_count=5, job_count=12, seed=7)
    time.sleep(1.1)  # A clock reading in the PDFs would show.
    seed_application(second_database, second_bucket, user_count=5, job_count=12, seed=7)
    assert contents(bucket) == contents(second_bucket)
    for statement in ("SELECT * FROM users ORDER BY id", "SELECT * FROM jobs ORDER BY id"):
        assert run(database, statement) == run(second_database, statement)


def test_the_full_size_has_odd_keys_and_varied_files(
    database: DatabaseSettings, bucket: BucketSettings
) -> None:
    summary = seed_application(database, bucket)
    assert (summary.users, summary.jobs) == (1000, 2000)
    assert 1850 < summary.objects < 1950
    entries = list(client_of(bucket).list_objects(bucket.bucket, recursive=True))
    keys = [entry.object_name or "" for entry in entries]
    sizes = [entry.size or 0 for entry in entries]
    assert sum(sizes) == summary.object_bytes
    assert min(sizes) < 10_000
    assert max(sizes) > 100_000
    for odd in (" ", "%", "ë", "Ü", "課", "#", "?", "&", "+", "'"):
        assert any(odd in key for key in keys), odd
    # All four states, all three types, and a unique index that accepted every key.
    assert run(database, "SELECT count(DISTINCT status), count(DISTINCT pdf_type) FROM jobs") == [(4, 3)]


def test_updates_move_updated_at(database: DatabaseSettings, seeded: SeedSummary) -> None:
    run(database, "UPDATE jobs SET status = 'completed'")
    statement = "SELECT count(*) FROM jobs WHERE updated_at > now() - interval '1 minute'"
    assert run(database, statement) == [(seeded.jobs,)]


def test_a_destroyed_demo_is_empty_and_can_be_seeded_again(
    database: DatabaseSettings, bucket: BucketSettings, seeded: SeedSummary
) -> None:
    destroy_application(database, bucket)
    assert run(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    assert contents(bucket) == {}
    assert seed_application(database, bucket, user_count=20, job_count=40) == seeded


def test_only_loopback_is_ever_destroyed(database: DatabaseSettings, bucket: BucketSettings) -> None:
    for remote_database, remote_bucket in (
        (replace(database, host="db.example"), bucket),
        (database, replace(bucket, endpoint="s3.example:9000")),
    ):
        with pytest.raises(ConfigurationError, match="refused to destroy"):
            destroy_application(remote_database, remote_bucket)
