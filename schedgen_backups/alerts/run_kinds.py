"""The run kinds: a run's purpose decides how its failure is reported and which success resolves it.

Add a kind when the failure of a new job must not be reported as a failed backup.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey

DRILL_CHECK_NAMES = (
    "point_is_restored",
    "point_is_equal",
    "referenced_pdfs_open",
    "operator_checks_hold",
    "drill_is_in_time",
)


@dataclass(frozen=True)
class RunKind:
    """One run kind."""

    noun: str
    """Start of an alert's title."""
    area: str
    """Area of its incidents."""
    severity: Severity
    next_step: str
    """Used when the failure itself has no next step."""
    job_names: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    """Names of its steps."""

    @property
    def is_backup(self) -> bool:
        """Whether a failure means that tonight's recovery point is missing.

        Only then the heartbeat service gets a failure.
        """
        return self.area == BACKUP.area

    def make_failure_key(self, subject: str) -> IncidentKey:
        """Return the key of a step or job that failed."""
        return IncidentKey(area=self.area, subject=f"{subject} failed")

    def make_cancellation_key(self, job_name: str) -> IncidentKey:
        """Return the key of a job that was cancelled."""
        return IncidentKey(area=self.area, subject=f"{job_name} cancelled")


BACKUP = RunKind(
    noun="Backup",
    area="run",
    severity=Severity.CRITICAL,
    next_step="Run it again: schedgen-backups backup",
    job_names=frozenset({"backup_job"}),
)
"""Also every run of no other kind: an unneeded alert is better than a missing one."""
RETENTION = RunKind(
    noun="Retention",
    area="retention",
    # The operators' MEDIUM is "more than 7 kept": nothing is lost, but the disk fills.
    severity=Severity.MEDIUM,
    next_step="Show what it would do: schedgen-backups prune --dry-run",
    job_names=frozenset({"prune_job"}),
    subjects=frozenset({"prune_recovery_points"}),
)
VERIFICATION = RunKind(
    noun="Verification",
    area="verification",
    # Points that were good are no longer good; tonight's backup may still succeed.
    severity=Severity.HIGH,
    next_step="Show the recovery points: schedgen-backups list",
    job_names=frozenset({"verify_job"}),
    subjects=frozenset({"reread_recovery_points"}),
)
RESTORE = RunKind(
    noun="Restore",
    area="restore",
    severity=Severity.HIGH,
    next_step="Show what it would do: schedgen-backups restore … --dry-run",
    job_names=frozenset({"restore_job"}),
    subjects=frozenset({"restore_recovery_point"}),
)
AUDIT = RunKind(
    noun="Consistency check of the live system",
    area="audit",
    severity=Severity.MEDIUM,
    next_step="Run it by hand: schedgen-backups audit",
    job_names=frozenset({"audit_job"}),
    subjects=frozenset({"live_system_live_references_resolve"}),
)
DRILL = RunKind(
    noun="Restore drill",
    area="drill",
    # Tonight's backup may still be good; whether it restores is unknown.
    severity=Severity.HIGH,
    next_step="Run it again: schedgen-backups drill",
    job_names=frozenset({"restore_drill_job"}),
    subjects=frozenset({"restore_drill", *(f"restore_drill_{name}" for name in DRILL_CHECK_NAMES)}),
)
OTHER_RUN_KINDS = (RETENTION, VERIFICATION, RESTORE, DRILL, AUDIT)


def find_run_kind(job_name: str, subject: str) -> RunKind:
    """Return the run kind of this job or step; a step that is started in the UI has no job of ours."""
    return next(
        (
            run_kind
            for run_kind in OTHER_RUN_KINDS
            if job_name in run_kind.job_names or subject in run_kind.subjects
        ),
        BACKUP,
    )
