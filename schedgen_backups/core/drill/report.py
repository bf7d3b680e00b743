"""Measurements and results of a restore drill, as one frozen value for Dagster's history and other programs.

Add a field when a drill measures something new.
"""

from __future__ import annotations

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.model import FrozenModel


class DrillSeconds(FrozenModel):
    """Duration of each part. Restore and comparison cover both halves at once."""

    start_servers: float
    verify: float
    restore: float
    compare: float
    sample: float
    sql_checks: float
    total: float
    """From the first read of the files to the last check, without the removal of what was started."""


class DrillReport(FrozenModel):
    """One completed drill of one recovery point, whatever its results."""

    point_id: str
    snapshot_at: AwareDatetime
    began_at: AwareDatetime
    seconds: DrillSeconds
    results: tuple[CheckResult, ...]
    object_count: int
    target: str
    """The servers into which the point was restored."""
    versions: dict[str, str] = {}
    """Of the servers and programs that took part."""
    notes: tuple[str, ...] = ()

    @property
    def rto_seconds(self) -> float:
        """The measured recovery time: until the data is restored and checked."""
        return self.seconds.total

    @property
    def rpo_seconds(self) -> float:
        """The age of the data when the drill began: what would have been lost."""
        return (self.began_at - self.snapshot_at).total_seconds()

    @property
    def is_passed(self) -> bool:
        """Whether every check passed, also on a sample, or is not configured; false for unknown."""
        return all(
            result.status in {CheckStatus.PASSED, CheckStatus.SAMPLED, CheckStatus.NOT_CONFIGURED}
            for result in self.results
        )
