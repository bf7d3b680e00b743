"""A connection that waits for no server for ever: after some silence it asks in another session whether its own is at work.

Keepalives tell that a host answers, and not that the server does: a proxy, or a virtual machine that was paused, may hold a connection open for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg

SILENCE_SECONDS = 20.0
"""A short session each time, while a query takes long; a build of an index takes hours."""
_Value = TypeVar("_Value")


class SilentServerError(psycopg.OperationalError):
    """The server answers no more, or has nothing to do for this session."""


class WatchedConnection(psycopg.Connection[tuple[Any, ...]]):
    """Ends a wait for the server when the server is silent and `is_at_work` says no."""

    silence_seconds: float = SILENCE_SECONDS
    is_at_work: Callable[[], bool] = staticmethod(lambda: False)
    """Asks the server for this session. Until it is set, silence ends the connection."""

    def wait(self, gen: Generator[Any, Any, _Value], *arguments: Any, **options: Any) -> _Value:
        """As of psycopg, with SilentServerError in the end."""
        return super().wait(self._watch(gen), *arguments, **options)

    def _watch(self, gen: Generator[Any, Any, _Value]) -> Generator[Any, Any, _Value]:
        silent_since = time.monotonic()
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > self.silence_seconds:
                    if not self.is_at_work():
                        self.pgconn.finish()
                        raise SilentServerError(f"the server was silent for {self.silence_seconds:.0f} s and is not at work")
                    silent_since = time.monotonic()
                state = gen.send(ready)
        except StopIteration as end:
            return end.value
