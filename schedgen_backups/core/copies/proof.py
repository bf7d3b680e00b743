"""Prove a store's copies without a private key: by its listing, and by reading packs back.

A marker, a second version or a file that is not ours is an alarm: this program never deletes or overwrites
there, and pruning removes exact versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from math import ceil

from schedgen_backups.core.copies.layout import COMMIT_NAME, PackList, SiteKeys, find_commits, read_pack_list
from schedgen_backups.core.errors import KeyMissingError, VerificationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.store.protocol import Store, StoredObject
from schedgen_backups.core.units import name_some

_READ_BYTES = 8 << 20
_NEVER = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class ListingProof:
    """What the store's listing says about its copies."""

    copies: Mapping[RecoveryPointId, PackList]
    """The committed copies whose pack list can be read."""
    committed: Mapping[RecoveryPointId, StoredObject]
    """The commit mark of each copy."""
    problems: tuple[str, ...]
    """What is missing, altered or foreign; empty if everything is as it should be."""
    foreign: tuple[str, ...] = ()
    """Those of the problems that concern no copy."""
    stranger_count: int = 0
    """How many of the problems are markers, older versions and foreign files."""

    @property
    def packs(self) -> dict[str, StoredFile]:
        """Every pack that a copy needs, by its name."""
        return {pack.name: pack for pack_list in self.copies.values() for pack in pack_list.packs}

    @property
    def files(self) -> dict[str, StoredFile]:
        """Recipes, manifest and verification of every copy, by `ID/NAME`."""
        return {
            f"{point_id}/{file.name}": file
            for point_id, pack_list in self.copies.items()
            for file in pack_list.files
        }


@dataclass(frozen=True)
class RereadProof:
    """What reading packs back has shown."""

    read_count: int
    """Number of packs that were read."""
    read_bytes: int
    """Size of the packs that were read."""
    problems: tuple[str, ...]
    unread_count: int
    """Needed packs that were never read back."""
    oldest_at: datetime | None
    """When the pack or file was read whose last reading is longest ago; None if packs were never read."""
    unread: tuple[str, ...] = ()
    """Names of the needed packs that were never read back."""


def prove_listing(store: Store, keys: SiteKeys) -> ListingProof:
    """Compare the store's listing with the pack list of every committed copy.

    Names and sizes only. Raises the errors of the store, not of its contents.
    """
    # Where nothing keeps a key from being overwritten, a probe is, to find that out.
    probes = f"{keys.site_id}/probes/"
    listing = [each for each in store.list(f"{keys.site_id}/") if not each.key.startswith(probes)]
    newest = {stored.key: stored for stored in listing if stored.is_newest and not stored.is_marker}
    altered, foreign = _find_strangers(keys, listing)
    problems = [*altered, *foreign]
    # Of the same listing: another host may commit or prune meanwhile.
    committed = find_commits(keys, newest.values())
    copies: dict[RecoveryPointId, PackList] = {}
    for point_id in list(committed):
        try:
            copies[point_id] = read_pack_list(store, keys, point_id)[1]
        except VerificationError as error:
            if store.head(keys.file(point_id, COMMIT_NAME)) is None:
                del committed[point_id]
            else:
                problems.append(error.message)
            continue
        problems += _compare(newest, keys, point_id, copies[point_id])
    return ListingProof(
        copies,
        committed,
        tuple(dict.fromkeys(problems)),
        tuple(foreign),
        stranger_count=len({*altered, *foreign}),
    )


def _find_strangers(keys: SiteKeys, listing: Iterable[StoredObject]) -> tuple[list[str], list[str]]:
    """Return what somebody hid or wrote over, and what is not ours."""
    altered: list[str] = []
    foreign: list[str] = []
    hidden: set[str] = set()
    # Of each key, the newest version comes first.
    for stored in listing:
        name = stored.key.removeprefix(f"{keys.site_id}/")
        if stored.is_marker:
            hidden.add(stored.key)
            altered.append(f"{name} was hidden by a deletion marker")
        elif stored.is_newest and not keys.is_known(stored.key):
            foreign.append(f"{name} was not written by this program")
        elif not stored.is_newest and stored.key not in hidden:
            altered.append(f"{name} has an older version under it: somebody wrote over it")
    return altered, foreign


def _compare(
    newest: Mapping[str, StoredObject], keys: SiteKeys, point_id: RecoveryPointId, pack_list: PackList
) -> Iterable[str]:
    expected = {keys.pack(pack.name): pack for pack in pack_list.packs}
    expected |= {keys.file(point_id, file.name): file for file in pack_list.files}
    missing = [file.name for key, file in expected.items() if key not in newest]
    changed = [
        file.name
        for key, file in expected.items()
        if key in newest and newest[key].size_bytes != file.size_bytes
    ]
    if missing:
        yield f"the copy of {point_id} lacks {name_some(missing)}"
    if changed:
        yield f"the copy of {point_id} has files of other sizes: {name_some(changed)}"


