"""Finds runs of the command line whose process is gone, and marks them as failed: Dagster watches only the runs that its daemon started.

Without this, a killed `schedgen-backups backup` would stay "started" for ever, hold its place in the pool, and nobody would be told.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import dagster as dg

from schedgen_backups import run_tags

_START_TIME_FIELD = 21
"""`starttime` in /proc/PID/stat (proc(5), field 22): a process id comes again, together with this it does not."""
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def describe_process(process_id: int) -> str:
    """What names this process on this host for good; an empty text when there is none, or no /proc to tell."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The second field is the program's name in brackets and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return f"{socket.gethostname()}:{process_id}:{fields[_START_TIME_FIELD - 2]}"


def fail_orphaned_runs(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Unfinished runs that a process of this host had begun and left by dying are failed; returns their ids."""
    failed: list[str] = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        described = run.tags.get(run_tags.PROCESS, "")
        host, _colon, rest = described.partition(":")
        process_id = rest.partition(":")[0]
        if host == socket.gethostname() and process_id.isdigit() and describe_process(int(process_id)) != described:
            instance.report_run_failed(run, message=f"process {process_id} of the command line ended without a word: it was killed")
            # The daemon would do it too, where one runs; without it the next backup would wait for ever.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            failed.append(run.run_id)
    return tuple(failed)


def describe_own_process() -> str:
    """The same for this process."""
    return describe_process(os.getpid())
