"""The packs of a backup directory during one capture: which may be used, and when each was last read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from math import inf

from schedgen_backups.core.errors import ReadBackError
from schedgen_backups.core.formats.pack_reader import describe_wrong_size
from schedgen_backups.core.formats.recipe import PLAIN_READERS, Recipe, Segment, Segments, StatedPack
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.healing import heal_pack
from schedgen_backups.core.packs.local_encryption import LocalEncryption
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.packs.pack_writer import PackWriter
from schedgen_backups.core.packs.piece_index import PieceIndex

_WORTH_KEEPING = 0.5
"""A pack of which less is used is not used any more: what is needed of it goes into a new one."""
_READ_THREADS = 2
"""As many as a small machine has cores; more compete with the servers of the application."""


class PackShelf:
    """Which packs a capture may use.

    Those that one of the `newest` recipes uses at least half of, that exist with the stated size, that were
    not found damaged, and that have the same readers as new ones: with `encryption` those of that, otherwise
    everybody. Packs, also those of the `others`, are due to be read again after `reread_days`, each at its
    own day. The `suspects` are recipes of artifacts that were found damaged, and when: their packs are read
    at once, unless they were since. `resumed` are recipes of killed captures.
    """

    def __init__(
        self,
        packs: LocalPacks,
        index: PieceIndex,
        newest: Iterable[Recipe],
        *,
        resumed: Iterable[Recipe] = (),
        others: Iterable[Recipe],
        suspects: Iterable[tuple[Recipe, datetime]],
        reread_days: int,
        encryption: LocalEncryption | None = None,
    ) -> None:
        self._encryption = encryption
        self.packs = packs
        self._index = index
        self._limit = timedelta(days=reread_days)
        newest, others, resumed = tuple(newest), tuple(others), tuple(resumed)
        published = {name for recipe in (*newest, *others) for name in recipe.packs}
        self._unproven = {name for recipe in resumed for name in recipe.packs} - published
        recipes = (*newest, *resumed)
        self._stated = {pack.name: pack for recipe in recipes for pack in recipe.stated_packs}
        self._all = {pack.name: pack for recipe in (*recipes, *others) for pack in recipe.stated_packs}
        self.damaged: frozenset[str] = frozenset()
        """Packs that turned out damaged."""
        self.healed: frozenset[str] = frozenset()
        """Packs that were made whole again."""
        # Of an index that was copied here, what it says of other packs of these names.
        known = {pack.name: (pack.size_bytes, pack.sha256) for pack in index.list_packs()}
        index.forget(
            [
                pack.name
                for pack in self._all.values()
                if known.get(pack.name, (pack.size_bytes, pack.sha256)) != (pack.size_bytes, pack.sha256)
            ]
        )
        sizes = packs.find_sizes()
        # A point is only readable with a key that opens every pack of it.
        readers = encryption.encryptor.readers if encryption is not None else PLAIN_READERS
        whole_bytes = {
            name: pack.plain_bytes
            for name, pack in self._stated.items()
            if sizes.get(name) == pack.size_bytes and pack.readers == readers
        }
        self.usable = find_worth_keeping(whole_bytes, [recipe.segments for recipe in recipes])
        for pack in self._all.values():
            if describe_wrong_size(pack, sizes):
                self._read(pack)
        rereads = index.find_rereads()
        for recipe, found_at in suspects:
            for pack in recipe.stated_packs:
                read_at = rereads.get(pack.name)
                if pack.name not in self.damaged and (read_at is None or read_at < found_at):
                    self._read(pack)
        index.choose_usable(self.usable)

    def open_writer(self, point_id: RecoveryPointId, *, pack_bytes: int) -> PackWriter:
        """Return a writer of new packs of this point."""
        return self.packs.open_writer(
            self._index,
            point_id,
            pack_bytes=pack_bytes,
            confirm=self._holds,
            encryption=self._encryption,
        )

    def make_recipe(self, segments: Segments, new: Iterable[StoredFile]) -> Recipe:
        """Return the recipe of an artifact, with what is known of every pack."""
        # Remembered: a second attempt may use what the first one wrote.
        for stored in new:
            if (pack := self._index.state_pack(stored.name)) is not None:
                self._stated[pack.name] = pack
        return Recipe(
            Segments(segments), stated_packs=tuple(self._stated[name] for name in segments.used_packs)
        )

    def read_due(self, recipe: Recipe) -> dict[str, str]:
        """Read the packs that are new or due; return what is wrong with those of the recipe, by their names.

        A damaged pack is not used any more. One that only older points need is noted as damaged. One that
        turned out damaged after parts of it were placed counts, too.
        """
        rereads = self._index.find_rereads()
        now = datetime.now(timezone.utc)
        needed = {pack.name: pack for pack in recipe.stated_packs}
        due = [
            pack
            for pack in (self._all | needed).values()
            if pack.name not in self.damaged and self._is_due(pack.name, rereads.get(pack.name), now)
        ]
        problems = {name: f"the pack {name} is damaged" for name in needed if name in self.damaged}
        # Their digests are computed outside of Python's lock.
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read packs") as pool:
            for pack, problem in zip(due, pool.map(self.packs.read_again, due), strict=True):
                self._note_reading(pack, problem)
                if problem and pack.name in needed:
                    problems[pack.name] = problem
        return problems

    def heal(self) -> None:
        """Make damaged packs whole with what lies in others by now; StorageError when one cannot be written.

        Also those that were found in earlier backups. They count as damaged for this one.
        """
        for name in self._index.find_set_aside() & self._all.keys():
            if heal_pack(self.packs, self._index, self._all[name]):
                self._index.record_reread(name, datetime.now(timezone.utc))
                self.healed |= {name}

    def find_unread(self, recipe: Recipe) -> frozenset[str]:
        """Return the packs of the recipe that were never read again, and those that no point has yet.

        Of the latter, a killed capture may have compared the digests, but not unpacked the objects.
        """
        rereads = self._index.find_rereads()
        return frozenset(name for name in recipe.packs if rereads.get(name) is None or name in self._unproven)

    def find_oldest_reading(self, recipe: Recipe) -> datetime:
        """Return when the pack was read whose reading is longest ago; ReadBackError if one never was."""
        rereads = self._index.find_rereads()
        times = [rereads.get(name) for name in recipe.packs]
        known = [time for time in times if time is not None]
        if not known or len(known) < len(times):
            raise ReadBackError("when the packs were read is not known", keys=())
        return min(known)

    def _holds(self, segment: Segment, data: bytes) -> bool:
        """Return whether these bytes lie there; otherwise use the pack, or its place in the index, no more.

        Nothing else would notice a damaged index: what lies in older packs is not unpacked again.
        """
        pack = self._stated.get(segment.pack) or self._index.state_pack(segment.pack)
        if pack is not None and self.packs.read_part(pack, segment) == data:
            return True
        if pack is None or not self._read(pack):
            self._index.distrust(segment.pack)
        return False

    def _read(self, pack: StatedPack) -> str:
        """Read the pack and remember that; return what is wrong with it."""
        problem = self.packs.read_again(pack)
        self._note_reading(pack, problem)
        return problem

    def _note_reading(self, pack: StatedPack, problem: str) -> None:
        """Remember that the pack was read, and what was wrong with it."""
        self._index.adopt(StoredFile(name=pack.name, size_bytes=pack.size_bytes, sha256=pack.sha256))
        if problem:
            self._index.set_aside(pack.name)
            self.damaged |= {pack.name}
            self.usable -= {pack.name}
        else:
            self._index.record_reread(pack.name, datetime.now(timezone.utc))

    def _is_due(self, name: str, read_at: datetime | None, now: datetime) -> bool:
        # Each pack has its own day between half and nine tenths of the period, so that not all are read in
        # one night, and the next backup comes in time.
        share = hashlib.sha256(name.encode("ascii")).digest()[0] / 640
        return read_at is None or not timedelta(0) <= now - read_at < self._limit * (0.5 + share)


def find_worth_keeping(sizes: Mapping[str, int], used: Iterable[Segments]) -> frozenset[str]:
    """Return the packs of which one of these artifacts uses at least half."""
    found: set[str] = set()
    for segments in used:
        used_bytes: Counter[str] = Counter()
        for segment in segments:
            used_bytes[segment.pack] += segment.length
        found |= {name for name, size in used_bytes.items() if size >= _WORTH_KEEPING * sizes.get(name, inf)}
    return frozenset(found)
