"""GETs beside the SDK, against real S3 servers: their results match the SDK's.

A capture of plain objects needs no other request.
"""

from __future__ import annotations

import gzip
import io

import pytest
from minio.commonconfig import Tags
from minio.error import S3Error

from schedgen_backups.core.concurrency.limits import RateLimit
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.s3.fast_get import DirectGets
from schedgen_backups.core.s3.object_head import read_head
from schedgen_backups.core.s3.refusals import ObjectChangedError, ObjectGoneError
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.integration.capture.test_bucket import KEYS
from schedgen_backups_tests.support.artifacts import make_noise
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration


def test_plain_objects_match_the_sdks(bucket: BucketSettings) -> None:
    client = client_of(bucket)
    kept = []
    tags = Tags.new_object_tags()
    tags["kind"] = "1 + 1"
    metadata: dict[str, str | list[str] | tuple[str]] = {
        "Cache-Control": "max-age=60",
        "x-amz-meta-name": "a  b",
    }
    for number, key in enumerate(KEYS):
        body = gzip.compress(b"page", mtime=0) if number == 0 else make_noise(number * 7000, number)
        encoding: dict[str, str | list[str] | tuple[str]] = (
            {"Content-Encoding": "gzip"} if number == 0 else {}
        )
        try:
            client.put_object(
                bucket.bucket,
                key,
                io.BytesIO(body),
                len(body),
                content_type="application/pdf",
                metadata={**metadata, **encoding},
                tags=tags,
            )
            kept.append((key, body))
        except (S3Error, ValueError):
            assert key in {
                "../escape",
                "double//slash",
                "/leading",
                "folder-object/",
                "back\\slash",
                "a",
                "a/b",
                "tab\there",
            }
    gets = DirectGets(bucket, RateLimit(0), tls=None, connect_timeout_seconds=60, stall_timeout_seconds=60)
    with BucketClient(bucket, threads=2, stall_timeout_seconds=60) as reader:
        listed = {entry.key: entry.etag for entry in reader.list_objects()}
        compared = 0
        for key, body in kept:
            if key not in listed:  # SeaweedFS stores it under another key
                continue
            answer = gets.get(key, etag=listed[key], limit_bytes=1 << 20)
            assert answer is not None, key
            with reader.open_object(key) as opened:
                head = read_head(key, answer.headers, 0)
                assert {**vars(head), "answered_at": None} == {**vars(opened.head), "answered_at": None}
                assert answer.body == b"".join(opened.read_blocks()) == body
            compared += 1
        assert compared >= 18
        assert len(gets._idle) == 1
        assert gets.get(KEYS[0], etag="0" * 32, limit_bytes=1 << 20) is None
        gets.close()


def test_refusals_match_the_sdks(bucket: BucketSettings) -> None:
    client_of(bucket).put_object(bucket.bucket, "a.pdf", io.BytesIO(b"a"), 1)
    with BucketClient(bucket, threads=2, stall_timeout_seconds=60) as reader:
        assert reader.read_object("a.pdf").data == b"a"
        with pytest.raises(ObjectGoneError):
            reader.read_object("b.pdf")
        with pytest.raises(ObjectChangedError):
            reader.read_object("a.pdf", etag="0" * 32)
