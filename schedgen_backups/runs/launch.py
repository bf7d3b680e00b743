"""The door from the command line to Dagster: a command that runs a job goes through here, and no other waits for Dagster.

Loading Dagster alone takes 0.55 s of processor time (2026-11-25), for a list of the points as for a backup. So the module that needs it is imported
when a job is run, here and nowhere else; commands must not import it, nor any other module that imports Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedgen_backups import run_tags
from schedgen_backups.runs.results import BackupResult, DrillResult


def run_backup(reason: str, labels: Mapping[str, str], *, pin_for: str = "") -> BackupResult:
    """A backup was taken through Dagster, and its point pinned for that span where one is given; how it ended is in the outcome, never raised."""
    from schedgen_backups.runs import in_process as instance  # noqa: PLC0415 - see above

    pinned = {run_tags.PIN_FOR: pin_for} if pin_for else {}
    return instance.run_backup_job(instance.make_tags(reason, labels) | pinned)


def run_drill(point_id: str) -> DrillResult:
    """A restore of the point was drilled through Dagster; how it ended is in the outcome, never raised."""
    from schedgen_backups.runs import in_process as instance  # noqa: PLC0415 - see above

    return instance.run_drill_job(point_id, instance.make_tags("", {}))
