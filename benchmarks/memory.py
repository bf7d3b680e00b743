"""Measure the peak memory of a backup through Dagster above an idle interpreter with its imports.

Each runs in its own process; the kernel records its largest resident size, which is read until it exits.
pg_dump's own memory is not included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORK = "whole backup, MB: peak memory above the idle interpreter"
_IDLE = (
    "import dagster, schedgen_backups.cli.main, schedgen_backups.definitions;"
    "import schedgen_backups.runs.in_process;"
    "from schedgen_backups.config.config import load_config;"
    "from schedgen_backups.runs.home import prepare_home;"
    "prepare_home(load_config().file); dagster.DagsterInstance.get()"
)
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class MemoryUse:
    """Memory and seconds of one backup."""

    name: str
    idle_bytes: int
    peak_bytes: int
    seconds: float

    def describe(self) -> str:
        """Return a line of a Markdown table."""
        above = (self.peak_bytes - self.idle_bytes) / (1 << 20)
        return f"| {self.name} | {above:.0f} | {self.idle_bytes / (1 << 20):.0f} | {self.seconds:.0f} |"


def measure_backup(name: str, environment: Mapping[str, str]) -> MemoryUse:
    """Run a backup with this environment; raise RuntimeError if it fails."""
    idle_bytes, _seconds = _run([sys.executable, "-c", _IDLE], environment)
    peak_bytes, seconds = _run([sys.executable, "-m", "schedgen_backups.cli.main", "backup"], environment)
    return MemoryUse(name, idle_bytes, peak_bytes, seconds)


def _run(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, float]:
    # ru_maxrss starts with the size of the process that forked; VmHWM is reset when the program starts.
    started = time.monotonic()
    peak_bytes = 0
    with subprocess.Popen(arguments, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, read_peak(process.pid))
            time.sleep(_POLL_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return peak_bytes, time.monotonic() - started


def read_peak(process_id: int) -> int:
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just exited
        return 0
    found = _PEAK.search(status)
    return int(found[1]) * 1024 if found else 0
