"""A small HTTP server that answers like S3 and is silent, slow or endless where a test wants it.

Bodies are generated as they are sent. Add a behavior when a test needs one that no real server shows.
"""

from __future__ import annotations

import hashlib
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.http_server import JoiningHTTPServer

Body = Iterator[bytes]
Answer = Callable[["Handler"], None]


class SlowS3(JoiningHTTPServer):
    """A bucket with the answers in `objects`, `listing` and `put`; a context manager."""

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(Handler)
        self._certificate = certificate
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.objects: dict[str, Answer] = {}
        self.listing: Answer = lambda handler: handler.send_whole(make_page([], ""))
        self.about_bucket: Answer = Handler.send_whole
        """Answers every other question about the bucket."""
        self.put: Answer = lambda handler: handler.send_whole(b"")
        self.requests: list[str] = []
        self.stopping = threading.Event()

    @property
    def settings(self) -> BucketSettings:
        """Return settings of the bucket."""
        return BucketSettings(
            self.endpoint,
            "key",
            "secret",
            "bucket",
            is_secure=self._certificate is not None,
            certificates_path=self._certificate,
        )

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore handshakes that a client broke off: they are not errors of the server."""
        if not isinstance(sys.exc_info()[1], ssl.SSLError):
            super().handle_error(request, client_address)

    def count(self, part: str) -> int:
        """Return how many requests had this in their path."""
        return sum(part in path for path in self.requests)

    def __enter__(self) -> SlowS3:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self.stop()


class Handler(BaseHTTPRequestHandler):
    """One connection; `server` is the SlowS3."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SlowS3

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix("/bucket").removeprefix("/")
        answer = (
            self.server.objects.get(key, Handler.refuse)
            if key
            else self.server.listing
            if "list-type" in parts.query
            else self.server.about_bucket
        )
        with suppress(ConnectionError, ssl.SSLError):
            answer(self)

    do_HEAD = do_GET  # noqa: N815 (the base class's names)

    def do_PUT(self) -> None:
        self.server.requests.append(self.path)
        with suppress(ConnectionError, ssl.SSLError):
            self.server.put(self)

    @property
    def token(self) -> int:
        """Return the number of the requested page."""
        return int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])

    def send_whole(self, body: bytes = b"") -> None:
        """Answer with this body."""
        self.begin(len(body), body)
        self.wfile.write(body)

    def refuse(self) -> None:
        """Answer that the object does not exist."""
        body = b"<Error><Code>NoSuchKey</Code><Message>on purpose</Message></Error>"
        self.begin(len(body), status=404)
        self.wfile.write(body)

    def begin(self, length: int, body: bytes | None = None, *, status: int = 200) -> None:
        """Send the head of an answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(length))
        if body is not None:
            self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
        self.end_headers()

    def be_silent(self) -> None:
        """Answer nothing until the test is over."""
        self.server.stopping.wait(60)
        self.close_connection = True

    def trickle(self, data: bytes, *, seconds: float) -> None:
        """Send a byte at a time."""
        for byte in data:
            if self.server.stopping.wait(seconds):
                break
            self.wfile.write(bytes([byte]))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Write nothing to standard error."""


def make_page(keys: list[tuple[str, int]], token: str) -> bytes:
    """Return a page of a listing; with a token, it is not the last."""
    contents = "".join(f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>" for key, size in keys)
    more = (
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        if token
        else ""
    )
    return f"<ListBucketResult><Name>bucket</Name>{contents}{more}</ListBucketResult>".encode()
