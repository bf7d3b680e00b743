"""GETs beside the SDK: plain answers use a persistent connection, and nothing odd passes for an object.

A server on loopback sends given bytes. The integration tests cover the answers of real S3 servers.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from minio.credentials import Credentials
from minio.helpers import BaseURL
from minio.signer import sign_v4_s3
from urllib3.util import wait_for_read

from schedgen_backups.core.concurrency.limits import RateLimit
from schedgen_backups.core.s3.exchange import make_tls_context
from schedgen_backups.core.s3.fast_get import DirectGets
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.certificates import make_certificate
from schedgen_backups_tests.support.http_server import JoiningHTTPServer
from schedgen_backups_tests.unit.core.formats.test_member_name import IMPOSSIBLE_KEYS, PLAIN_KEYS

SETTINGS = BucketSettings("127.0.0.1:9", "canary-access", "canary-secret-5f0c", "pdfs")
PLAIN = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "e"\r\nX-Amz-Meta-A: one\r\nX-Amz-Meta-A: '
    b"two\r\nX-Amz-Meta-Empty:\r\nServer: x\r\n\r\nwhole"
)
LIMIT = 1000


class _Server(JoiningHTTPServer):
    answer = PLAIN
    is_closing = False

    def __init__(self) -> None:
        self.connections: list[int] = []
        """The client's port of each request."""
        self.conditions: list[str | None] = []
        super().__init__(_Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore handshakes that a client broke off: they are not errors of the server."""
        if not isinstance(sys.exc_info()[1], ssl.SSLError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.connections.append(self.client_address[1])
        self.server.conditions.append(self.headers["If-Match"])
        self.wfile.write(self.server.answer)
        self.close_connection = self.server.is_closing

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Write nothing to standard error."""


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server()
    server.start()
    yield server
    server.stop()


@contextmanager
def open_gets(
    endpoint: str, *, certificates: Path | None = None, stall_timeout_seconds: float = 60
) -> Iterator[DirectGets]:
    settings = replace(SETTINGS, endpoint=endpoint, is_secure=certificates is not None)
    gets = DirectGets(
        settings,
        RateLimit(0),
        tls=make_tls_context(str(certificates)) if certificates else None,
        connect_timeout_seconds=60,
        stall_timeout_seconds=stall_timeout_seconds,
    )
    try:
        yield gets
    finally:
        gets.close()


def read_body(gets: DirectGets, key: str = "a.pdf", etag: str | None = None) -> bytes | None:
    answer = gets.get(key, etag=etag, limit_bytes=LIMIT)
    return None if answer is None else answer.body


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, is_secure=True, endpoint="minio.example.com", region="eu-central-1"),
        replace(SETTINGS, is_secure=True, endpoint="s3.amazonaws.com"),
        replace(SETTINGS, is_secure=True, endpoint="s3.amazonaws.com", bucket="with.dots"),
    ],
)
def test_requests_are_addressed_and_signed_as_the_sdk_does(settings: BucketSettings) -> None:
    now = datetime(2026, 11, 25, 2, 0, 3, tzinfo=timezone.utc)
    base = BaseURL(f"{'https' if settings.is_secure else 'http'}://{settings.endpoint}", settings.region)
    gets = DirectGets(settings, RateLimit(0), tls=None, connect_timeout_seconds=1, stall_timeout_seconds=1)
    keys = [
        key
        for key in (*PLAIN_KEYS, *IMPOSSIBLE_KEYS, "a b+c%20~*(é).pdf")
        if key and not {".", ".."} & set(key.split("/")) and can_encode(key)
    ]
    assert len(keys) > 10
    for key in keys:
        first, *lines = (
            gets._make_request(key, "e", now).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        )
        headers = dict(line.split(": ", 1) for line in lines)
        url = base.build(method="GET", region=settings.region, bucket_name=settings.bucket, object_name=key)
        assert (first, headers["Host"]) == (f"GET {url.path} HTTP/1.1", url.netloc)
        assert headers["If-Match"] == '"e"'
        signed = {name: headers[name] for name in ("Host", "x-amz-content-sha256", "x-amz-date")}
        expected = sign_v4_s3(
            method="GET",
            url=url,
            region=settings.region,
            headers=signed,
            credentials=Credentials(settings.access_key, settings.secret_key),
            content_sha256=headers["x-amz-content-sha256"],
            date=now,
        )
        assert headers["Authorization"] == expected["Authorization"]


def test_whole_answers_are_read_on_one_connection(server: _Server) -> None:
    with open_gets(server.endpoint) as gets:
        answers = [gets.get("a.pdf", etag=etag, limit_bytes=LIMIT) for etag in (None, "e", "e")]
    assert [answer is not None and answer.body for answer in answers] == [b"whole"] * 3
    assert answers[0] is not None
    assert answers[0].headers == {
        "content-length": "5",
        "etag": '"e"',
        "x-amz-meta-a": "one, two",
        "x-amz-meta-empty": "",
        "server": "x",
    }
    assert len(set(server.connections)) == 1
    assert server.conditions == [None, '"e"', '"e"']


