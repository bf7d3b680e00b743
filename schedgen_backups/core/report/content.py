"""The content of a report as values, compiled from history, recovery points and receipts.

Add what an auditor asks for here; `page` shows it. Everything is a fact with its time, or a promise that is
measured. What is unknown is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise

from pydantic import AwareDatetime

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.history.events import (
    AlertDelivered,
    CopiesProved,
    CopyFailed,
    DrillEnded,
    DrillSkipped,
    HistoryEvent,
    IncidentBegan,
    IncidentEnded,
    PointChecked,
    PointCommitted,
    PointsCopied,
    PointsRemoved,
    RestoreEnded,
    RunFailed,
)
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import TOOL_VERSION, FrozenModel, RecoveryPointId
from schedgen_backups.core.receipts.keys import find_keys_folder, list_public_keys
from schedgen_backups.core.receipts.receipts import list_receipts, list_subjects, verify_receipt

_EARLY = timedelta(minutes=5)
"""A run that is started by another clock than the daemon's may begin before its time."""
_DELIVERY_TIME = timedelta(minutes=5)
"""The answer of a channel is recorded before the incident is."""


@dataclass(frozen=True)
class ReportedSite:
    """What is reported on, and the promises that it is measured against."""

    name: str
    catalog: Catalog
    scheduled: tuple[datetime, ...]
    """The times of the month at which backups were due, by the schedule of today; aware, in order."""
    max_age: timedelta
    """Allowed time between two recovery points."""
    max_recovery: timedelta
    """Allowed duration of a restore."""
    settings: Mapping[str, str]
    """Settings in force, without secrets."""


class ReportedPoint(FrozenModel):
    """A recovery point of the month."""

    point_id: str
    taken_at: AwareDatetime
    committed_at: AwareDatetime
    size_bytes: int
    manifest_sha256: str
    is_scheduled: bool
    checks_passed: int = 0
    checks_failed: tuple[str, ...] = ()
    drilled_at: AwareDatetime | None = None
    """When a drill restored it and found it equal; None if none did."""
    drill_skipped_because: str = ""
    """Why it was not drilled at once, although each point is to be; empty if nothing was skipped."""
    removed_at: AwareDatetime | None = None
    removed_because: str = ""


class ReportedDrill(FrozenModel):
    """A drill of the month."""

    began_at: AwareDatetime
    point_id: str
    store: str
    is_passed: bool
    rto_seconds: float
    rpo_seconds: float
    seconds: dict[str, float]
    object_count: int
    target: str
    not_passed: tuple[str, ...]
    """Checks that did not pass, with what they found."""


class ReportedIncident(FrozenModel):
    """An incident that was open in the month."""

    area: str
    subject: str
    title: str
    severity: str
    cause: str
    began_at: AwareDatetime
    ended_at: AwareDatetime | None
    """None while it is open."""
    deliveries: tuple[str, ...]
    """Which channel accepted or refused the first alert, and when."""


class ReportedStore(FrozenModel):
    """The copies in one store."""

    store: str
    points: tuple[str, ...]
    """Points that were copied in the month."""
    uploaded_bytes: int
    proof_count: int
    last_proved_at: AwareDatetime | None
    packs_read: int
    packs_unread: int
    """Packs that were never read back, at the last proof."""
    locked_until: AwareDatetime | None
    problems: tuple[str, ...]
    removed: tuple[str, ...]


class ReportedRemoval(FrozenModel):
    """A decision of retention."""

    at: AwareDatetime
    removed: tuple[str, ...]
    """Points with the reasons."""
    kept_count: int
    freed_bytes: int
    refusal: str


class ReportedRestore(FrozenModel):
    """A restore of the month."""

    at: AwareDatetime
    point_id: str
    subject: str
    target: str
    result: str
    reason: str
    user: str


class ReportedVersion(FrozenModel):
    """A version of a server or program that took part in the month."""

    name: str
    version: str
    first_at: AwareDatetime
    last_at: AwareDatetime


class ReportedFailure(FrozenModel):
    """A failed step or run."""

    at: AwareDatetime
    kind: str
    subject: str
    cause: str


