"""The events of a site's history, one class each.

Add a class when a report needs something new, and fields only with a default: older lines must be readable.
An event holds values only, never a secret, and nothing that depends on the code of today.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, FiniteFloat, TypeAdapter

from schedgen_backups.core.model import FrozenModel

Versions = dict[str, str]
"""Server or program that took part → its version."""


class Outcome(FrozenModel):
    """The result of one check."""

    check: str
    status: str
    summary: str = ""


class RunStarted(FrozenModel):
    """A run began to take a recovery point."""

    event: Literal["run started"] = "run started"
    at: AwareDatetime
    kind: str
    """What the run does: the area of its incidents, such as `run` for a backup."""
    run_id: str


class RunFailed(FrozenModel):
    """A run failed, was cancelled or was killed. A run of several failed steps has several such events."""

    event: Literal["run failed"] = "run failed"
    at: AwareDatetime
    kind: str
    run_id: str
    subject: str
    """The step, or the job when no step failed."""
    cause: str


class PointCommitted(FrozenModel):
    """A recovery point was verified and committed."""

    event: Literal["point committed"] = "point committed"
    at: AwareDatetime
    point_id: str
    snapshot_at: AwareDatetime
    manifest_sha256: str
    size_bytes: int
    run_id: str = ""
    outcomes: tuple[Outcome, ...] = ()
    """The checks that decided."""
    versions: Versions = {}


class PointChecked(FrozenModel):
    """Checks of a recovery point were performed."""

    event: Literal["point checked"] = "point checked"
    at: AwareDatetime
    point_id: str
    checked_by: str
    outcomes: tuple[Outcome, ...]


class RestoreEnded(FrozenModel):
    """A point or a part of it was restored, or that failed."""

    event: Literal["restore ended"] = "restore ended"
    at: AwareDatetime
    began_at: AwareDatetime
    point_id: str
    manifest_sha256: str = ""
    subject: str
    """The part of the point."""
    target: str
    result: str
    """`done`, with the result of the comparison, or `failed: ` and the error's message."""
    reason: str = ""
    user: str = ""
    host: str = ""
    versions: Versions = {}


class DrillEnded(FrozenModel):
    """A drill restored and compared a recovery point, whatever its results."""

    event: Literal["drill ended"] = "drill ended"
    at: AwareDatetime
    began_at: AwareDatetime
    point_id: str
    manifest_sha256: str = ""
    is_passed: bool
    rto_seconds: FiniteFloat
    rpo_seconds: FiniteFloat
    seconds: dict[str, FiniteFloat] = {}
    """Duration of each part."""
    object_count: int = 0
    target: str = ""
    outcomes: tuple[Outcome, ...] = ()
    drilled_by: str = ""
    store: str = ""
    """The store from which the point was read; empty for the backup directory."""
    versions: Versions = {}


class DrillSkipped(FrozenModel):
    """A new recovery point was not drilled at once, although each point is to be."""

    event: Literal["drill skipped"] = "drill skipped"
    at: AwareDatetime
    point_id: str
    reason: str


class RemovedPoint(FrozenModel):
    """A point that retention removed, and why no rule kept it."""

    point_id: str
    reasons: tuple[str, ...] = ()


class PointsRemoved(FrozenModel):
    """Retention decided, and removed what no rule kept."""

    event: Literal["points removed"] = "points removed"
    at: AwareDatetime
    removed: tuple[RemovedPoint, ...]
    kept_count: int
    freed_bytes: int
    refusal: str = ""
    """Why nothing was removed; empty if retention decided."""
    store: str = ""
    """The store of which copies were removed; empty for the backup directory."""


class PointsCopied(FrozenModel):
    """Recovery points were copied to a store."""

    event: Literal["points copied"] = "points copied"
    at: AwareDatetime
    store: str
    point_ids: tuple[str, ...]
    uploaded_bytes: int


class CopiesProved(FrozenModel):
    """The copies in a store were listed, and packs were read back."""

    event: Literal["copies proved"] = "copies proved"
    at: AwareDatetime
    store: str
    copy_count: int
    pack_count: int
    read_count: int
    """Packs that were read back this time."""
    unread_count: int
    """Packs that were never read back."""
    locked_until: AwareDatetime | None = None
    problems: tuple[str, ...] = ()


class CopyFailed(FrozenModel):
    """Copying to a store, proving it or removing copies failed."""

    event: Literal["copy failed"] = "copy failed"
    at: AwareDatetime
    store: str
    problem: str


class IncidentBegan(FrozenModel):
    """The first alert of an incident was accepted by a channel, or there is none."""

    event: Literal["incident began"] = "incident began"
    at: AwareDatetime
    area: str
    subject: str
    severity: str
    title: str
    cause: str = ""


class IncidentEnded(FrozenModel):
    """An incident was resolved, and the message of it was accepted."""

    event: Literal["incident ended"] = "incident ended"
    at: AwareDatetime
    area: str
    subject: str
    began_at: AwareDatetime


class AlertDelivered(FrozenModel):
    """A channel answered to an alert."""

    event: Literal["alert delivered"] = "alert delivered"
    at: AwareDatetime
    channel: str
    title: str
    is_accepted: bool
    answer: str = ""


HistoryEvent = (
    RunStarted
    | RunFailed
    | PointCommitted
    | PointChecked
    | RestoreEnded
    | DrillEnded
    | DrillSkipped
    | PointsRemoved
    | PointsCopied
    | CopiesProved
    | CopyFailed
    | IncidentBegan
    | IncidentEnded
    | AlertDelivered
)
EVENT_ADAPTER: TypeAdapter[HistoryEvent] = TypeAdapter(Annotated[HistoryEvent, Field(discriminator="event")])
