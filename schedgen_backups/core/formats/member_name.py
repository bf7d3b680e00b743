"""Chooses the name that an object gets in the tar file: its key where that is a safe path, otherwise a name made of its digest.

Add a rule here when some key cannot be unpacked by a stock tar, or would be dangerous to. The true key always stands in the member's header and
in the index, so nothing is read back from these names.
"""

from __future__ import annotations

import hashlib
import unicodedata

RESERVED_FOLDER = ".schedgen-backups"
_PART_LIMIT_BYTES = 255
"""The longest name of a file on ext4, XFS, APFS and NTFS."""


class MemberNames:
    """Gives out names, none twice, and none that is a file here and a folder there. Holds 16 bytes per name and folder."""

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._folders: set[bytes] = set()

    def choose(self, key: str) -> str:
        """The key itself where it can be a path beside the ones given out before; otherwise `.schedgen-backups/keys/SHA256`."""
        parts = key.split("/")
        if not _is_safe(parts):
            return _escape(key)
        path = digest_name(key)
        folders = [digest_name("/".join(parts[:depth])) for depth in range(1, len(parts))]
        if path in self._files or path in self._folders or any(folder in self._files for folder in folders):
            return _escape(key)
        self._files.add(path)
        self._folders.update(folders)
        return key


def _is_safe(parts: list[str]) -> bool:
    if parts[0] == RESERVED_FOLDER:
        return False
    return all(
        part not in {"", ".", ".."}
        and len(part.encode("utf-8", "surrogateescape")) <= _PART_LIMIT_BYTES
        and part.isprintable()
        and "\\" not in part
        # bsdtar composes the others when it unpacks: two keys would become one file.
        and unicodedata.is_normalized("NFC", part)
        for part in parts
    )


def _escape(key: str) -> str:
    return f"{RESERVED_FOLDER}/keys/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def digest_name(path: str) -> bytes:
    """Sixteen bytes that stand for a key or a path where many must be held in memory."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()
