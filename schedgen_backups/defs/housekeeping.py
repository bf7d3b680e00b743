"""The jobs that keep house: the monthly report, and the removal of old runs from Dagster's history.

Neither belongs to a recovery point; their failures are of a kind of their own. The evidence of removed runs
stays in `history.jsonl`.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import DeliveryError, StorageError
from schedgen_backups.core.notify.channels import make_mail_channel
from schedgen_backups.core.system.files import make_private_folder
from schedgen_backups.core.units import count
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import get_backup
from schedgen_backups.evidence.report import describe_counts, make_report, write_report
from schedgen_backups.exit_codes import ALERT_EXIT_CODE, STORAGE_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.monitoring.old_events import remove_old_events, remove_run_file
from schedgen_backups.site_names import REPORT_JOB, RUN_REMOVAL_JOB, SiteNames

REPORTS_NAME = "reports"
_POOL = "housekeeping"
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_MOST_RUNS = 1000
"""Runs that are removed at once, so that the job ends; the next one goes on."""


def make_report_job(names: SiteNames) -> dg.JobDefinition:
    """Return the job that writes and sends the report of this site."""
    hooks = make_hooks(names)

    @dg.op(
        name=names.qualify("monthly_report"),
        description="Write the report of the last whole month into BACKUP_DIR/reports; send it by mail if "
        "that is set.",
        pool=names.make_pool(_POOL),
        required_resource_keys={names.resource_key},
    )
    def monthly_report(context: dg.OpExecutionContext) -> None:
        _write_monthly_report(context, get_backup(context, names).config)

    @dg.job(
        name=names.qualify(REPORT_JOB),
        hooks={hooks.alert_on_step_failure, hooks.announce_housekeeping},
        executor_def=dg.in_process_executor,
        description="Write the report of the last month into BACKUP_DIR/reports, and send it by mail.",
    )
    def monthly_report_job() -> None:
        monthly_report()

    return monthly_report_job


def _write_monthly_report(context: dg.OpExecutionContext, config: Config) -> None:
    with explain_failure(STORAGE_EXIT_CODE):
        # Otherwise a wrong REPORT_SCHEDULE would quietly be the default.
        _ = config.housekeeping
        report = make_report(config)
        folder = config.site_directory / REPORTS_NAME
        try:
            make_private_folder(folder)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {error.strerror}", hint="Check the disk and the permissions."
            ) from error
        # In the operators' time zone, in which it begins on the first.
        page = folder / f"report-{report.begin:%Y-%m}.html"
        for path in (page, page.with_suffix(".json")):
            write_report(report, path)
            context.log.info(f"written: {path}")
    with explain_failure(ALERT_EXIT_CODE):
        settings = AlertService(config).settings
        if settings.mail is None:
            return
        channel = make_mail_channel(settings.mail_recipients, settings.mail)
        name = f"{settings.name}: " if settings.name else ""
        delivery = channel.send_file(
            f"{name}Report of backups, {report.begin:%Y-%m}", f"{describe_counts(report)}.", page
        )
        context.log.info(f"mail: {delivery.answer}")
        if not delivery.is_accepted:
            raise DeliveryError(
                f"the report was written, but its mail was refused: {delivery.answer}",
                hint=f"`schedgen-backups alert-test` tests the mail server. The report is in {folder}.",
            )


def make_run_removal_job(keeper: SiteNames, check_keys: Sequence[dg.AssetCheckKey]) -> dg.JobDefinition:
    """Return the installation's job that removes old runs; the last ones of these checks stay.

    DAGSTER_KEEP_DAYS is that of the keeper, which also sends the alerts.
    """
    hooks = make_hooks(keeper)

    @dg.op(
        description="Remove runs that ended longer than DAGSTER_KEEP_DAYS ago from Dagster's history.",
        pool=_POOL,
        required_resource_keys={keeper.resource_key},
    )
    def old_runs(context: dg.OpExecutionContext) -> None:
        with explain_failure(STORAGE_EXIT_CODE):
            days = get_backup(context, keeper).config.housekeeping.keep_days
            if not days:
                context.log.info("DAGSTER_KEEP_DAYS is 0: every run is kept")
                return
            before = datetime.now(timezone.utc) - timedelta(days=days)
            removed = remove_old_runs(context.instance, before, check_keys)
            events = remove_old_events(context.instance, before)
            context.log.info(
                f"removed {count(removed, 'run')} that ended before {before:%Y-%m-%d}, and "
                f"{count(events, 'older event')}"
            )

    @dg.job(
        name=RUN_REMOVAL_JOB,
        hooks={hooks.alert_on_step_failure, hooks.announce_housekeeping},
        executor_def=dg.in_process_executor,
        description="Remove runs older than DAGSTER_KEEP_DAYS from Dagster's history, but never the last one "
        "of an asset or a check. What they did stays in history.jsonl.",
    )
    def remove_old_runs_job() -> None:
        old_runs()

    return remove_old_runs_job


def remove_old_runs(
    instance: dg.DagsterInstance, before: datetime, check_keys: Iterable[dg.AssetCheckKey]
) -> int:
    """Remove finished runs that were created before this time, the oldest first; return how many.

    Kept are the runs of each asset's latest materialization and each check's latest evaluation: the UI shows
    them.
    """
    kept = _find_shown_runs(instance, check_keys)
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=_ENDED, created_before=before),
        limit=_MOST_RUNS + len(kept),
        ascending=True,
    )
    old = [record.dagster_run.run_id for record in records if record.dagster_run.run_id not in kept]
    for run_id in old[:_MOST_RUNS]:
        instance.delete_run(run_id)
        remove_run_file(instance, run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    return len(old[:_MOST_RUNS])


def _find_shown_runs(instance: dg.DagsterInstance, check_keys: Iterable[dg.AssetCheckKey]) -> set[str]:
    shown: set[str] = set()
    for record in instance.get_asset_records():
        entry: Any = record.asset_entry
        latest = (entry.last_materialization_record, entry.last_observation_record)
        shown |= {found.run_id for found in latest if found is not None}
    for key in check_keys:
        found = instance.get_latest_asset_check_evaluation_record(key)
        if found is not None:
            shown.add(found.run_id)
    return shown
