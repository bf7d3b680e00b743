"""Copies in stores: for each store an asset, its checks, the job that copies and proves, and one that prunes.

The asset cannot be executed: "Materialize all" takes a backup and waits for no store (docs/decisions/0026).
`core.copies` copies and proves; `copy_sensor` starts the jobs. A store that is described wrongly has an asset
and a job, too: the run fails with the reason.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from schedgen_backups.alerts.run_kinds import COPY, COPY_RETENTION
from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import StoreEntry
from schedgen_backups.core.copies.copier import CopyReport
from schedgen_backups.core.copies.local_folder import CopyState, now_utc
from schedgen_backups.core.copies.prune import PruneReport
from schedgen_backups.core.copies.service import CopyProof, CopyService, list_pins
from schedgen_backups.core.copies.status import PROOF_INTERVAL, CopyCheck, CopyCheckResult
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.retention.plan import make_retention_table
from schedgen_backups.core.system.priority import lower_priority
from schedgen_backups.core.units import format_bytes, name_some
from schedgen_backups.defs.assets import OWNERS, make_points_observation
from schedgen_backups.defs.checks import with_alerts
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import MAX_RUNTIME_TAG, get_backup
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.site_names import COPIES, RECOVERY_POINT, SiteNames

_MAX_RUNTIME_SECONDS = 72 * 3600
"""A first copy of a large site takes days. One that is aborted goes on where it stopped."""
_PRUNE_CRON = "0 12 * * 0"
"""Sundays at noon: far from the backups of most sites. Pruning takes two runs at least two days apart."""
_DESCRIPTIONS = {
    CopyCheck.IS_COMPLETE: "The store was listed within two days. It has every verified recovery point that "
    "its retention keeps, and every file that their pack lists name, with its size; nothing is hidden, "
    "overwritten or foreign.",
    CopyCheck.READS_BACK: "Every pack was read back within reread_days and two days, and its stored bytes "
    "have the digest of the pack list. A warning while packs that were sent within that time are unread.",
    CopyCheck.IS_LOCKED: "Every file that the copies need is locked against deletion: in a store with "
    "lock_days, for at least a quarter of that time.",
}


@dataclass(frozen=True)
class StorePlace:
    """A store as Dagster sees it when the code location loads."""

    name: str
    """Name in the file."""
    label: str
    """Unique name that Dagster accepts, the same as `name` if the store is described correctly."""
    entry: StoreEntry
    kind: str
    """Kind of place, such as `s3`; empty if the store is described wrongly."""
    has_locks: bool
    names: SiteNames

    @property
    def asset_key(self) -> dg.AssetKey:
        """Key of its asset."""
        return dg.AssetKey(self.names.make_asset_path(COPIES, self.label))

    @property
    def job_name(self) -> str:
        """Name of the job that copies."""
        return self.names.qualify(f"{COPY.job_prefix}_{self.label}_job")

    @property
    def prune_job_name(self) -> str:
        """Name of the job that prunes."""
        return self.names.qualify(f"{COPY_RETENTION.job_prefix}_{self.label}_job")

    @property
    def pool(self) -> str:
        """One run per store at a time, and none waits for a backup or another store."""
        return self.names.make_pool(f"copies_{self.label}")

    @property
    def is_prunable(self) -> bool:
        """Whether this host has credentials that may delete."""
        settings = self.entry.settings
        return settings is not None and (settings.prune_location is not None or not settings.is_append_only)


def list_places(config: Config) -> tuple[StorePlace, ...]:
    """Return the stores of the file; none if it cannot be read, which `copy_sensor` reports."""
    try:
        entries, directory = config.stores, config.backup_directory
    except ConfigurationError:
        return ()
    names = SiteNames(config.site_name)
    places: list[StorePlace] = []
    for entry in entries:
        label = _choose_label(entry.name, {place.label for place in places} | {each.name for each in entries})
        status = entry.read_status(directory)
        places.append(StorePlace(entry.name, label, entry, status.kind, status.has_locks, names))
    return tuple(places)


def _choose_label(name: str, taken: set[str]) -> str:
    """Return the name if Dagster accepts it, otherwise a similar one that is not taken."""
    label = re.sub(r"[^a-z0-9_]", "_", name.lower()).strip("_")[:31] or "store"
    number = 2
    found = label
    while found != name and found in taken:
        found = f"{label}_{number}"
        number += 1
    return found


@dataclass(frozen=True)
class CopyDefinitions:
    """The definitions of all stores."""

    assets: tuple[dg.AssetSpec, ...]
    checks: tuple[dg.AssetChecksDefinition, ...]
    copy_jobs: tuple[dg.JobDefinition, ...]
    prune_jobs: tuple[dg.JobDefinition, ...]
    schedules: tuple[dg.ScheduleDefinition, ...]


def make_copy_definitions(
    places: Iterable[StorePlace], backup: dg.ResourceDefinition, *, timezone: str, max_age: timedelta
) -> CopyDefinitions:
    """Return the definitions of these stores.

    `timezone` is that of the weekly schedules, `max_age` the longest time between two recovery points.
    """
    # Bound here: Dagster would bind it by copying the sensor, with a warning of its own (Dagster 1.13).
    places = tuple(places)
    resources = {place.names.resource_key: backup for place in places}
    prunable = [place for place in places if place.is_prunable]
    return CopyDefinitions(
        assets=tuple(_make_asset(place, max_age) for place in places),
        checks=tuple(
            with_alerts(_make_check(place, check), place.names)
            for place in places
            for check in CopyCheck
            if check is not CopyCheck.IS_LOCKED or place.has_locks
        ),
        copy_jobs=tuple(_make_copy_job(place, resources) for place in places),
        prune_jobs=tuple(_make_prune_job(place, resources) for place in prunable),
        schedules=tuple(
            dg.ScheduleDefinition(
                name=place.names.qualify(f"weekly_prune_copies_in_{place.label}_schedule"),
                job_name=place.prune_job_name,
                cron_schedule=_PRUNE_CRON,
                execution_timezone=timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description="Removes old copies from the store on Sundays at noon (BACKUP_TIMEZONE).",
            )
            for place in prunable
        ),
    )


def _make_asset(place: StorePlace, max_age: timedelta) -> dg.AssetSpec:
    settings = place.entry.settings
    # Backups may be rarer than the store's limit: the watch alerts by what the store lacks, not by age alone.
    window = max(timedelta(hours=settings.max_age_hours), max_age) if settings is not None else max_age
    return dg.AssetSpec(
        place.asset_key,
        deps=[dg.AssetKey(place.names.make_asset_path(RECOVERY_POINT))],
        group_name=place.names.group,
        owners=OWNERS,
        kinds={place.kind} if place.kind else set(),
        description=(
            f"The copies of recovery points in the store `{place.name}`, encrypted for its recipients. "
            f"`{place.job_name}` copies what the store lacks and proves what it holds. `copy_sensor` starts "
            "it; a backup never waits for it."
        ),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=window),
    )


def _open_service(site: Config, name: str) -> CopyService:
    return CopyService(site.open_catalog(), site.find_store(name))


def _make_copy_job(place: StorePlace, resources: dict[str, Any]) -> dg.JobDefinition:
    hooks = make_hooks(place.names)

    @dg.op(
        name=place.names.qualify(f"{COPY.step_prefix}_{place.label}"),
        description=f"Copy what is due to `{place.name}`, then list it, read packs back and check locks.",
        pool=place.pool,
        out=dg.Out(dg.Nothing),
        required_resource_keys={place.names.resource_key},
    )
    def copy_and_prove(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        site = get_backup(context, place.names).config
        try:
            with explain_failure(VERIFICATION_EXIT_CODE):
                if refusal := lower_priority(site.schedule.nice):
                    context.log.warning(refusal)
                service = _open_service(site, place.name)
                reports, proof = service.copy_and_prove()
        except dg.Failure as failure:
            yield from _evaluate(place, _judge_failed(site, place, failure.description or ""))
            raise
        new = [report for report in reports if report.is_new]
        metadata = _make_metadata(new, proof, service.state)
        # Without a new copy, an observation: the asset's history and freshness show copies.
        context.log_event(
            dg.AssetMaterialization(place.asset_key, metadata=metadata)
            if new
            else dg.AssetObservation(place.asset_key, metadata=metadata)
        )
        context.log_event(make_points_observation(place.names, site.make_catalog()))
        if proof.lock is not None:
            for problem in proof.lock.problems:
                context.log.warning(problem)
        yield from _evaluate(place, _judge(site, place))

    @dg.job(
        name=place.job_name,
        hooks={hooks.alert_on_step_failure, hooks.announce_copies},
        executor_def=dg.in_process_executor,
        resource_defs=resources,
        description=f"Copy recovery points to the store `{place.name}`, and prove what it holds.",
        tags={MAX_RUNTIME_TAG: str(_MAX_RUNTIME_SECONDS)},
    )
    def copy_job() -> None:
        copy_and_prove()

    return copy_job


def _make_prune_job(place: StorePlace, resources: dict[str, Any]) -> dg.JobDefinition:
    hooks = make_hooks(place.names)

    @dg.op(
        name=place.names.qualify(f"{COPY_RETENTION.step_prefix}_{place.label}"),
        description=f"Remove the copies from `{place.name}` that no rule keeps, and packs that none needs.",
        pool=place.pool,
        out=dg.Out(dg.Nothing),
        required_resource_keys={place.names.resource_key},
    )
    def prune_copies(context: dg.OpExecutionContext) -> None:
        site = get_backup(context, place.names).config
        with explain_failure(VERIFICATION_EXIT_CODE):
            catalog = site.open_catalog()
            report = _open_service(site, place.name).prune(pinned=list_pins(catalog, now_utc()))
        context.log_event(dg.AssetObservation(place.asset_key, metadata=_describe_pruning(report)))

    @dg.job(
        name=place.prune_job_name,
        hooks={hooks.alert_on_step_failure, hooks.announce_copies},
        executor_def=dg.in_process_executor,
        resource_defs=resources,
        description=f"Remove the copies from the store `{place.name}` that no retention rule of it keeps.",
        tags={MAX_RUNTIME_TAG: str(_MAX_RUNTIME_SECONDS)},
    )
    def prune_job() -> None:
        prune_copies()

    return prune_job


def _make_check(place: StorePlace, check: CopyCheck) -> dg.AssetChecksDefinition:
    """Return the check as it runs alone: it reports what was last seen, and asks no store."""

    @dg.asset_check(
        name=check.value,
        asset=place.asset_key,
        description=_DESCRIPTIONS[check],
        required_resource_keys={place.names.resource_key},
    )
    def report_last_proof(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        backup = get_backup(context, place.names)
        with explain_failure(VERIFICATION_EXIT_CODE):
            results = {result.check: result for result in _judge(backup.config, place)}
        result = results.get(check)
        if result is None:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description="unknown: the store has no locks",
            )
        return dg.AssetCheckResult(
            passed=result.is_passed, severity=_get_severity(result), description=result.description
        )

    return report_last_proof


def _judge(site: Config, place: StorePlace) -> tuple[CopyCheckResult, ...]:
    service = _open_service(site, place.name)
    entry = StoreEntry(place.name, service.settings)
    due = [point.point_id for point in service.list_due()]
    return entry.read_status(site.backup_directory).judge(due, now_utc())


def _judge_failed(site: Config, place: StorePlace, reason: str) -> tuple[CopyCheckResult, ...]:
    """Return what is known after a failed run; nothing else would change the checks of the last good one."""
    try:
        return _judge(site, place)
    except BackupError:
        return (CopyCheckResult(CopyCheck.IS_COMPLETE, is_passed=False, description=f"unknown: {reason}"),)


def _evaluate(place: StorePlace, results: Iterable[CopyCheckResult]) -> Iterator[dg.AssetCheckEvaluation]:
    for result in results:
        yield dg.AssetCheckEvaluation(
            asset_key=place.asset_key,
            check_name=result.check.value,
            passed=result.is_passed,
            severity=_get_severity(result),
            description=result.description,
        )


def _get_severity(result: CopyCheckResult) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.WARN if result.is_warning else dg.AssetCheckSeverity.ERROR


def _make_metadata(reports: list[CopyReport], proof: CopyProof, state: CopyState) -> dict[str, Any]:
    uploaded_bytes = sum(report.uploaded_bytes for report in reports)
    reused_bytes = sum(report.reused_bytes for report in reports)
    listed_at = state.listed_at or now_utc()
    return {
        "recovery_points": name_some([report.point_id.text for report in reports]) or "none: nothing was due",
        "points_copied": len(reports),
        "uploaded": format_bytes(uploaded_bytes),
        "uploaded_bytes": uploaded_bytes,
        "reused": format_bytes(reused_bytes),
        "reused_bytes": reused_bytes,
        "copies": len(state.points),
        "packs": state.pack_count,
        "packs_sent": sum(len(report.new_packs) for report in reports),
        "packs_read_back": proof.reread.read_count,
        "packs_unread": state.unread_count,
        "oldest_unread_pack_sent_at": _describe_time(state.oldest_unread_at, "every pack was read back"),
        "oldest_reread_at": _describe_time(state.oldest_reread_at, "some packs were never read back"),
        "locked_until": _describe_time(state.locked_until, "not locked"),
        "locks_extended": proof.lock.extended_count if proof.lock is not None else 0,
        "capabilities": str(state.capabilities) if state.capabilities is not None else "unknown",
        "problems": name_some([*proof.listing.problems, *proof.reread.problems]) or "none",
        "next_due": _describe_time(listed_at + PROOF_INTERVAL, "with the next verified recovery point"),
    }


def _describe_pruning(report: PruneReport) -> dict[str, Any]:
    locked = [
        f"{name} until {until:%Y-%m-%d %H:%M} UTC" if until is not None else name
        for name, until in report.locked_until.items()
    ]
    return {
        "copies_kept": len(report.plan.kept),
        "copies_removed": len(report.removed_points),
        "packs_removed": report.removed_packs,
        "unfinished_files_removed": report.unfinished_count,
        "freed": format_bytes(report.freed_bytes),
        "bytes_freed": report.freed_bytes,
        "waiting_for_the_second_pass": report.condemned,
        "waits_for": name_some(report.waits_for) or "nothing but its time",
        "kept_only_by_a_lock": name_some(locked) or "nothing",
        "refusal": report.plan.refusal or "none",
        "decisions": dg.MetadataValue.md(make_retention_table(report.plan)),
    }


def _describe_time(at: datetime | None, otherwise: str) -> dg.MetadataValue:
    return dg.MetadataValue.timestamp(at) if at is not None else dg.MetadataValue.text(otherwise)
