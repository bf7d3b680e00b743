"""Decide which recovery points retention keeps and why, as a pure function of points, policy and time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from schedgen_backups.core.catalog.points import CLOCK_TOLERANCE, PointState
from schedgen_backups.core.model import RecoveryPointId


@dataclass(frozen=True)
class RetentionPolicy:
    """What retention keeps. Days, weeks, months and years are those of the time zone."""

    keep_days: int = 7
    """Number of days whose points are kept, today included; with `keep_hours`, the number of days whose last
    verified point is kept."""
    keep_hours: int = 0
    """Number of hours for which every point is kept; 0: `keep_days` keeps every point."""
    keep_last: int = 3
    """Minimum number of verified points to keep, whatever their age."""
    keep_weeks: int = 0
    """Number of weeks (Monday to Sunday) whose last verified point is kept, this week included."""
    keep_months: int = 0
    """Number of months whose last verified point is kept, this month included."""
    keep_years: int = 0
    """Number of years whose last verified point is kept, this year included."""
    timezone: tzinfo = field(default_factory=lambda: ZoneInfo("UTC"))


@dataclass(frozen=True)
class Candidate:
    """A recovery point as input to retention."""

    point_id: RecoveryPointId
    state: PointState
    pin_reason: str | None = None
    """Why the point is pinned; None when it is not."""
    is_pin_unreadable: bool = False
    is_coherent: bool = True
    """Whether the live system had every referenced object when the point was taken."""

    @property
    def is_verified(self) -> bool:
        """Whether the point is verified and its pin, if any, can be read: only such points count."""
        return self.state is PointState.VERIFIED and not self.is_pin_unreadable


@dataclass(frozen=True)
class Decision:
    """Whether one point is kept, and why."""

    candidate: Candidate
    is_kept: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RetentionPlan:
    """A decision for each point, oldest first.

    `refusal` says why nothing is removed; empty when points may be removed.
    """

    decisions: tuple[Decision, ...]
    refusal: str = ""

    @property
    def kept(self) -> tuple[Decision, ...]:
        """The points that are kept."""
        return tuple(decision for decision in self.decisions if decision.is_kept)

    @property
    def removed(self) -> tuple[Decision, ...]:
        """The points to remove."""
        return tuple(decision for decision in self.decisions if not decision.is_kept)


def plan_retention(candidates: Sequence[Candidate], policy: RetentionPolicy, now: datetime) -> RetentionPlan:
    """Return the decision for each point at this aware time.

    Only verified points of this site count. These points are never removed: the newest verified one; a pinned
    one; a damaged or foreign one; one ahead of the clock; one whose pin cannot be read. An unverified point
    stays until a newer point is verified. Nothing is removed when no point is verified, for example because
    the clock was set back before all of them.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.point_id)
    verified = [candidate for candidate in ordered if candidate.is_verified and not _is_ahead(candidate, now)]
    if not verified:
        return _keep_all(ordered, "no point is verified" if ordered else "")
    context = _Context(ordered, verified, policy, now)
    reasons: dict[RecoveryPointId, list[str]] = {candidate.point_id: [] for candidate in ordered}
    for rule in _RULES:
        for point_id, reason in rule(context):
            reasons[point_id].append(reason)
    decisions = tuple(
        Decision(
            candidate,
            bool(reasons[candidate.point_id]),
            tuple(reasons[candidate.point_id]) or (_explain_removal(candidate, policy),),
        )
        for candidate in ordered
    )
    return RetentionPlan(decisions)


def _is_ahead(candidate: Candidate, now: datetime) -> bool:
    return candidate.state is PointState.AHEAD or candidate.point_id.taken_at > now + CLOCK_TOLERANCE


def _keep_all(ordered: Sequence[Candidate], refusal: str) -> RetentionPlan:
    return RetentionPlan(
        tuple(Decision(candidate, is_kept=True, reasons=(refusal,)) for candidate in ordered), refusal
    )


@dataclass(frozen=True)
class _Context:
    ordered: Sequence[Candidate]
    verified: Sequence[Candidate]
    """The verified points in `ordered`, at least one."""
    policy: RetentionPolicy
    now: datetime


_Kept = Iterator[tuple[RecoveryPointId, str]]


def _keep_newest_verified(context: _Context) -> _Kept:
    yield context.verified[-1].point_id, "newest verified"


def _keep_newest_coherent(context: _Context) -> _Kept:
    coherent = [candidate for candidate in context.verified if candidate.is_coherent]
    if coherent and coherent[-1] is not context.verified[-1]:
        yield coherent[-1].point_id, "newest with every referenced object"


def _keep_pinned(context: _Context) -> _Kept:
    for candidate in context.ordered:
        if candidate.pin_reason is not None:
            yield candidate.point_id, f"pinned: {candidate.pin_reason}" if candidate.pin_reason else "pinned"


