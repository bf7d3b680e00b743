"""Remove copies that no rule keeps, and packs that no copy needs, in two passes.

The first pass condemns, the second removes at least two days later, after looking again. All times are the
store's own. A pack is removed only if every writer has committed a copy since it was condemned: a writer uses
no condemned pack and looks again before it commits, so that none of its later copies needs the pack.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.copies.layout import (
    COMMIT_NAME,
    CopyCommit,
    PackList,
    SiteKeys,
    list_copies,
    read_pack_list,
)
from schedgen_backups.core.copies.proof import ListingProof, prove_listing
from schedgen_backups.core.errors import KeyExistsError, LockedError, StoreError, VerificationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.plan import Candidate, RetentionPlan, RetentionPolicy, plan_retention
from schedgen_backups.core.store.protocol import Store, StoredObject, SweptStore
from schedgen_backups.core.units import name_some

GRACE = timedelta(hours=48)
"""Between condemning and removing; longer than any copy should take."""
UNFINISHED_AGE = timedelta(days=1)
"""Since its last byte. Every upload ends or fails within minutes: a pack has at most 64 MiB, and a connection
without an answer is given up (`timeout_seconds`)."""


@dataclass(frozen=True)
class PruneReport:
    """What pruning a store did, and what it left."""

    plan: RetentionPlan
    removed_points: tuple[RecoveryPointId, ...] = ()
    removed_packs: int = 0
    freed_bytes: int = 0
    condemned: int = 0
    """Number of packs and unfinished copies that wait for the second pass."""
    waits_for: tuple[str, ...] = ()
    """Why condemned packs are not removed yet, if it is not only their age."""
    unfinished_count: int = 0
    """Number of files of killed uploads that were removed."""
    locked_until: Mapping[str, datetime | None] = field(default_factory=dict[str, datetime | None])
    """What only a lock keeps: names, with the time if the store knows it."""


class Pruner:
    """Prunes one site of one store; nothing else may prune the same site at the same time.

    The store's credentials must be able to delete. Safe beside any number of writers.
    """

    def __init__(self, store: Store, keys: SiteKeys, policy: RetentionPolicy) -> None:
        self._store = store
        self._keys = keys
        self._policy = policy
        self._locked: dict[str, datetime | None] = {}
        self._freed_bytes = 0

    def prune(
        self,
        *,
        pinned: Mapping[RecoveryPointId, str] | None = None,
        find_damages: Callable[[ListingProof], Sequence[str]] = lambda _listing: (),
    ) -> PruneReport:
        """Remove copies that the policy does not keep by the store's own clock, then what no copy needs.

        `pinned` are reasons by point. VerificationError (permanent), and nothing is removed, while any
        committed copy lacks a file, while anything was hidden, overwritten or cut, and while `find_damages`
        finds something: what is still needed is not known then.
        """
        listing = prove_listing(self._store, self._keys)
        damages = [problem for problem in listing.problems if problem not in listing.foreign]
        if damages := [*damages, *find_damages(listing)]:
            raise make_refusal(self._store, damages)
        time = self._read_clock()
        pins = pinned or {}
        candidates = [Candidate(point, PointState.VERIFIED, pins.get(point)) for point in listing.copies]
        plan = plan_retention(candidates, self._policy, time)
        removed = tuple(
            decision.candidate.point_id
            for decision in plan.removed
            if self._remove_point(decision.candidate.point_id)
        )
        removed_packs, waits_for = self._remove_condemned(time)
        self._condemn()
        unfinished_count = self._remove_unfinished(time)
        return PruneReport(
            plan,
            removed,
            removed_packs,
            self._freed_bytes,
            sum(1 for _mark in self._list_newest(self._keys.condemned)),
            waits_for,
            unfinished_count,
            dict(self._locked),
        )

    def _read_lists(self) -> dict[RecoveryPointId, PackList]:
        lists: dict[RecoveryPointId, PackList] = {}
        for point_id in list_copies(self._store, self._keys):
            try:
                lists[point_id] = read_pack_list(self._store, self._keys, point_id)[1]
            except VerificationError as error:
                raise make_refusal(self._store, [error.message]) from error
        return lists

    def _remove_point(self, point_id: RecoveryPointId) -> bool:
        """Remove the commit mark of a copy; return whether nothing commits it now.

        The other files are then those of an unfinished copy: a writer may just be copying the point again.
        """
        key = self._keys.file(point_id, COMMIT_NAME)
        marks = [stored for stored in self._store.list(key) if stored.key == key]
        return all([self._delete(mark) for mark in marks])  # noqa: C419 - each of them

    def _remove_condemned(self, time: datetime) -> tuple[int, tuple[str, ...]]:
        """Remove what was condemned long enough ago and is still not needed; the second pass.

        Return the number of removed packs, and which writers are waited for.
        """
        marks = [mark for mark in self._list_newest(self._keys.condemned) if time - mark.modified_at >= GRACE]
        if not marks:
            return 0, ()
        # In this order: a copy that is committed later began after its writer's newest commit seen here.
        writers = self._find_newest_commits()
        needed = {pack.name for pack_list in self._read_lists().values() for pack in pack_list.packs}
        committed = {point.text for point in list_copies(self._store, self._keys)}
        waits_for: set[str] = set()
        removed_packs = 0
        for mark in marks:
            name = mark.key.removeprefix(self._keys.condemned)
            late = {writer for writer, at in writers.items() if at is None or at <= mark.modified_at}
            if name in needed or name in committed:
                # A copy that was under way when it was condemned.
                self._delete(mark)
            elif late:
                waits_for |= late
            elif self._remove_named(name):
                removed_packs += _is_pack(name)
                self._delete(mark)
        return removed_packs, tuple(f"writer {writer} to copy a point" for writer in sorted(waits_for))

    def _remove_named(self, name: str) -> bool:
        """Remove a pack, or what an unfinished copy left; return whether nothing of it is left."""
        prefix = self._keys.pack(name) if _is_pack(name) else f"{self._keys.points}{name}/"
        versions = [
            stored for stored in self._store.list(prefix) if not _is_pack(name) or stored.key == prefix
        ]
        return all([self._delete(stored) for stored in versions])  # noqa: C419 - each of them

    def _condemn(self) -> None:
        """Mark the packs and unfinished copies that no copy needs; the first pass.

        Only what is older than the newest commit of every writer: the rest may belong to a copy that is
        under way.
        """
        writers = self._find_newest_commits()
        commits = [at for at in writers.values() if at is not None]
        if not commits or None in writers.values():
            return
        before = min(commits)
        condemned = {
            mark.key.removeprefix(self._keys.condemned) for mark in self._list_newest(self._keys.condemned)
        }
        candidates: dict[str, datetime] = {}
        for stored in self._list_newest(self._keys.packs):
            candidates[stored.key.removeprefix(self._keys.packs)] = stored.modified_at
        for stored in self._list_newest(self._keys.points):
            point = stored.key.removeprefix(self._keys.points).partition("/")[0]
            candidates[point] = max(stored.modified_at, candidates.get(point, stored.modified_at))
        # After the listing: a copy committed meanwhile is seen here.
        lists = self._read_lists()
        needed = {pack.name for pack_list in lists.values() for pack in pack_list.packs}
        needed |= {point.text for point in lists}
        for name, modified_at in candidates.items():
            if modified_at < before and name not in needed and name not in condemned and _is_removable(name):
                with suppress(KeyExistsError):
                    self._store.put_new(f"{self._keys.condemned}{name}", b"{}")

    def _remove_unfinished(self, time: datetime) -> int:
        """Remove what killed uploads left, where a store has such files; return their number."""
        if not isinstance(self._store, SweptStore):
            return 0
        removed = self._store.remove_unfinished(f"{self._keys.site_id}/", time - UNFINISHED_AGE)
        self._freed_bytes += sum(stored.size_bytes for stored in removed)
        return len(removed)

    def _find_newest_commits(self) -> dict[str, datetime | None]:
        """Return when each known writer last committed a copy that is still there; None if never.

        By the store's clock.
        """
        writers: dict[str, datetime | None] = {
            stored.key.removeprefix(self._keys.writers): None
            for stored in self._list_newest(self._keys.writers)
        }
        for point_id, stored in list_copies(self._store, self._keys).items():
            commit: CopyCommit = read_pack_list(self._store, self._keys, point_id)[0]
            before = writers.get(commit.writer_id)
            if commit.writer_id in writers and (before is None or stored.modified_at > before):
                writers[commit.writer_id] = stored.modified_at
        return writers

    def _read_clock(self) -> datetime:
        """Return the store's own time: that of an object just put."""
        key = f"{self._keys.site_id}/probes/{secrets.token_hex(8)}"
        self._store.put_new(key, b"{}")
        stored = self._store.head(key)
        if stored is None:
            raise StoreError(f"{self._store.label} lost what was just stored", hint="Do not rely on it.")
        # Also those of earlier times, which a lock kept then.
        for probe in list(self._store.list(f"{self._keys.site_id}/probes/")):
            with suppress(LockedError):
                self._store.delete(probe)
        return stored.modified_at

    def _list_newest(self, prefix: str) -> list[StoredObject]:
        return [stored for stored in self._store.list(prefix) if stored.is_newest and not stored.is_marker]

    def _delete(self, stored: StoredObject) -> bool:
        """Delete this version; return False where a lock forbids it."""
        try:
            self._store.delete(stored)
        except LockedError:
            head = self._store.head(stored.key, version_id=stored.version_id)
            self._locked[stored.key.removeprefix(f"{self._keys.site_id}/")] = head and head.locked_until
            return False
        self._freed_bytes += stored.size_bytes
        return True


