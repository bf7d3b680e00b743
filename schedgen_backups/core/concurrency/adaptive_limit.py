"""How many requests a server is given at a time: as many as make it faster, fewer where more only wait longer, half when it says that it is too much.

The rule knows neither a clock nor a server: it is told what came when. Add here what else tells that a server has enough; threads are the business of
`adaptive_pool`, requests that of `bucket`.
"""

from __future__ import annotations

START = 8
_LEAST_TRIED = 4
"""Fewer are never better for a server that takes more than one at a time; only refusals lead there."""
_ROUND_REQUESTS = 4
"""So many requests for each one in flight are a measurement, and at least this time:"""
_ROUND_SECONDS = 0.3
_REQUEST_BYTES = 100_000
"""So many bytes cost a server as much as a request (SeaweedFS, 2026-11-25)."""
_MORE = 1.05
"""More requests in flight must bring so many times as much, or they only wait longer."""
_LESS = 0.97
"""Fewer in flight may bring so much less."""
_FORGET = 0.99
"""So much of the best speed is held against the next trial: small losses must not add up, step by step, to a large one."""
_REST_ROUNDS = 4
_REFUSAL_SECONDS = 1.0
"""Refusals that come so soon after one another are of the same moment."""


class AdaptiveLimit:
    """The number of requests that may be in flight, between 1 and `most`; not for several threads.

    It climbs: a number is tried for a round, kept when the server got through more in that time, or hardly less with fewer, and taken back otherwise.
    """

    def __init__(self, most: int, *, now: float, start: int = START) -> None:
        self.limit: int = min(most, start)
        self._most = most
        self._kept_limit: int = self.limit
        self._kept_speed = 0.0
        self._is_growing = True
        self._rest: int = 0
        self._refused_at = now - _REFUSAL_SECONDS
        self._begin_round(now)

    def note_answer(self, size_bytes: int, *, now: float) -> None:
        """A request was answered with so many bytes."""
        self._count += 1
        self._work += 1 + size_bytes / _REQUEST_BYTES
        elapsed = now - self._started
        if elapsed >= _ROUND_SECONDS and self._count >= _ROUND_REQUESTS * self.limit:
            self._judge(self._work / elapsed)
            self._begin_round(now)

    def note_refusal(self, *, now: float) -> None:
        """The server said that it is too much (503 SlowDown, 429)."""
        if now - self._refused_at < _REFUSAL_SECONDS:
            return
        self._refused_at = now
        self.limit = max(1, self.limit // 2)
        self._kept_limit = self.limit
        self._kept_speed = 0.0
        self._is_growing = True
        self._rest = _REST_ROUNDS
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._started = now
        self._count = 0
        self._work = 0.0

    def _judge(self, speed: float) -> None:
        if self.limit == self._kept_limit:
            # What is kept is measured again while it rests: servers change.
            self._kept_speed = speed if not self._kept_speed else (self._kept_speed + speed) / 2
            self._rest -= 1
            if self._rest <= 0:
                self._try_next()
            return
        if speed >= self._kept_speed * (_MORE if self._is_growing else _LESS):
            self._kept_speed = max(speed, self._kept_speed * _FORGET)
            self._kept_limit = self.limit
            self._try_next()
        else:
            self.limit = self._kept_limit
            self._is_growing = not self._is_growing
            self._rest = _REST_ROUNDS

    def _try_next(self) -> None:
        step = max(1, self._kept_limit // 4)
        wanted = self._kept_limit + step if self._is_growing else max(self._kept_limit - step, min(_LEAST_TRIED, self._kept_limit))
        self.limit = min(wanted, self._most)
        if self.limit == self._kept_limit:
            self._is_growing = not self._is_growing
            self._rest = _REST_ROUNDS
