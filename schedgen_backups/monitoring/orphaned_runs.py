"""Mark runs of the command line whose process is dead as failed.

Dagster monitors only the runs that its daemon started. A killed `schedgen-backups backup` would stay
"started" forever, keep its slot in the pool and cause no alert.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.system.lock import FileLock

_START_TIME_FIELD = 21
"""`starttime` in /proc/PID/stat (proc(5), field 22): process ids are reused, but not with the same start
time."""
_LOCKS_FOLDER = "running"
_NAME_BYTES = 16
_LOCK_NAME = re.compile(r"[0-9a-f]{32}")
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def describe_process(process_id: int) -> str:
    """Return host, id and start time of the process; "" if it or /proc does not exist."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The second field is the program's name in parentheses and may contain any character.
    fields = stat.rpartition(")")[2].split()
    return f"{socket.gethostname()}:{process_id}:{fields[_START_TIME_FIELD - 2]}"


def fail_orphaned_runs(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Mark unfinished runs whose command line process died as failed; return their ids."""
    failed: list[str] = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        if _is_orphaned(instance, run):
            instance.report_run_failed(
                run,
                message="the process of the command line exited without reporting an error: it was killed",
            )
            # A running daemon does this too. Without one, the next backup would wait forever.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            failed.append(run.run_id)
    return tuple(failed)


@contextmanager
def mark_own_run(instance: dg.DagsterInstance) -> Generator[dict[str, str], None, None]:
    """Yield the tags for a run that this process executes in the block.

    Other processes see from them whether this one still executes the run.
    """
    tags = {run_tags.PROCESS: process} if (process := describe_process(os.getpid())) else {}
    lock = FileLock(_get_locks_folder(instance) / secrets.token_hex(_NAME_BYTES))
    try:
        lock.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.try_acquire()
    except (OSError, StorageError):  # the process id is enough on one host
        yield tags
        return
    try:
        yield {**tags, run_tags.RUN_LOCK: lock.path.name}
    finally:
        with suppress(OSError):
            lock.path.unlink()
        lock.release()


def _is_orphaned(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    lock = _find_lock(instance, run)
    if lock is not None:
        with suppress(StorageError):
            if not lock.try_acquire():
                return False
            with suppress(OSError):
                lock.path.unlink()
            lock.release()
            return True
    described = run.tags.get(run_tags.PROCESS, "")
    host, _colon, rest = described.partition(":")
    process_id = rest.partition(":")[0]
    return (
        host == socket.gethostname()
        and process_id.isdigit()
        and describe_process(int(process_id)) != described
    )


def _find_lock(instance: dg.DagsterInstance, run: dg.DagsterRun) -> FileLock | None:
    """Return the run's lock, if its file is visible to this process."""
    name = run.tags.get(run_tags.RUN_LOCK, "")
    # Anyone who launches a run can set its tags.
    if not _LOCK_NAME.fullmatch(name):
        return None
    path = _get_locks_folder(instance) / name
    return FileLock(path) if path.is_file() else None


def _get_locks_folder(instance: dg.DagsterInstance) -> Path:
    # In the compose deployment it is on the volume that all our containers share.
    return Path(instance.storage_directory()) / _LOCKS_FOLDER
