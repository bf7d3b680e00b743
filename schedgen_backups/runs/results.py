"""Results of job runs: the failed steps with their reasons, and the exit code.

`in_process` makes them from Dagster's events; commands print them without importing Dagster.
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
    """A failed step of a run, and the reason."""

    step: str
    reason: str
    hint: str
    """What to do; empty when the failure has no hint."""
    exit_code: int


@dataclass(frozen=True)
class BackupResult:
    """Result of a run of the backup job."""

    run_id: str
    point_id: RecoveryPointId
    is_success: bool
    failures: tuple[StepFailure, ...]

    @property
    def exit_code(self) -> int:
        """0, or the first code of the failed steps in the order of `_EXIT_CODE_PRIORITY`."""
        if self.is_success:
            return 0
        codes = {failure.exit_code for failure in self.failures}
        return next((code for code in _EXIT_CODE_PRIORITY if code in codes), VERIFICATION_EXIT_CODE)


@dataclass(frozen=True)
class DrillResult:
    """Result of a run of the drill's job."""

    run_id: str
    report: DrillReport | None
    """None when the drill failed without a result; the failures contain the reason."""
    failures: tuple[StepFailure, ...]

    @property
    def exit_code(self) -> int:
        """0 if every check passed, VERIFICATION_EXIT_CODE if one did not.

        Without a result: the first code of the failed steps in the order of `_EXIT_CODE_PRIORITY`.
        """
        if self.report is not None:
            return 0 if self.report.is_passed and not self.failures else VERIFICATION_EXIT_CODE
        codes = {failure.exit_code for failure in self.failures}
        return next((code for code in _EXIT_CODE_PRIORITY if code in codes), VERIFICATION_EXIT_CODE)
