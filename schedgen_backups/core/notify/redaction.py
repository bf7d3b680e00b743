"""Keep addresses out of the logs of third-party libraries: a webhook's address is a secret.

urllib3 logs the path with a warning at each retry, apprise logs most of an address that it does not support,
and both log all of it at level DEBUG. Only the calling thread is silenced, and only within the block. Our own
log records do not contain addresses.
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
    """Suppress urllib3's log records within the block, and apprise's below this level."""
    token = _LOWEST.set(lowest)
    try:
        yield
    finally:
        _LOWEST.reset(token)
