"""Retries of requests to a store, and what an upload that was retried means."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from schedgen_backups.core.errors import KeyExistsError, KeyMissingError, StoreUnreachableError
from schedgen_backups.core.store.protocol import Store

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each attempt: 6 seconds in all, as the SDK's retries (core.s3.exchange). What lasts longer is
left to the run's own retry."""
_COMPARED_BYTES = 4 << 20
_Result = TypeVar("_Result")


def retry(request: Callable[[], _Result]) -> _Result:
    """Return what the request returns; repeat it as long as it raises StoreUnreachableError."""
    pause = _FIRST_PAUSE_SECONDS
    for _ in range(_ATTEMPTS - 1):
        try:
            return request()
        except StoreUnreachableError:
            # Many writers that failed at once must not come back at once.
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - not cryptography
            pause *= 2
    return request()


def retry_put(store: Store, key: str, data: bytes, request: Callable[[], object]) -> None:
    """Repeat an upload of a new key like `retry`.

    An attempt whose answer was lost may have arrived. The next one then finds the key; that is no
    KeyExistsError if the store holds these bytes.
    """
    attempts: list[None] = []

    def put() -> None:
        attempts.append(None)
        request()

    try:
        retry(put)
    except KeyExistsError:
        if len(attempts) == 1 or not _holds(store, key, data):
            raise


def _holds(store: Store, key: str, data: bytes) -> bool:
    stored = store.head(key)
    if stored is None or stored.size_bytes != len(data):
        return False
    try:
        return all(
            store.get_range(key, offset, _COMPARED_BYTES) == data[offset : offset + _COMPARED_BYTES]
            for offset in range(0, len(data), _COMPARED_BYTES)
        )
    except KeyMissingError:
        return False
