"""Fast path for small objects: one signed GET on a persistent connection, accepted only without anomalies.

After a refusal, a broken connection, an unreachable server or any other anomaly, this module returns None.
`bucket` then repeats the request through the SDK, which retries and explains. Do not add retries,
explanations or writes here. docs/decisions/0014 explains why this exists next to the SDK.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from minio.helpers import BaseURL, check_object_name, quote
from urllib3.util import wait_for_read

from schedgen_backups.core.concurrency.limits import RateLimit
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.core.s3.exchange import Exchange, LimitedTlsSocket, limit_socket
from schedgen_backups.core.settings import BucketSettings

_BUFFER_BYTES = 64 << 10
"""Buffer for the head of an answer and what arrives with it, per connection."""
_MOST_MISSES = 20
"""After this many consecutive anomalies only the SDK is used."""
_BUSY_STATUSES = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
_SIGNED_HEADERS = "host;x-amz-content-sha256;x-amz-date"
_NO_BODY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class DirectAnswer:
    """A completely received object."""

    headers: dict[str, str]
    """Names in lower case; repeated headers are joined by commas."""
    body: bytearray


@dataclass(frozen=True)
class _Connection:
    socket: socket.socket
    buffer: memoryview
    exchange: Exchange


class DirectGets:
    """GETs of one bucket's objects from several threads, each on its own reusable connection.

    `on_busy` is called when the server answers that it is too busy.
    """

    def __init__(
        self,
        settings: BucketSettings,
        rate_limit: RateLimit,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout_seconds: float,
        stall_timeout_seconds: float,
        on_busy: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings = settings
        self._on_busy = on_busy
        self._rate_limit = rate_limit
        self._connect_timeout_seconds = connect_timeout_seconds
        self._stall_timeout_seconds = stall_timeout_seconds
        self._tls = tls
        # The SDK decides how a bucket is addressed; the part before the key is the same for every key.
        base = BaseURL(("https://" if settings.is_secure else "http://") + settings.endpoint, settings.region)
        self._url = base.build(
            method="GET", region=settings.region, bucket_name=settings.bucket, object_name="x"
        )
        self._folder = self._url.path[:-1]
        self._idle: deque[_Connection] = deque()
        self._misses = 0
        self._signing_key = ("", b"")

    def get(self, key: str, *, etag: str | None, limit_bytes: int) -> DirectAnswer | None:
        """Return the object, or None if the fast path does not apply.

        It applies if the object arrives whole, is not larger than the limit and has this `etag`, if given.
        """
        if self._misses >= _MOST_MISSES:
            return None
        answer = None
        # The SDK runs into the same error and explains it.
        with suppress(OSError, ValueError, HttpParserError, HttpParserUpgrade):
            answer = self._ask(self._make_request(key, etag, datetime.now(timezone.utc)), etag, limit_bytes)
        self._misses = 0 if answer else self._misses + 1
        return answer

    def close(self) -> None:
        """Close the connections that no thread is using."""
        while self._idle:
            self._idle.pop().socket.close()

    def _ask(self, request: bytes, etag: str | None, limit_bytes: int) -> DirectAnswer | None:
        connection = self._take_idle() or self._connect()
        is_reusable = False
        try:
            answer = _Answer()
            parser = HttpResponseParser(answer)
            connection.exchange.begin()
            connection.socket.sendall(request)
            while not answer.is_head_complete:
                if not (count := self._receive(connection, connection.buffer)):
                    return None
                parser.feed_data(connection.buffer[:count])
            if parser.get_status_code() in _BUSY_STATUSES:
                self._on_busy()
            length = answer.get_length()
            is_other = etag and answer.headers.get("etag", "").strip('"') != etag
            if (
                parser.get_status_code() != HTTPStatus.OK
                or is_other
                or length > limit_bytes
                or "transfer-encoding" in answer.headers
            ):
                return None
            # The rest of the body is received in place, without passing the parser.
            body = bytearray(length)
            begin = b"".join(answer.pieces)
            body[: len(begin)] = begin
            missing = memoryview(body)[len(begin) :]
            while missing:
                if not (count := self._receive(connection, missing)):
                    return None
                missing = missing[count:]
            # The parser's own flag for this is reset when the answer is complete.
            is_reusable = (
                parser.get_http_version() == "1.1"
                and answer.headers.get("connection", "keep-alive").lower() == "keep-alive"
            )
            return DirectAnswer(answer.headers, body)
        finally:
            if is_reusable:
                self._idle.append(connection)
            else:
                connection.socket.close()

    def _receive(self, connection: _Connection, place: memoryview) -> int:
        count = connection.socket.recv_into(place)
        self._rate_limit.wait_for(count)
        return count

    def _take_idle(self) -> _Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            # Data before any request is the server's close, or an answer to another request.
            if not wait_for_read(connection.socket, timeout=0):
                return connection
            connection.socket.close()

    def _connect(self) -> _Connection:
        host = self._url.hostname or ""
        port = self._url.port or (443 if self._settings.is_secure else 80)
        opened = socket.create_connection((host, port), timeout=self._connect_timeout_seconds)
        exchange = Exchange(self._stall_timeout_seconds)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                opened = limit_socket(opened, exchange)
            else:
                opened = self._tls.wrap_socket(opened, server_hostname=host)
                cast("LimitedTlsSocket", opened).exchange = exchange
        except BaseException:
            opened.close()
            raise
        return _Connection(opened, memoryview(bytearray(_BUFFER_BYTES)), exchange)

    def _make_request(self, key: str, etag: str | None, now: datetime) -> bytes:
        """Return the request, signed with AWS Signature Version 4.

        Source: S3 API reference, signature in the Authorization header.
        """
        check_object_name(key)
        # The ETag comes from the server: it must not be able to add a header line.
        if etag is not None and not etag.isprintable():
            raise ValueError(f"invalid ETag: {etag!r}")
        path = self._folder + quote(key)
        host = self._url.netloc
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{self._settings.region}/s3/aws4_request"
        canonical = (
            f"GET\n{path}\n\nhost:{host}\nx-amz-content-sha256:{_NO_BODY_SHA256}\nx-amz-date:{stamp}\n\n"
            f"{_SIGNED_HEADERS}\n{_NO_BODY_SHA256}"
        )
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._get_signing_key(stamp[:8]), text.encode(), "sha256").hex()
        condition = f'If-Match: "{etag}"\r\n' if etag else ""
        return (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: "
            f"schedgen-backups/{TOOL_VERSION}\r\nAccept-Encoding: identity\r\n"
            f"x-amz-content-sha256: {_NO_BODY_SHA256}\r\nx-amz-date: {stamp}\r\n{condition}Authorization: "
            "AWS4-HMAC-SHA256 "
            f"Credential={self._settings.access_key}/{scope}, SignedHeaders={_SIGNED_HEADERS}, "
            f"Signature={signature}\r\n\r\n"
        ).encode("latin-1")

    def _get_signing_key(self, day: str) -> bytes:
        known_day, key = self._signing_key
        if known_day != day:
            key = f"AWS4{self._settings.secret_key}".encode()
            for part in (day, self._settings.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._signing_key = (day, key)
        return key


class _Answer:
    """The parser's state of one answer."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.is_head_complete = False
        self.is_complete = False

    def get_length(self) -> int:
        """Return the announced length; ValueError if there is none."""
        return int(self.headers.get("content-length", ""))

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise ValueError("unexpected second answer")

    def on_header(self, name: bytes, value: bytes | None) -> None:
        # In the same form as the SDK.
        key = name.decode("latin-1").lower()
        text = (value or b"").decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.is_head_complete = True

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = True
