"""The packs of a backup directory: how they are written, found, read again and removed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from schedgen_backups.core.errors import KeyExistsError, PackKeyError, StorageError, VerificationError
from schedgen_backups.core.formats.pack_reader import NO_KEYS, OpenPack, PackKeys
from schedgen_backups.core.formats.packed_file import PACKS_NAME, PackedFile
from schedgen_backups.core.formats.recipe import ENCRYPTED_SUFFIX, Recipe, Segment, StatedPack
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import PlainEncryptor
from schedgen_backups.core.packs.local_encryption import LocalEncryption
from schedgen_backups.core.packs.pack_files import PACK_PATTERN, parse_pack_number
from schedgen_backups.core.packs.pack_writer import PackWriter
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.system.files import (
    TEMPORARY_SUFFIX,
    make_private_folder,
    open_regular,
    sync_path,
    write_atomically,
    write_new,
)

PACK_BYTES = 16 << 20
"""At which a pack is closed, which is held in memory until then."""
_INDEX_NAME = ".pieces.sqlite"
_READ_BYTES = 1 << 20


class LocalPacks:
    """The folder of packs in a backup directory; writers and removers hold the directory's lock."""

    def __init__(self, directory: Path, keys: PackKeys = NO_KEYS) -> None:
        """`keys` open encrypted packs."""
        self.folder = directory / PACKS_NAME
        self._keys = keys

    @property
    def _index_path(self) -> Path:
        return self.folder / _INDEX_NAME

    def prepare(self) -> None:
        """Create the folder, and remove what killed writers left."""
        make_private_folder(self.folder)
        for left in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            left.unlink(missing_ok=True)

    def find_sizes(self) -> dict[str, int]:
        """Return the size of every pack in bytes, by its name; other files are left out.

        Of a folder that is missing or cannot be read, none: the points that need its packs are damaged, and
        no others are affected.
        """
        found: dict[str, int] = {}
        with suppress(OSError), os.scandir(self.folder) as scan:
            for entry in scan:
                if PACK_PATTERN.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found[entry.name] = status.st_size
        return found

    def open_index(self) -> PieceIndex:
        """Return the index of the pieces in the packs: a cache, lost pieces are written again.

        Where the folder was copied, with the index, no pack counts as read again.
        """
        index = PieceIndex(self._index_path)
        try:
            index.settle_place(f"inode {self.folder.stat().st_ino}")
        except BaseException:
            index.close()
            raise
        return index

    def open_writer(
        self,
        index: PieceIndex,
        point_id: RecoveryPointId,
        *,
        pack_bytes: int,
        confirm: Callable[[Segment, bytes], bool] = lambda _segment, _data: True,
        encryption: LocalEncryption | None = None,
    ) -> PackWriter:
        """Return a writer of new packs of this point; `confirm` as for `PackWriter`."""
        numbers = (parse_pack_number(name, point_id) for name in self.find_sizes())
        return PackWriter(
            self._put,
            encryption.encryptor if encryption is not None else PlainEncryptor(),
            index,
            point_id,
            first_number=max((number + 1 for number in numbers if number is not None), default=0),
            pack_bytes=pack_bytes,
            confirm=confirm,
            digest_key=encryption.digest_key if encryption is not None else None,
        )

    def open_file(self, recipe: Recipe) -> PackedFile:
        """Return the artifact of this recipe."""
        return PackedFile(recipe, self.folder, self._keys)

    def read_again(self, pack: StatedPack) -> str:
        """Read the pack whole, as it is stored; return what is wrong with it, empty if nothing is."""
        try:
            for _block in self._read_blocks(pack):
                pass
        except VerificationError as error:
            return error.message
        return ""

    def read_pack(self, pack: StatedPack) -> bytes:
        """Return the plain bytes of the pack; VerificationError (permanent) if they are not the stated ones.

        PackKeyError (permanent) if no key opens it.
        """
        data = self.read_stored(pack)
        if pack.encryption is None or not self.has_stored_form(pack):
            return data
        read = self._keys.open_pack(pack.name, len(data), lambda at, size: data[at : at + size])
        plain = read(0, pack.plain_bytes)
        if (len(plain), hashlib.sha256(plain).hexdigest()) != (pack.plain_bytes, pack.plain_sha256):
            raise _make_error(f"the pack {pack.name} does not hold what its recipe states")
        return plain

    def read_stored(self, pack: StatedPack) -> bytes:
        """Return the bytes of the pack as they lie there; VerificationError (permanent) if others do."""
        return b"".join(self._read_blocks(pack))

    def has_stored_form(self, pack: StatedPack) -> bool:
        """Return whether it lies there as it was written, and not in its plain form out of a store."""
        return (self.folder / pack.name).exists()

    def find_path(self, pack: StatedPack) -> Path:
        """Return where the pack lies, as it was written or in its plain form."""
        path = self.folder / pack.name
        return path if self.has_stored_form(pack) else self.folder / pack.plain_name

    def read_as_it_is(self, name: str, size_bytes: int) -> bytes:
        """Return the first bytes of a damaged pack; none if it is missing or cannot be read."""
        with suppress(OSError), open_regular(self.folder / name) as file:
            return file.read(size_bytes)
        return b""

    def read_part(self, pack: StatedPack, segment: Segment) -> bytes:
        """Return the bytes of the segment, unproven; fewer, or none, if the pack lacks them."""
        with (
            suppress(VerificationError, PackKeyError),
            closing(OpenPack(self.folder, pack, self._keys)) as opened,
        ):
            data = bytearray(segment.length)
            done = 0
            while done < len(data) and (
                count := opened.read_into(memoryview(data)[done:], segment.offset + done)
            ):
                done += count
            return bytes(data[:done])
        return b""

    def replace(self, name: str, data: bytes) -> None:
        """Put whole bytes in the place of a damaged pack; StorageError when they cannot be written."""
        try:
            write_atomically(self.folder / name, data)
        except OSError as error:
            raise StorageError(
                f"the pack {name} cannot be written: {error.strerror}",
                hint="Free space on the disk, or check the permissions.",
            ) from error

    def _read_blocks(self, pack: StatedPack) -> Iterator[bytes]:
        """Yield the bytes of the pack; VerificationError, after the last one, if they are others."""
        digest = hashlib.sha256()
        size_bytes = 0
        path = self.find_path(pack)
        is_whole = path.name == pack.name
        expected_bytes = pack.size_bytes if is_whole else pack.plain_bytes
        try:
            with open_regular(path) as file:
                while block := file.read(_READ_BYTES):
                    digest.update(block)
                    size_bytes += len(block)
                    yield block
        except FileNotFoundError as error:
            raise _make_error(f"the pack {pack.name} is missing") from error
        except OSError as error:
            raise _make_error(f"the pack {pack.name} cannot be read: {error.strerror}") from error
        if size_bytes != expected_bytes:
            raise _make_error(f"the pack {path.name} has {size_bytes} bytes instead of {expected_bytes}")
        if digest.hexdigest() != (pack.sha256 if is_whole else pack.plain_sha256):
            raise _make_error(f"the bytes of the pack {pack.name} are not those that were written")

    def remove_unused(self, recipes: Iterable[Recipe]) -> tuple[tuple[str, ...], int]:
        """Remove the packs that none of these recipes names; return their names and total size.

        The recipes must be all of the directory. StorageError when a file cannot be removed.
        """
        named = {
            form
            for recipe in recipes
            for name in recipe.packs
            for form in (name, name.removesuffix(ENCRYPTED_SUFFIX))
        }
        sizes = self.find_sizes()
        unused = tuple(sorted(sizes.keys() - named))
        if not unused:
            return (), 0
        # First the index: it must not offer what does not exist.
        try:
            with self.open_index() as index:
                index.forget(unused)
        except StorageError:
            # On a full disk, it cannot be written before a pack is removed. It is a cache.
            self._index_path.unlink(missing_ok=True)
        for name in unused:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"the pack {name} cannot be removed: {error.strerror}", hint="Check the permissions."
                ) from error
        sync_path(self.folder)
        return unused, sum(sizes[name] for name in unused)

    def _put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        try:
            write_new(path, data, temporary=self.folder / f".{name}{TEMPORARY_SUFFIX}")
        except FileExistsError as error:
            raise KeyExistsError(f"{path} exists already") from error


def _make_error(message: str) -> VerificationError:
    return VerificationError(
        message, hint="`schedgen-backups verify --all` shows which points it damages. Check the disk."
    )
