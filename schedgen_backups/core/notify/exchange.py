"""One HTTP exchange with an alert or heartbeat service: total timeout, no redirects, limited answer size.

Every request of `channels` and `heartbeat` uses this module. The callers interpret the answer.
"""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import urllib3

from schedgen_backups.core.notify.redaction import hidden_addresses

READ_TIMEOUT_SECONDS = 5
"""Timeout for connecting, and for each read."""
EXCHANGE_TIMEOUT_SECONDS = 10
"""Timeout for the whole exchange, including retries and an answer that arrives byte by byte."""
_TRIES = 2
_BACKOFF_SECONDS = 0.2
_ANSWER_LIMIT_BYTES = 64 << 10
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Answer:
    """The answer of a service."""

    status: int
    reason: str
    body: str
    """The first 64 KiB, decoded, without a byte order mark."""
    content_type: str


class _Call(Generic[_Made]):
    """A call in its own thread, with its result or exception."""

    def __init__(self, function: Callable[[], _Made]) -> None:
        self._function = function
        self._made: list[_Made] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._made.append(self._function())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            self._error = error

    def get(self) -> _Made:
        if self._error is not None:
            raise self._error
        return self._made[0]


def run_exchange(function: Callable[[], _Made]) -> _Made:
    """Return what the function returns, raise what it raises.

    TimeoutError if the whole exchange takes longer than EXCHANGE_TIMEOUT_SECONDS. Socket timeouts apply to
    single reads only, and a server may send a byte before each of them expires. An abandoned call continues
    in a daemon thread.
    """
    call = _Call(function)
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(call.run,), name="alert exchange", daemon=True
    )
    thread.start()
    thread.join(EXCHANGE_TIMEOUT_SECONDS)
    if thread.is_alive():
        raise TimeoutError
    return call.get()


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Return the answer to a POST; a 3xx answer is returned, not followed.

    TimeoutError or urllib3's HTTPError without an answer. If the server fails, the request is retried twice
    within a second; Retry-After is ignored.
    """
    retries = urllib3.Retry(
        total=_TRIES,
        backoff_factor=_BACKOFF_SECONDS,
        status_forcelist=[500, 502, 503, 504],
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=False,
    )

    def exchange() -> Answer:
        with urllib3.PoolManager(timeout=READ_TIMEOUT_SECONDS, retries=retries) as pool:
            response = pool.request(
                "POST", url, body=body, headers=headers, redirect=False, preload_content=False
            )
            data = response.read(_ANSWER_LIMIT_BYTES, decode_content=True)
            response.close()
        content_type = response.headers.get("Content-Type", "")
        return Answer(
            response.status,
            response.reason or "",
            data.decode(json.detect_encoding(data), "replace"),
            content_type,
        )

    with hidden_addresses():
        return run_exchange(exchange)
