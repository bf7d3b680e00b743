"""A reverse proxy in front of a real S3 server that breaks chosen requests on purpose.

Requests and answers are streamed, with the Host header that the client signed. Add a fault when a test needs
a failure that a real network or server can cause.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from schedgen_backups_tests.support.http_server import JoiningHTTPServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    from schedgen_backups.core.settings import BucketSettings

PIECE_BYTES = 64 * 1024
UPSTREAM_TIMEOUT_SECONDS = 120
# They concern one connection only; the proxy has two.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
ERROR_CODES = {
    500: "InternalError",
    503: "SlowDown",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
}


@dataclass(frozen=True)
class RequestRecord:
    """One request as the proxy received it; the path is percent-encoded and includes its query."""

    method: str
    path: str
    range_header: str | None


Headers = list[tuple[str, str]]


@dataclass
class _Fault:
    kind: str
    matching: re.Pattern[str]
    method: str | None
    count: int | None
    status: int = 0
    code: str = ""
    after_bytes: int = 0
    seconds: float = 0
    callback: Callable[[RequestRecord], object] | None = None
    body: bytes = b""
    edit: Callable[[Headers], Headers] | None = None

    def takes(self, request: RequestRecord, kinds: tuple[str, ...]) -> bool:
        fits = (
            self.kind in kinds
            and self.method in (None, request.method)
            and self.matching.search(request.path)
        )
        if not fits or self.count == 0:
            return False
        if self.count is not None:
            self.count -= 1
        return True


class FaultyS3Proxy:
    """A proxy on 127.0.0.1 in front of the S3 server that `target` names; a context manager.

    Every fault affects the next `count` requests (None: all) whose path `matching` finds and whose method is
    `method`, GET for the faults of a body. Callbacks and faults apply from the next request on.
    """

    def __init__(self, target: BucketSettings) -> None:
        self.target = target.endpoint
        self._log: list[RequestRecord] = []
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(_Handler)
        self._server.proxy = self

    @property
    def endpoint(self) -> str:
        """Return the proxy's `host:port`."""
        return self._server.endpoint

    @property
    def errors(self) -> list[BaseException]:
        """Return the errors in the proxy itself, and of clients and servers that broke off."""
        return self._server.errors

    def settings(self, bucket: BucketSettings) -> BucketSettings:
        """Return the same bucket and keys, reached through the proxy."""
        return replace(bucket, endpoint=self.endpoint)

    def requests(self, *, method: str | None = None, matching: str = "") -> list[RequestRecord]:
        """Return the requests so far, oldest first."""
        with self._lock:
            found = list(self._log)
        return [
            entry for entry in found if method in (None, entry.method) and re.search(matching, entry.path)
        ]

    def fail_next(
        self,
        count: int | None = 1,
        *,
        status: int = 503,
        code: str = "",
        matching: str = "",
        method: str | None = None,
    ) -> None:
        """Answer the requests with this status and an S3 error; they never reach the server."""
        code = code or ERROR_CODES.get(status, "InternalError")
        self._add(_Fault("fail", re.compile(matching), method, count, status=status, code=code))

    def cut_body(
        self, after_bytes: int, count: int | None = 1, *, matching: str = "", method: str | None = "GET"
    ) -> None:
        """Break the answers off after this many bytes of a body that was announced in full."""
        self._add(_Fault("cut", re.compile(matching), method, count, after_bytes=after_bytes))

    def corrupt_body(self, count: int | None = 1, *, matching: str = "", method: str | None = "GET") -> None:
        """Invert the middle byte of the answers' body; length, ETag and status stay true."""
        self._add(_Fault("corrupt", re.compile(matching), method, count))

    def hang(
        self,
        seconds: float,
        *,
        after_bytes: int = 0,
        count: int | None = 1,
        matching: str = "",
        method: str | None = "GET",
    ) -> None:
        """Stop sending after this many bytes of the body for this many seconds, then break off."""
        self._add(
            _Fault("hang", re.compile(matching), method, count, after_bytes=after_bytes, seconds=seconds)
        )

    def answer(
        self, body: bytes, *, count: int | None = 1, matching: str = "", method: str | None = "GET"
    ) -> None:
        """Answer the requests with status 200 and this body, as a proxy's error page does.

        They never reach the server.
        """
        self._add(_Fault("answer", re.compile(matching), method, count, body=body))

    def edit_headers(
        self,
        edit: Callable[[Headers], Headers],
        *,
        count: int | None = None,
        matching: str = "",
        method: str | None = "GET",
    ) -> None:
        """Give the answers the headers that `edit` makes of the server's."""
        self._add(_Fault("edit", re.compile(matching), method, count, edit=edit))

    def lose_answer(self, count: int | None = 1, *, matching: str = "", method: str | None = "PUT") -> None:
        """Pass the requests on, and break off before the client gets any of the answer."""
        self._add(_Fault("lose", re.compile(matching), method, count))

    def delay(
        self, seconds: float, *, count: int | None = 1, matching: str = "", method: str | None = None
    ) -> None:
        """Delay the requests by this many seconds; pass them on unharmed."""
        self._add(_Fault("delay", re.compile(matching), method, count, seconds=seconds))

    def on_request(
        self,
        callback: Callable[[RequestRecord], object],
        *,
        matching: str = "",
        method: str | None = None,
        count: int | None = None,
    ) -> None:
        """Run the callback to its end before such a request is passed on, on its connection's thread."""
        self._add(_Fault("callback", re.compile(matching), method, count, callback=callback))

    def heal(self) -> None:
        """Remove all faults and callbacks."""
        with self._lock:
            self._faults.clear()

    def start(self) -> Self:
        """Start accepting requests."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop; all connections and threads have ended afterwards.

        Raise what went wrong in the proxy itself, if anything.
        """
        self._stopping.set()
        self._server.stop()

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def record(self, request: RequestRecord) -> None:
        """Append the request to the log."""
        with self._lock:
            self._log.append(request)

    def take(self, request: RequestRecord, *kinds: str) -> _Fault | None:
        """Return the oldest fault of these kinds that affects the request, counted as used."""
        with self._lock:
            return next((fault for fault in self._faults if fault.takes(request, kinds)), None)

    def pause(self, seconds: float) -> None:
        """Wait for this time, or until the proxy stops."""
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Server(JoiningHTTPServer):
    proxy: FaultyS3Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it a small answer waits 40 ms for the client's acknowledgement of its headers.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        proxy = self._proxy
        request = RequestRecord(self.command, self.path, self.headers.get("Range"))
        proxy.record(request)
        if (delay := proxy.take(request, "delay")) is not None:
            proxy.pause(delay.seconds)
        if (hook := proxy.take(request, "callback")) is not None and hook.callback is not None:
            hook.callback(request)
        if (failure := proxy.take(request, "fail")) is not None:
            self._refuse(failure.status, failure.code)
            return
        if (made := proxy.take(request, "answer")) is not None:
            self._send(200, made.body)
            return
        # A new one each time: the server closes idle connections, and a request on such a one would be lost.
        with contextlib.closing(
            http.client.HTTPConnection(proxy.target, timeout=UPSTREAM_TIMEOUT_SECONDS)
        ) as upstream:
            self._pass_on(upstream)
            # A connection that the server ends with its answer serves this answer only.
            with upstream.getresponse() as response:
                if proxy.take(request, "lose") is not None:
                    response.read()
                    self.close_connection = True
                    return
                self._answer(
                    response, proxy.take(request, "cut", "corrupt", "hang"), proxy.take(request, "edit")
                )

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (the base class's names)

    @property
    def _proxy(self) -> FaultyS3Proxy:
        assert isinstance(self.server, _Server)
        return self.server.proxy

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Write nothing to standard error: the request log is the record."""

    def _pieces(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionResetError("the client broke off its upload")
            left -= len(piece)
            yield piece

    def _refuse(self, status: int, code: str) -> None:
        body = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        )
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        for _ in self._pieces():
            pass
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pass_on(self, upstream: http.client.HTTPConnection) -> None:
        # The client's own Host and Accept-Encoding: they may be signed.
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                upstream.putheader(name, value)
        is_chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        if is_chunked:
            upstream.putheader("Transfer-Encoding", "chunked")
        upstream.endheaders()
        for piece in self._pieces():
            upstream.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            upstream.send(b"0\r\n\r\n")

    def _answer(self, response: http.client.HTTPResponse, fault: _Fault | None, edit: _Fault | None) -> None:
        length = response.getheader("Content-Length")
        has_body = self.command != "HEAD" and response.status not in (204, 304)
        is_chunked = has_body and length is None
        self.send_response_only(response.status, response.reason)
        headers = response.getheaders()
        for name, value in edit.edit(headers) if edit is not None and edit.edit is not None else headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        position = 0
        middle = int(length or 0) // 2
        while has_body and (piece := response.read1(PIECE_BYTES)):
            end = position + len(piece)
            if fault is not None and fault.kind == "corrupt" and position <= middle < end:
                changed = bytearray(piece)
                changed[middle - position] ^= 0xFF
                piece = bytes(changed)
            if fault is not None and fault.kind in ("cut", "hang") and end > fault.after_bytes:
                self._break_off(piece[: fault.after_bytes - position], fault.seconds)
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            position = end
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif has_body and position != int(length or 0):
            # The server itself broke off, and so must the proxy.
            self.close_connection = True

    def _break_off(self, last_piece: bytes, silence_seconds: float) -> None:
        self.wfile.write(last_piece)
        self._proxy.pause(silence_seconds)
        self.close_connection = True