@pytest.mark.parametrize(
    ("answer", "then"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n<xml>", "stay"),
        (b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n", "stay"),
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 5\r\n\r\nwhole", "stay"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nwhole", "stay"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", "stay"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "stay"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, "stay"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nwhole", "close"),
        (b"HTTP/1.1 200 OK\r\n\r\nwhole", "close"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", "stay"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nwhole", "close"),
        (PLAIN + PLAIN, "stay"),
        (PLAIN.replace(b'"e"', b'"f"'), "stay"),
        (PLAIN + b"garbage", "stay"),
        (b"", "close"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "close"),
    ],
)
def test_an_odd_answer_is_none_and_its_connection_is_not_reused(
    server: _Server, answer: bytes, then: str
) -> None:
    server.answer, server.is_closing = answer, then == "close"
    with open_gets(server.endpoint) as gets:
        assert read_body(gets, etag="e") is None
        server.answer, server.is_closing = PLAIN, False
        assert read_body(gets, etag="e") == b"whole"
    assert len(set(server.connections)) == 2


def test_a_connection_that_the_server_will_close_is_not_reused(server: _Server) -> None:
    server.answer, server.is_closing = PLAIN.replace(b"Server: x", b"Connection: close"), True
    with open_gets(server.endpoint) as gets:
        assert [read_body(gets), read_body(gets)] == [b"whole"] * 2


def test_a_connection_closed_by_the_server_is_not_reused(server: _Server) -> None:
    server.is_closing = True
    with open_gets(server.endpoint) as gets:
        for _ in range(3):
            assert read_body(gets) == b"whole"
            assert wait_for_read(gets._idle[0].socket, timeout=60)
    assert len(set(server.connections)) == 3


def test_a_late_second_answer_is_not_taken_for_the_next_one(server: _Server) -> None:
    with open_gets(server.endpoint) as gets:
        assert read_body(gets) == b"whole"
        (there,) = server._open
        there.sendall(PLAIN.replace(b"whole", b"wrong"))
        assert wait_for_read(gets._idle[0].socket, timeout=60)
        assert read_body(gets) == b"whole"
    assert len(set(server.connections)) == 2


def test_a_silent_server_gives_none(server: _Server) -> None:
    server.answer = PLAIN[:-2]
    with open_gets(server.endpoint, stall_timeout_seconds=0.2) as gets:
        assert read_body(gets) is None


def test_a_missing_server_or_host_name_gives_none() -> None:
    for endpoint in (f"127.0.0.1:{free_ports(1)[0]}", "no-such-host.invalid:1"):
        with open_gets(endpoint) as gets:
            assert read_body(gets) is None


def test_an_overloaded_server_is_reported_as_busy(server: _Server) -> None:
    heard: list[int] = []
    settings = replace(SETTINGS, endpoint=server.endpoint)
    gets = DirectGets(
        settings,
        RateLimit(0),
        tls=None,
        connect_timeout_seconds=60,
        stall_timeout_seconds=60,
        on_busy=lambda: heard.append(len(heard)),
    )
    for status in (
        b"503 Slow Down",
        b"429 Too Many Requests",
        b"404 Not Found",
        b"500 Internal Server Error",
    ):
        server.answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
        assert read_body(gets) is None
    gets.close()
    assert len(heard) == 2


def test_after_many_odd_answers_in_a_row_nothing_more_is_requested(server: _Server) -> None:
    with open_gets(server.endpoint) as gets:
        server.answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        assert [read_body(gets) for _ in range(19)] == [None] * 19
        server.answer = PLAIN
        assert read_body(gets) == b"whole"
        server.answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        assert [read_body(gets) for _ in range(30)] == [None] * 30
    assert len(server.connections) == 19 + 1 + 20


@pytest.mark.parametrize(
    ("key", "etag"),
    [("a", "e\r\nX: y"), ("a", "é☃"), ("a/../b", None), (".", None), ("\udc80", None), ("", None)],
)
def test_what_cannot_be_sent_is_not_sent(server: _Server, key: str, etag: str | None) -> None:
    with open_gets(server.endpoint) as gets:
        assert read_body(gets, key, etag) is None
    assert server.connections == []


def test_a_certificate_is_verified(tmp_path: Path) -> None:
    ours, other = make_certificate(tmp_path / "ours"), make_certificate(tmp_path / "other")
    server = _Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours, ours.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.start()
    try:
        with open_gets(server.endpoint, certificates=ours) as gets:
            assert [read_body(gets), read_body(gets)] == [b"whole"] * 2
        for endpoint, certificates in (
            (server.endpoint, other),
            (server.endpoint.replace("127.0.0.1", "localhost"), ours),
        ):
            with open_gets(endpoint, certificates=certificates) as gets:
                assert read_body(gets) is None
        assert len(set(server.connections)) == 1
    finally:
        server.stop()


def can_encode(key: str) -> bool:
    """Return whether UTF-8 can encode it."""
    return not any("\ud800" <= character <= "\udfff" for character in key)
