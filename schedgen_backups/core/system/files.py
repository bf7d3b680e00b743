"""Small files written whole or not at all, readable by their owner only, and on disk when the call returns."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Write the file, in place of an older one, with this mode and `owner` (user id, group id); raises OSError, and then the older one is untouched.

    The temporary file has a random name: process ids repeat in containers. A killed writer leaves `.NAME.RANDOM.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with os.fdopen(create_private(temporary), "wb") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def create_private(path: Path) -> int:
    """Create the file for its owner only; return its descriptor. FileExistsError when there is one already."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def sync_path(path: Path) -> None:
    """Wait until the file, or the names in the directory, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
