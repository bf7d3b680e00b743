"""Heartbeat: pings an outside service (dead man's switch) that alerts when the backup stops reporting.

The three signals are those of services like Healthchecks. A ping never raises and never hangs: the result of
a backup must not depend on it.
"""

from __future__ import annotations

import logging
from enum import Enum

import urllib3

from schedgen_backups.core.notify.alert import shorten
from schedgen_backups.core.notify.exchange import post

_BODY_LIMIT = 10_000
"""Characters of a ping's body that healthchecks.io keeps (its documentation, pinging API)."""
_FIRST_REFUSAL = 300
_LOG = logging.getLogger(__name__)


class Signal(str, Enum):
    """A signal; its value is the suffix of the address."""

    START = "/start"
    SUCCESS = ""
    FAIL = "/fail"


def ping_heartbeat(url: str, signal: Signal, text: str) -> bool:
    """Send the signal; return whether the service accepted it. False also without an address."""
    if not url:
        return False
    try:
        response = post(url + signal.value, shorten(text, _BODY_LIMIT).encode(), {})
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        _LOG.warning(
            "the heartbeat service did not accept %s: %s", signal.name, type(error).__name__
        )  # the address is a secret
        return False
    if response.status >= _FIRST_REFUSAL:
        _LOG.warning("the heartbeat service answered %s to %s", response.status, signal.name)
        return False
    return True
