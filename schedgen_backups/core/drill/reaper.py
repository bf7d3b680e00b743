"""End the servers of a restore drill when the drill's process has ended for any reason.

A small program that waits for the end of a pipe, which means that the parent has ended. It then ends every
process that works in the scratch directory and removes the servers' files. `scratch_folder` runs it as a file
and calls its functions. Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

SERVER_FOLDERS = ("postgres", "s3")
"""The server directories in a scratch directory; the other files record what the next sweep must remove."""
_GRACE_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


def find_processes_in(folder: Path) -> tuple[int, ...]:
    """Return the ids of processes whose working directory is in the directory; Linux only.

    Everything that a drill starts has its working directory there.
    """
    inside = f"{folder.resolve()}{os.sep}"
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or belongs to another user
            if f"{(entry / 'cwd').readlink()}{os.sep}".startswith(inside) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return tuple(found)


def end_processes_in(folder: Path) -> bool:
    """End all processes that work in the directory; return whether none is left.

    PostgreSQL is asked first, so that it releases its shared memory; then all are killed.
    """
    with contextlib.suppress(OSError, ValueError):
        process_id = int(
            (folder / "postgres" / "data" / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0]
        )
        if process_id in find_processes_in(folder):
            # Immediate shutdown (PostgreSQL manual, section 18.5): the data is not needed.
            os.kill(process_id, signal.SIGQUIT)
            deadline = time.monotonic() + _GRACE_SECONDS
            while process_id in find_processes_in(folder) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    # Repeated until none is found: a program that was just starting may start another one.
    while found := find_processes_in(folder):
        for process_id in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process_id, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def guard(pipe: int, folder: Path) -> None:
    """Wait until the parent has ended, then end the directory's processes and remove the servers' files."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A signal to the whole process group also ends the parent, which is what this program waits for.
        signal.signal(number, signal.SIG_IGN)
    os.read(pipe, 1)
    end_processes_in(folder)
    for name in SERVER_FOLDERS:
        # The next sweep removes what cannot be removed now; no one reads output of this program.
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    guard(int(sys.argv[1]), Path(sys.argv[2]))
