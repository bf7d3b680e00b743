"""The three sensors: one tells what happened, one notices that nothing happened, one asks for retention. They decide; the work is done elsewhere.

A sensor's body ends within seconds (Dagster ends it after 60). Deletion is a job (`jobs.prune_job`), telling is `outbox`, and what may go is
decided in core. Add a sensor for another thing to watch.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.service import STALE_KIND, AlertService
from schedgen_backups.config.environment import load_environment, read_backup_settings, read_retention_policy
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import measure_freshness
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.retention.prune import plan_pruning
from schedgen_backups.defs.audit import AUDIT_CHECKS
from schedgen_backups.defs.checks import ALL_CHECKS
from schedgen_backups.defs.drill import DRILL_CHECKS
from schedgen_backups.monitoring.outbox import OUTBOX_NAME, OutboxCursor, work_through_outbox

_OUTBOX_SECONDS = 30
_FRESHNESS_SECONDS = 300
_RETENTION_SECONDS = 900


@dg.sensor(name=OUTBOX_NAME, minimum_interval_seconds=_OUTBOX_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def alert_outbox(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Tells of failed and cancelled runs, failed ticks and warnings that no hook has told, and that they are over."""
    cursor = OutboxCursor.model_validate_json(context.cursor or "{}")
    check_keys = [key for check in (*ALL_CHECKS, *DRILL_CHECKS, *AUDIT_CHECKS) for key in check.check_keys]
    after = work_through_outbox(context.instance, AlertService(load_environment()), cursor, check_keys)
    context.update_cursor(after.model_dump_json())
    return dg.SkipReason("everything was told" if after != cursor else "nothing new")


@dg.sensor(name="freshness_watch", minimum_interval_seconds=_FRESHNESS_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def freshness_watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Tells when there is no verified recovery point younger than BACKUP_MAX_AGE_HOURS, even when no run ever started."""
    now = datetime.now(timezone.utc)
    watched_since = datetime.fromisoformat(context.cursor) if context.cursor else now
    context.update_cursor(watched_since.isoformat())
    service = AlertService(load_environment())
    freshness = measure_freshness(service.catalog, now)
    if not freshness.is_too_old(service.settings.max_age, watched_since=watched_since):
        return dg.SkipReason(f"newest verified recovery point: {freshness.describe()}")
    hours = service.settings.max_age.total_seconds() / 3600
    outcome = service.raise_trouble(
        STALE_KIND,
        Severity.CRITICAL,
        f"No verified recovery point for {hours:.0f} hours",
        f"The newest verified recovery point: {freshness.describe()}.",
        next_step="Look at the schedule and at the runs of the last days; take one now: schedgen-backups backup",
    )
    return dg.SkipReason(f"too old: {freshness.describe()}; alert {outcome.value}")


@dg.sensor(name="retention_sensor", job_name="prune_job", minimum_interval_seconds=_RETENTION_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def retention_sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Asks for `prune_job` when recovery points may go; the same plan is asked for once."""
    del context
    environment = load_environment()
    catalog = Catalog(read_backup_settings(environment).directory)
    if not catalog.directory.is_dir():
        return dg.SkipReason("there are no recovery points yet")
    plan = plan_pruning(catalog, read_retention_policy(environment), datetime.now(timezone.utc))
    if not plan.removed:
        return dg.SkipReason(plan.refusal or f"nothing to remove, {len(plan.kept)} recovery points are kept")
    ids = ",".join(decision.candidate.point_id.text for decision in plan.removed)
    # The day is part of the key: what could not be removed today is asked for again tomorrow.
    key = hashlib.sha256(f"{datetime.now(timezone.utc):%Y-%m-%d} {ids}".encode()).hexdigest()[:16]
    return dg.RunRequest(run_key=key, tags={run_tags.RETENTION_PLAN: key})
