"""The run tag that pins a run's own point."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from schedgen_backups import run_tags
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import Pin, write_pin
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.units import describe_labels, parse_span


def pin_as_tagged(catalog: Catalog, point_id: RecoveryPointId, tags: Mapping[str, str], origin: Origin) -> Pin | None:
    """Pin the point when the run's tags ask for it, with its labels or reason as the reason; return the pin. ConfigurationError for a bad span."""
    if run_tags.PIN_FOR not in tags:
        return None
    span = parse_span(tags[run_tags.PIN_FOR])
    now = datetime.now(timezone.utc)
    reason = describe_labels(origin.labels) or origin.reason or "pinned when it was taken"
    pin = Pin(point_id=point_id.text, reason=reason, pinned_by=origin.user, pinned_at=now, expires_at=now + span)
    write_pin(catalog, pin)
    return pin
