"""Detect file systems on which copies share blocks (XFS, Btrfs), and compute block-aligned positions.

`member_writer` and `archive_file` copy the data and fill the gaps. This module writes nothing into an
artifact.
"""

from __future__ import annotations

import fcntl
import struct
import tempfile
from pathlib import Path

SHARED_BLOCK_BYTES = 4096
"""The default block size of XFS and Btrfs; on file systems with larger blocks, data is copied."""
_FICLONERANGE = 0x4020940D
"""ioctl_ficlonerange(2): source descriptor, source offset, length, offset in the target file."""
_RANGE = struct.Struct("=qQQQ")


def can_share_blocks(source: int, folder: Path) -> bool:
    """Return whether a file in `folder` can share the first block of the open file `source`.

    False if this cannot be determined.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.ioctl(probe.fileno(), _FICLONERANGE, _RANGE.pack(source, 0, SHARED_BLOCK_BYTES, 0))
        # Another file system, one without reflinks, a file shorter than a block, or not Linux.
        except OSError:
            return False
    return True


def shares_blocks(folder: Path) -> bool:
    """Return whether files in the folder can share blocks; False if this cannot be determined.

    Writes a block into a file without a name.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as source:
            source.write(bytes(SHARED_BLOCK_BYTES))
            source.flush()
            return can_share_blocks(source.fileno(), folder)
    except OSError:
        return False


def measure_gap(source_offset: int, target_offset: int) -> int:
    """Return the padding in bytes at the target's offset that aligns the data to blocks as in the source."""
    return (source_offset - target_offset) % SHARED_BLOCK_BYTES


def split_at_blocks(offset: int, length: int) -> tuple[int, ...]:
    """Return the lengths before the first whole block, of all whole blocks, and of the rest.

    Zeros are left out.
    """
    head = min(-offset % SHARED_BLOCK_BYTES, length)
    blocks = (length - head) // SHARED_BLOCK_BYTES * SHARED_BLOCK_BYTES
    return tuple(part for part in (head, blocks, length - head - blocks) if part)
