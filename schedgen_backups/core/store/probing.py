"""Find out whether a store refuses a key that is taken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from schedgen_backups.core.errors import KeyExistsError
from schedgen_backups.core.store.retry import retry

_ROUNDS = 6
_WRITERS = 4
_RACE_BYTES = 64 << 10
"""s3proxy 3.0 refuses a key that is taken, but of four writers at once it lets two write in every other round
(2026-11-30): larger uploads overlap for longer."""


def refuses_taken_keys(put: Callable[[str, bytes], object], key: str) -> bool:
    """Return whether `put` raises KeyExistsError for a key that is taken, also for writers at the same time.

    `key` must hold an object. Others are put under keys that start with it and a dash.
    """
    try:
        retry(lambda: put(key, b"second"))
    except KeyExistsError:
        pass
    else:
        return False
    with ThreadPoolExecutor(_WRITERS) as pool:
        for turn in range(_ROUNDS):
            write = partial(_wins, put, f"{key}-{turn}")
            if sum(pool.map(write, range(_WRITERS))) > 1:
                return False
    return True


def _wins(put: Callable[[str, bytes], object], key: str, number: int) -> bool:
    try:
        retry(lambda: put(key, bytes([number]) * _RACE_BYTES))
    except KeyExistsError:
        return False
    return True
