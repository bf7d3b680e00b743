"""What a restore drill measured and found, as one frozen value that goes into Dagster's history and to
programs.

Add a field when a drill measures something else. How it is found is the business of `drill`, how it is shown
of the edge.
"""

from __future__ import annotations

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.model import FrozenModel


class DrillSeconds(FrozenModel):
    """How long each part took. Restore and comparison are of both halves at once."""

    start_servers: float
    verify: float
    restore: float
    compare: float
    sample: float
    sql_checks: float
    total: float
    """From the first look at the files to the last check, without the removal of what was started."""


class DrillReport(FrozenModel):
    """One drill of one recovery point that came to its end; what it found may still be bad."""

    point_id: str
    snapshot_at: AwareDatetime
    began_at: AwareDatetime
    seconds: DrillSeconds
    results: tuple[CheckResult, ...]
    object_count: int
    target: str
    """Which servers it was restored into."""
    notes: tuple[str, ...] = ()

    @property
    def rto_seconds(self) -> float:
        """How long it took to have the data back and proven: the measured recovery time."""
        return self.seconds.total

    @property
    def rpo_seconds(self) -> float:
        """How old the data was when the drill began: what would have been lost."""
        return (self.began_at - self.snapshot_at).total_seconds()

    @property
    def is_passed(self) -> bool:
        """Whether every check was seen to hold; unknown is not that, not configured is nobody's failure."""
        return all(
            result.status in {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED} for result in self.results
        )
