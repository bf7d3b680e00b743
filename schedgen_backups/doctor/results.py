"""The result of checking a precondition, and the conversion of errors into results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from schedgen_backups.core.errors import BackupError


class Verdict(str, Enum):
    """Verdict on one precondition."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class PreconditionResult:
    """One precondition, whether it is met, and what to do if it is not."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str = ""


def yield_with_errors(
    subject: str, examine: Callable[[], Iterator[PreconditionResult]]
) -> Iterator[PreconditionResult]:
    """Yield the results; yield a BackupError as a result too."""
    try:
        yield from examine()
    except BackupError as error:
        yield PreconditionResult(subject, Verdict.PROBLEM, error.message, error.hint)
