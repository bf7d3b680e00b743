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
    for pause in _list_pauses():
        try:
            return request()
        except StoreUnreachableError:
            time.sleep(pause)
    return request()


def retry_put(store: Store, key: str, data: bytes, request: Callable[[], object]) -> None:
    """Repeat an upload of a new key like `retry`.

    An attempt whose answer was lost may have arrived, and another writer may have been faster: before
    each further attempt the key is checked. It is a success if the store holds these bytes.
    """
    failure: StoreUnreachableError | None = None
    for pause in (0, *_list_pauses()):
        if failure is not None:
            time.sleep(pause)
            if store.head(key) is not None:
                if _holds(store, key, data):
                    return
                raise KeyExistsError(f"{store.label} already holds {key}")
        try:
            request()
        except KeyExistsError:
            if failure is None or not _holds(store, key, data):
                raise
            return
        except StoreUnreachableError as error:
            failure = error
        else:
            return
    if failure is not None:
        raise failure


def _list_pauses() -> list[float]:
    """Return the seconds before each further attempt."""
    # Many writers that failed at once must not come back at once.
    return [
        _FIRST_PAUSE_SECONDS * 2**number * random.uniform(0.5, 1)  # noqa: S311 - not cryptography
        for number in range(_ATTEMPTS - 1)
    ]


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