class Report(FrozenModel):
    """Everything that a report says."""

    format_version: int = 1
    site: str
    site_id: str
    begin: AwareDatetime
    end: AwareDatetime
    made_at: AwareDatetime
    tool_version: str = TOOL_VERSION
    recorded_since: AwareDatetime | None
    """When the history begins; None if it is empty."""
    unreadable_lines: int
    scheduled_count: int
    unrecorded_count: int
    """How many of these times are before the history began: whether they were missed is not known."""
    missed: tuple[AwareDatetime, ...]
    """Other scheduled times after which no point was committed before the next one."""
    max_gap_seconds: float | None
    """Longest time between two snapshots, until the first one of all from the begin of the history, and from
    the last to the end; None without a point."""
    allowed_gap_seconds: float
    allowed_recovery_seconds: float
    points: tuple[ReportedPoint, ...]
    drills: tuple[ReportedDrill, ...]
    incidents: tuple[ReportedIncident, ...]
    failures: tuple[ReportedFailure, ...]
    removals: tuple[ReportedRemoval, ...]
    stores: tuple[ReportedStore, ...]
    restores: tuple[ReportedRestore, ...]
    versions: tuple[ReportedVersion, ...]
    valid_receipts: int
    invalid_receipts: tuple[str, ...]
    settings: dict[str, str]


def compile_report(site: ReportedSite, begin: datetime, end: datetime, now: datetime) -> Report:
    """Return the report from `begin` on and before `end`; StorageError if the history cannot be read."""
    history = History(site.catalog.directory)
    until = min(end, now)
    part = history.read(begin, until)
    events = part.events
    before = history.read(end=begin).events
    last_before = [
        RecoveryPointId.parse(event.point_id).taken_at
        for event in before
        if isinstance(event, PointCommitted)
    ]
    points = _list_points(site, events, begin, end)
    began = next((event.at for event in (*before, *events)), None)
    # Points are older than the history that records them.
    known_from = min([end if began is None else began, *(point.taken_at for point in points)])
    own = site.catalog.read_site() if site.catalog.directory.is_dir() else None
    scheduled = [time for time in site.scheduled if begin <= time < until]
    due = [time for time in scheduled if time >= known_from - _EARLY]
    valid_count, invalid = _verify_receipts(site.catalog, begin, end)
    return Report(
        site=site.name,
        site_id=own.site_id if own is not None else "",
        begin=begin,
        end=end,
        made_at=now,
        recorded_since=began,
        unreadable_lines=part.unreadable_count,
        scheduled_count=len(scheduled),
        unrecorded_count=len(scheduled) - len(due),
        missed=_find_missed(due, until, [point.taken_at for point in points]),
        max_gap_seconds=_find_max_gap(
            last_before[-1] if last_before else max(begin, known_from),
            [point.taken_at for point in points],
            until,
        ),
        allowed_gap_seconds=site.max_age.total_seconds(),
        allowed_recovery_seconds=site.max_recovery.total_seconds(),
        points=points,
        drills=tuple(_report_drill(event) for event in events if isinstance(event, DrillEnded)),
        incidents=_list_incidents((*before, *events), begin),
        failures=tuple(
            ReportedFailure(at=event.at, kind=event.kind, subject=event.subject, cause=event.cause)
            for event in events
            if isinstance(event, RunFailed)
        ),
        removals=tuple(
            ReportedRemoval(
                at=event.at,
                removed=tuple(f"{each.point_id}: {'; '.join(each.reasons)}" for each in event.removed),
                kept_count=event.kept_count,
                freed_bytes=event.freed_bytes,
                refusal=event.refusal,
            )
            for event in events
            if isinstance(event, PointsRemoved) and not event.store
        ),
        stores=_list_stores(events),
        restores=tuple(
            ReportedRestore(
                at=event.at,
                point_id=event.point_id,
                subject=event.subject,
                target=event.target,
                result=event.result,
                reason=event.reason,
                user=event.user,
            )
            for event in events
            if isinstance(event, RestoreEnded)
        ),
        versions=_list_versions(events),
        valid_receipts=valid_count,
        invalid_receipts=invalid,
        settings=dict(sorted(site.settings.items())),
    )


