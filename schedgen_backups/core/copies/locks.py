"""Locks of what kept copies need: seen, and extended before they end.

A bucket's default retention locks every new object. What a copy uses again was locked when it was stored, so
that its lock would end first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from schedgen_backups.core.copies.layout import COMMIT_NAME, PACK_LIST_NAME, SiteKeys
from schedgen_backups.core.copies.proof import ListingProof
from schedgen_backups.core.errors import StoreError, StoreUnreachableError
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.store.protocol import Store


@dataclass(frozen=True)
class LockProof:
    """Whether everything that copies need is locked."""

    locked_until: datetime | None
    """When the first lock ends, aware UTC; None if something is not locked or there is nothing."""
    extended_count: int = 0
    problems: tuple[str, ...] = ()


def extend_locks(
    store: Store, keys: SiteKeys, proof: ListingProof, index: PieceIndex, *, lock_days: int, now: datetime
) -> LockProof:
    """Read the lock of every file that a copy needs, and extend those of which less than half is left.

    With `lock_days` = 0 nothing is extended. A lock that was seen before is not asked for again until it has
    to be extended.
    """
    known = index.find_locks()
    locked_for = timedelta(days=lock_days)
    ends: list[datetime | None] = []
    problems: list[str] = []
    extended_count = 0
    for key in _list_needed(keys, proof):
        end = known.get(key)
        if end is None or end - now < locked_for / 2 or end <= now:
            stored = store.head(key)
            end = stored and stored.locked_until
            if stored is not None and lock_days and (end is None or end - now < locked_for / 2):
                try:
                    store.extend_lock(stored, now + locked_for)
                except StoreUnreachableError:
                    raise
                except StoreError as error:
                    problems.append(error.message)
                else:
                    end = now + locked_for
                    extended_count += 1
            if end is not None:
                index.record_lock(key, end)
        ends.append(end if end is not None and end > now else None)
    found = [end for end in ends if end is not None]
    is_complete = bool(ends) and len(found) == len(ends)
    if not is_complete and ends:
        problems.append(f"{len(ends) - len(found)} of {len(ends)} files are not locked")
    return LockProof(min(found) if is_complete else None, extended_count, tuple(dict.fromkeys(problems)))


def _list_needed(keys: SiteKeys, proof: ListingProof) -> list[str]:
    needed = [keys.pack(name) for name in proof.packs]
    for point_id, pack_list in proof.copies.items():
        names = (*(file.name for file in pack_list.files), PACK_LIST_NAME, COMMIT_NAME)
        needed += [keys.file(point_id, name) for name in names]
    return needed
