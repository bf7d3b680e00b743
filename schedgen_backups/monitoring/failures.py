"""Failures of steps as Dagster records them: written with exit code and hint, and read back as the cause."""

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


def explain_exception(error: BaseException | None) -> tuple[str, str]:
    """Cause and next step of a step's exception: a failure of ours says both."""
    if isinstance(error, dg.Failure):
        hint = error.metadata.get("hint")
        cause, _separator, _rest = (error.description or "").partition("\nWhat to do: ")
        return cause, str(hint.value) if hint is not None and hint.value != "none" else ""
    if isinstance(error, BackupError):
        return error.message, error.hint
    return (f"{type(error).__name__}: {error}" if error is not None else "no reason is known"), ""


def explain_step_failure(event: dg.DagsterEvent) -> tuple[str, str]:
    """Cause and next step as the event log has them, for whoever was not there when it happened."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        cause, _separator, hint = data.user_failure_data.description.partition("\nWhat to do: ")
        return cause, hint
    if data.error is not None and data.error.cls_name == INTERRUPTION:
        return "cancelled: somebody or something ended its process", ""
    error = data.error.cause if data.error is not None and data.error.cause is not None else data.error
    return (error.message.strip() if error is not None else "no reason is known"), ""


def explain_run_failure(event: dg.DagsterEvent | None) -> str:
    """Why a run failed in which no step did: the innermost error, otherwise what was said of it from outside."""
    if event is None:
        return ""
    data = event.job_failure_data
    error = data.error if data is not None else None
    while error is not None and error.cause is not None:
        error = error.cause
    return (error.message if error is not None else event.message or "").strip()


def find_check_description(instance: dg.DagsterInstance, check_key: dg.AssetCheckKey, run_id: str) -> str:
    """What the newest evaluation of this check in this run said; an empty text when there is none."""
    for record in instance.event_log_storage.get_asset_check_execution_history(check_key, limit=5):
        if record.run_id == run_id and isinstance(record.evaluation, dg.AssetCheckEvaluation):
            return record.evaluation.description or ""
    return ""
