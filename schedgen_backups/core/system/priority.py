"""Makes the calling thread, and every thread and program it starts later, yield processor and disk to others.

Used by runs, which are processes of their own: a priority that was lowered cannot be raised again without
privileges. How fast bytes may pass is in `rate_limit`. A machine that refuses is slower for others, and no
reason not to back up.
"""

from __future__ import annotations

import ctypes
import os
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Numbers of the call (Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h);
glibc has no function for it."""
_WHO_PROCESS = 1
_LOWEST_BEST_EFFORT = (2 << 13) | 7
"""ioprio_set(2): class best effort, its last level. The idle class could starve a backup."""


def lower_priority(nice: int) -> str:
    """The calling thread has at least this niceness, and its reads and writes come last where the kernel
    sorts them; returns what was refused.
    """
    if nice <= os.getpriority(os.PRIO_PROCESS, 0):
        return ""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        return f"BACKUP_NICE={nice} has no effect: {error.strerror}"
    return _lower_disk_priority(nice)


def _lower_disk_priority(nice: int) -> str:
    number = _IOPRIO_SET.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        return ""
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(number, _WHO_PROCESS, 0, _LOWEST_BEST_EFFORT):
        return f"BACKUP_NICE={nice} has no effect on the disk: {os.strerror(ctypes.get_errno())}"
    return ""
