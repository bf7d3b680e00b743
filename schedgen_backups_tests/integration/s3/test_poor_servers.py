"""Tags, versions and checksums on a server without them: unknown, unproven or a reported difference.

Never green, never a crash.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from minio.error import S3Error
from minio.versioningconfig import VersioningConfig

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.restore.bucket import find_difference
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.s3.refusals import ObjectRefusedError
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.verify.files import verify_archive, verify_every_object
from schedgen_backups_tests.support.artifacts import make_entry, make_noise, publish_archive
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

PART_BYTES = 5 << 20


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def test_a_multipart_object_is_proven_or_counted_as_unproven_with_the_reason(
    bucket: BucketSettings, catalog: Catalog
) -> None:
    body = make_noise(PART_BYTES + 1)
    client_of(bucket).put_object(
        bucket.bucket, "parts.bin", io.BytesIO(body), len(body), part_size=PART_BYTES
    )
    path = publish_archive(catalog, bucket)
    assert {result.status for result in (*verify_archive(path), verify_every_object(path))} == {
        CheckStatus.PASSED
    }
    with open_archive(path) as archive:
        (entry,) = archive.read_entries()
        assert archive.record.unproven_count == bool(entry.unproven)
    # An ETag with a number of parts is not an MD5; a server that joins the parts gives one.
    assert bool(entry.unproven) == ("-" in entry.etag)
    assert not entry.unproven or "multipart" in entry.unproven
    assert verify_every_object(path).figures["unproven"] == bool(entry.unproven)


def test_the_versioning_state_is_known_or_unknown(bucket: BucketSettings, catalog: Catalog) -> None:
    client_of(bucket).put_object(bucket.bucket, "a.pdf", io.BytesIO(b"a"), 1)
    with open_archive(publish_archive(catalog, bucket)) as archive:
        assert archive.record.is_versioned in (None, False)


def test_every_version_and_delete_marker_is_listed_where_there_are_versions(bucket: BucketSettings) -> None:
    client = client_of(bucket)
    try:
        client.set_bucket_versioning(bucket.bucket, VersioningConfig("Enabled"))
    except S3Error as error:
        if error.code != "NotImplemented":
            raise
        with BucketClient(bucket, threads=1, stall_timeout_seconds=30) as reader:
            assert reader.is_versioned() in (None, False)
        return
    for body in (b"one", b"two!"):
        client.put_object(bucket.bucket, "a.pdf", io.BytesIO(body), len(body))
    client.remove_object(bucket.bucket, "a.pdf")
    with BucketClient(bucket, threads=1, stall_timeout_seconds=30) as reader:
        versions = list(reader.list_versions())
        assert reader.is_versioned() is True
        assert list(reader.list_objects()) == []
    assert sorted(listed.size_bytes for listed in versions) == [0, 3, 4]
    assert len({listed.version_id for listed in versions}) == 3


def test_impossible_tags_are_refused_by_name(bucket: BucketSettings) -> None:
    entry = make_entry("a.pdf", b"body", tags={f"k{number}": "v" for number in range(12)})
    with BucketClient(bucket, threads=1, stall_timeout_seconds=30) as client:
        with pytest.raises(ObjectRefusedError, match=r"refuses the tags of object 'a\.pdf'") as caught:
            client.put_object(entry, io.BytesIO(b"body"))
        assert "restore-objects" in caught.value.hint
        assert client.find_head("a.pdf") is None


def test_tags_are_restored_or_reported_as_different(bucket: BucketSettings) -> None:
    entry = make_entry("a.pdf", b"body", tags={"owner": "me"})
    with BucketClient(bucket, threads=1, stall_timeout_seconds=30) as client:
        client.put_object(entry, io.BytesIO(b"body"))
        tags = client.read_tags("a.pdf")
        assert tags in ({}, {"owner": "me"})
        assert find_difference(client, entry) == ("" if tags else "tags")


def test_a_checksum_covers_the_whole_object_or_a_reason_is_given(bucket: BucketSettings) -> None:
    client_of(bucket).put_object(bucket.bucket, "a.pdf", io.BytesIO(b"a"), 1)
    with BucketClient(bucket, threads=1, stall_timeout_seconds=30) as client:
        (listed,) = client.list_objects()
        found = client.read_checksum("a.pdf", listed.etag)
        assert getattr(found, "reason", "") or getattr(found, "digest", b"")
