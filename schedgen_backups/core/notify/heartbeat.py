"""Pings a dead man's switch: an outside service that alerts when nothing is heard of the backup, which
nothing inside can do.

The three signals are those of Healthchecks-style services. A ping never raises and never hangs: a backup's
outcome must not depend on it.
"""

from __future__ import annotations

import logging
from enum import Enum

import urllib3

from schedgen_backups.core.notify.alert import shorten
from schedgen_backups.core.notify.exchange import post

_BODY_LIMIT = 10_000
"""Characters that healthchecks.io keeps of a ping's body (its documentation, pinging API)."""
_FIRST_REFUSAL = 300
_LOG = logging.getLogger(__name__)


class Signal(str, Enum):
    """What is told; the value is what the address ends with."""

    START = "/start"
    SUCCESS = ""
    FAIL = "/fail"


def ping_heartbeat(url: str, signal: Signal, text: str) -> bool:
    """The service took the signal; False when it did not, or when there is no address."""
    if not url:
        return False
    try:
        response = post(url + signal.value, shorten(text, _BODY_LIMIT).encode(), {})
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        _LOG.warning(
            "the heartbeat service did not take %s: %s", signal.name, type(error).__name__
        )  # the address is a secret
        return False
    if response.status >= _FIRST_REFUSAL:
        _LOG.warning("the heartbeat service answered %s to %s", response.status, signal.name)
        return False
    return True
