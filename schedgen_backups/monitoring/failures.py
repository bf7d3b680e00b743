"""Write step failures to Dagster with exit code and hint, and read them back as cause and next step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from schedgen_backups.core.errors import (
    BackupError,
    CommandError,
    ConfigurationError,
    LockHeldError,
    StorageError,
)
from schedgen_backups.exit_codes import get_exit_code

EXIT_CODE_KEY = "exit_code"
_HINT_KEY = "hint"
_OWN_CODES = (ConfigurationError, LockHeldError, CommandError, StorageError)
"""Errors that mean the same in every step."""
INTERRUPTION = "DagsterExecutionInterruptedError"
"""Name of the error that Dagster raises for SIGINT and SIGTERM during a step; the class is not public."""
_UNKNOWN = "no reason is known"


@dataclass(frozen=True)
class Reason:
    """The cause of a failed step, and what to do about it."""

    cause: str
    next_step: str = ""
    """Empty when the failure has none."""


@contextmanager
def explain_failure(exit_code: int) -> Generator[None, None, None]:
    """Turn an error of core in the block into a step failure with its message and hint.

    The step fails with the given exit code, unless the cause is a setting, another run, the backup directory
    or a command of the operator.
    """
    try:
        yield
    except BackupError as error:
        own_code = get_exit_code(error) if isinstance(error, _OWN_CODES) else exit_code
        metadata: dict[str, str | int | bool] = {
            EXIT_CODE_KEY: own_code,
            "error": type(error).__name__,
            "trying_again_can_help": error.is_retryable,
        }
        if error.hint:
            metadata[_HINT_KEY] = error.hint
        raise dg.Failure(
            description=error.message, metadata=metadata, allow_retries=error.is_retryable
        ) from error


def explain_exception(error: BaseException | None) -> Reason:
    """Return the reason of a step's failure from its exception."""
    if isinstance(error, dg.Failure):
        return Reason(error.description or "", _read_hint(error.metadata))
    if isinstance(error, BackupError):
        return Reason(error.message, error.hint)
    return Reason(f"{type(error).__name__}: {error}" if error is not None else _UNKNOWN)


def explain_step_failure(event: dg.DagsterEvent) -> Reason:
    """Return the reason of a step's failure from the event log."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return Reason(data.user_failure_data.description, _read_hint(data.user_failure_data.metadata))
    if data.error is not None and data.error.cls_name == INTERRUPTION:
        return Reason("cancelled: the process was interrupted (SIGINT or SIGTERM)")
    error = data.error.cause if data.error is not None and data.error.cause is not None else data.error
    return Reason(error.message.strip() if error is not None else _UNKNOWN)


def explain_run_failure(event: dg.DagsterEvent | None) -> str:
    """Return the reason of a failed run in which no step failed; "" if it is unknown.

    It is the innermost error, otherwise the message with which the run was marked as failed.
    """
    if event is None:
        return ""
    data = event.job_failure_data
    # Contrary to its annotation, it is None when the run was marked as failed from outside.
    error = data.error if data is not None else None  # pyright: ignore[reportUnnecessaryComparison]
    while error is not None and error.cause is not None:
        error = error.cause
    return (error.message if error is not None else event.message or "").strip()


def find_check_description(instance: dg.DagsterInstance, check_key: dg.AssetCheckKey, run_id: str) -> str:
    """Return the description of the check's newest evaluation in this run; "" if there is none."""
    for record in instance.event_log_storage.get_asset_check_execution_history(check_key, limit=5):
        if record.run_id == run_id and isinstance(record.evaluation, dg.AssetCheckEvaluation):
            return record.evaluation.description or ""
    return ""


def _read_hint(metadata: Mapping[str, dg.MetadataValue]) -> str:
    hint = metadata.get(_HINT_KEY)
    return hint.text if isinstance(hint, dg.TextMetadataValue) and hint.text else ""
