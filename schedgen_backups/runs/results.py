"""How a run of a job ended, as values: which steps failed and why, and the exit code that tells it best.

Read from Dagster's events in `in_process`, printed by commands, which need no Dagster for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.exit_codes import (
    BUCKET_EXIT_CODE,
    CANCELLED_EXIT_CODE,
    COMMAND_EXIT_CODE,
    CONFIGURATION_EXIT_CODE,
    DATABASE_EXIT_CODE,
    LOCK_EXIT_CODE,
    NO_POINT_EXIT_CODE,
    STORAGE_EXIT_CODE,
    VERIFICATION_EXIT_CODE,
)

_EXIT_CODE_PRIORITY = (
    CANCELLED_EXIT_CODE,
    CONFIGURATION_EXIT_CODE,
    COMMAND_EXIT_CODE,
    NO_POINT_EXIT_CODE,
    LOCK_EXIT_CODE,
    STORAGE_EXIT_CODE,
    DATABASE_EXIT_CODE,
    BUCKET_EXIT_CODE,
    VERIFICATION_EXIT_CODE,
)


@dataclass(frozen=True)
class StepFailure:
    """One step of a run that failed, and why."""

    step: str
    reason: str
    hint: str
    """What to do; empty when the failure does not say it."""
    exit_code: int


@dataclass(frozen=True)
class BackupResult:
    """How a run of the backup job ended."""

    run_id: str
    point_id: RecoveryPointId
    is_success: bool
    failures: tuple[StepFailure, ...]

    @property
    def exit_code(self) -> int:
        """0, or the most telling code of the failed steps: cancelled, settings, a command, lock, directory,
        database, bucket, verification.
        """
        if self.is_success:
            return 0
        codes = {failure.exit_code for failure in self.failures}
        return next((code for code in _EXIT_CODE_PRIORITY if code in codes), VERIFICATION_EXIT_CODE)


@dataclass(frozen=True)
class DrillResult:
    """How a run of the drill's job ended."""

    run_id: str
    report: DrillReport | None
    """None when the drill came to no result; then the failures say why."""
    failures: tuple[StepFailure, ...]

    @property
    def exit_code(self) -> int:
        """0 when every check was seen to hold, VERIFICATION_EXIT_CODE when not, or the most telling code of
        what kept the drill from finding out.
        """
        if self.report is not None:
            return 0 if self.report.is_passed and not self.failures else VERIFICATION_EXIT_CODE
        codes = {failure.exit_code for failure in self.failures}
        return next((code for code in _EXIT_CODE_PRIORITY if code in codes), VERIFICATION_EXIT_CODE)
