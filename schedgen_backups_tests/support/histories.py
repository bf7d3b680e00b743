"""Histories of recovery points in chosen states, as values for `retention` or small real files for `pruning`.

For tests of decisions by age and state. `artifacts` makes the content of files; no server is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from textwrap import dedent

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    COMMIT_CHECKS,
    STORED_CHECKS,
    Check,
    CheckResult,
    CheckStatus,
)
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.model import (
    Artifact,
    ArtifactKind,
    ArtifactName,
    Manifest,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
)
from schedgen_backups.core.retention.plan import Candidate, RetentionPlan, RetentionPolicy, plan_retention
from schedgen_backups_tests.support.artifacts import (
    TAKEN_AT,
    TableText,
    make_entry,
    make_result,
    write_archive,
    write_dump,
)

SHORT = {
    "v": PointState.VERIFIED,
    "u": PointState.UNVERIFIED,
    "f": PointState.FAILED,
    "p": PointState.PARTIAL,
}


def name_night(day: int) -> RecoveryPointId:
    """Return the id of the point this many days after `TAKEN_AT`."""
    return RecoveryPointId.from_time(TAKEN_AT + timedelta(days=day))


def add_point(
    catalog: Catalog, point_id: RecoveryPointId, state: PointState = PointState.VERIFIED
) -> tuple[str, ...]:
    """Write the point in this state into the directory; return the names of its files."""
    names = {
        kind: ArtifactName(kind, source, point_id).to_file_name()
        for kind, source in ((ArtifactKind.DATABASE, "schedgen"), (ArtifactKind.BUCKET, "schedgen-pdfs"))
    }
    dump = write_dump(
        catalog.directory / names[ArtifactKind.DATABASE], [TableText("jobs", (b"1",))], point_id=point_id.text
    )
    archive = write_archive(
        catalog.directory / names[ArtifactKind.BUCKET],
        [(make_entry("a", b"1"), b"1")],
        point_id=point_id.text,
    )
    files = tuple(names.values())
    if state is PointState.PARTIAL:
        return files
    written = {ArtifactKind.DATABASE: dump, ArtifactKind.BUCKET: archive}
    artifacts = tuple(
        Artifact(
            kind=kind,
            file_name=names[kind],
            source_name="x",
            size_bytes=written[kind].size_bytes,
            sha256=written[kind].sha256,
        )
        for kind in ArtifactKind
    )
    catalog.write_manifest(
        Manifest(
            tool_version="test",
            point_id=point_id.text,
            snapshot_at=point_id.taken_at,
            committed_at=point_id.taken_at,
            artifacts=artifacts,
            references=ReferenceSummary(state=ReferenceState.READ),
        )
    )
    if state is PointState.UNVERIFIED:
        return (*files, f"manifest_{point_id}.json")
    digests = {artifact.kind: artifact.sha256 for artifact in artifacts}
    failed = Check.DUMP_IS_STORED if state is PointState.FAILED else None
    results = [
        make_result(check, CheckStatus.FAILED if check is failed else CheckStatus.PASSED, artifacts=digests)
        for check in COMMIT_CHECKS
    ]
    catalog.record_results(point_id, note_times(catalog.get_point(point_id), results))
    return (*files, f"manifest_{point_id}.json", f"verification_{point_id}.json")


def note_times(point: PointListing, results: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """Return the same results, as of files that were read in their present place."""
    times = {STORED_CHECKS[artifact.name.kind]: artifact.modified_ns for artifact in point.artifacts}
    return tuple(
        result.model_copy(update={"file_modified_ns": times.get(result.check)}) for result in results
    )


def at(text: str) -> datetime:
    """Return this moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def nights(first: str, states: str, *, hour: int = 2) -> list[Candidate]:
    """Return one point a night from this day on, a letter for each state; `-` skips a night."""
    start = at(first) + timedelta(hours=hour)
    return [
        Candidate(RecoveryPointId.from_time(start + timedelta(days=day)), SHORT[letter])
        for day, letter in enumerate(states)
        if letter in SHORT
    ]


def at_times(*moments: str) -> list[Candidate]:
    """Return verified points at these times, which may include a UTC offset."""
    return [
        Candidate(RecoveryPointId.from_time(datetime.fromisoformat(moment)), PointState.VERIFIED)
        for moment in moments
    ]


def report(plan: RetentionPlan) -> str:
    return "".join(
        f"{decision.candidate.point_id} {decision.candidate.state.value} -> "
        f"{'keep' if decision.is_kept else 'remove'}: {', '.join(decision.reasons)}\n"
        for decision in plan.decisions
    )


def check_decisions(history: Sequence[Candidate], policy: RetentionPolicy, now: datetime, table: str) -> None:
    """Check that the plan is this table: a line per point, with any indentation."""
    assert report(plan_retention(history, policy, now)) == dedent(table).lstrip("\n")
