"""What a look at a precondition comes to, and how errors become results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from schedgen_backups.core.errors import BackupError


class Verdict(str, Enum):
    """What a look came to."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class PreconditionResult:
    """One precondition, how it stands, and what to do about it."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str = ""


def look_at(subject: str, look: Callable[[], Iterator[PreconditionResult]]) -> Iterator[PreconditionResult]:
    """Yield what is found; an error of ours is a result, too."""
    try:
        yield from look()
    except BackupError as error:
        yield PreconditionResult(subject, Verdict.PROBLEM, error.message, error.hint)
