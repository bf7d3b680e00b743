"""Small files written whole or not at all, readable by their owner only, and on disk when the call returns.

Reading takes regular files only: a FIFO, a socket or a device of a file's name must hang nothing.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_SMALL_FILE_LIMIT_BYTES = 256 << 20
"""Far more than any manifest has; less than fills a memory."""


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Write the file, in place of an older one, with this mode and `owner` (user id, group id); raises
    OSError, and then the older one is untouched.

    The temporary file has a random name: process ids repeat in containers. A killed writer leaves
    `.NAME.RANDOM.tmp`.
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


def open_regular(path: Path) -> BinaryIO:
    """Open the file for reading.

    OSError when it cannot be, or is none: opening or reading a FIFO or a device may take for ever.
    """
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: str | Path, flags: int) -> int:
    """Open the file and return its descriptor; as an `opener`. OSError as of `open_regular`."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_small_file(path: Path) -> bytes:
    """Return what the file holds. OSError when it cannot be read, is none, or is far too large."""
    with open_regular(path) as file:
        data = file.read(_SMALL_FILE_LIMIT_BYTES + 1)
    if len(data) > _SMALL_FILE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, "it is far too large", str(path))
    return data


def sync_path(path: Path) -> None:
    """Wait until the file, or the names in the directory, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
