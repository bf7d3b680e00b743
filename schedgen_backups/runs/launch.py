"""Run a job for a command.

Dagster is imported only then: loading it takes 0.55 s of processor time (2026-11-25).
"""

from __future__ import annotations

from collections.abc import Mapping

from schedgen_backups import run_tags
from schedgen_backups.config.config import Config
from schedgen_backups.runs.results import BackupResult, DrillResult


def run_backup(config: Config, reason: str, labels: Mapping[str, str], *, pin_for: str = "") -> BackupResult:
    """Take a backup through Dagster; return its result, also for a failed run.

    Pin its point for the duration `pin_for` if it is given.
    """
    from schedgen_backups.runs import in_process as instance  # noqa: PLC0415 - loads Dagster

    pinned = {run_tags.PIN_FOR: pin_for} if pin_for else {}
    return instance.run_backup_job(config, instance.make_tags(config, reason, labels) | pinned)


def run_drill(config: Config, point_id: str) -> DrillResult:
    """Drill a restore of the point through Dagster; return its result, also for a failed run."""
    from schedgen_backups.runs import in_process as instance  # noqa: PLC0415 - loads Dagster

    return instance.run_drill_job(config, point_id, instance.make_tags(config, "", {}))
