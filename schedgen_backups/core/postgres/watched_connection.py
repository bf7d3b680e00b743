"""A connection that detects a hung server: after some silence it queries its session's state in another one.

Keepalives show that the host answers, not that the server does. A proxy, or a virtual machine that was
paused, may hold a connection open indefinitely.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import Any, TypeVar

import psycopg

SILENCE_SECONDS = 20.0
"""One short session per interval during a long query; building an index takes hours."""
_Value = TypeVar("_Value")


class SessionState(Enum):
    """The state of a session as seen by the server."""

    AT_WORK = auto()
    NOT_AT_WORK = auto()
    """It is idle, it waits for its client, or it does not exist."""
    UNKNOWN = auto()
    """No answer, or one that is not about this session, such as a refused login."""


class SilentServerError(psycopg.OperationalError):
    """The server no longer answers, has nothing to do for this session, or the wait was abandoned here."""


class WatchedConnection(psycopg.Connection[tuple[Any, ...]]):
    """Connection that stops waiting when the server reports that the session is not at work.

    If the state is unknown, it stops waiting at the stall limit: a server pauses while its machine is moved,
    saved or out of disk bandwidth, and continues afterwards.
    """

    silence_seconds: float = SILENCE_SECONDS
    """Time without data, or since the last query of the state, after which the state is queried."""
    stall_timeout_seconds: float = SILENCE_SECONDS
    """Maximum time in which the server neither sends data nor reports that it is at work."""
    ask_state: Callable[[], SessionState] = staticmethod(lambda: SessionState.UNKNOWN)
    """Queries the session's state on the server."""
    is_given_up: bool = False
    """Another thread may set this: the current wait, and any later one, then ends."""

    def wait(self, gen: Generator[Any, Any, _Value], *arguments: Any, **options: Any) -> _Value:
        """Wait like psycopg; SilentServerError if the server hangs."""
        return super().wait(self._watch(gen), *arguments, **options)

    def _watch(self, gen: Generator[Any, Any, _Value]) -> Generator[Any, Any, _Value]:
        heard_at = asked_at = time.monotonic()
        reason = ""
        try:
            state = next(gen)
            while True:
                ready = yield state
                if self.is_given_up:
                    self._end("the session was ended here")
                if ready:
                    heard_at = asked_at = time.monotonic()
                    reason = ""
                elif reason:
                    # Only now: the answer may have arrived during the query.
                    self._end(reason)
                elif time.monotonic() - asked_at > min(self.silence_seconds, self.stall_timeout_seconds):
                    answer = self.ask_state()
                    asked_at = time.monotonic()
                    if answer is SessionState.AT_WORK:
                        heard_at = asked_at
                    elif answer is SessionState.NOT_AT_WORK:
                        reason = f"the server was silent for {self.silence_seconds:.0f} s and is not at work"
                    elif asked_at - heard_at >= self.stall_timeout_seconds:
                        reason = (
                            f"the server was silent for {asked_at - heard_at:.0f} s, and the state "
                            "of this session is unknown"
                        )
                state = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _end(self, reason: str) -> None:
        self.pgconn.finish()
        raise SilentServerError(reason)