def _list_points(
    site: ReportedSite, events: Sequence[HistoryEvent], begin: datetime, end: datetime
) -> tuple[ReportedPoint, ...]:
    """Return the points of the history, and those that exist and that it does not know."""
    known = {event.point_id: event for event in events if isinstance(event, PointCommitted)}
    listed = site.catalog.list_points() if site.catalog.directory.is_dir() else ()
    for point in listed:
        manifest = point.manifest
        if manifest is None or point.is_foreign or point.point_id.text in known:
            continue
        if begin <= manifest.committed_at < end:
            [subject] = list_subjects(site.catalog.directory, [point.point_id.text]) or [None]
            known[point.point_id.text] = PointCommitted(
                at=manifest.committed_at,
                point_id=point.point_id.text,
                snapshot_at=manifest.snapshot_at,
                manifest_sha256=subject.digest["sha256"] if subject is not None else "",
                size_bytes=point.size_bytes,
            )
    checked: dict[str, dict[str, str]] = {}
    for event in events:
        if isinstance(event, PointCommitted | PointChecked):
            found = checked.setdefault(event.point_id, {})
            found.update({outcome.check: outcome.status for outcome in event.outcomes})
    drilled = {
        event.point_id: event.at
        for event in events
        if isinstance(event, DrillEnded)
        and event.is_passed
        and not any(outcome.status == CheckStatus.SAMPLED.value for outcome in event.outcomes)
    }
    skipped = {event.point_id: event.reason for event in events if isinstance(event, DrillSkipped)}
    removed = {
        each.point_id: (event.at, "; ".join(each.reasons))
        for event in events
        if isinstance(event, PointsRemoved) and not event.store
        for each in event.removed
    }
    # The first point after each due time, however late it was.
    fulfilling = {
        next((point_id for point_id in sorted(known) if _is_taken_in(point_id, span)), "")
        for span in pairwise([*site.scheduled, end])
    }
    points: list[ReportedPoint] = []
    for point_id, event in sorted(known.items()):
        outcomes = checked.get(point_id, {})
        taken_at = RecoveryPointId.parse(point_id).taken_at
        removed_at, because = removed.get(point_id, (None, ""))
        points.append(
            ReportedPoint(
                point_id=point_id,
                taken_at=taken_at,
                committed_at=event.at,
                size_bytes=event.size_bytes,
                manifest_sha256=event.manifest_sha256,
                is_scheduled=point_id in fulfilling,
                checks_passed=sum(status == "passed" for status in outcomes.values()),
                checks_failed=tuple(check for check, status in outcomes.items() if status == "failed"),
                drilled_at=drilled.get(point_id),
                drill_skipped_because=skipped.get(point_id, ""),
                removed_at=removed_at,
                removed_because=because,
            )
        )
    return tuple(points)


def _is_taken_in(point_id: str, span: tuple[datetime, datetime]) -> bool:
    return span[0] - _EARLY <= RecoveryPointId.parse(point_id).taken_at < span[1] - _EARLY


def _find_missed(due: Sequence[datetime], end: datetime, taken: Sequence[datetime]) -> tuple[datetime, ...]:
    """Return the due times after which no point was taken before the next one."""
    spans = pairwise([*due, end]) if due else ()
    return tuple(
        begin
        for begin, next_time in spans
        if not any(begin - _EARLY <= time < next_time - _EARLY for time in taken)
    )


def _find_max_gap(begin: datetime, taken: Sequence[datetime], end: datetime) -> float | None:
    """Return the longest time without a new point in seconds, from `begin` to `end`; None without one."""
    if not taken:
        return None
    return max((later - sooner).total_seconds() for sooner, later in pairwise([begin, *sorted(taken), end]))


def _report_drill(event: DrillEnded) -> ReportedDrill:
    return ReportedDrill(
        began_at=event.began_at,
        point_id=event.point_id,
        store=event.store,
        is_passed=event.is_passed,
        rto_seconds=event.rto_seconds,
        rpo_seconds=event.rpo_seconds,
        seconds=event.seconds,
        object_count=event.object_count,
        target=event.target,
        not_passed=tuple(
            f"{outcome.check}: {outcome.status}, {outcome.summary}"
            for outcome in event.outcomes
            if outcome.status not in {"passed", "not configured"}
        ),
    )