def _keep_undecided(context: _Context) -> _Kept:
    for candidate in context.ordered:
        if candidate.state is PointState.DAMAGED:
            yield candidate.point_id, "damaged: the operator decides"
        if candidate.state is PointState.FOREIGN:
            yield candidate.point_id, "of another site: the operator decides"
        if _is_ahead(candidate, context.now):
            yield candidate.point_id, "ahead of the clock: the operator decides"
        if candidate.is_pin_unreadable:
            yield candidate.point_id, "its pin cannot be read: the operator decides"


def _keep_unverified_newest(context: _Context) -> _Kept:
    newest = context.verified[-1].point_id
    for candidate in context.ordered:
        if (
            candidate.state in {PointState.UNVERIFIED, PointState.FAILED, PointState.PARTIAL}
            and candidate.point_id > newest
        ):
            yield candidate.point_id, f"{candidate.state.value}, and no newer point is verified"


def _keep_hours(context: _Context) -> _Kept:
    # Elapsed time, not the clock on the wall: two hours remain two hours when summer time ends.
    first = context.now - timedelta(hours=context.policy.keep_hours)
    for candidate in context.ordered if context.policy.keep_hours else ():
        if candidate.point_id.taken_at >= first:
            yield candidate.point_id, f"of the last {context.policy.keep_hours} hours"


def _keep_days(context: _Context) -> _Kept:
    policy, today = context.policy, _local_day(context.now, context.policy)
    days = {
        candidate.point_id: _local_day(candidate.point_id.taken_at, policy) for candidate in context.ordered
    }
    if policy.keep_hours:
        last_of = {days[candidate.point_id]: candidate.point_id for candidate in context.verified}
        kept, reason = last_of.values(), "last of its day"
    else:
        kept, reason = days.keys(), f"of the last {policy.keep_days} days"
    for point_id in kept:
        if (today - days[point_id]).days < policy.keep_days:
            yield point_id, reason


def _keep_last(context: _Context) -> _Kept:
    count = context.policy.keep_last
    for rank, candidate in enumerate(reversed(context.verified[-count:] if count else [])):
        yield candidate.point_id, f"verified number {rank + 1} of the last {count}"


def _keep_weeks(context: _Context) -> _Kept:
    return _keep_last_of_each(
        context.verified, context.policy.keep_weeks, lambda at: _week_of(at, context.policy), "week"
    )


def _keep_months(context: _Context) -> _Kept:
    return _keep_last_of_each(
        context.verified, context.policy.keep_months, lambda at: _month_of(at, context.policy), "month"
    )


def _keep_years(context: _Context) -> _Kept:
    return _keep_last_of_each(
        context.verified,
        context.policy.keep_years,
        lambda at: at.astimezone(context.policy.timezone).year,
        "year",
    )


_RULES: tuple[Callable[[_Context], _Kept], ...] = (
    _keep_newest_verified,
    _keep_newest_coherent,
    _keep_pinned,
    _keep_undecided,
    _keep_unverified_newest,
    _keep_hours,
    _keep_days,
    _keep_last,
    _keep_weeks,
    _keep_months,
    _keep_years,
)


def _keep_last_of_each(
    verified: Sequence[Candidate], count: int, period_of: Callable[[datetime], Hashable], word: str
) -> _Kept:
    """Yield the last point of each of the newest periods; periods without a verified point do not count."""
    newest_of: dict[Hashable, Candidate] = {}
    for candidate in verified:
        newest_of[period_of(candidate.point_id.taken_at)] = candidate
    for candidate in sorted(newest_of.values(), key=lambda chosen: chosen.point_id, reverse=True)[:count]:
        yield candidate.point_id, f"last of its {word}"


def _explain_removal(candidate: Candidate, policy: RetentionPolicy) -> str:
    if policy.keep_hours:
        age = f"older than {policy.keep_hours} hours"
        if candidate.is_verified:
            return f"{age}, and not the last of one of the last {policy.keep_days} days"
    else:
        age = f"older than {policy.keep_days} days"
        if candidate.is_verified:
            return age
    return f"{age}, {candidate.state.value}, and a newer point is verified"


def _local_day(at: datetime, policy: RetentionPolicy) -> datetime:
    # Calendar dates, not spans of 24 hours: a day of 23 or 25 hours is one day.
    local = at.astimezone(policy.timezone)
    return datetime(local.year, local.month, local.day)  # noqa: DTZ001 - a calendar day


def _week_of(at: datetime, policy: RetentionPolicy) -> Hashable:
    year, week, _day = at.astimezone(policy.timezone).isocalendar()
    return year, week


def _month_of(at: datetime, policy: RetentionPolicy) -> Hashable:
    local = at.astimezone(policy.timezone)
    return local.year, local.month


def make_retention_table(plan: RetentionPlan) -> str:
    """Return a Markdown table with one row per recovery point, oldest first."""
    lines = ["| recovery point | state | decision | because |", "| --- | --- | --- | --- |"]
    for decision in plan.decisions:
        point = decision.candidate
        because = "; ".join(decision.reasons).replace("|", "\\|")
        lines.append(
            f"| {point.point_id} | {point.state.value} | {'keep' if decision.is_kept else 'remove'} | "
            f"{because} |"
        )
    return "\n".join(lines)
