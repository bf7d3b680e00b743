"""Announce stricter retention rules before they remove anything: pure functions of the rules and the time."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta

from pydantic import AwareDatetime

from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.retention.plan import RetentionPolicy

GRACE = timedelta(days=1)
"""Time between the announcement and the first removal: long enough for somebody to read it."""


class PolicyRecord(FrozenModel):
    """The rules of a policy, as they are stored."""

    keep_hours: int = 0
    keep_days: int
    keep_last: int
    keep_weeks: int
    keep_months: int
    keep_years: int
    timezone: str

    @classmethod
    def from_policy(cls, policy: RetentionPolicy) -> PolicyRecord:
        """Return the record of this policy."""
        return cls.model_validate(
            {
                **{each.name: getattr(policy, each.name) for each in fields(policy)},
                "timezone": str(policy.timezone),
            }
        )

    def may_remove_more_than(self, other: PolicyRecord) -> bool:
        """Return whether a point may exist that the other rules keep and these do not.

        More hours may remove more, too: without hours, every point of the days is kept.
        """
        if (self.keep_hours, self.timezone) != (other.keep_hours, other.timezone):
            return True
        return any(
            getattr(self, name) < getattr(other, name)
            for name in ("keep_days", "keep_last", "keep_weeks", "keep_months", "keep_years")
        )


class PolicyState(FrozenModel):
    """Which rules are in force, and which wait for their announcement or for the time after it."""

    applied: PolicyRecord | None = None
    """None before the first look."""
    pending: PolicyRecord | None = None
    announced_at: AwareDatetime | None = None
    """When the pending rules were announced; None if they were not yet."""

    def follow(self, policy: RetentionPolicy) -> PolicyState:
        """Return the state when this policy is configured.

        What was in force before the first look is unknown. Rules with hours wait: no version before them had
        hours, so that somebody has changed the rules.
        """
        found = PolicyRecord.from_policy(policy)
        if found == self.pending:
            return self
        applied = self.applied or found.model_copy(update={"keep_hours": 0})
        if found.may_remove_more_than(applied):
            return PolicyState(applied=applied, pending=found)
        return PolicyState(applied=found)

    @property
    def is_announcement_due(self) -> bool:
        """Whether pending rules were not announced yet."""
        return self.pending is not None and self.announced_at is None

    def announce(self, now: datetime) -> PolicyState:
        """Return the state after the announcement of the pending rules."""
        return self.model_copy(update={"announced_at": now})

    def apply_when_due(self, now: datetime) -> PolicyState:
        """Return the state with the pending rules in force if they were announced long enough ago."""
        if self.announced_at is None or now - self.announced_at < GRACE:
            return self
        return PolicyState(applied=self.pending)
