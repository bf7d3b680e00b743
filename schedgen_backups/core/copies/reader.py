"""Read a copy back: whole files, or only the parts that are needed, into a directory of recovery points.

The files are the same as before they were copied, byte for byte, so that everything which reads a backup
directory reads the result.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pydantic import ValidationError

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.small_files import SITE_NAME, translate_storage_errors
from schedgen_backups.core.copies.layout import (
    MANIFEST_NAME,
    VERIFICATION_NAME,
    PackList,
    SiteKeys,
    make_local_recipe_name,
    make_recipe_name,
    read_pack_list,
)
from schedgen_backups.core.copies.local_folder import now_utc, open_fetch_folder
from schedgen_backups.core.copies.packed_points import match_packs, parse_named_recipe
from schedgen_backups.core.errors import KeyMissingError, StorageError, VerificationError
from schedgen_backups.core.formats.gzip_members import FOOTER_BYTES, read_footer
from schedgen_backups.core.formats.packed_file import PACKS_NAME, is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import (
    ENCRYPTED_SUFFIX,
    Recipe,
    StatedPack,
    read_recipe,
    slice_segments,
)
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import Artifact, ArtifactName, Manifest, PartName, RecoveryPointId, Site
from schedgen_backups.core.packs.encryption import Decryptor
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.store.protocol import Store
from schedgen_backups.core.system.files import (
    create_private,
    make_private_folder,
    sync_path,
    write_atomically,
)
from schedgen_backups.core.units import name_some

_HOLDER = "fetch on the command line"
_READ_BYTES = 4 << 20
_READ_THREADS = 2
"""Packs that are read at the same time; each is in memory twice, as stored and decrypted."""
_JOINED_GAP_BYTES = 64 << 10
"""Ranges that are nearer than this are read in one request: age encrypts chunks of that size."""
_HINT = "Use another copy, or read an older version with --as-of-version-time where the store keeps versions."


class _Places:
    """What of a pack goes where: offset in the artifact, offset in the pack, length. In 24 bytes each."""

    def __init__(self) -> None:
        self._targets, self._offsets, self._lengths = array("Q"), array("Q"), array("Q")

    def add(self, target: int, offset: int, length: int) -> None:
        self._targets.append(target)
        self._offsets.append(offset)
        self._lengths.append(length)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self._targets, self._offsets, self._lengths, strict=True)


@dataclass(frozen=True)
class CopyReader:
    """One committed copy. `on_progress` gets the bytes written to the directory since the last call.

    Every call raises VerificationError (permanent) when the copy is damaged or the key is a wrong one, and
    the errors of the store.
    """

    store: Store
    keys: SiteKeys
    point_id: RecoveryPointId
    decryptor: Decryptor
    on_progress: Callable[[int], object] = lambda _size_bytes: None
    part: PartName | None = None
    """Which part of the point is wanted; None for the whole."""

    @cached_property
    def pack_list(self) -> PackList:
        """Everything that the copy consists of."""
        return read_pack_list(self.store, self.keys, self.point_id)[1]

    @cached_property
    def _packs(self) -> dict[str, StoredFile]:
        return {pack.name: pack for pack in self.pack_list.packs}

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of the point.

        Whoever can write to the store and knows a public key can have made it: its file names are checked
        before anything is written.
        """
        try:
            manifest = Manifest.model_validate_json(self._read_file(MANIFEST_NAME))
        except ValidationError as error:
            raise VerificationError(
                f"the manifest of the copy of {self.point_id} is damaged", hint=_HINT
            ) from error
        for artifact in manifest.artifacts:
            name = ArtifactName.from_file_name(artifact.file_name)
            if (
                manifest.point_id != self.point_id.text
                or Path(artifact.file_name).name != artifact.file_name
                or name is None
                or is_recipe_name(artifact.file_name) is not (artifact.content_bytes is not None)
                or (name.kind, name.point_id) != (artifact.kind, self.point_id)
            ):
                raise VerificationError(
                    f"the manifest of the copy of {self.point_id} names {artifact.file_name!r}, which is "
                    "not a file of that point",
                    hint="The copy was not made by this program: somebody else writes to the store.",
                )
        return manifest

    def read_recipe(self, artifact: Artifact) -> Recipe:
        """Return where the pieces of the artifact lie."""
        name = make_recipe_name(artifact.file_name)
        recipe = read_recipe(name, self._read_file(name))
        sha256 = artifact.sha256 if artifact.content_bytes is None else ""
        if (recipe.sha256, recipe.size_bytes) != (sha256, artifact.whole_bytes):
            raise VerificationError(f"{name} belongs to another file", hint=_HINT)
        return recipe

    def fetch(self, directory: Path) -> Catalog:
        """Write the point's files into the directory, and check each against its digest."""
        catalog = self.fetch_descriptions(directory)
        for artifact in self.manifest.artifacts:
            with translate_storage_errors(directory):
                if artifact.content_bytes is None:
                    self._write_ranges(directory, artifact, [(0, artifact.size_bytes)])
                    self._check_file(directory / artifact.file_name, artifact)
                else:
                    self._write_packs(directory, artifact)
        return catalog

    def fetch_into(self, directory: Path) -> Catalog:
        """Fetch the point into a directory that may hold others, and give it its commit mark last.

        StorageError (permanent), before anything is read, if the directory holds a file of the point. The
        identity of a directory that has one stays. LockHeldError (retryable) if the point lies in packs and
        another process works in the directory.
        """
        catalog = Catalog(directory, self.decryptor)
        catalog.prepare()
        manifest = catalog.manifest_path(self.point_id)
        names = [
            *(artifact.file_name for artifact in self.manifest.artifacts),
            catalog.verification_path(self.point_id).name,
        ]
        taken = [name for name in (*names, manifest.name) if (directory / name).exists()]
        if taken:
            raise StorageError(
                f"{directory} already holds {name_some(taken)}",
                hint="Use another directory, or move these files away.",
            )
        if any(artifact.content_bytes is not None for artifact in self.manifest.artifacts):
            # It is needed at the end; what would fail then fails before hours of reading.
            with catalog.lock.held(_HOLDER):
                pass
        with open_fetch_folder(directory) as folder:
            self.fetch(folder)
            with ExitStack() as stack, translate_storage_errors(directory):
                if (folder / PACKS_NAME).exists():
                    # Pruning removes packs that no recipe names yet.
                    stack.enter_context(catalog.lock.held(_HOLDER))
                    self._move_packs(folder, directory)
                for name in names:
                    sync_path(folder / name)
                    (folder / name).rename(directory / name)
                if not (directory / SITE_NAME).exists():
                    (folder / SITE_NAME).rename(directory / SITE_NAME)
                sync_path(directory)
                (folder / manifest.name).rename(manifest)
                sync_path(directory)
        return catalog

    def fetch_descriptions(self, directory: Path) -> Catalog:
        """Write manifest and verification into the directory, which gets the identity of the site."""
        site_id = self.manifest.site_id
        catalog = Catalog(directory, self.decryptor)
        catalog.prepare()
        with translate_storage_errors(directory):
            write_atomically(catalog.manifest_path(self.point_id), self._read_file(MANIFEST_NAME))
            write_atomically(catalog.verification_path(self.point_id), self._read_file(VERIFICATION_NAME))
        catalog.write_description(SITE_NAME, Site(site_id=site_id, made_at=now_utc()))
        return catalog

    def fetch_index(self, directory: Path, artifact: Artifact) -> None:
        """Write an artifact of the right size that holds only its index, and holes for the rest."""
        whole_bytes = artifact.whole_bytes
        with translate_storage_errors(directory):
            self._write_ranges(directory, artifact, [(whole_bytes - FOOTER_BYTES, FOOTER_BYTES)])
            with ArtifactFile(directory / artifact.file_name) as file:
                index_offset = read_footer(file.open_reader()).index_offset
            self._write_ranges(directory, artifact, [(index_offset, whole_bytes - index_offset)])

    def fetch_ranges(self, directory: Path, artifact: Artifact, ranges: Iterable[tuple[int, int]]) -> None:
        """Write these ranges (offset, length) of the artifact to their places, which `fetch_index` made."""
        with translate_storage_errors(directory):
            self._write_ranges(directory, artifact, join_ranges(ranges))

    def read_packs(
        self, names: Collection[str], on_problem: Callable[[str], object]
    ) -> Iterator[tuple[StatedPack, bytes]]:
        """Yield those of these packs of the backup directory that the copy has, with their stored bytes.

        `on_problem` gets what is wrong with each that the copy has and that cannot be had so.
        """
        for artifact in self.manifest.artifacts:
            if artifact.content_bytes is None:
                continue
            try:
                _data, local, stored = self._read_both_recipes(artifact)
            except VerificationError as error:
                on_problem(error.message)
                continue
            for pack in local.stated_packs:
                if pack.name not in names:
                    continue
                try:
                    name, data = self._read_pack(pack, stored[pack.name])
                except VerificationError as error:
                    on_problem(error.message)
                    continue
                if name == pack.name:
                    yield pack, data
                else:
                    on_problem(
                        f"the copy of {self.point_id} has {pack.name} encrypted for other keys: encrypted "
                        "again, its bytes would not be those that were written"
                    )

    def _read_file(self, name: str) -> bytes:
        """Return the plain bytes of a file in the point's folder."""
        for stored in self.pack_list.files:
            if stored.name in {name, name + ENCRYPTED_SUFFIX}:
                key = self.keys.file(self.point_id, stored.name)
                return self.decryptor.decrypt(stored.name, self._read_stored(key, stored))
        raise VerificationError(f"the copy of {self.point_id} has no {name}", hint=_HINT)

    def _read_stored(self, key: str, stored: StoredFile) -> bytes:
        try:
            data = self.store.get_range(key, 0, stored.size_bytes + 1)
        except KeyMissingError as error:
            raise VerificationError(error.message, hint=_HINT) from error
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise VerificationError(f"{key} was altered: its digest is another one", hint=_HINT)
        return data

    def _write_ranges(self, directory: Path, artifact: Artifact, ranges: Sequence[tuple[int, int]]) -> None:
        """Write the ranges of the artifact to their places in its file, or in its packs."""
        if artifact.content_bytes is None:
            recipe = self.read_recipe(artifact)
            by_pack: dict[str, _Places] = {}
            for target, segment in slice_segments(recipe.segments, ranges):
                by_pack.setdefault(segment.pack, _Places()).add(target, segment.offset, segment.length)
            path = directory / artifact.file_name
            self._write_places(path, artifact.size_bytes, by_pack)
            return
        local, names = self._read_local_recipe(directory, artifact)
        places = {pack.name: _Places() for pack in local.stated_packs}
        for _target, segment in slice_segments(local.segments, ranges):
            places[segment.pack].add(segment.offset, segment.offset, segment.length)
        for pack in local.stated_packs:
            path = directory / PACKS_NAME / pack.plain_name
            self._write_places(path, pack.plain_bytes, {names[pack.name]: places[pack.name]})

    def _write_places(self, path: Path, size_bytes: int, by_pack: Mapping[str, _Places]) -> None:
        """Write to these places of a file of this size; each pack of the store is read once."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC) if path.exists() else create_private(path)
        try:
            os.ftruncate(descriptor, size_bytes)
            wanted = {name: places for name, places in by_pack.items() if len(places)}
            with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read") as pool:
                write = partial(self._write_pack, descriptor)
                for written_bytes in pool.map(write, wanted.keys(), wanted.values()):
                    self.on_progress(written_bytes)
        finally:
            os.close(descriptor)

    def _read_local_recipe(self, directory: Path, artifact: Artifact) -> tuple[Recipe, dict[str, str]]:
        """Return the recipe of the backup directory and the names of its packs in the store; write it."""
        path = directory / artifact.file_name
        data, local, names = self._read_both_recipes(artifact)
        make_private_folder(directory / PACKS_NAME)
        if not path.exists():
            with os.fdopen(create_private(path), "wb") as file:
                file.write(data)
        return local, names

    def _read_both_recipes(self, artifact: Artifact) -> tuple[bytes, Recipe, dict[str, str]]:
        """Return the recipe of the backup directory, its bytes, and the names of its packs in the store."""
        data = self._read_file(make_local_recipe_name(artifact.file_name))
        local = parse_named_recipe(artifact, data)
        return data, local, match_packs(local, self.read_recipe(artifact))

    def _write_packs(self, directory: Path, artifact: Artifact) -> None:
        """Write every pack of the artifact, whole, and compare it with what its recipe states.

        An encrypted one as it was, if the store has it so, otherwise in its plain form.
        """
        local, names = self._read_local_recipe(directory, artifact)
        packs = LocalPacks(directory)

        def write(pack: StatedPack) -> int:
            if packs.find_path(pack).exists():  # The other artifact needs it, too.
                return 0
            name, data = self._read_pack(pack, names[pack.name])
            with os.fdopen(create_private(packs.folder / name), "wb") as file:
                file.write(data)
            return len(data)

        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read") as pool:
            for size_bytes in pool.map(write, local.stated_packs):
                self.on_progress(size_bytes)

    def _read_pack(self, pack: StatedPack, stored_name: str) -> tuple[str, bytes]:
        """Return name and bytes of the pack: as it was written, if the store has it so, otherwise plain."""
        stored = self._find_pack(stored_name)
        data = self._read_stored(self.keys.pack(stored.name), stored)
        if stored.sha256 == pack.sha256:
            return pack.name, data
        data = self.decryptor.decrypt(stored.name, data)
        if (len(data), hashlib.sha256(data).hexdigest()) != (pack.plain_bytes, pack.plain_sha256):
            raise VerificationError(f"{stored.name} does not hold the pack {pack.name}", hint=_HINT)
        return pack.plain_name, data

    def _move_packs(self, folder: Path, directory: Path) -> None:
        """Move fetched packs into a directory that may hold some of them; StorageError if one is another."""
        packs, fetched = LocalPacks(directory), LocalPacks(folder)
        packs.prepare()
        missing: list[Path] = []
        for artifact in self.manifest.artifacts:
            if artifact.content_bytes is None:
                continue
            for pack in read_local_recipe(folder / artifact.file_name).stated_packs:
                if not packs.find_path(pack).exists():
                    missing.append(fetched.find_path(pack))
                elif problem := packs.read_again(pack):
                    raise StorageError(
                        f"{directory} already holds a pack of this name: {problem}",
                        hint="Use another directory.",
                    )
        for path in dict.fromkeys(missing):
            sync_path(path)
            path.rename(packs.folder / path.name)
        sync_path(packs.folder)

    def _write_pack(self, descriptor: int, name: str, places: _Places) -> int:
        read = self._open_pack(self._find_pack(name), places)
        for target, offset, length in places:
            data = read(offset, length)
            if len(data) != length:
                raise VerificationError(f"{name} is too short", hint=_HINT)
            os.pwrite(descriptor, data, target)
        return sum(length for _target, _offset, length in places)

    def _find_pack(self, name: str) -> StoredFile:
        stored = self._packs.get(name)
        if stored is None:
            raise VerificationError(f"a recipe names {name}, which the copy does not list", hint=_HINT)
        return stored

    def _open_pack(self, stored: StoredFile, places: _Places) -> Callable[[int, int], bytes]:
        """Return a reader (offset, length) of the plain bytes of the pack, for these places."""
        key = self.keys.pack(stored.name)
        parts = join_ranges(((offset, length) for _target, offset, length in places), _JOINED_GAP_BYTES)
        if 2 * sum(length for _offset, length in parts) < stored.size_bytes:
            try:
                read = self.decryptor.open_ranges(
                    stored.name, stored.size_bytes, partial(self.store.get_range, key)
                )
            except KeyMissingError as error:
                raise VerificationError(error.message, hint=_HINT) from error
            if read is not None:
                return _read_joined(read, parts)
        plain = self.decryptor.decrypt(stored.name, self._read_stored(key, stored))
        return lambda offset, length: plain[offset : offset + length]

    def _check_file(self, path: Path, artifact: Artifact) -> None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for block in _read_blocks(file.read):
                digest.update(block)
        if digest.hexdigest() != artifact.sha256:
            raise VerificationError(f"{artifact.file_name} is not what was copied", hint=_HINT)


def join_ranges(ranges: Iterable[tuple[int, int]], gap_bytes: int = 0) -> list[tuple[int, int]]:
    """Return the ranges (offset, length) in order; those that overlap or are this near are joined."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]) + gap_bytes:
            start = joined[-1][0]
            joined[-1] = (start, max(sum(joined[-1]), offset + length) - start)
        else:
            joined.append((offset, length))
    return joined


def _read_joined(
    read: Callable[[int, int], bytes], parts: Sequence[tuple[int, int]]
) -> Callable[[int, int], bytes]:
    """Return a reader that asks once for each of these parts."""
    held: dict[tuple[int, int], bytes] = {}

    def read_part(offset: int, length: int) -> bytes:
        part = next(each for each in parts if each[0] <= offset and offset + length <= sum(each))
        if part not in held:
            held.clear()
            held[part] = read(*part)
        return held[part][offset - part[0] : offset - part[0] + length]

    return read_part


def _read_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(_READ_BYTES):
        yield block
