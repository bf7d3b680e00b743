"""Sockets and connections with a time limit for a whole exchange with the S3 server.

urllib3's pool below the SDK and `fast_get` both use them. A socket timeout applies to one read only, and a
server may send a byte before each timeout expires.
"""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

LOWEST_BYTES_PER_SECOND = 5_000
"""A slower transfer is considered hung. 16 concurrent transfers on a line of 1 Mbit/s have 7,800 each."""
ANSWER_LIMIT_BYTES = 16 << 20
"""Limit for every answer that is not an object. A listing page has a thousand keys of at most 1,024 bytes,
and escaping may triple each."""
_PIECE_BYTES = 256 << 10
_MAX_RETRY_AFTER_SECONDS = 30.0
"""Upper bound of a busy server's Retry-After, which may be a day."""


class EndlessAnswerError(OSError):
    """An answer other than an object that exceeds the longest one the protocol allows."""


class Exchange:
    """The remaining time and bytes of one request and its answer.

    All waits for the server together may last the stall timeout, plus the time that the transferred bytes
    take at the lowest accepted rate. Time that the caller spends between two reads is not counted.
    """

    def __init__(self, stall_timeout_seconds: float) -> None:
        self._stall_timeout_seconds = stall_timeout_seconds
        self._most_received: int | None = None
        self.begin()

    def begin(self) -> None:
        """Reset the limits for the next request."""
        self._left_seconds = self._stall_timeout_seconds
        self._received = 0
        self._most_received = None

    def limit_answer(self) -> None:
        """Limit the answer to the size of one that is not an object."""
        self._most_received = self._received + ANSWER_LIMIT_BYTES

    def get_timeout(self) -> float:
        """Return the limit in seconds of the next wait.

        TimeoutError if the time is used up, EndlessAnswerError if the bytes are.
        """
        if self._left_seconds <= 0:
            raise TimeoutError(
                f"slower than {LOWEST_BYTES_PER_SECOND} bytes a second for {self._stall_timeout_seconds:g} s"
            )
        if self._most_received is not None and self._received > self._most_received:
            raise EndlessAnswerError("the answer is too long")
        return min(self._left_seconds, self._stall_timeout_seconds)

    def note_sent(self, count: int, seconds: float) -> None:
        """Account for `count` sent bytes after a wait of `seconds`."""
        self._left_seconds += count / LOWEST_BYTES_PER_SECOND - seconds

    def note_received(self, count: int, seconds: float) -> None:
        """Account for `count` received bytes after a wait of `seconds`."""
        self._received += count
        self._left_seconds += count / LOWEST_BYTES_PER_SECOND - seconds


class _LimitedMixin(socket.socket):
    """A socket whose reads and writes count for its exchange, once one is set."""

    exchange: Exchange | None = None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.exchange is None:
            return super().recv_into(buffer, nbytes or 0, flags)
        self.settimeout(self.exchange.get_timeout())
        started = time.monotonic()
        count = super().recv_into(buffer, nbytes or 0, flags)
        self.exchange.note_received(count, time.monotonic() - started)
        return count

    def send(self, data: Any, flags: int = 0) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.exchange is None:
            return super().send(data, flags)
        self.settimeout(self.exchange.get_timeout())
        started = time.monotonic()
        count = super().send(data, flags)
        self.exchange.note_sent(count, time.monotonic() - started)
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In pieces: a socket's own `sendall` has one timeout for everything, and urllib3 sets the connect
        # timeout.
        with memoryview(data) as view, view.cast("B") as left:
            position = 0
            while position < len(left):
                position += self.send(left[position : position + _PIECE_BYTES], flags)


class LimitedSocket(_LimitedMixin):
    """A plain socket with an exchange."""


class LimitedTlsSocket(_LimitedMixin, ssl.SSLSocket):
    """A TLS socket with an exchange."""


def limit_socket(opened: socket.socket, exchange: Exchange) -> LimitedSocket:
    """Return the plain socket as one with this exchange; `opened` is unusable afterwards."""
    timeout = opened.gettimeout()
    limited = LimitedSocket(opened.family, opened.type, opened.proto, fileno=opened.detach())
    limited.settimeout(timeout)
    limited.exchange = exchange
    return limited


def make_tls_context(certificates: str) -> ssl.SSLContext:
    """Return a context that trusts these authorities and creates a LimitedTlsSocket for each connection."""
    context = ssl.create_default_context(cafile=certificates)
    context.sslsocket_class = LimitedTlsSocket
    return context


class _LimitedConnection(HTTPConnection):
    """A connection on which each request is an exchange."""

    def __init__(self, *arguments: Any, stall_timeout_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._exchange = Exchange(stall_timeout_seconds)

    def connect(self) -> None:
        super().connect()
        opened: socket.socket = self.sock
        if isinstance(opened, LimitedTlsSocket):
            opened.exchange = self._exchange
        else:
            self.sock = limit_socket(opened, self._exchange)

    def putrequest(self, method: str, url: str, *arguments: Any, **options: Any) -> None:
        self._exchange.begin()
        # A request with a query is for a listing, tags or bucket settings.
        is_object = method == "GET" and "?" not in url
        if not is_object:
            self._exchange.limit_answer()
        super().putrequest(method, url, *arguments, **options)

    def getresponse(self) -> urllib3.HTTPResponse:
        response = super().getresponse()
        # For other requests, the whole answer has been read by now.
        if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            self._exchange.limit_answer()
        return response


class _LimitedTlsConnection(_LimitedConnection, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _LimitedConnection  # pyright: ignore[reportAssignmentType]


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _LimitedTlsConnection  # pyright: ignore[reportAssignmentType]


class _Retry(urllib3.Retry):
    """Retry policy for transient failures.

    A stalled request is retried only once, since each try may take the whole limit.
    """

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _MAX_RETRY_AFTER_SECONDS)

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        has_stalled = is_stall(error) and any(is_stall(before.error) for before in self.history)
        if error is not None and (has_stalled or _is_endless(error)):
            raise urllib3.exceptions.MaxRetryError(_pool, url or "", error) from error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def make_pool(
    *, threads: int, connect_timeout_seconds: float, stall_timeout_seconds: float, tls: ssl.SSLContext | None
) -> urllib3.PoolManager:
    """Return a pool for this many threads, with limits for whole requests and retries where they help."""
    options: dict[str, Any] = {} if tls is None else {"ssl_context": tls, "cert_reqs": "CERT_REQUIRED"}
    pool = urllib3.PoolManager(
        # The SDK's own pool opens a new connection whenever ten threads are not enough, and waits five
        # minutes for a dead server.
        maxsize=threads + 2,
        block=True,
        timeout=urllib3.Timeout(connect=connect_timeout_seconds, read=stall_timeout_seconds),
        retries=_Retry(total=5, connect=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        **options,
    )
    limits = {"stall_timeout_seconds": stall_timeout_seconds}
    pool.pool_classes_by_scheme = {"http": partial(_Pool, **limits), "https": partial(_TlsPool, **limits)}  # pyright: ignore[reportAttributeAccessIssue]
    return pool


def is_stall(error: BaseException | None) -> bool:
    """Return whether the urllib3 error means that the connected server stalled or was too slow."""
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        return is_stall(error.reason)
    # Errors while sending a request are wrapped as a broken connection.
    return isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError)) or (
        isinstance(error, urllib3.exceptions.ProtocolError) and isinstance(error.args[-1], TimeoutError)
    )


def _is_endless(error: BaseException) -> bool:
    return isinstance(error, urllib3.exceptions.ProtocolError) and isinstance(
        error.args[-1], EndlessAnswerError
    )
