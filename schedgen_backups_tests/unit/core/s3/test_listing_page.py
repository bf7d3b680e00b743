"""Pages of a listing: what is read from them, and what is not a page."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from minio import Minio

from schedgen_backups.core.s3.listing_page import ListedObject, read_page

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def make_page(contents: str, more: str = "") -> bytes:
    return f"<ListBucketResult {NAMESPACE}><Name>b</Name>{contents}{more}</ListBucketResult>".encode()


def make_line(time: str, key: str = "a b/é+.pdf") -> str:
    fields = f"<LastModified>{time}</LastModified><ETag>&quot;abc&quot;</ETag><Size>7</Size>"
    return f"<Contents><Key>{key}</Key>{fields}</Contents>"


@pytest.mark.parametrize(
    ("time", "microseconds"),
    [
        ("2026-11-29T01:23:22Z", 0),
        ("2026-11-29T01:23:22.32Z", 320_000),
        ("2026-11-29T01:23:22.320383412Z", 320_383),
    ],
)
def test_an_object_is_read_at_any_precision_of_its_time(time: str, microseconds: int) -> None:
    page = read_page(make_page(make_line(time)))
    read_at = datetime(2026, 11, 29, 1, 23, 22, microseconds, tzinfo=timezone.utc)
    assert page.objects == (ListedObject("a b/é+.pdf", 7, "abc", None, read_at),)
    assert page.next_query is None


@pytest.mark.parametrize("time", ["", "yesterday", "2026-13-29T01:23:22Z", "Sun, 29 Nov 2026 01:23:22 GMT"])
def test_an_invalid_time_is_unknown_and_affects_nothing_else(time: str) -> None:
    page = read_page(make_page(make_line(time)))
    assert [(listed.key, listed.modified_at) for listed in page.objects] == [("a b/é+.pdf", None)]


def test_a_page_that_is_not_the_last_has_a_token_or_reports_its_lack() -> None:
    more = "<IsTruncated>true</IsTruncated>"
    token = "<NextContinuationToken>t</NextContinuationToken>"
    assert read_page(make_page("", f"{more}{token}")).next_query == {"continuation-token": "t"}
    assert read_page(make_page("", more)).next_query == {"continuation-token": ""}
    assert read_page(make_page("", f"<IsTruncated>false</IsTruncated>{token}")).next_query is None


def test_a_page_of_versions_has_delete_markers_and_continues_after_its_last_version() -> None:
    lines = (
        "<Version><Key>a</Key><VersionId>1</VersionId><Size>7</Size></Version>"
        "<DeleteMarker><Key>b</Key><VersionId>2</VersionId></DeleteMarker>"
    )
    more = (
        "<IsTruncated>true</IsTruncated>"
        "<NextKeyMarker>b</NextKeyMarker><NextVersionIdMarker>2</NextVersionIdMarker>"
    )
    page = read_page(f"<ListVersionsResult {NAMESPACE}>{lines}{more}</ListVersionsResult>".encode())
    assert [(listed.key, listed.version_id, listed.size_bytes) for listed in page.objects] == [
        ("a", "1", 7),
        ("b", "2", 0),
    ]
    assert page.next_query == {"key-marker": "b", "version-id-marker": "2"}


def test_escaped_keys_are_unescaped_where_the_page_requires_it() -> None:
    page = read_page(make_page("<EncodingType>url</EncodingType>" + make_line("", "a%09b+c")))
    assert page.objects[0].key == "a\tb c"


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"<Error><Code>InternalError</Code></Error>",
        make_page("<Contents><Key>a</Key></Contents>"),
        make_page(make_line("", "")),
    ],
    ids=["nothing", "no XML", "an error", "no size", "no key"],
)
def test_an_answer_that_is_not_a_page_is_refused(page: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_page(page)


def test_the_sdk_still_has_the_call_that_requests_a_page() -> None:
    """The call is private: because of it, pyproject.toml bounds the SDK's version."""
    assert callable(Minio._execute)
