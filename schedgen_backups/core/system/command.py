"""Run a command of the operator in a shell, with a time limit; keep its output and end its children."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from schedgen_backups.core.system.process import make_environment

_SHELL = "/bin/sh"
_GRACE_SECONDS = 5
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class CommandOutcome:
    """The result of a command."""

    exit_code: int | None
    """Negative for a signal; None after a timeout."""
    output: str
    """The last 8 KB of stdout and stderr."""

    @property
    def is_success(self) -> bool:
        """Whether the command exited with code 0."""
        return self.exit_code == 0

    @property
    def ending(self) -> str:
        """The result in words, with the last line of output."""
        how = "timed out" if self.exit_code is None else f"exited with code {self.exit_code}"
        last_line = self.output.rpartition("\n")[2]
        return f"{how}: {last_line}" if last_line else how


def run_command(text: str, *, environment: Mapping[str, str], timeout_seconds: float) -> CommandOutcome:
    """Run the text with /bin/sh and wait for it; after a timeout or an exception, end it with its children.

    The environment is that of `make_environment` with `environment`; it contains no secrets of the backup.
    """
    # A file: a child in the background would keep a pipe open indefinitely.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [_SHELL, "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=make_environment(environment),
            start_new_session=True,
        )
        exit_code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                exit_code = process.wait(timeout=timeout_seconds)
        finally:
            if exit_code is None:
                _end(process)
        size_bytes = output.seek(0, os.SEEK_END)
        output.seek(max(0, size_bytes - _TAIL_BYTES))
        return CommandOutcome(exit_code, output.read().decode("utf-8", "replace").strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_SECONDS)
            # End children that ignored SIGTERM.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return