def prove_new_packs(store: Store, keys: SiteKeys, packs: Iterable[StoredFile]) -> tuple[str, ...]:
    """Return which of the packs just stored are not there with the right size and digest.

    The digest is the one that the store itself computed, where it has one.
    """
    problems: list[str] = []
    for pack in packs:
        stored = store.head(keys.pack(pack.name))
        if stored is None:
            problems.append(f"{pack.name} is missing")
        elif stored.size_bytes != pack.size_bytes or stored.sha256 not in {"", pack.sha256}:
            problems.append(f"{pack.name} is not what was sent")
    return tuple(problems)


def reread_packs(
    store: Store, keys: SiteKeys, proof: ListingProof, index: PieceIndex, *, reread_days: int, now: datetime
) -> RereadProof:
    """Read back the share of the packs that is due, those first whose last reading is longest ago.

    Their stored bytes must have the digest of the pack lists. With `reread_days` = 30, a thirtieth of all
    packs each day, and every pack once in that time. The index remembers when. It forgets the pieces of a
    damaged pack. Recipes and the other files of a point are read at once when they are new, then like packs.
    """
    packs = proof.packs
    for pack in packs.values():
        index.adopt(pack)
    rereads = index.find_rereads()
    last_read = {name: _ignore_future(rereads.get(name), now) for name in packs}
    chosen = _choose_share(last_read, reread_days, now)
    problems: list[str] = []
    read_bytes = 0
    for name in chosen:
        problem = _read_back(store, keys.pack(name), packs[name])
        if problem:
            problems.append(problem)
            index.distrust(name)
        else:
            index.record_reread(name, now)
            last_read[name] = now
        read_bytes += packs[name].size_bytes
    file_problems, files_read = _reread_files(store, keys, proof.files, index, reread_days, now)
    problems += file_problems
    unread = tuple(name for name, at in last_read.items() if at is None)
    known = [at for at in (*last_read.values(), *files_read) if at is not None]
    return RereadProof(
        read_count=len(chosen),
        read_bytes=read_bytes,
        problems=tuple(problems),
        unread_count=len(unread),
        oldest_at=min(known) if known and not unread else None,
        unread=unread,
    )


def _reread_files(
    store: Store,
    keys: SiteKeys,
    files: Mapping[str, StoredFile],
    index: PieceIndex,
    reread_days: int,
    now: datetime,
) -> tuple[list[str], list[datetime]]:
    """Read back the files of points that are due; return what is wrong, and when each was last read."""
    rereads = index.find_file_rereads()
    index.forget_files(rereads.keys() - files.keys())
    last_read = {name: _ignore_future(rereads.get(name), now) for name in files}
    unread = [name for name, at in last_read.items() if at is None]
    read = {name: at for name, at in last_read.items() if at is not None}
    problems: list[str] = []
    for name in (*unread, *_choose_share(read, reread_days, now)):
        problem = _read_back(store, f"{keys.points}{name}", files[name].model_copy(update={"name": name}))
        if problem:
            problems.append(problem)
        else:
            index.record_file_reread(name, now)
            last_read[name] = now
    return problems, [at for at in last_read.values() if at is not None]


def _choose_share(last_read: Mapping[str, datetime | None], reread_days: int, now: datetime) -> list[str]:
    """Return the names that are due, those first that were never read or whose reading is longest ago."""
    due_before = now - timedelta(days=reread_days)
    quota = ceil(len(last_read) / max(reread_days, 1))
    ordered = sorted(last_read, key=lambda name: (last_read[name] or _NEVER, name))
    # A day's share, and whatever is overdue because nothing was read for a while: at most twice the share.
    overdue = [name for name in ordered if (at := last_read[name]) is not None and at <= due_before]
    return ordered[: max(quota, min(len(overdue), 2 * quota))]


def _ignore_future(at: datetime | None, now: datetime) -> datetime | None:
    """Return the time, or None for one that a wrong clock has set: it would be the newest for years."""
    return at if at is not None and at <= now else None


def _read_back(store: Store, key: str, pack: StoredFile) -> str:
    """Return what is wrong with the pack; empty if its bytes are the ones that were sent."""
    digest = hashlib.sha256()
    done = 0
    try:
        while data := store.get_range(key, done, _READ_BYTES):
            digest.update(data)
            done += len(data)
            if done > pack.size_bytes:
                break
    except KeyMissingError:
        return f"{pack.name} is missing"
    return "" if digest.hexdigest() == pack.sha256 else f"{pack.name} was altered: its digest is another one"
