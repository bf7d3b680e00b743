"""Runs a command that the operator wrote, as a shell would: its output kept, its time limited, and nothing of
it left behind.
"""

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
    """How a command ended."""

    exit_code: int | None
    """Negative for a signal; None where it was ended because its time was up."""
    output: str
    """The end of what it wrote on stdout and stderr, at most 8 KB."""

    @property
    def is_success(self) -> bool:
        """Whether it ended by itself and with 0."""
        return self.exit_code == 0

    @property
    def ending(self) -> str:
        """How it ended, in words, with its last line."""
        how = "was ended: its time was up" if self.exit_code is None else f"ended with {self.exit_code}"
        last_line = self.output.rpartition("\n")[2]
        return f"{how}: {last_line}" if last_line else how


def run_command(text: str, *, environment: Mapping[str, str], timeout_seconds: float) -> CommandOutcome:
    """Run the text with /bin/sh and wait for its end; when the time is up, or on an exception, it is ended
    with its children.

    It gets the variables that any program gets here, and `environment`: no secret of the backup's settings.
    """
    # A file: a child that stays in the background would hold a pipe open for ever.
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
            # A child that did not listen to SIGTERM is ended, too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return
