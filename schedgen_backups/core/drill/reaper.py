"""Ends the servers of a restore drill when the drill's process is gone, however it went: a small program that
waits on a pipe nobody writes to.

The pipe's end means that the parent has ended; then every process that works in the scratch folder is ended,
and the servers' files go. Run as a file by `scratch_folder`, which also calls the functions for what a guard
left. Standard library only: it must start in no time.
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
"""The parts of a scratch folder that belong to servers; the rest tells the next sweep what else there is to
remove."""
_GRACE_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


def find_processes_in(folder: Path) -> tuple[int, ...]:
    """The ids of the processes whose working directory is in the folder, which is how everything is started
    there; Linux only.
    """
    inside = f"{folder.resolve()}{os.sep}"
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if f"{(entry / 'cwd').readlink()}{os.sep}".startswith(inside) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return tuple(found)


def end_processes_in(folder: Path) -> bool:
    """Whether no process works in the folder any more.

    PostgreSQL is asked first, so that it gives its shared memory back; then they are killed.
    """
    with contextlib.suppress(OSError, ValueError):
        process_id = int(
            (folder / "postgres" / "data" / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0]
        )
        if process_id in find_processes_in(folder):
            # Immediate shutdown (PostgreSQL manual, section 18.5): nobody needs the data.
            os.kill(process_id, signal.SIGQUIT)
            deadline = time.monotonic() + _GRACE_SECONDS
            while process_id in find_processes_in(folder) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    # Looked at until there is none: a program that was being started starts the next one.
    while found := find_processes_in(folder):
        for process_id in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process_id, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def guard(pipe: int, folder: Path) -> None:
    """The parent has ended, nothing runs in the folder, and the servers' files are gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever ends a whole group of processes ends the parent too, and that is what we wait for.
        signal.signal(number, signal.SIG_IGN)
    os.read(pipe, 1)
    end_processes_in(folder)
    for name in SERVER_FOLDERS:
        # What cannot be removed now is the next sweep's; nobody reads what we would say.
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    guard(int(sys.argv[1]), Path(sys.argv[2]))
