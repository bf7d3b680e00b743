"""Lower the CPU and disk priority of the calling thread and of everything it starts later.

Used by runs, which have their own process: without privileges, a lowered priority cannot be raised again.
`rate_limit` limits bandwidth. If the machine refuses, the backup continues at normal priority.
"""

from __future__ import annotations

import ctypes
import os
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Numbers of the system call, for which glibc has no function (Linux, arch/x86/entry/syscalls/syscall_64.tbl
and include/uapi/asm-generic/unistd.h)."""
_WHO_PROCESS = 1
_LOWEST_BEST_EFFORT = (2 << 13) | 7
"""ioprio_set(2): class best effort, lowest level. The idle class could starve a backup."""


def lower_priority(nice: int) -> str:
    """Raise the calling thread's niceness to `nice`, lower its I/O priority; return what was refused.

    The text is empty on success.
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
