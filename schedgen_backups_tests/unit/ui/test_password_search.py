"""The search for passwords in UI queries takes nearly constant time; all other users wait meanwhile."""

from __future__ import annotations

import json

import pytest

from schedgen_backups.ui.gate import _holds_password  # pyright: ignore[reportPrivateUsage] - over HTTP each try would take a webserver

QUERY_BYTES = 1 << 20


@pytest.mark.takes_seconds
@pytest.mark.timeout(
    20
)  # 0.1 to 0.9 s each (2026-11-29); a search from each beginning to each end took 15 s for the first alone
@pytest.mark.parametrize(
    "piece",
    [
        "postgres://:::::::::::",
        "postgresql://a:b:",
        "://a:b",
        "://",
        "postgres://a:" + "x" * 590,
        "\\\\u00",
        "\\\\\\\\",
    ],
)
def test_no_query_takes_the_search_long(piece: str) -> None:
    assert not _holds_password((piece * QUERY_BYTES)[:QUERY_BYTES].encode())


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:p@h/d",
        "POSTGRES://u:p/ ?#\\w@h",
        "s3://key:secret@host/bucket",
        "https://a:b:c@h",
        "x" * 5000 + " http://u:p@h",
        "http://h:9000/x http://u:p@h",
        "host=h password=x",
        "sslpassword = 'x'",
    ],
)
def test_a_password_is_found(text: str) -> None:
    assert _holds_password(text.encode())
    assert _holds_password(json.dumps({"query": json.dumps({"database": text})}).encode())


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u@h:5432/d",
        "postgresql://h/d",
        "http://minio:9000/bucket",
        "http://minio:9000/bucket, ask: a.person@example.org",
        "http://u:@h",
        "https://h/?mail=a:b@example.org",
        "forgot the password",
    ],
)
def test_a_query_without_a_password_passes(text: str) -> None:
    assert not _holds_password(text.encode())
