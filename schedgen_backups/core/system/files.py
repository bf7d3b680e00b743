"""Small files: written atomically, readable by the owner only, and on disk when the call returns.

Only regular files are read: a FIFO, socket or device under a file's name must not block the reader.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

TEMPORARY_SUFFIX = ".tmp"
NO_LINK_ERRORS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of file systems without hard links, such as FAT and some network mounts."""
_SMALL_FILE_LIMIT_BYTES = 256 << 20
"""Much more than any manifest, and small enough for memory."""


class FileIdentity(NamedTuple):
    """What changes with every change of a file; times are in nanoseconds since 1970.

    The same identity means the same file with the same bytes: no program can set the time of the last change.
    """

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


def identify_file(status: os.stat_result) -> FileIdentity:
    """Return the identity of the file with this status."""
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Write or replace the file with this mode and `owner` (user id, group id).

    On OSError an older file is unchanged. The temporary file has a random name, since process ids repeat in
    containers. A killed writer leaves `.NAME.RANDOM.tmp`.
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


def make_private_folder(folder: Path) -> tuple[int, int] | None:
    """Create the folder for its owner only, unless it exists; return the owner of what root writes into it.

    A folder that root makes belongs to the owner of the one above, who must be able to write into it, too.
    None for other users: they own what they write.
    """
    is_root = os.geteuid() == 0
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        if is_root:
            above = folder.parent.stat()
            os.chown(folder, above.st_uid, above.st_gid)
    status = folder.stat()
    return (status.st_uid, status.st_gid) if is_root else None


def create_private(path: Path) -> int:
    """Create the file for its owner only and return its descriptor. FileExistsError if it exists."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def open_regular(path: Path) -> BinaryIO:
    """Open the file for reading.

    OSError if it cannot be opened or is not a regular file: a FIFO or a device may block indefinitely.
    """
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: str | Path, flags: int) -> int:
    """Open the file and return its descriptor; usable as an `opener`. OSError like `open_regular`."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_small_file(path: Path) -> bytes:
    """Return the contents. OSError if the file is not readable, not regular or larger than 256 MiB."""
    with open_regular(path) as file:
        data = file.read(_SMALL_FILE_LIMIT_BYTES + 1)
    if len(data) > _SMALL_FILE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, "file is larger than 256 MiB", str(path))
    return data


def write_new(path: Path, data: bytes, *, temporary: Path) -> None:
    """Write a file that does not exist yet, for its owner only; FileExistsError if the name is taken.

    `temporary` is its name in the same directory until it is complete and on disk; a killed writer leaves it.
    """
    try:
        with os.fdopen(create_private(temporary), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _publish_new(temporary, path)
        sync_path(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _publish_new(temporary: Path, path: Path) -> None:
    """Give the file in the same directory its name; FileExistsError if it is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        # FAT, and some network mounts, have no hard links: two writers at the same time may overwrite there.
        if error.errno not in NO_LINK_ERRORS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path)) from error
        temporary.replace(path)


def sync_path(path: Path) -> None:
    """Flush the file, or the names in the directory, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
