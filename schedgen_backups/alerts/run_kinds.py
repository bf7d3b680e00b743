"""What a run is there for, which decides how its failure is told and what ends its incident: a backup, retention, a restore, a drill, an audit.

A table and the lookup in it. Add a duty when a failing run of a new job must not be taken for a failed backup; when and how people are told is the
business of `hooks`, `outbox` and `alerting`.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.core.notify.alert import Severity

DRILL_CHECK_NAMES = ("point_is_restored", "point_is_equal", "referenced_pdfs_open", "operator_checks_hold", "drill_is_in_time")


@dataclass(frozen=True)
class Duty:
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


BACKUP = Duty(
    noun="Backup",
    kind_prefix="run: ",
    severity=Severity.CRITICAL,
    next_step="Run it again: schedgen-backups backup",
    job_names=frozenset({"backup_job"}),
)
"""Also whatever is none of the others: better told as too much than as too little."""
RETENTION = Duty(
    noun="Retention",
    kind_prefix="retention: ",
    # The operators' MEDIUM is "more than 7 kept": nothing is lost, but the disk fills.
    severity=Severity.MEDIUM,
    next_step="Look at what it would do: schedgen-backups prune --dry-run",
    job_names=frozenset({"prune_job"}),
    subjects=frozenset({"prune_recovery_points"}),
)
RESTORE = Duty(
    noun="Restore",
    kind_prefix="restore: ",
    severity=Severity.HIGH,
    next_step="Look at what it would do: schedgen-backups restore … --dry-run",
    job_names=frozenset({"restore_job"}),
    subjects=frozenset({"restore_recovery_point"}),
)
AUDIT = Duty(
    noun="Audit of the live system",
    kind_prefix="audit: ",
    severity=Severity.MEDIUM,
    next_step="Run it by hand: schedgen-backups audit",
    job_names=frozenset({"audit_job"}),
    subjects=frozenset({"live_system_live_references_resolve"}),
)
DRILL = Duty(
    noun="Restore drill",
    kind_prefix="drill: ",
    # Tonight's backup may still be good; that it can be restored is what nobody knows any more.
    severity=Severity.HIGH,
    next_step="Run it again: schedgen-backups drill",
    job_names=frozenset({"restore_drill_job"}),
    subjects=frozenset({"restore_drill", *(f"restore_drill_{name}" for name in DRILL_CHECK_NAMES)}),
)
OTHER_DUTIES = (RETENTION, RESTORE, DRILL, AUDIT)
DUTIES = (BACKUP, *OTHER_DUTIES)


def find_duty(job_name: str, subject: str) -> Duty:
    """What a run of this job, or this step of it, is for; a step that is pressed in the UI has no job of ours."""
    return next((duty for duty in OTHER_DUTIES if job_name in duty.job_names or subject in duty.subjects), BACKUP)
