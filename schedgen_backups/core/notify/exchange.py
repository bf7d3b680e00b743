"""One exchange with a service that takes alerts or pings: ended after a set time as a whole, redirects not
followed, the answer read to a limit.

Every request of `channels` and `heartbeat` passes through here. What the answer means is decided there.
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
"""For connecting, and for each read."""
EXCHANGE_TIMEOUT_SECONDS = 10
"""For everything together: tries, an answer that comes byte by byte."""
_TRIES = 2
_BACKOFF_SECONDS = 0.2
_ANSWER_LIMIT_BYTES = 64 << 10
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Answer:
    """What a service said."""

    status: int
    reason: str
    body: str
    """The first 64 KiB of it, without a mark of its encoding."""
    content_type: str


class _Call(Generic[_Made]):
    """A call in a thread of its own, and what became of it."""

    def __init__(self, function: Callable[[], _Made]) -> None:
        self._function = function
        self._made: list[_Made] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._made.append(self._function())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._error = error

    def get(self) -> _Made:
        if self._error is not None:
            raise self._error
        return self._made[0]


def run_exchange(function: Callable[[], _Made]) -> _Made:
    """Return what the function returns, raise what it raises.

    TimeoutError when the whole takes longer than an exchange may.

    The limits of sockets hold for single reads, and a server may send a byte before each of them ends. What
    is given up goes on in a daemon thread.
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
    """Return the answer to a POST; an answer of 3xx is returned, not followed.

    TimeoutError or urllib3's HTTPError when there is none.

    A failing server is asked a second and a third time within a second, and never as late as it likes.
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
