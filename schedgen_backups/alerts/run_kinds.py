"""What a run is there for, which decides how its failure is told and what ends its incident: backup, retention, restore, drill, audit.

A table and the lookup in it. Add a kind when a failing run of a new job must not be taken for a failed backup.
When and how alerts go out is decided in `service`.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.core.notify.alert import Severity

DRILL_CHECK_NAMES = ("point_is_restored", "point_is_equal", "referenced_pdfs_open", "operator_checks_hold", "drill_is_in_time")


@dataclass(frozen=True)
class RunKind:
    """One kind of run."""

    noun: str
    """What an alert's title begins with."""
    kind_prefix: str
    """What the kinds of its incidents begin with."""
    severity: Severity
    next_step: str
    """What to do when nobody knows better."""
    job_names: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    """Its steps."""

    @property
    def is_backup(self) -> bool:
        """Whether a failure means that there is no recovery point tonight: only then the heartbeat service is told."""
        return self.kind_prefix == BACKUP.kind_prefix


BACKUP = RunKind(
    noun="Backup",
    kind_prefix="run: ",
    severity=Severity.CRITICAL,
    next_step="Run it again: schedgen-backups backup",
    job_names=frozenset({"backup_job"}),
)
"""Also whatever is none of the others: better told as too much than as too little."""
RETENTION = RunKind(
    noun="Retention",
    kind_prefix="retention: ",
    # The operators' MEDIUM is "more than 7 kept": nothing is lost, but the disk fills.
    severity=Severity.MEDIUM,
    next_step="Look at what it would do: schedgen-backups prune --dry-run",
    job_names=frozenset({"prune_job"}),
    subjects=frozenset({"prune_recovery_points"}),
)
RESTORE = RunKind(
    noun="Restore",
    kind_prefix="restore: ",
    severity=Severity.HIGH,
    next_step="Look at what it would do: schedgen-backups restore … --dry-run",
    job_names=frozenset({"restore_job"}),
    subjects=frozenset({"restore_recovery_point"}),
)
AUDIT = RunKind(
    noun="Audit of the live system",
    kind_prefix="audit: ",
    severity=Severity.MEDIUM,
    next_step="Run it by hand: schedgen-backups audit",
    job_names=frozenset({"audit_job"}),
    subjects=frozenset({"live_system_live_references_resolve"}),
)
DRILL = RunKind(
    noun="Restore drill",
    kind_prefix="drill: ",
    # Tonight's backup may still be good; that it can be restored is what nobody knows any more.
    severity=Severity.HIGH,
    next_step="Run it again: schedgen-backups drill",
    job_names=frozenset({"restore_drill_job"}),
    subjects=frozenset({"restore_drill", *(f"restore_drill_{name}" for name in DRILL_CHECK_NAMES)}),
)
OTHER_DUTIES = (RETENTION, RESTORE, DRILL, AUDIT)
RUN_KINDS = (BACKUP, *OTHER_DUTIES)


def find_run_kind(job_name: str, subject: str) -> RunKind:
    """What a run of this job, or this step of it, is for; a step that is pressed in the UI has no job of ours."""
    return next((run_kind for run_kind in OTHER_DUTIES if job_name in run_kind.job_names or subject in run_kind.subjects), BACKUP)
