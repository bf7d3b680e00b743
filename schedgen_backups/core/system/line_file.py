"""Files of lines to which several processes append: whole lines, in order, on disk when the call returns."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from schedgen_backups.core.system.files import open_descriptor


def append_line(path: Path, line: bytes) -> None:
    """Append the line, which has no line break. OSError if the file cannot be written."""
    with hold_line_file(path) as descriptor:
        write_line(descriptor, line)


@contextmanager
def hold_line_file(path: Path) -> Generator[int, None, None]:
    """Provide the open file, which no other process changes within the block; it is made if there is none.

    A file that root makes belongs to the owner of its folder, who must be able to append, too. OSError if it
    cannot be opened.
    """
    while True:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still_at(path, descriptor):
                _give_to_owner(path, descriptor)
                yield descriptor
                return
        finally:
            os.close(descriptor)


def write_line(descriptor: int, line: bytes) -> None:
    """Append the line to a held file; a line that a crash has cut short before it gets an end."""
    size_bytes = os.fstat(descriptor).st_size
    is_torn = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
    data = (b"\n" if is_torn else b"") + line + b"\n"
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size_bytes)
        raise


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _give_to_owner(path: Path, descriptor: int) -> None:
    if os.geteuid() == 0:
        folder = path.parent.stat()
        status = os.fstat(descriptor)
        if status.st_size == 0 and (status.st_uid, status.st_gid) != (folder.st_uid, folder.st_gid):
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
