"""Copy a recovery point into a store: packs first, then recipes, the commit mark last.

Nothing is ever deleted or overwritten in the store, so that credentials without those rights are enough. A
killed copy goes on where it stopped; only packs that were being uploaded are uploaded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event

from pydantic import ValidationError

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.copies.known_pieces import restore_index
from schedgen_backups.core.copies.layout import (
    COMMIT_NAME,
    MANIFEST_NAME,
    PACK_LIST_NAME,
    VERIFICATION_NAME,
    CopyCommit,
    PackList,
    SiteKeys,
    list_copies,
    make_local_recipe_name,
    make_recipe_name,
    read_guides,
    read_pack_list,
    read_whole,
)
from schedgen_backups.core.copies.local_folder import READERS_NAME, LocalFolder, now_utc
from schedgen_backups.core.copies.packed_points import hand_on, read_named_recipe
from schedgen_backups.core.copies.settings import (
    LARGE_SITE_BYTES,
    LARGE_SITE_PACK_BYTES,
    PACK_BYTES,
)
from schedgen_backups.core.errors import (
    CopyChangedError,
    KeyExistsError,
    KeyMissingError,
    StoreError,
    UnreadableFileError,
    VerificationError,
)
from schedgen_backups.core.formats.recipe import Recipe, Segments, read_recipe, write_recipe
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import TOOL_VERSION, Artifact, Manifest, RecoveryPointId
from schedgen_backups.core.packs.encryption import Encryptor
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_files import StoredFile, parse_pack_number
from schedgen_backups.core.packs.pack_writer import PackWriter
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.packs.pieces import cut_artifact
from schedgen_backups.core.store.protocol import Store
from schedgen_backups.core.system.files import read_small_file

_MOST_ATTEMPTS = 3
_DIGESTED_BYTES = 1 << 20
"""Bytes that are digested at once on another thread; handing over single small pieces takes longer."""


@dataclass(frozen=True)
class CopyReport:
    """What copying one point did."""

    point_id: RecoveryPointId
    is_new: bool
    """Whether the store lacked the copy before."""
    uploaded_bytes: int = 0
    reused_bytes: int = 0
    """Plain size of the pieces that the store already held."""
    pack_list: PackList | None = None
    new_packs: tuple[StoredFile, ...] = ()


@dataclass(frozen=True)
class Copier:
    """Copies points of one backup directory into one store.

    Use within `folder.held()`. `on_progress` gets the plain bytes done since the last call.
    """

    catalog: Catalog
    store: Store
    keys: SiteKeys
    encryptor: Encryptor
    folder: LocalFolder
    stop: Event = field(default_factory=Event)
    on_progress: Callable[[int], object] = lambda _size_bytes: None
    pack_bytes: int | None = None
    """Plain size at which a pack is full; None for the size that fits the point."""

    def copy(self, point: PointListing) -> CopyReport:
        """Copy a verified point of this site; do nothing if the store holds it.

        VerificationError (permanent) when the point is not verified or a file has changed since.
        CopyChangedError (retryable) when pruning keeps taking away what the copy relies on. Other errors are
        those of the store.
        """
        if point.manifest is None or point.state is not PointState.VERIFIED:
            raise VerificationError(
                f"recovery point {point.point_id} is not copied: it is {point.state.value}",
                hint="Only verified points are copied. `schedgen-backups verify ID` checks it again.",
            )
        if self.store.head(self.keys.file(point.point_id, COMMIT_NAME)) is not None:
            return CopyReport(point.point_id, is_new=False)
        with PieceIndex(self.folder.index_path) as index:
            index.settle_readers(self.encryptor.readers)
            if index.is_new:
                restore_index(index, self.catalog, self.folder, self.encryptor.readers)
            for attempt in range(_MOST_ATTEMPTS):
                try:
                    return _Copy(self, index, point, point.manifest, self._register()).run()
                except CopyChangedError:
                    if attempt == _MOST_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def _register(self) -> str:
        """Make this writer and the guides known in the store; return the id of this writer."""
        writer_id = self.folder.settle_writer_id()
        for key, data in (
            (f"{self.keys.writers}{writer_id}", b"{}"),
            *((f"{self.keys.site_id}/{name}", data) for name, data in read_guides().items()),
        ):
            if self.store.head(key) is None:
                with suppress(KeyExistsError):
                    self.store.put_new(key, data)
        return writer_id


def _update(update: Callable[[bytes], object], parts: list[bytes]) -> None:
    for part in parts:
        update(part)


class _Copy:
    """One attempt to copy one point."""

    def __init__(
        self, copier: Copier, index: PieceIndex, point: PointListing, manifest: Manifest, writer_id: str
    ) -> None:
        self._copier = copier
        self._store = copier.store
        self._keys = copier.keys
        self._folder = copier.folder
        self._index = index
        self._point_id = point.point_id
        self._manifest = manifest
        self._writer_id = writer_id
        self._pack_bytes = copier.pack_bytes or (
            LARGE_SITE_PACK_BYTES if point.size_bytes >= LARGE_SITE_BYTES else PACK_BYTES
        )
        self._needed: dict[str, StoredFile] = {}

    def run(self) -> CopyReport:
        report = self._commit_again()
        if report is not None:
            return report
        self._refuse_foreign_files()
        first_number = self._choose_packs()
        with PackWriter(
            lambda name, data: self._store.put_new(self._keys.pack(name), data),
            self._copier.encryptor,
            self._index,
            self._point_id,
            first_number=first_number,
            pack_bytes=self._pack_bytes,
        ) as packs:
            recipes = {
                artifact.file_name: self._store_artifact(packs, artifact)
                if artifact.content_bytes is None
                else self._store_packs(packs, artifact)
                for artifact in self._manifest.artifacts
            }
        self._needed = self._find_needed(recipes.values())
        # Before anything is stored in the point's folder, which cannot be replaced.
        self._check_unchanged()
        files = self._store_files(recipes)
        pack_list = PackList(
            tool_version=TOOL_VERSION,
            point_id=self._point_id.text,
            site_id=self._keys.site_id,
            packs=tuple(self._needed[name] for name in sorted(self._needed)),
            files=files,
        )
        data = pack_list.model_dump_json(indent=1).encode()
        self._put_or_match(PACK_LIST_NAME, data)
        self._check_unchanged()
        self._commit(hashlib.sha256(data).hexdigest())
        # Only of committed copies: the newest one shows which packs are sparse.
        for file_name, recipe in recipes.items():
            self._folder.write_plain(self._point_id, make_recipe_name(file_name), write_recipe(recipe))
        self._folder.write_plain(self._point_id, READERS_NAME, self._copier.encryptor.readers.encode())
        self._folder.write_plain(self._point_id, PACK_LIST_NAME, data)
        self._folder.remove_staged(self._point_id)
        return CopyReport(
            self._point_id,
            is_new=True,
            uploaded_bytes=sum(each.size_bytes for each in (*packs.new_packs, *files)) + len(data),
            reused_bytes=packs.reused_bytes,
            pack_list=pack_list,
            new_packs=tuple(packs.new_packs),
        )

    def _commit_again(self) -> CopyReport | None:
        """Commit a copy that this host committed before, and of which only the commit mark was deleted.

        None if more than that is missing or altered: then the point is copied like a new one. The pack list
        that is kept here proves the files of the point, which only a private key could open.
        """
        data = self._folder.read_plain(self._point_id, PACK_LIST_NAME)
        readers = self._folder.read_plain(self._point_id, READERS_NAME)
        if data is None or readers != self._copier.encryptor.readers.encode():
            return None
        try:
            pack_list = PackList.model_validate_json(data)
            self._needed = {pack.name: pack for pack in pack_list.packs}
            # Before the files are read, too: what was not condemned then is not removed before the commit.
            self._check_unchanged()
        except (CopyChangedError, ValidationError):
            return None
        if not all(map(self._holds, pack_list.files)):
            return None
        self._put_or_match(PACK_LIST_NAME, data)
        self._check_unchanged()
        self._commit(hashlib.sha256(data).hexdigest())
        return CopyReport(self._point_id, is_new=True, pack_list=pack_list)

    def _holds(self, file: StoredFile) -> bool:
        """Return whether the store holds this file of the point, byte for byte."""
        key = self._keys.file(self._point_id, file.name)
        try:
            data = self._store.get_range(key, 0, file.size_bytes + 1)
        except KeyMissingError:
            return False
        return hashlib.sha256(data).hexdigest() == file.sha256

    def _refuse_foreign_files(self) -> None:
        """Raise StoreError, before anything is uploaded, for an unfinished copy that was not begun here.

        Its files were encrypted with keys that are not kept, so that no other bytes can be the same.
        """
        if not self._copier.encryptor.suffix or self._folder.has_staged(self._point_id):
            return
        found = self._store.list(self._keys.file(self._point_id, ""))
        names = [
            stored.key.rpartition("/")[2] for stored in found if stored.is_newest and not stored.is_marker
        ]
        if names:
            raise self._make_foreign_error(names[0])

    def _make_foreign_error(self, name: str) -> StoreError:
        return StoreError(
            f"{self._store.label} holds an unfinished copy of {self._point_id} that cannot be continued: "
            f"{name} is not what this host would store",
            hint=f"If its {COMMIT_NAME} was hidden there, bring that back. Otherwise its local part was lost "
            "or the recipients have changed. Nothing is overwritten. `schedgen-backups stores prune` removes "
            "the unfinished copy, in two days or more and when no lock keeps it. Then the point is copied. "
            "Others are copied now.",
        )

    def _find_needed(self, recipes: Iterable[Recipe]) -> dict[str, StoredFile]:
        needed: dict[str, StoredFile] = {}
        for name in dict.fromkeys(name for recipe in recipes for name in recipe.packs):
            stored = self._index.find_pack(name)
            if stored is None:
                raise CopyChangedError(f"pack {name} is not known here")
            needed[name] = stored
        return needed

    def _store_files(self, recipes: Mapping[str, Recipe]) -> tuple[StoredFile, ...]:
        """Store recipes, manifest and verification."""
        catalog = self._copier.catalog
        contents = {make_recipe_name(name): write_recipe(recipe) for name, recipe in recipes.items()}
        for artifact in self._manifest.artifacts:
            if artifact.content_bytes is not None:
                data, _recipe = read_named_recipe(catalog.directory, artifact)
                contents[make_local_recipe_name(artifact.file_name)] = data
        try:
            contents[MANIFEST_NAME] = read_small_file(catalog.manifest_path(self._point_id))
            contents[VERIFICATION_NAME] = read_small_file(catalog.verification_path(self._point_id))
        except OSError as error:
            raise UnreadableFileError(
                f"manifest or verification of {self._point_id} cannot be read: {error.strerror}",
                hint="Check the disk and the permissions of the backup directory.",
            ) from error
        return tuple(self._store_file(name, data) for name, data in contents.items())

    def _choose_packs(self) -> int:
        """Decide which packs of the store are used again; return the number of the next new one."""
        sizes = self._list_packs()
        numbers = [parse_pack_number(name, self._point_id) for name in sizes]
        known = self._index.list_packs()
        self._index.forget([pack.name for pack in known if sizes.get(pack.name) != pack.size_bytes])
        self._index.forget(self._find_other_packs())
        self._index.choose_usable(sizes.keys() - self._list_condemned() - self._find_sparse_packs())
        return max((number + 1 for number in numbers if number is not None), default=0)

    def _list_packs(self) -> dict[str, int]:
        """Return the size of every pack in the store."""
        return {
            stored.key.removeprefix(self._keys.packs): stored.size_bytes
            for stored in self._store.list(self._keys.packs)
            if stored.is_newest and not stored.is_marker
        }

    def _find_other_packs(self) -> set[str]:
        """Return the known packs of which a copy in the store says that their bytes are others.

        Of two stores that were filled in the same nights, the packs have the same names and sizes. When their
        URLs are exchanged, or a disk, the index describes the packs of the other one.
        """
        unconfirmed = {pack.name: pack.sha256 for pack in self._index.list_packs()}
        others: set[str] = set()
        for point_id in reversed(list_copies(self._store, self._keys)):
            if not unconfirmed:
                break
            with suppress(VerificationError):
                for pack in read_pack_list(self._store, self._keys, point_id)[1].packs:
                    if unconfirmed.pop(pack.name, pack.sha256) != pack.sha256:
                        others.add(pack.name)
        return others

    def _list_condemned(self) -> set[str]:
        return {
            stored.key.removeprefix(self._keys.condemned)
            for stored in self._store.list(self._keys.condemned)
            if stored.is_newest and not stored.is_marker
        }

    def _find_sparse_packs(self) -> set[str]:
        """Return the packs of which the newest copy uses less than half: their pieces are packed again."""
        # A point without a pack list was not committed: what it would have used is unknown.
        copied = [
            point
            for point in self._folder.list_points()
            if point < self._point_id and self._folder.read_plain(point, PACK_LIST_NAME) is not None
        ]
        if not copied:
            return set()
        newest = copied[-1]
        used: dict[str, int] = {}
        try:
            for name, data in self._folder.list_recipes(newest):
                for segment in read_recipe(name, data).segments:
                    used[segment.pack] = used.get(segment.pack, 0) + segment.length
        except VerificationError:
            # Damaged on this host: nothing is known of the use of packs.
            return set()
        undivided = self._index.find_undivided()
        return {
            name
            for name, plain_bytes in self._index.find_plain_sizes().items()
            # A later point's packs are those of a killed copy, which goes on with them.
            if name[: len(newest.text)] <= newest.text
            and 2 * used.get(name, 0) < plain_bytes
            # A pack of the backup directory is as sparse there: its bytes would only be stored again.
            and name not in undivided
        }

    def _store_artifact(self, packs: PackWriter, artifact: Artifact) -> Recipe:
        """Store what the store lacks of the artifact; return where its pieces lie."""
        segments = Segments()
        digest = hashlib.sha256()
        undigested: list[bytes] = []
        undigested_bytes = 0
        with (
            SerialWorker("digest") as digester,
            ArtifactFile(self._copier.catalog.directory / artifact.file_name) as file,
            file.name_errors(),
        ):
            for piece in cut_artifact(artifact.kind, file):
                undigested.append(piece.data)
                undigested_bytes += len(piece.data)
                if undigested_bytes >= _DIGESTED_BYTES:
                    digester.submit(_update, digest.update, undigested)
                    undigested, undigested_bytes = [], 0
                segments.join(packs.place(piece))
                self._report_progress(len(piece.data))
            digester.submit(_update, digest.update, undigested)
            digester.wait()
        packs.finish_artifact()
        if digest.hexdigest() != artifact.sha256:
            raise VerificationError(
                f"{artifact.file_name} has changed since it was verified",
                hint="`schedgen-backups verify ID` shows what is wrong with it.",
            )
        return Recipe(segments, artifact.sha256)

    def _store_packs(self, packs: PackWriter, artifact: Artifact) -> Recipe:
        """Store the packs of the artifact that the store lacks; return where its pieces lie."""
        directory = self._copier.catalog.directory
        return hand_on(
            LocalPacks(directory, self._copier.catalog.keys),
            packs,
            read_named_recipe(directory, artifact)[1],
            self._report_progress,
        )

    def _report_progress(self, size_bytes: int) -> None:
        """Report plain bytes as done; StoreError (retryable) if the copy is to stop."""
        if self._copier.stop.is_set():
            raise StoreError("the copy was stopped", hint="It goes on the next time.")
        self._copier.on_progress(size_bytes)

    def _store_file(self, name: str, data: bytes) -> StoredFile:
        """Encrypt a file of the point and store it."""
        # With other recipients, what was encrypted for the former ones is of no use.
        digest = hashlib.sha256(self._copier.encryptor.readers.encode() + data).hexdigest()
        staged_name = f"{name}.{digest[:16]}"
        encrypted = self._folder.read_staged(self._point_id, staged_name)
        if encrypted is None:
            encrypted = self._copier.encryptor.encrypt(data)
            # Encrypting it again would give other bytes, and what is stored cannot be replaced.
            self._folder.write_staged(self._point_id, staged_name, encrypted)
        stored_name = name + self._copier.encryptor.suffix
        self._put_or_match(stored_name, encrypted)
        return StoredFile(
            name=stored_name, size_bytes=len(encrypted), sha256=hashlib.sha256(encrypted).hexdigest()
        )

    def _put_or_match(self, name: str, data: bytes) -> None:
        """Store a file of the point's folder; a file of the same bytes may be there already."""
        key = self._keys.file(self._point_id, name)
        try:
            self._store.put_new(key, data)
        except KeyExistsError as error:
            if read_whole(self._store, key) != data:
                raise self._make_foreign_error(name) from error

    def _check_unchanged(self) -> None:
        """Raise CopyChangedError unless the store still holds every pack of the copy and keeps it.

        Pruning removes a pack at the earliest when every writer has committed a copy since it was condemned;
        this copy uses no pack that was condemned when it began, and here none that is.
        """
        condemned = self._list_condemned()
        if self._point_id.text in condemned:
            raise StoreError(
                f"an unfinished copy of {self._point_id} is being pruned",
                hint="It can be copied when pruning has removed it, in two days or more.",
            )
        if doomed := condemned & self._needed.keys():
            raise CopyChangedError(f"pack {min(doomed)} is about to be pruned")
        sizes = self._list_packs()
        for name, stored in self._needed.items():
            if sizes.get(name) != stored.size_bytes:
                raise CopyChangedError(f"pack {name} is missing from the store, or has another size")
        if self._store.head(f"{self._keys.writers}{self._writer_id}") is None:
            raise CopyChangedError("this host was removed from the writers of the store")

    def _commit(self, packs_sha256: str) -> None:
        commit = CopyCommit(
            tool_version=TOOL_VERSION,
            point_id=self._point_id.text,
            site_id=self._keys.site_id,
            writer_id=self._writer_id,
            packs_sha256=packs_sha256,
            copied_at=now_utc(),
        )
        key = self._keys.file(self._point_id, COMMIT_NAME)
        try:
            self._store.put_new(key, commit.model_dump_json(indent=1).encode())
        except KeyExistsError as error:
            raise CopyChangedError(f"another host has just committed the copy of {self._point_id}") from error
