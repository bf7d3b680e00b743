"""Faults of S3 servers and networks: transient ones are retried, others reported; no object is lost silently.

A proxy in front of the real server breaks chosen requests. The pauses between tries are shortened, their
number is not.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import urllib3
from minio.commonconfig import Tags

from schedgen_backups.core.capture.object_reader import PARALLEL_RANGES, RANGE_BYTES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.errors import BackupError, BucketError, BucketMissingError, BucketUnreachableError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.records import ArchiveRecord
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.verify.files import verify_archive, verify_every_object
from schedgen_backups_tests.support.artifacts import (
    list_files,
    make_noise,
    make_transfer,
    publish_archive,
    spoken_by,
    write_archive,
)
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy, Headers
from schedgen_backups_tests.support.restores import compare_bucket, restore_bucket
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

EARLIER = "minio_schedgen-pdfs_20261101_020000.tar.gz"
BODIES = {f"{number}.pdf": make_noise(3000 + number, number) for number in range(12)}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.capture.object_reader._FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(urllib3.Retry, "get_backoff_time", lambda _retry: 0.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return a catalog of a directory with an earlier archive."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_archive(catalog.directory / EARLIER, [], point_id="20261101_020000")
    return catalog


@pytest.fixture
def proxy(bucket: BucketSettings) -> Iterator[FaultyS3Proxy]:
    """Yield a proxy in front of a bucket that holds BODIES."""
    for key, data in BODIES.items():
        put(bucket, key, data)
    with FaultyS3Proxy(bucket) as proxy:
        yield proxy


def put(bucket: BucketSettings, key: str, data: bytes) -> None:
    client_of(bucket).put_object(bucket.bucket, key, io.BytesIO(data), len(data))


def read_archive(path: Path) -> tuple[ArchiveRecord, dict[str, bytes]]:
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
        return archive.record, {entry.key: b"".join(archive.read_object(entry)) for entry in entries}


def assert_complete(path: Path, expected: dict[str, bytes] = BODIES) -> ArchiveRecord:
    assert {result.status for result in (*verify_archive(path), verify_every_object(path))} == {
        CheckStatus.PASSED
    }
    record, contents = read_archive(path)
    assert contents == expected
    return record


def assert_named_as_failed(path: Path, key: str) -> None:
    """Assert that the archive is incomplete and names this object alone as failed."""
    assert {result.status for result in verify_archive(path)} == {CheckStatus.PASSED}
    record, contents = read_archive(path)
    assert contents == {name: data for name, data in BODIES.items() if name != key}
    assert [missed.key for missed in record.failed] == [key]
    assert record.failed_count == 1
    result = verify_every_object(path)
    assert result.status is CheckStatus.FAILED
    assert key in result.summary


def assert_refused(
    catalog: Catalog, bucket: BucketSettings, kind: type[BackupError], **fields: object
) -> BackupError:
    """Assert that the capture fails with this error, reveals no secret and leaves the directory as it was."""
    with pytest.raises(kind) as caught:
        publish_archive(catalog, bucket, **fields)
    assert type(caught.value) is kind
    assert bucket.secret_key not in spoken_by(caught.value)
    assert list_files(catalog.directory) == [EARLIER]
    assert list((catalog.directory / ".staging").iterdir()) == []
    return caught.value


@pytest.mark.parametrize("status", [500, 503])
def test_a_temporarily_busy_server_is_asked_again(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, status: int
) -> None:
    proxy.fail_next(30, status=status, matching=r"\.pdf", method="GET")
    proxy.fail_next(3, status=status, matching="list-type")
    assert_complete(publish_archive(catalog, proxy.settings(bucket)))


def test_a_permanently_busy_server_is_unreachable(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(None, status=503)
    error = assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError)
    assert error.is_retryable
    assert error.hint


def test_a_listing_that_breaks_off_is_not_taken_for_a_smaller_bucket(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(None, status=503, matching="list-type", method="GET")
    assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError)
    proxy.heal()
    proxy.cut_body(200, None, matching="list-type")
    assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError)


def make_page(keys: list[str], *, token: str = "") -> bytes:
    """Return a page of a listing; with a token, it is not the last."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(BODIES.get(key, b''))}</Size></Contents>" for key in keys
    )
    more = (
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        if token
        else ""
    )
    return f"<ListBucketResult><Name>b</Name>{contents}{more}</ListBucketResult>".encode()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>", "InternalError"),
        (b"", "nothing"),
        (b"<html>not XML", "did not answer with a listing"),
        (
            b"<ListBucketResult><Name>b</Name><Contents><Key>x</Key><Size>-1</Size></Contents></ListBucketResult>",
            "did not answer with a listing",
        ),
        (
            b"<ListBucketResult><Name>b</Name><Contents><Key>x</Key><Size>big</Size></Contents></ListBucketResult>",
            "did not answer with a listing",
        ),
        (make_page(["0.pdf", "1.pdf", "0.pdf"]), "'0.pdf' twice"),
        (make_page(["a//b", "a//b"]), "'a//b' twice"),
        (make_page(["0.pdf"], token="same"), "does not end|twice"),
        (make_page([], token="same"), "does not end"),
    ],
    ids=[
        "error page",
        "nothing",
        "no XML",
        "negative size",
        "no size",
        "key twice",
        "escaped key twice",
        "same token",
        "no objects, same token",
    ],
)
def test_an_answer_that_is_not_a_listing_aborts_the_capture(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, page: bytes, message: str
) -> None:
    proxy.answer(page, count=None, matching="list-type")
    error = assert_refused(catalog, proxy.settings(bucket), BucketError)
    assert re.search(message, error.message), error.message
    assert error.hint
    assert len(proxy.requests(matching="list-type")) < 5