def make_refusal(store: Store, damages: Sequence[str]) -> VerificationError:
    """Return the error that says why nothing is removed."""
    return VerificationError(
        f"nothing is removed from {store.label}: {name_some(damages, limit=3)}",
        hint="docs/alerts/copy-damaged.md says what to do.",
    )


def forget_writer(store: Store, keys: SiteKeys, writer_id: str) -> None:
    """Stop waiting for a decommissioned writer; StoreError (permanent) if there is none of this id.

    If it still exists, its copy that is under way fails and starts again.
    """
    key = f"{keys.writers}{writer_id}"
    # Not every key that begins so: the beginning of an id is not the id.
    versions = [each for each in store.list(key) if each.key == key and not each.is_marker]
    if not versions:
        known = [stored.key.removeprefix(keys.writers) for stored in store.list(keys.writers)]
        raise StoreError(
            f"{store.label} knows no writer {writer_id}",
            hint=f"It knows {name_some(known)}." if known else "It knows none.",
        )
    for stored in versions:
        store.delete(stored)


_REMOVABLE = re.compile(r"[0-9]{8}_[0-9]{6}(-[0-9]{4,9}(\.age)?)?")


def _is_removable(name: str) -> bool:
    return _REMOVABLE.fullmatch(name) is not None


def _is_pack(name: str) -> bool:
    return "-" in name
