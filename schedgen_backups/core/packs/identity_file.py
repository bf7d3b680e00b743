"""The private keys with which a host reads the packs of its own backup directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from threading import Lock

from schedgen_backups.core.errors import ConfigurationError, PackKeyError
from schedgen_backups.core.formats.pack_reader import ReadRange
from schedgen_backups.core.packs.encryption import Decryptor
from schedgen_backups.core.system.files import open_regular

_VARIABLE = "BACKUP_PACK_IDENTITY_FILE"
_LIMIT_BYTES = 1 << 20
_OTHERS = stat.S_IWGRP | stat.S_IRWXO
"""The group may read it: Kubernetes mounts a secret so."""


class IdentityFile:
    """A file of private keys, read at the first use; for any number of threads.

    PackKeyError (permanent) on every use when it is missing, readable by others, or holds no key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decryptor: Decryptor | None = None
        self._lock = Lock()

    def open_pack(self, name: str, size_bytes: int, read: ReadRange) -> ReadRange:
        """Return a reader of the plain bytes of an encrypted pack, as in `pack_reader.PackKeys`."""
        keys = self.load()
        try:
            return keys.open_pack(name, size_bytes, read)
        except PackKeyError as error:
            raise PackKeyError(f"no key of {_VARIABLE} opens the pack {name}", hint=error.hint) from error

    def derive_digest_key(self) -> bytes:
        """Return the key of digests that reveal nothing to others, as in `pack_reader.PackKeys`."""
        return self.load().derive_digest_key()

    def load(self) -> Decryptor:
        """Return the keys of the file."""
        with self._lock:
            if self._decryptor is None:
                try:
                    self._decryptor = Decryptor([self._read()])
                    self._decryptor.derive_digest_key()
                except ConfigurationError as error:
                    self._decryptor = None
                    raise PackKeyError(f"{_VARIABLE}: {error.message}", hint=error.hint) from error
            return self._decryptor

    def _read(self) -> str:
        try:
            with open_regular(self.path) as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(_LIMIT_BYTES)
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be read: {error.strerror}",
                hint="Without this key the packs cannot be read. Put the file back.",
            ) from error
        if mode & _OTHERS:
            raise ConfigurationError(
                f"{self.path} can be read by others, or written by its group",
                hint=f"chmod 600 {self.path}, and make a new key if others could read it on this machine.",
            )
        return data.decode("utf-8", "replace")