def test_pages_without_objects_abort_the_capture(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    for number in range(100):
        proxy.answer(make_page([], token=f"{number}"), matching="list-type")
    assert "empty pages" in assert_refused(catalog, proxy.settings(bucket), BucketError).message


def test_an_empty_page_in_between_is_not_the_end(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.answer(make_page(sorted(BODIES)[:5], token="one"), matching="list-type")
    proxy.answer(make_page([], token="two"), matching="list-type")
    proxy.answer(make_page(sorted(BODIES)[5:]), matching="list-type")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert read_archive(path)[1] == BODIES
    assert verify_every_object(path).status is CheckStatus.PASSED


def test_many_unreadable_objects_in_a_row_abort_the_capture(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    for number in range(25):
        put(bucket, f"more/{number}.pdf", b"x")
    proxy.fail_next(None, status=503, matching=r"\.pdf", method="GET")
    error = assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError)
    assert "objects in a row could not be read" in error.message


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidObjectState"])
def test_many_forbidden_objects_in_a_row_are_named_and_the_rest_is_kept(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, code: str
) -> None:
    refused = [f"cold/{number:02}.pdf" for number in range(25)]
    for key in refused:
        put(bucket, key, b"x")
    proxy.fail_next(None, status=403, code=code, matching="cold/", method="GET")
    path = publish_archive(catalog, proxy.settings(bucket))
    record, contents = read_archive(path)
    assert contents == BODIES
    assert [missed.key for missed in record.failed] == refused
    assert all(code in missed.reason for missed in record.failed)
    assert verify_every_object(path).status is CheckStatus.FAILED
    # Once by the fast path, once by the SDK, and never again.
    assert len(proxy.requests(matching="cold/00")) <= 2


def test_an_expired_login_aborts_the_capture(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    for number in range(25):
        put(bucket, f"more/{number}.pdf", b"x")
    proxy.fail_next(None, status=400, code="ExpiredToken", matching=r"\.pdf", method="GET")
    assert "ExpiredToken" in assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError).message


def test_one_permanently_refused_object_is_named_and_the_rest_is_kept(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(None, status=503, matching=r"/7\.pdf", method="GET")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


def test_a_truncated_body_is_read_again(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.cut_body(1000, 2, matching=r"/[37]\.pdf")
    assert_complete(publish_archive(catalog, proxy.settings(bucket)))
    assert len(proxy.requests(method="GET", matching=r"/[37]\.pdf")) >= 4


def test_a_body_that_is_always_truncated_is_named(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.cut_body(1000, None, matching=r"/7\.pdf")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


def test_a_body_that_does_not_match_its_etag_is_read_again(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.corrupt_body(1, matching=r"/7\.pdf")
    assert_complete(publish_archive(catalog, proxy.settings(bucket)))


def test_a_body_that_never_matches_its_etag_is_named(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.corrupt_body(None, matching=r"/7\.pdf")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert_named_as_failed(path, "7.pdf")
    assert "ETag" in read_archive(path)[0].failed[0].reason


def test_a_server_that_goes_silent_within_a_body_is_noticed(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.hang(60, after_bytes=500, count=1, matching=r"/7\.pdf")
    assert_complete(publish_archive(catalog, proxy.settings(bucket), stall_timeout_seconds=1))


def test_an_object_that_may_not_be_read_is_named(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(None, status=403, matching=r"/7\.pdf", method="GET")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


ERROR_PAGE = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>on purpose</Message></Error>"


@pytest.mark.parametrize(
    "body", [ERROR_PAGE, b"", make_noise(3007, 99)], ids=["error page", "nothing", "as many other bytes"]
)
def test_another_body_with_status_200_and_no_etag_is_not_the_object(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, body: bytes
) -> None:
    proxy.answer(body, count=None, matching=r"/7\.pdf")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


def test_a_large_object_that_is_an_error_page_is_named(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    put(bucket, "large.bin", make_noise(IN_MEMORY_BYTES + 2_000_000))
    proxy.answer(ERROR_PAGE, count=None, matching="large")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "large.bin")


def test_an_error_page_after_a_replacement_is_not_the_newer_object(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(2, status=412, matching=r"/7\.pdf", method="GET")
    proxy.answer(ERROR_PAGE, count=None, matching=r"/7\.pdf")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


def without(*names: str) -> Callable[[Headers], Headers]:
    return lambda headers: [(name, value) for name, value in headers if name.lower() not in names]


def test_an_answer_without_an_etag_is_compared_with_the_listing(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(without("etag"), matching=r"\.pdf")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert assert_complete(path).unproven_count == 0


def test_an_object_without_a_checksum_is_archived_and_counted_as_unproven(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(
        lambda headers: [*headers, ("x-amz-server-side-encryption", "aws:kms")], matching=r"/7\.pdf"
    )
    path = publish_archive(catalog, proxy.settings(bucket))
    assert assert_complete(path).unproven_count == 1
    result = verify_every_object(path)
    assert result.figures["unproven"] == 1
    assert "1 could not be compared" in result.summary
    with open_archive(path) as archive:
        reasons = {entry.key: entry.unproven for entry in archive.read_entries() if entry.unproven}
    assert list(reasons) == ["7.pdf"]
    assert reasons["7.pdf"].startswith("encrypted by the server with a customer key")


def with_headers(*added: tuple[str, str]) -> Callable[[Headers], Headers]:
    return lambda headers: [*headers, *added]


def test_an_sse_s3_object_is_proven_by_its_etag(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(with_headers(("x-amz-server-side-encryption", "AES256")), matching=r"/7\.pdf")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert assert_complete(path).unproven_count == 0


def test_an_sse_s3_object_whose_bytes_do_not_match_its_etag_is_refused(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(with_headers(("x-amz-server-side-encryption", "AES256")), matching=r"/7\.pdf")
    proxy.corrupt_body(None, matching=r"/7\.pdf")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "7.pdf")


ENCRYPTIONS = [
    ("x-amz-server-side-encryption", "aws:kms"),
    ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
]


def encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


FULL = ("x-amz-checksum-type", "FULL_OBJECT")
CHECKSUMS = {
    "sha256": encode(hashlib.sha256(BODIES["7.pdf"]).digest()),
    "crc32": encode(zlib.crc32(BODIES["7.pdf"]).to_bytes(4, "big")),
    "sha1": encode(hashlib.sha1(BODIES["7.pdf"], usedforsecurity=False).digest()),
}


@pytest.mark.parametrize("encryption", ENCRYPTIONS, ids=lambda header: header[0])
@pytest.mark.parametrize("algorithm", sorted(CHECKSUMS))
def test_a_full_object_checksum_proves_what_the_etag_does_not(
    catalog: Catalog,
    bucket: BucketSettings,
    proxy: FaultyS3Proxy,
    encryption: tuple[str, str],
    algorithm: str,
) -> None:
    proxy.edit_headers(with_headers(encryption), matching=r"/7\.pdf", method="GET")
    proxy.edit_headers(
        with_headers(encryption, FULL, (f"x-amz-checksum-{algorithm}", CHECKSUMS[algorithm])),
        matching=r"/7\.pdf",
        method="HEAD",
    )
    assert assert_complete(publish_archive(catalog, proxy.settings(bucket))).unproven_count == 0


def test_bytes_that_do_not_match_the_checksum_are_refused(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(with_headers(ENCRYPTIONS[0]), matching=r"/7\.pdf", method="GET")
    proxy.edit_headers(
        with_headers(FULL, ("x-amz-checksum-sha256", CHECKSUMS["sha256"])), matching=r"/7\.pdf", method="HEAD"
    )
    proxy.corrupt_body(None, matching=r"/7\.pdf")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert_named_as_failed(path, "7.pdf")
    assert "checksum (sha256)" in read_archive(path)[0].failed[0].reason


@pytest.mark.parametrize(
    "headers",
    [
        (("x-amz-checksum-type", "COMPOSITE"), ("x-amz-checksum-sha256", f"{CHECKSUMS['sha256']}-2")),
        (("x-amz-checksum-type", "COMPOSITE"), ("x-amz-checksum-sha256", CHECKSUMS["sha1"])),
        (FULL, ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")),
        (FULL, ("x-amz-checksum-sha256", "not base64!")),
        (FULL, ("x-amz-checksum-sha256", CHECKSUMS["sha1"])),
        (FULL,),
    ],
    ids=["of parts", "of parts without a count", "another algorithm", "no base64", "another length", "none"],
)
def test_a_checksum_of_parts_proves_nothing(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, headers: tuple[tuple[str, str], ...]
) -> None:
    proxy.edit_headers(with_headers(ENCRYPTIONS[0]), matching=r"/7\.pdf", method="GET")
    proxy.edit_headers(with_headers(*headers), matching=r"/7\.pdf", method="HEAD")
    assert assert_complete(publish_archive(catalog, proxy.settings(bucket))).unproven_count == 1


@pytest.mark.parametrize("status", [403, 501, 503])
def test_a_server_without_checksum_answers_leaves_the_object_unproven(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, status: int
) -> None:
    proxy.edit_headers(with_headers(ENCRYPTIONS[0]), matching=r"/7\.pdf", method="GET")
    proxy.fail_next(None, status=status, matching=r"/7\.pdf", method="HEAD")
    assert assert_complete(publish_archive(catalog, proxy.settings(bucket))).unproven_count == 1


@pytest.mark.parametrize("status", [403, 501, 503])
def test_a_server_that_hides_its_versioning_state_is_backed_up(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, status: int
) -> None:
    proxy.fail_next(None, status=status, matching="versioning")
    assert assert_complete(publish_archive(catalog, proxy.settings(bucket))).is_versioned is None
    proxy.heal()
    proxy.answer(b"<html>not XML", count=None, matching="versioning")
    path = publish_archive(catalog, proxy.settings(bucket), "20261123_020000")
    assert assert_complete(path).is_versioned is None


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "SignatureDoesNotMatch", "MINIO_SECRET_KEY"),
        (403, "InvalidAccessKeyId", "MINIO_ACCESS_KEY"),
        (403, "AccountProblem", "MINIO_ACCESS_KEY"),
        (400, "AuthorizationHeaderMalformed", "MINIO_REGION"),
        (400, "SlowDown", "log"),
    ],
)
def test_a_refusal_not_about_the_object_aborts_the_capture(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, status: int, code: str, hint: str
) -> None:
    for number in range(25):
        put(bucket, f"more/{number}.pdf", b"x")
    proxy.fail_next(None, status=status, code=code, matching=r"\.pdf", method="GET")
    error = assert_refused(catalog, proxy.settings(bucket), BucketUnreachableError)
    assert code in error.message
    assert hint in error.hint


def test_unreadable_headers_are_unknown_values(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    def edit(headers: Headers) -> Headers:
        odd = [
            ("Date", "yesterday"),
            ("Date", "or today"),
            ("x-amz-tagging-count", "some"),
            ("Last-Modified", "long ago"),
        ]
        return [*without("date", "last-modified")(headers), *odd]

    client = client_of(bucket)
    tags = Tags.new_object_tags()
    tags["owner"] = "me"
    client.set_object_tags(bucket.bucket, "7.pdf", tags)
    proxy.edit_headers(edit, matching=r"/7\.pdf$")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert_complete(path)
    with open_archive(path) as archive:
        assert {entry.key: entry.tags for entry in archive.read_entries() if entry.tags} == {
            "7.pdf": {"owner": "me"}
        }


def test_an_object_deleted_during_the_backup_is_counted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    client = client_of(bucket)
    proxy.on_request(
        lambda _request: client.remove_object(bucket.bucket, "7.pdf"),
        matching=r"/7\.pdf",
        method="GET",
        count=1,
    )
    path = publish_archive(catalog, proxy.settings(bucket))
    record = assert_complete(path, {key: data for key, data in BODIES.items() if key != "7.pdf"})
    assert (record.deleted_count, record.failed_count, record.listed_count) == (1, 0, 12)
    assert [missed.key for missed in record.deleted] == ["7.pdf"]
    assert verify_every_object(path).figures["deleted"] == 1


def test_an_object_still_in_the_listing_is_not_taken_for_deleted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.fail_next(None, status=404, matching=r"/7\.pdf", method="GET")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert_named_as_failed(path, "7.pdf")
    record = read_archive(path)[0]
    assert record.deleted_count == 0
    assert "the listing names it again" in record.failed[0].reason


def test_an_object_that_reappears_is_archived(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    """The first is held in memory, the second is streamed."""
    large = make_noise(IN_MEMORY_BYTES + 2_000_000)
    put(bucket, "large.bin", large)
    # By the fast path and by the SDK.
    proxy.fail_next(2, status=404, matching=r"/7\.pdf", method="GET")
    proxy.fail_next(1, status=404, matching="large", method="GET")
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)), {**BODIES, "large.bin": large})
    assert (record.listed_count, record.object_count, record.deleted_count, record.changed_count) == (
        13,
        13,
        0,
        0,
    )


def test_an_object_deleted_before_the_second_lookup_counts_as_deleted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    client = client_of(bucket)
    proxy.fail_next(2, status=404, matching=r"/7\.pdf", method="GET")
    proxy.on_request(
        lambda _request: client.remove_object(bucket.bucket, "7.pdf"),
        matching=r"/7\.pdf",
        method="GET",
        count=1,
    )
    record = assert_complete(
        publish_archive(catalog, proxy.settings(bucket)),
        {key: data for key, data in BODIES.items() if key != "7.pdf"},
    )
    assert [missed.key for missed in record.deleted] == ["7.pdf"]


@pytest.mark.parametrize("key", ["a\ufffdb", "a%01b", "a+b", "a b", "\u00fc.pdf"], ids=ascii)
def test_an_object_listed_under_another_spelling_is_not_taken_for_deleted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, key: str
) -> None:
    """No server returns objects by such a name, not even as a prefix.

    Only by what precedes the odd character.
    """
    proxy.answer(make_page([*BODIES, key]), count=None, matching=r"prefix=$")
    proxy.answer(make_page([key]), count=None, matching=r"prefix=a$")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert_named_as_failed(path, key)


def test_a_server_without_prefix_listing_does_not_show_what_was_deleted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.answer(make_page([*BODIES, "gone.pdf"]), matching="list-type")
    proxy.answer(make_page([*BODIES]), count=None, matching="prefix=gone")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "gone.pdf")


def test_second_lookups_use_prefixes_that_every_server_lists_alike(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    """Not the whole listing, and one request for keys with a common beginning."""
    gone = ["a/b.pdf", "a/My file.pdf", "a/My+.pdf", "a/My", "b/\u00fc.pdf"]
    proxy.answer(make_page([*BODIES, *gone]), matching="list-type")
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)))
    assert [missed.key for missed in record.deleted] == gone
    asked = [
        unquote(request.path.partition("&prefix=")[2]) for request in proxy.requests(matching="list-type")
    ]
    assert asked == ["", "a/b.pdf", "a/My", "b/"]


def test_more_deleted_objects_than_one_lookup_holds_are_all_counted(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedgen_backups.core.capture.bucket._GONE_IN_A_ROW", 2)
    gone = [f"gone/{number}.pdf" for number in range(5)]
    proxy.answer(make_page([*BODIES, *gone]), matching="list-type")
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)))
    assert [missed.key for missed in record.deleted] == gone
    assert record.deleted_count == 5


def test_an_object_replaced_during_the_backup_is_archived_in_its_newer_state(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.on_request(
        lambda _request: put(bucket, "7.pdf", b"the newer one"), matching=r"/7\.pdf", method="GET", count=1
    )
    path = publish_archive(catalog, proxy.settings(bucket))
    record = assert_complete(path, {**BODIES, "7.pdf": b"the newer one"})
    assert record.changed_count == 1
    with open_archive(path) as archive:
        assert [entry.key for entry in archive.read_entries() if entry.is_changed] == ["7.pdf"]


def test_an_object_added_after_the_listing_is_not_counted_as_missing(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.on_request(
        lambda _request: put(bucket, "new.pdf", b"new"), matching=r"/7\.pdf", method="GET", count=1
    )
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)))
    assert record.listed_count == 12


def test_a_large_object_that_breaks_off_is_resumed(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    """Only the rest is requested again, and only of the same object."""
    data = make_noise(IN_MEMORY_BYTES + 2_000_000)
    put(bucket, "large.bin", data)
    proxy.cut_body(10_000_000, 2, matching="large")
    assert_complete(publish_archive(catalog, proxy.settings(bucket)), {**BODIES, "large.bin": data})
    ranges = [
        request.range_header
        for request in proxy.requests(method="GET", matching="large")
        if request.range_header
    ]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").rstrip("-")) <= 10_000_000


def test_a_large_object_that_always_breaks_off_is_named(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    put(bucket, "large.bin", make_noise(IN_MEMORY_BYTES + 2_000_000))
    proxy.cut_body(0, None, matching="large")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "large.bin")


def test_a_large_object_with_wrong_bytes_leaves_nothing_in_the_archive(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    client_of(bucket).put_object(
        bucket.bucket,
        "large.bin",
        io.BytesIO(make_noise(IN_MEMORY_BYTES + 2_000_000)),
        IN_MEMORY_BYTES + 2_000_000,
        part_size=64 << 20,
    )
    proxy.corrupt_body(None, matching="large")
    assert_named_as_failed(publish_archive(catalog, proxy.settings(bucket)), "large.bin")


def test_a_large_object_replaced_while_it_is_read_is_archived_whole(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    """Parts of two objects must never be joined."""
    newer = make_noise(IN_MEMORY_BYTES + 3_000_000, 2)
    put(bucket, "large.bin", make_noise(IN_MEMORY_BYTES + 2_000_000))
    proxy.cut_body(5_000_000, 2, matching="large")
    seen = []

    def replace_before_the_rest(_request: object) -> None:
        seen.append(_request)
        if len(seen) == 3:
            put(bucket, "large.bin", newer)

    proxy.on_request(replace_before_the_rest, matching="large", method="GET")
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)), {**BODIES, "large.bin": newer})
    assert record.changed_count == 1


def test_a_very_large_object_is_read_in_ranges_that_may_break_off(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    data = make_noise(RANGE_BYTES * PARALLEL_RANGES + 3_000_001)
    put(bucket, "large.bin", data)
    proxy.cut_body(5_000_000, 4, matching="large")
    assert_complete(publish_archive(catalog, proxy.settings(bucket)), {**BODIES, "large.bin": data})
    ranges = {str(request.range_header) for request in proxy.requests(method="GET", matching="large")}
    assert {
        f"bytes={start}-{start + RANGE_BYTES - 1}"
        for start in range(0, RANGE_BYTES * PARALLEL_RANGES, RANGE_BYTES)
    } <= ranges


def test_a_very_large_object_replaced_between_its_ranges_is_archived_whole(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    """Ranges of two objects must never be joined."""
    newer = make_noise(RANGE_BYTES * PARALLEL_RANGES + 4_000_000, 2)
    put(bucket, "large.bin", make_noise(RANGE_BYTES * PARALLEL_RANGES + 3_000_000))
    lock = threading.Lock()
    seen = []

    def replace_before_the_third_range(_request: object) -> None:
        with lock:
            seen.append(_request)
            if len(seen) == 4:
                put(bucket, "large.bin", newer)

    proxy.on_request(replace_before_the_third_range, matching="large", method="GET")
    record = assert_complete(publish_archive(catalog, proxy.settings(bucket)), {**BODIES, "large.bin": newer})
    assert record.changed_count == 1


def test_a_wrong_secret_is_permanent_and_not_revealed(catalog: Catalog, bucket: BucketSettings) -> None:
    error = assert_refused(catalog, replace(bucket, secret_key="canary-7d1f-wrong"), BucketError)
    assert not error.is_retryable
    assert "MINIO_SECRET_KEY" in error.hint


def test_an_unknown_access_key_is_permanent(catalog: Catalog, bucket: BucketSettings) -> None:
    error = assert_refused(catalog, replace(bucket, access_key="nobody"), BucketError)
    assert not error.is_retryable


def test_a_missing_bucket_is_named(catalog: Catalog, bucket: BucketSettings) -> None:
    error = assert_refused(catalog, bucket.with_bucket("no-such-bucket"), BucketMissingError)
    assert "has no bucket no-such-bucket" in error.message
    assert "MINIO_BUCKET" in error.hint


@pytest.mark.parametrize("name", ["bad/bucket", "x", "spaces in it"])
def test_a_name_that_no_bucket_can_have_is_a_wrong_setting(
    catalog: Catalog, bucket: BucketSettings, name: str
) -> None:
    error = assert_refused(catalog, bucket.with_bucket(name), BucketError)
    assert error.hint == "Check MINIO_BUCKET."


def test_a_server_that_is_down_is_unreachable(catalog: Catalog, bucket: BucketSettings) -> None:
    (port,) = free_ports(1)
    error = assert_refused(catalog, replace(bucket, endpoint=f"127.0.0.1:{port}"), BucketUnreachableError)
    assert error.is_retryable
    assert "MINIO_ENDPOINT" in error.hint


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "127.0.0.1:9000/path", "not a host:1"])
def test_an_invalid_endpoint_is_a_wrong_setting(
    catalog: Catalog, bucket: BucketSettings, endpoint: str
) -> None:
    error = assert_refused(catalog, replace(bucket, endpoint=endpoint), BucketError)
    assert "MINIO_ENDPOINT" in error.message


def set_tag(bucket: BucketSettings, key: str) -> None:
    tags = Tags.new_object_tags()
    tags["owner"] = "me"
    client_of(bucket).set_object_tags(bucket.bucket, key, tags)


def say_tagged(proxy: FaultyS3Proxy, matching: str = r"/7\.pdf$") -> None:
    """Make the server say that these objects have a tag."""
    proxy.edit_headers(with_headers(("x-amz-tagging-count", "1")), matching=matching)


def read_notes(path: Path) -> dict[str, str]:
    with open_archive(path) as archive:
        return {entry.key: entry.tags_note for entry in archive.read_entries() if entry.tags_note}


def assert_tags_unknown(path: Path, key: str = "7.pdf") -> str:
    """Assert that every object is archived and this one's tags are unknown; return the reason."""
    assert assert_complete(path).unread_tags_count == 1
    result = verify_every_object(path)
    assert "the tags of 1 could not be read" in result.summary
    assert result.figures["unread_tags"] == 1
    notes = read_notes(path)
    assert list(notes) == [key]
    assert "Copy the object" not in notes[key]
    assert "refuses the key" not in notes[key]
    return notes[key]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (404, "NoSuchKey"),
        (400, "InvalidArgument"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (400, "ExpiredToken"),
    ],
)
def test_an_object_whose_tags_are_refused_keeps_its_bytes(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, status: int, code: str
) -> None:
    say_tagged(proxy)
    proxy.fail_next(None, status=status, code=code, matching=r"\?tagging")
    assert assert_tags_unknown(publish_archive(catalog, proxy.settings(bucket)))


def test_tags_that_a_busy_server_returns_at_last_are_known(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    set_tag(bucket, "7.pdf")
    proxy.answer(b"<html>busy", count=2, matching=r"\?tagging")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert assert_complete(path).unread_tags_count == 0
    with open_archive(path) as archive:
        assert {entry.key: entry.tags for entry in archive.read_entries() if entry.tags} == {
            "7.pdf": {"owner": "me"}
        }


def test_a_server_without_tags_leaves_none_unknown(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    proxy.edit_headers(with_headers(("x-amz-tagging-count", "some")), matching=r"/7\.pdf$")
    proxy.fail_next(None, status=501, code="NotImplemented", matching=r"\?tagging")
    assert assert_complete(publish_archive(catalog, proxy.settings(bucket))).unread_tags_count == 0


def make_tagging(*tags: str) -> bytes:
    return f"<Tagging><TagSet>{''.join(f'<Tag>{tag}</Tag>' for tag in tags)}</TagSet></Tagging>".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<html></html>",
        ERROR_PAGE,
        make_tagging("<Key></Key><Value>v</Value>"),
        make_tagging("<Key>a</Key>"),
        make_tagging("<Key>a&lt;&amp;</Key><Value>b!*</Value>"),
        make_tagging(*(f"<Key>k{number}</Key><Value>v</Value>" for number in range(12))),
    ],
    ids=["nothing", "no XML", "another page", "error page", "no key", "no value", "odd key", "too many"],
)
def test_an_object_whose_tags_cannot_be_read_keeps_its_bytes(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, body: bytes
) -> None:
    say_tagged(proxy)
    proxy.answer(body, count=None, matching=r"\?tagging")
    assert assert_tags_unknown(publish_archive(catalog, proxy.settings(bucket)))


def test_a_server_that_refuses_tags_is_not_asked_for_each_object(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    keys = [f"tagged/{number:02}" for number in range(40)]
    for key in keys:
        put(bucket, key, b"x")
    say_tagged(proxy, r"tagged/\d\d$")
    proxy.answer(b"<html>", count=None, matching=r"\?tagging")
    path = publish_archive(catalog, proxy.settings(bucket), download_threads=1)
    assert assert_complete(path, BODIES | dict.fromkeys(keys, b"x")).unread_tags_count == 40
    assert "not asked for: 20 times in a row" in read_notes(path)[keys[-1]]
    assert len(proxy.requests(matching=r"\?tagging")) == 80


def test_a_large_object_whose_tags_are_refused_keeps_its_bytes(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    large = make_noise(IN_MEMORY_BYTES + 2_000_000)
    put(bucket, "large.bin", large)
    say_tagged(proxy, "large")
    proxy.fail_next(None, status=403, matching=r"\?tagging")
    path = publish_archive(catalog, proxy.settings(bucket))
    assert assert_complete(path, {**BODIES, "large.bin": large}).unread_tags_count == 1
    assert list(read_notes(path)) == ["large.bin"]


def test_after_a_restore_objects_with_unread_tags_are_not_known_to_be_equal(
    catalog: Catalog, bucket: BucketSettings, second_bucket: BucketSettings, proxy: FaultyS3Proxy
) -> None:
    set_tag(bucket, "7.pdf")
    proxy.fail_next(None, status=403, matching=r"\?tagging")
    path = publish_archive(catalog, proxy.settings(bucket))
    restore_bucket(path, second_bucket, make_transfer(), overwrite=False, stop=threading.Event())
    # Tags that were set there meanwhile are not a difference.
    set_tag(second_bucket, "7.pdf")
    restored, equal = compare_bucket(path, second_bucket, make_transfer())
    assert (restored.status, equal.status) == (CheckStatus.PASSED, CheckStatus.UNKNOWN)
    assert "those of 1 could not be read" in equal.summary
    assert "AccessDenied" in equal.summary