def _list_incidents(events: Sequence[HistoryEvent], begin: datetime) -> tuple[ReportedIncident, ...]:
    """Return the incidents that were open at `begin` or began later."""
    open_ones: dict[tuple[str, str], ReportedIncident] = {}
    found: list[ReportedIncident] = []
    deliveries = [event for event in events if isinstance(event, AlertDelivered)]
    for event in events:
        if isinstance(event, IncidentBegan):
            open_ones[event.area, event.subject] = ReportedIncident(
                area=event.area,
                subject=event.subject,
                title=event.title,
                severity=event.severity,
                cause=event.cause,
                began_at=event.at,
                ended_at=None,
                deliveries=(),
            )
        elif isinstance(event, IncidentEnded):
            begun = open_ones.pop((event.area, event.subject), None)
            if begun is not None and event.at >= begin:
                found.append(begun.model_copy(update={"ended_at": event.at}))
    return tuple(
        incident.model_copy(update={"deliveries": _describe_deliveries(incident, deliveries)})
        for incident in sorted((*found, *open_ones.values()), key=lambda incident: incident.began_at)
    )


def _describe_deliveries(incident: ReportedIncident, deliveries: Iterable[AlertDelivered]) -> tuple[str, ...]:
    """Return the answers of each channel until it accepted the alert; reminders follow later."""
    alerted: set[str] = set()
    found: list[str] = []
    for each in deliveries:
        is_of_it = each.title.endswith(incident.title) and each.at >= incident.began_at - _DELIVERY_TIME
        if each.channel in alerted or not is_of_it or (incident.ended_at and each.at > incident.ended_at):
            continue
        answer = "accepted" if each.is_accepted else f"refused ({each.answer})"
        found.append(f"{each.channel}: {answer} {each.at:%Y-%m-%d %H:%M:%S} UTC")
        if each.is_accepted:
            alerted.add(each.channel)
    return tuple(found)


def _list_versions(events: Sequence[HistoryEvent]) -> tuple[ReportedVersion, ...]:
    times: dict[tuple[str, str], list[datetime]] = {}
    for event in events:
        if isinstance(event, PointCommitted | DrillEnded | RestoreEnded):
            for used in event.versions.items():
                times.setdefault(used, []).append(event.at)
    return tuple(
        ReportedVersion(name=name, version=version, first_at=min(found), last_at=max(found))
        for (name, version), found in sorted(times.items())
    )


def _list_stores(events: Sequence[HistoryEvent]) -> tuple[ReportedStore, ...]:
    names = sorted(
        {event.store for event in events if isinstance(event, PointsCopied | CopiesProved | CopyFailed)}
    )
    return tuple(_report_store(name, events) for name in names)


def _report_store(name: str, events: Sequence[HistoryEvent]) -> ReportedStore:
    copied = [event for event in events if isinstance(event, PointsCopied) and event.store == name]
    proofs = [event for event in events if isinstance(event, CopiesProved) and event.store == name]
    failures = [event for event in events if isinstance(event, CopyFailed) and event.store == name]
    last = proofs[-1] if proofs else None
    problems = [
        *(f"{event.at:%Y-%m-%d %H:%M} UTC: {problem}" for event in proofs for problem in event.problems),
        *(f"{event.at:%Y-%m-%d %H:%M} UTC: {event.problem}" for event in failures),
    ]
    return ReportedStore(
        store=name,
        points=tuple(point_id for event in copied for point_id in event.point_ids),
        uploaded_bytes=sum(event.uploaded_bytes for event in copied),
        proof_count=len(proofs),
        last_proved_at=last.at if last is not None else None,
        packs_read=sum(event.read_count for event in proofs),
        packs_unread=last.unread_count if last is not None else 0,
        locked_until=last.locked_until if last is not None else None,
        problems=tuple(sorted(problems)),
        removed=tuple(
            f"{each.point_id}: {'; '.join(each.reasons)}"
            for event in events
            if isinstance(event, PointsRemoved) and event.store == name
            for each in event.removed
        ),
    )


def _verify_receipts(catalog: Catalog, begin: datetime, end: datetime) -> tuple[int, tuple[str, ...]]:
    """Return the number of valid receipts of the month, and the names of others."""
    keys = list_public_keys(find_keys_folder(catalog.directory))
    names = tuple(f"{time.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}" for time in (begin, end))
    valid_count, invalid = 0, list[str]()
    for path in list_receipts(catalog.directory):
        if names[0] <= path.name < names[1]:
            try:
                verify_receipt(path, keys)
                valid_count += 1
            except VerificationError:
                invalid.append(path.name)
    return valid_count, tuple(invalid)
