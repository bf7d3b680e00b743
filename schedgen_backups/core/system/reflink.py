"""File systems on which copies share blocks (XFS, Btrfs): whether this one is such, and where a copy must lie
for it.

What is copied, and what stands in a gap, is the business of `member_writer` and `archive_file`. Here nothing
is written into an artifact.
"""

from __future__ import annotations

import fcntl
import struct
import tempfile
from pathlib import Path

SHARED_BLOCK_BYTES = 4096
"""The block of XFS and Btrfs unless they were made with larger ones; then copies are copies."""
_FICLONERANGE = 0x4020940D
"""ioctl_ficlonerange(2): source, its offset, length, offset in the file that the blocks go to."""
_RANGE = struct.Struct("=qQQQ")


def can_share_blocks(source: int, folder: Path) -> bool:
    """Whether a file in `folder` can hold the first block of the open file `source` without a copy of it.

    False where nobody can tell.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.ioctl(probe.fileno(), _FICLONERANGE, _RANGE.pack(source, 0, SHARED_BLOCK_BYTES, 0))
        except OSError:  # another file system, one that cannot, a file shorter than a block, no Linux
            return False
    return True


def measure_gap(source_offset: int, target_offset: int) -> int:
    """How many bytes must stand at the target's offset so that what follows lies in its blocks as it does at
    the source.
    """
    return (source_offset - target_offset) % SHARED_BLOCK_BYTES


def split_at_blocks(offset: int, length: int) -> tuple[int, ...]:
    """The lengths, zeros left out, of the bytes before the first whole block, of all whole blocks, and of the
    rest.
    """
    head = min(-offset % SHARED_BLOCK_BYTES, length)
    blocks = (length - head) // SHARED_BLOCK_BYTES * SHARED_BLOCK_BYTES
    return tuple(part for part in (head, blocks, length - head - blocks) if part)
