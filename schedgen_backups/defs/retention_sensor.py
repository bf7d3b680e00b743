"""The sensor that starts `prune_job` when a rule no longer keeps a recovery point.

Rules that may remove more than those before are announced first, and carried out a day later.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

import dagster as dg
from pydantic import ValidationError

from schedgen_backups import run_tags
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.retention.plan import RetentionPlan, RetentionPolicy, make_retention_table
from schedgen_backups.core.retention.policy_change import GRACE, PolicyRecord, PolicyState
from schedgen_backups.core.retention.prune import plan_pruning
from schedgen_backups.core.units import count, name_some
from schedgen_backups.defs.assets import make_points_observation
from schedgen_backups.defs.site_sensor import SensorKind, SiteAnswer, SiteSensor, SiteTick
from schedgen_backups.site_names import PRUNE_JOB, SiteNames

_RETENTION = SensorKind(
    "retention_sensor",
    900,
    "Starts prune_job when retention no longer keeps a recovery point; for the same points at most once a "
    "day. What stricter rules would remove is announced a day before.",
)


def make_retention_sensor(config: Config) -> SiteSensor:
    """Return this site's part in the sensor."""
    job_name = SiteNames(config.site_name).qualify(PRUNE_JOB)

    def request_pruning(tick: SiteTick) -> SiteAnswer:
        current, now = tick.config, datetime.now(timezone.utc)
        policy = current.retention
        state = _read_state(tick).follow(policy)
        tick.update_cursor(state.model_dump_json())
        catalog = current.make_catalog()
        if not catalog.directory.is_dir():
            return "no recovery points yet"
        plan = plan_pruning(catalog, policy, now)
        if not plan.removed:
            return plan.refusal or f"nothing to remove, {len(plan.kept)} recovery points are kept"
        if state.is_announcement_due and _announce(tick.instance, current, catalog, plan, now):
            state = state.announce(now)
        state = state.apply_when_due(now)
        tick.update_cursor(state.model_dump_json())
        if state.pending is not None:
            return _describe_wait(plan, state)
        ids = ",".join(decision.candidate.point_id.text for decision in plan.removed)
        # The day is part of the key: what could not be removed today is requested again tomorrow.
        key = hashlib.sha256(f"{now:%Y-%m-%d} {ids}".encode()).hexdigest()[:16]
        tags = {run_tags.RETENTION_PLAN: key, run_tags.RETENTION_RULES: make_rules_tag(policy)}
        return dg.RunRequest(run_key=key, job_name=job_name, tags=tags)

    return SiteSensor(_RETENTION, config, request_pruning, (job_name,))


def make_rules_tag(policy: RetentionPolicy) -> str:
    """Return the value of the tag of the rules for which a run was requested."""
    return hashlib.sha256(PolicyRecord.from_policy(policy).model_dump_json().encode()).hexdigest()[:16]


def _read_state(tick: SiteTick) -> PolicyState:
    try:
        return PolicyState.model_validate_json(tick.cursor or "{}")
    except ValidationError:  # of another version
        return PolicyState()


def _announce(
    instance: dg.DagsterInstance, config: Config, catalog: Catalog, plan: RetentionPlan, now: datetime
) -> bool:
    """Announce what will be removed, in the UI and by a message; return whether the message was accepted."""
    ids = [decision.candidate.point_id.text for decision in plan.removed]
    is_accepted = AlertService(config).announce(
        f"Retention rules changed: {count(len(ids), 'recovery point')} will be removed",
        f"The new rules do not keep {name_some(ids)}. They are removed after {now + GRACE:%Y-%m-%d %H:%M} "
        f"UTC; {len(plan.kept)} are kept.",
        "`schedgen-backups prune --dry-run` prints the reasons. To keep these points, change the settings "
        "back or pin the points; to remove them now, run `schedgen-backups prune`.",
    )
    if is_accepted:
        instance.report_runless_asset_event(
            make_points_observation(
                SiteNames(config.site_name),
                catalog,
                {
                    "recovery_points_kept": dg.MetadataValue.int(len(plan.kept)),
                    "recovery_points_to_be_removed": dg.MetadataValue.int(len(ids)),
                    "decisions": dg.MetadataValue.md(make_retention_table(plan)),
                },
            )
        )
    return is_accepted


def _describe_wait(plan: RetentionPlan, state: PolicyState) -> str:
    would = f"the rules changed; {count(len(plan.removed), 'recovery point')} would be removed"
    if state.announced_at is None:
        return f"{would}, but no channel accepted the announcement yet"
    return f"{would} after {state.announced_at + GRACE:%Y-%m-%d %H:%M} UTC"
