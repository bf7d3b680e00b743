"""How an error of core becomes the failure of a Dagster step: the message, the hint, and the exit code for whoever started the run.

Used around the body of every asset and check. No text is made here; what an error says is said where it is raised.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from schedgen_backups.core.errors import BackupError, ConfigurationError, LockHeldError

EXIT_CODE_KEY = "exit_code"
INTERRUPTION = "DagsterExecutionInterruptedError"
"""What Dagster makes of SIGINT and SIGTERM during a step; the class itself is not part of its public names."""


@contextmanager
def explain_failure(exit_code: int) -> Generator[None, None, None]:
    """Errors of core within the block fail the step with their message and hint, and with this exit code unless they have one of their own."""
    try:
        yield
    except BackupError as error:
        own_code = error.exit_code if isinstance(error, ConfigurationError | LockHeldError) else exit_code
        raise dg.Failure(
            description=str(error),
            metadata={
                EXIT_CODE_KEY: own_code,
                "error": type(error).__name__,
                "hint": error.hint or "none",
                "trying_again_can_help": error.is_retryable,
            },
            allow_retries=error.is_retryable,
        ) from error
