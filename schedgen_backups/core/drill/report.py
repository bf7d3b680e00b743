"""Measurements and results of a restore drill, as one frozen value for Dagster's history and other programs.

Add a field when a drill measures something new.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus, Verification
from schedgen_backups.core.catalog.part_results import combine_parts, keep_worst, label_results
from schedgen_backups.core.model import FrozenModel, PartName


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


def find_replaced(reports: Mapping[PartName | None, DrillReport]) -> tuple[CheckResult, ...]:
    """Return the results, as they are stored, that a later drill replaced by a better one.

    A bucket to which two databases refer is restored with each.
    """
    labelled = _label_reports(reports)
    newest = {(result.check, result.source): result for result in labelled}
    return tuple(
        result
        for result in keep_worst(labelled)
        if result.status is not newest[result.check, result.source].status
    )


def _label_reports(reports: Mapping[PartName | None, DrillReport]) -> tuple[CheckResult, ...]:
    return tuple(
        result
        for name, report in reports.items()
        if name is not None
        for result in label_results(report.results, name)
    )


def merge_reports(reports: Mapping[PartName | None, DrillReport]) -> DrillReport:
    """Return one report of drills of all parts of a point, one after the other."""
    first = next(iter(reports.values()))
    if len(reports) == 1:
        return first
    labelled = keep_worst(_label_reports(reports))
    names = [name for name in reports if name is not None]
    combined = combine_parts(Verification(point_id=first.point_id).with_results(labelled), names)
    return DrillReport(
        point_id=first.point_id,
        snapshot_at=min(report.snapshot_at for report in reports.values()),
        began_at=first.began_at,
        seconds=DrillSeconds(
            **{
                phase: sum(getattr(report.seconds, phase) for report in reports.values())
                for phase in DrillSeconds.model_fields
            }
        ),
        results=combined.results,
        object_count=sum(report.object_count for report in reports.values()),
        target="; ".join(dict.fromkeys(report.target for report in reports.values())),
        versions={name: text for report in reports.values() for name, text in report.versions.items()},
        notes=tuple(f"{name}: {note}" for name, report in reports.items() for note in report.notes),
    )
