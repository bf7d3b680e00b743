"""Advise on the layout: whether the disk has room for as many whole files as retention keeps.

A pure function of settings and sizes. Nothing switches by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.units import count, format_bytes

FREQUENT_POINTS_PER_DAY = 4
_FULL = 0.8
"""Share of the room that points may need: they grow, and a new one is written before an old one goes."""
_NOTABLE = 0.1
"""The same for a frequent schedule, with which the disk writes the whole bucket many times a day."""
_WEEK_DAYS, _MONTH_DAYS, _YEAR_DAYS = 7, 30.4, 365.25


@dataclass(frozen=True)
class Situation:
    """What the advice depends on."""

    layout: Layout
    shares_blocks: bool
    """Whether files in the backup directory can share blocks, so that a night costs what changed."""
    points_per_day: float
    policy: RetentionPolicy
    point_bytes: int
    """Size of a point as whole files; of what is known, the most."""
    room_bytes: int
    """What is free, and what points take now."""


@dataclass(frozen=True)
class LayoutAdvice:
    """Why points in packs are advised, with the sum."""

    kept_count: int
    needed_bytes: int
    detail: str
    fix: str


def advise_on_layout(situation: Situation) -> LayoutAdvice | None:
    """Return why this site needs points in packs; None if it has them, or does not need them."""
    if situation.layout is Layout.PACKS or situation.shares_blocks:
        return None
    is_frequent = situation.points_per_day >= FREQUENT_POINTS_PER_DAY
    kept_count = estimate_kept(situation.policy, situation.points_per_day)
    needed_bytes = kept_count * situation.point_bytes
    if needed_bytes <= situation.room_bytes * (_NOTABLE if is_frequent else _FULL):
        return None
    often = f"about {situation.points_per_day:.0f} backups a day, " if is_frequent else ""
    detail = (
        f"BACKUP_LAYOUT=files: {often}about {count(kept_count, 'point')} kept x "
        f"{format_bytes(situation.point_bytes)} = {format_bytes(needed_bytes)} needed, "
        f"{format_bytes(situation.room_bytes)} available; files do not share blocks on this file system"
    )
    fix = (
        "Set BACKUP_LAYOUT=packs, with which a point takes the space of what changed (docs/packs.md has the "
        "limits), keep fewer points (docs/retention.md), or move BACKUP_DIR to XFS or Btrfs."
    )
    return LayoutAdvice(kept_count, needed_bytes, detail, fix)


def estimate_kept(policy: RetentionPolicy, points_per_day: float) -> int:
    """Return how many verified points the policy keeps once the schedule has run for long enough.

    Without pins; `plan` decides on real points.
    """
    if points_per_day <= 0:
        return policy.keep_last
    whole_days = policy.keep_hours / 24 if policy.keep_hours else policy.keep_days
    kept = max(whole_days * points_per_day, policy.keep_last)
    covered_days = kept / points_per_day
    if policy.keep_hours and covered_days < policy.keep_days:
        # A day without a point has none, unlike a week, a month or a year.
        kept += (policy.keep_days - covered_days) * min(1.0, points_per_day)
        covered_days = policy.keep_days
    for periods, period_days in (
        (policy.keep_weeks, _WEEK_DAYS),
        (policy.keep_months, _MONTH_DAYS),
        (policy.keep_years, _YEAR_DAYS),
    ):
        step_days = max(period_days, 1 / points_per_day)
        kept += max(0.0, periods - covered_days / step_days)
        covered_days = max(covered_days, periods * step_days)
    return ceil(kept)
