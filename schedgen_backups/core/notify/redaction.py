"""Keeps addresses out of the log records of other people's libraries: an incoming webhook's address is a
secret, and they write it down.

urllib3 warns with the path at each retry, apprise complains with most of an address that it does not know,
both tell all of it when debugging. Only the calling thread is silenced, and only within the block. Our own
records are made by hand, without addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_APPRISE = "apprise"
_LOGGERS = ("urllib3.connectionpool", "urllib3.poolmanager", "urllib3.util.retry", _APPRISE)
_LOWEST: ContextVar[int] = ContextVar("lowest", default=logging.NOTSET)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        lowest = _LOWEST.get()
        return lowest == logging.NOTSET or (record.name == _APPRISE and record.levelno >= lowest)


_FILTER = _Filter()
for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_FILTER)


@contextmanager
def hidden_addresses(lowest: int = logging.CRITICAL) -> Generator[None, None, None]:
    """Within the block urllib3 logs nothing, and apprise nothing below this level."""
    token = _LOWEST.set(lowest)
    try:
        yield
    finally:
        _LOWEST.reset(token)
