"""The run kinds: a run's purpose decides how its failure is reported and which success resolves it.

Jobs and steps have their local names here, without the name of their site: `SiteNames.localize` returns them.

Add a kind when the failure of a new job must not be reported as a failed backup.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.site_names import (
    AUDIT_JOB,
    BACKUP_JOB,
    COPIES,
    DRILL_JOB,
    PRUNE_JOB,
    REPORT_JOB,
    RESTORE_DRILL,
    RESTORE_JOB,
    RUN_REMOVAL_JOB,
    VERIFY_JOB,
)

DRILL_CHECK_NAMES = (
    "point_is_restored",
    "point_is_equal",
    "referenced_pdfs_open",
    "operator_checks_hold",
    "drill_is_in_time",
)


COPY_CHECK_NAMES = ("copy_is_complete", "copy_reads_back", "copy_is_locked")
_STORE_STEP = re.compile(rf"__(?P<checked>.+?)_(?:{'|'.join(COPY_CHECK_NAMES)})|_(?P<store>[a-z0-9].*)")


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
    job_prefix: str = ""
    """Start of the names of its jobs, if there is one for each store: PREFIX_STORE_job."""
    step_prefix: str = ""
    """Start of the names of their steps: PREFIX_STORE, and checks that are started alone."""

    def covers(self, job_name: str, subject: str) -> bool:
        """Return whether the job, or a step of this name, is of this kind."""
        if job_name in self.job_names or subject in self.subjects:
            return True
        return bool(self.job_prefix) and (
            job_name.startswith(f"{self.job_prefix}_") or subject.startswith(f"{self.step_prefix}_")
        )

    def find_job_name(self, key: IncidentKey) -> str:
        """Return the job whose success resolves an incident of a store; empty if there is none."""
        subject = key.subject.rpartition(" ")[0]
        if subject.startswith(f"{self.job_prefix}_"):
            return subject
        found = _STORE_STEP.fullmatch(subject.removeprefix(self.step_prefix))
        return f"{self.job_prefix}_{found['checked'] or found['store']}_job" if found is not None else ""

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
    job_names=frozenset({BACKUP_JOB}),
)
"""Also every run of no other kind: an unneeded alert is better than a missing one."""
RETENTION = RunKind(
    noun="Retention",
    area="retention",
    # The operators' MEDIUM is "more than 7 kept": nothing is lost, but the disk fills.
    severity=Severity.MEDIUM,
    next_step="Show what it would do: schedgen-backups prune --dry-run",
    job_names=frozenset({PRUNE_JOB}),
    subjects=frozenset({"prune_recovery_points"}),
)
VERIFICATION = RunKind(
    noun="Verification",
    area="verification",
    # Points that were good are no longer good; tonight's backup may still succeed.
    severity=Severity.HIGH,
    next_step="Show the recovery points: schedgen-backups list",
    job_names=frozenset({VERIFY_JOB}),
    subjects=frozenset({"reread_recovery_points"}),
)
RESTORE = RunKind(
    noun="Restore",
    area="restore",
    severity=Severity.HIGH,
    next_step="Show what it would do: schedgen-backups restore … --dry-run",
    job_names=frozenset({RESTORE_JOB}),
    subjects=frozenset({"restore_recovery_point"}),
)
AUDIT = RunKind(
    noun="Consistency check of the live system",
    area="audit",
    severity=Severity.MEDIUM,
    next_step="Run it by hand: schedgen-backups audit",
    job_names=frozenset({AUDIT_JOB}),
    subjects=frozenset({"live_system_live_references_resolve"}),
)
DRILL = RunKind(
    noun="Restore drill",
    area="drill",
    # Tonight's backup may still be good; whether it restores is unknown.
    severity=Severity.HIGH,
    next_step="Run it again: schedgen-backups drill",
    job_names=frozenset({DRILL_JOB}),
    subjects=frozenset({RESTORE_DRILL, *(f"{RESTORE_DRILL}_{name}" for name in DRILL_CHECK_NAMES)}),
)
COPY = RunKind(
    noun="Copy to a store",
    area="copy",
    # The point exists here, and another attempt follows. After max_age_hours, another alert is HIGH.
    severity=Severity.MEDIUM,
    next_step="It is tried again every 30 minutes. Show what is missing: schedgen-backups status",
    job_prefix="copy_to",
    step_prefix=COPIES,
)
COPY_RETENTION = RunKind(
    noun="Retention in a store",
    area="copy retention",
    severity=Severity.MEDIUM,
    next_step="Nothing that a kept copy needs was removed. Remove the cause, and start the job again.",
    job_prefix="prune_copies_in",
    step_prefix="offsite_prune",
)
HOUSEKEEPING = RunKind(
    noun="Housekeeping",
    area="housekeeping",
    severity=Severity.LOW,
    next_step="No backup is affected. The run in the UI names the cause.",
    job_names=frozenset({REPORT_JOB, RUN_REMOVAL_JOB}),
    subjects=frozenset({"monthly_report", "old_runs"}),
)
STORE_RUN_KINDS = (COPY, COPY_RETENTION)
"""Kinds with one job for each store: the success of another store's job resolves nothing."""
OTHER_RUN_KINDS = (RETENTION, VERIFICATION, RESTORE, DRILL, AUDIT, HOUSEKEEPING, *STORE_RUN_KINDS)


def find_run_kind(job_name: str, subject: str) -> RunKind:
    """Return the run kind of this job or step; a step that is started in the UI has no job of ours."""
    return next(
        (run_kind for run_kind in OTHER_RUN_KINDS if run_kind.covers(job_name, subject)),
        BACKUP,
    )
