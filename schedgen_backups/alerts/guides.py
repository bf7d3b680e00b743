"""The page of docs/alerts/ for each alert; `make docs` writes docs/reference/alerts.md from this table.

A new area of incidents needs a guide here and its page.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.alerts.run_kinds import (
    AUDIT,
    BACKUP,
    COPY,
    COPY_RETENTION,
    DRILL,
    HOUSEKEEPING,
    RESTORE,
    RETENTION,
    VERIFICATION,
)
from schedgen_backups.core.notify.incidents import IncidentKey

FRESHNESS_AREA = "freshness"
POINTS_AREA = "recovery points"
CLOCK_AREA = "clock"
TICK_AREA = "tick"
"""Subjects are the names of schedules and sensors."""
SKIP_AREA = "skipped backup"
CHECK_AREA = "check"
"""Subjects are the names of checks."""
OUTBOX_AREA = "outbox"
"""Subjects are the parts of the outbox."""
COPY_AGE_AREA = "copy age"
COPY_DAMAGE_AREA = "copy damage"
COPY_LOCK_AREA = "copy lock"
COPY_PROOF_AREA = "copy proof"
"""Subjects of these four are the names of stores."""


@dataclass(frozen=True)
class Guide:
    """The alerts of one area of incidents, and the page with instructions for them."""

    page: str
    """File name in docs/alerts/, without its suffix."""
    area: str
    meaning: str
    severity: str
    sender: str
    end: str
    """The event that resolves the incident."""


GUIDES = (
    Guide(
        "backup-failed",
        BACKUP.area,
        "A backup failed, was killed or was cancelled",
        "CRITICAL; HIGH if it was cancelled, or only a size check failed",
        "hook at once; outbox for killed and cancelled runs",
        "the next verified recovery point",
    ),
    Guide(
        "no-recent-recovery-point",
        FRESHNESS_AREA,
        "No verified recovery point is younger than BACKUP_MAX_AGE_HOURS",
        "CRITICAL",
        "sensor freshness_watch",
        "the next verified recovery point",
    ),
    Guide(
        "recovery-point-damaged",
        POINTS_AREA,
        "A committed recovery point is damaged or incomplete",
        "HIGH",
        "sensor freshness_watch, verify_job",
        "no point is damaged any longer",
    ),
    Guide(
        "clock-is-wrong",
        CLOCK_AREA,
        "The time of a recovery point is in the future",
        "HIGH; CRITICAL if no other point is recent enough",
        "sensor freshness_watch",
        "no point is in the future any longer",
    ),
    Guide(
        "no-run-started",
        TICK_AREA,
        "A schedule or sensor failed, so it started no run",
        "CRITICAL",
        "outbox",
        "the next tick that succeeds",
    ),
    Guide(
        "backup-skipped",
        SKIP_AREA,
        "The schedule started no backup, because the scheduled one before it still ran",
        "MEDIUM",
        "outbox",
        "the next scheduled backup that ends before the one after it is due",
    ),
    Guide(
        "check-warning",
        CHECK_AREA,
        "A check reported a warning, such as newly missing objects, a size that tripled or a slow drill",
        "LOW; HIGH or CRITICAL for newly missing objects",
        "outbox",
        "the next evaluation without a warning",
    ),
    Guide(
        "verification-failed",
        VERIFICATION.area,
        "verify_job failed: a recovery point did not verify when it was read again",
        "HIGH",
        "hook at once; outbox for killed runs",
        "the next verify_job that succeeds",
    ),
    Guide(
        "drill-failed",
        DRILL.area,
        "A restore drill failed, or one of its checks did",
        "HIGH",
        "hook at once; outbox for killed runs",
        "the next drill that succeeds",
    ),
    Guide(
        "restore-failed",
        RESTORE.area,
        "A restore that was started in the UI failed",
        "HIGH",
        "hook at once; outbox for killed runs",
        "the next restore that succeeds",
    ),
    Guide(
        "retention-failed",
        RETENTION.area,
        "Old recovery points could not be removed",
        "MEDIUM",
        "hook at once; outbox for killed runs",
        "the next prune_job that succeeds",
    ),
    Guide(
        "consistency-check-failed",
        AUDIT.area,
        "The consistency check of the live system could not be performed",
        "MEDIUM",
        "hook at once; outbox for killed runs",
        "the next audit_job that succeeds",
    ),
    Guide(
        "housekeeping-failed",
        HOUSEKEEPING.area,
        "The monthly report, or the removal of old runs from Dagster's history, failed",
        "LOW",
        "hook at once; outbox for killed runs",
        "the next such job that succeeds",
    ),
    Guide(
        "copy-failed",
        COPY.area,
        "A recovery point could not be copied to a store, or the store could not be proven",
        "MEDIUM",
        "hook at once; outbox for killed runs",
        "the next run for that store that succeeds",
    ),
    Guide(
        "no-recent-copy",
        COPY_AGE_AREA,
        "A store lacks the newest verified recovery point, and its newest copy is older than max_age_hours",
        "HIGH",
        "sensor freshness_watch",
        "the next copy to that store",
    ),
    Guide(
        "copy-damaged",
        COPY_DAMAGE_AREA,
        "Files of copies are missing, altered, hidden or foreign, or a pack did not read back",
        "HIGH",
        "sensor freshness_watch",
        "a proof of that store that finds nothing wrong",
    ),
    Guide(
        "copy-lock-ends",
        COPY_LOCK_AREA,
        "Copies in a store with lock_days are not locked, or for less than a quarter of that time",
        "HIGH",
        "sensor freshness_watch",
        "a proof of that store that finds everything locked",
    ),
    Guide(
        "copy-not-proved",
        COPY_PROOF_AREA,
        "The copies in a store were not listed for two days, or packs not read back in time",
        "HIGH",
        "sensor freshness_watch",
        "a proof of that store",
    ),
    Guide(
        "copy-retention-failed",
        COPY_RETENTION.area,
        "Old copies in a store could not be removed",
        "MEDIUM",
        "hook at once; outbox for killed runs",
        "the next pruning of that store that succeeds",
    ),
    Guide(
        "alert-sensor-failed",
        OUTBOX_AREA,
        "A part of the alert outbox failed; its other parts still send",
        "HIGH",
        "outbox",
        "the next run of that part without an error",
    ),
)


def find_guide(key: IncidentKey) -> Guide:
    """Return the guide of the incident; for an area without one, the guide of a failed backup."""
    return next((guide for guide in GUIDES if guide.area == key.area), GUIDES[0])
