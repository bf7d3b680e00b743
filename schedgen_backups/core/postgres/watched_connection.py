"""A connection that waits for no server for ever: after some silence it asks in another session what its own
does.

Keepalives tell that a host answers, and not that the server does: a proxy, or a virtual machine that was
paused, may hold a connection open for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import Any, TypeVar

import psycopg

SILENCE_SECONDS = 20.0
"""A short session each time, while a query takes long; a build of an index takes hours."""
_Value = TypeVar("_Value")


class SessionState(Enum):
    """What the server says of a session."""

    AT_WORK = auto()
    NOT_AT_WORK = auto()
    """It is idle, it waits for its client, or there is no such session."""
    UNKNOWN = auto()
    """No answer came, or one that is not about this session, such as a refused login."""


class SilentServerError(psycopg.OperationalError):
    """The server answers no more, or has nothing to do for this session, or the wait for it was given up
    here.
    """


class WatchedConnection(psycopg.Connection[tuple[Any, ...]]):
    """Ends a wait for the server at once when it says that the session is not at work, and at the stall limit
    when nothing is known of it.

    A server stands still for a while when its machine is moved, saved or out of disk bandwidth, and goes on
    afterwards.
    """

    silence_seconds: float = SILENCE_SECONDS
    """How long after the last byte, or after the last question, the server is asked."""
    stall_timeout_seconds: float = SILENCE_SECONDS
    """How long the server may neither give a byte nor say that it is at work."""
    ask_state: Callable[[], SessionState] = staticmethod(lambda: SessionState.UNKNOWN)
    """Asks the server for this session."""
    is_given_up: bool = False
    """May be set by another thread: the present wait, and any later one, ends then."""

    def wait(self, gen: Generator[Any, Any, _Value], *arguments: Any, **options: Any) -> _Value:
        """As of psycopg, with SilentServerError in the end."""
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
                    # Only now: the answer may have come during the question.
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
                            f"the server was silent for {asked_at - heard_at:.0f} s, and nothing is "
                            "known of this session"
                        )
                state = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _end(self, reason: str) -> None:
        self.pgconn.finish()
        raise SilentServerError(reason)
