"""Read the plain bytes of packs in a folder, whether they are encrypted or not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from schedgen_backups.core.errors import PackKeyError, VerificationError
from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.system.files import open_descriptor

ReadRange = Callable[[int, int], bytes]
"""Returns the bytes at an offset, as many as asked for, or fewer at the end."""
_HINT = "Use another recovery point. `schedgen-backups verify --all` shows which are intact."
_NO_KEYS_HINT = "Set BACKUP_PACK_IDENTITY_FILE to the file of a key that opens them."
_BLOCK_BYTES = 64 << 10
"""Plain bytes that age encrypts at once (age-encryption.org/v1): fewer cost as much to read."""
_LARGEST_READ_BYTES = 1 << 20


class PackKeys(Protocol):
    """Private keys that open packs; for any number of threads."""

    def open_pack(self, name: str, size_bytes: int, read: ReadRange) -> ReadRange:
        """Return a reader of the plain bytes of an encrypted pack, given one of its stored bytes.

        PackKeyError (permanent) when no key opens it. VerificationError (permanent), also from the reader,
        when it is altered.
        """
        ...

    def derive_digest_key(self) -> bytes:
        """Return what only their owner can compute: a key for digests that reveal nothing to others.

        ConfigurationError (permanent) when none of them can be used for that.
        """
        ...


class _NoKeys:
    def open_pack(self, name: str, size_bytes: int, read: ReadRange) -> ReadRange:
        _ = size_bytes, read
        raise PackKeyError(f"the pack {name} is encrypted, and no private key was given", hint=_NO_KEYS_HINT)

    def derive_digest_key(self) -> bytes:
        raise PackKeyError("no private key was given for encrypted packs", hint=_NO_KEYS_HINT)


NO_KEYS: PackKeys = _NoKeys()
"""For directories whose packs are not encrypted, and for what reads no packs."""


class OpenPack:
    """A pack in a folder, open for reading its plain bytes; for one thread.

    An encrypted pack may also lie there in its plain form, under its name without `.age`, as it comes out of
    a store with other recipients.
    """

    def __init__(self, folder: Path, pack: StatedPack, keys: PackKeys) -> None:
        """Open it. VerificationError (permanent) if it is missing or damaged; PackKeyError without a key."""
        self.pack = pack
        self._block, self._block_start = b"", 0
        self._decrypt: ReadRange | None = None
        try:
            self._descriptor, is_plain = _open_form(folder, pack)
        except FileNotFoundError as error:
            raise VerificationError(f"the pack {pack.name} is missing", hint=_HINT) from error
        except OSError as error:
            raise self._translate(error) from error
        if not is_plain:
            try:
                size_bytes = os.fstat(self._descriptor).st_size
                self._decrypt = keys.open_pack(pack.name, size_bytes, self._read_stored)
            except PackKeyError as error:
                problem = self._find_damage()
                self.close()
                raise (VerificationError(problem, hint=_HINT) if problem else error) from error
            except BaseException:
                self.close()
                raise

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read plain bytes at this offset into the view; return how many there were."""
        if self._decrypt is None:
            try:
                return os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise self._translate(error) from error
        if not self._block_start <= offset < self._block_start + len(self._block):
            self._block_start = offset - offset % _BLOCK_BYTES
            wanted = offset + min(len(view), _LARGEST_READ_BYTES) - self._block_start
            self._block = self._decrypt(self._block_start, -(-wanted // _BLOCK_BYTES) * _BLOCK_BYTES)
        start = offset - self._block_start
        part = memoryview(self._block)[start : start + len(view)]
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _read_stored(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise self._translate(error) from error

    def _find_damage(self) -> str:
        """Return whether the stored bytes are others: a damaged header looks like one for other keys."""
        digest = hashlib.sha256()
        offset = 0
        while block := self._read_stored(offset, _LARGEST_READ_BYTES):
            digest.update(block)
            offset += len(block)
        is_same = digest.hexdigest() == self.pack.sha256
        return "" if is_same else f"the bytes of the pack {self.pack.name} are not those that were written"

    def _translate(self, error: OSError) -> VerificationError:
        return VerificationError(
            f"the disk cannot read the pack {self.pack.name}: {error.strerror}",
            hint="Check the disk and restore the pack from a copy.",
        )


def _open_form(folder: Path, pack: StatedPack) -> tuple[int, bool]:
    """Return a descriptor of the pack as it lies in the folder, and whether its bytes are plain ones."""
    try:
        return open_descriptor(folder / pack.name, os.O_RDONLY), pack.encryption is None
    except FileNotFoundError:
        if pack.encryption is None:
            raise
        return open_descriptor(folder / pack.plain_name, os.O_RDONLY), True


def describe_wrong_size(pack: StatedPack, sizes: Mapping[str, int]) -> str:
    """Return what is wrong with the pack, judging by the sizes of those that lie there; empty if nothing."""
    expected = {pack.plain_name: pack.plain_bytes, pack.name: pack.size_bytes}
    name = pack.name if pack.name in sizes else pack.plain_name
    if name not in sizes:
        return f"the pack {pack.name} is missing"
    if sizes[name] != expected[name]:
        return f"the pack {name} has {sizes[name]} bytes instead of {expected[name]}"
    return ""
