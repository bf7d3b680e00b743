"""Run a job in this process against the Dagster instance, so that the run appears in the UI.

Commands call it through `launch`. Add what a command needs from Dagster.
"""

from __future__ import annotations

import getpass
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.run_kinds import find_run_kind
from schedgen_backups.alerts.service import AlertService, Failure
from schedgen_backups.config.config import Config
from schedgen_backups.config.site_commands import add_site
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.errors import BackupError, ConfigurationError, StorageError
from schedgen_backups.core.system.process import ProgramError, run_program
from schedgen_backups.defs.assets import find_point_id
from schedgen_backups.defs.drill import REPORT_KEY
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups.exit_codes import (
    BUCKET_EXIT_CODE,
    CANCELLED_EXIT_CODE,
    CONFIGURATION_EXIT_CODE,
    DATABASE_EXIT_CODE,
    VERIFICATION_EXIT_CODE,
)
from schedgen_backups.monitoring.failures import (
    EXIT_CODE_KEY,
    INTERRUPTION,
    explain_run_failure,
    explain_step_failure,
)
from schedgen_backups.monitoring.orphaned_runs import fail_orphaned_runs, mark_own_run
from schedgen_backups.monitoring.outbox import report_checks_of_run
from schedgen_backups.runs.home import hold_home
from schedgen_backups.runs.results import BackupResult, DrillResult, StepFailure
from schedgen_backups.site_names import (
    BACKUP_JOB,
    DATABASE_DUMP,
    DRILL_JOB,
    MINIO_ARCHIVE,
    RESTORE_DRILL,
    SiteNames,
)

_STEP_EXIT_CODES = {DATABASE_DUMP: DATABASE_EXIT_CODE, MINIO_ARCHIVE: BUCKET_EXIT_CODE}
_GIT_TIMEOUT_SECONDS = 10


def make_tags(config: Config, reason: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the run tags: user, reason and labels, and commit and branch of the configured checkout."""
    tags = {f"{run_tags.LABEL_PREFIX}{name}": value for name, value in labels.items()}
    tags |= {
        run_tags.REASON: reason,
    }
    with suppress(ConfigurationError):  # `doctor` reports it; a backup works without the commit's name
        if (checkout := config.git_directory) is not None:
            tags |= {
                run_tags.GIT_COMMIT: _ask_git(checkout, "rev-parse", "HEAD"),
                run_tags.GIT_BRANCH: _ask_git(checkout, "rev-parse", "--abbrev-ref", "HEAD"),
            }
    with suppress(KeyError, OSError):  # a user without a name, as in a container
        tags[run_tags.USER] = getpass.getuser()
    return {name: value for name, value in tags.items() if value}


def run_backup_job(config: Config, tags: Mapping[str, str]) -> BackupResult:
    """Run the backup job against the instance of DAGSTER_HOME; return its result, also for a failed run.

    Raise StorageError if Dagster cannot run it.
    """
    job_name = SiteNames(config.site_name).qualify(BACKUP_JOB)
    with _open_instance(config, job_name) as instance:
        result = _run_job(config, instance, job_name, tags, {})
        return BackupResult(
            run_id=result.run_id,
            point_id=find_point_id(instance, result.run_id),
            is_success=result.success,
            failures=_list_failures(config, result),
        )


def run_drill_job(config: Config, point_id: str, tags: Mapping[str, str]) -> DrillResult:
    """Run the drill's job against the instance of DAGSTER_HOME; return its result, also for a failed run.

    Raise StorageError if Dagster cannot run it.
    """
    names = SiteNames(config.site_name)
    job_name = names.qualify(DRILL_JOB)
    with _open_instance(config, job_name) as instance:
        result = _run_job(
            config,
            instance,
            job_name,
            tags,
            {"ops": {names.qualify(RESTORE_DRILL): {"config": {"point_id": point_id}}}},
        )
        return DrillResult(
            run_id=result.run_id,
            report=_read_report(result),
            failures=_list_failures(config, result),
        )


@contextmanager
def _open_instance(config: Config, job_name: str) -> Generator[dg.DagsterInstance, None, None]:
    """Open the instance of DAGSTER_HOME for a run of this job.

    Send an alert for failures before or around the run: no hook and no sensor sees them.
    """
    try:
        with ExitStack() as stack:
            try:
                with hold_home(config.installation_file):
                    instance = stack.enter_context(dg.DagsterInstance.get())
                yield instance
            except BackupError:
                raise
            except Exception as error:
                # Only the first line: SQL and its parameters follow.
                reason = str(error).strip().partition("\n")[0]
                raise StorageError(
                    f"Dagster cannot work in DAGSTER_HOME: {type(error).__name__}: {reason}",
                    hint="Check its disk space and permissions. If another version of Dagster created it, "
                    "run "
                    "`dagster instance migrate` or use another directory.",
                ) from error
    except BackupError as error:
        _send_alert(config, Failure(job_name, error.message, error.hint, run_id="", job_name=job_name))
        raise


def _send_alert(config: Config, failure: Failure) -> None:
    with suppress(BackupError):  # wrong alert settings: the command prints the failure anyway
        service = AlertService(config)
        service.raise_failure(failure)
        service.ping_failure(failure)


def _run_job(
    config: Config,
    instance: dg.DagsterInstance,
    job_name: str,
    tags: Mapping[str, str],
    run_config: Mapping[str, object],
) -> dg.ExecuteInProcessResult:
    fail_orphaned_runs(instance)
    job = build_site_definitions(config).resolve_job_def(job_name)
    with mark_own_run(instance) as own_tags:
        result = job.execute_in_process(
            instance=instance,
            tags={**tags, **own_tags},
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **run_config},
        )
    with suppress(BackupError):  # wrong alert settings: the run reports them itself
        service = AlertService(config)
        report_checks_of_run(service, result)
        if result.success:
            # If cron starts the backups, no sensor reports resolved incidents.
            area = find_run_kind(service.names.localize(job_name), "").area
            service.report_resolved(service.list_open_keys(area))
    return result


def _read_report(result: dg.ExecuteInProcessResult) -> DrillReport | None:
    for event in result.all_events:
        if event.is_step_materialization:
            value = event.step_materialization_data.materialization.metadata.get(REPORT_KEY)
            if isinstance(value, dg.JsonMetadataValue):
                return DrillReport.model_validate(value.data)
    return None


def _list_failures(config: Config, result: dg.ExecuteInProcessResult) -> tuple[StepFailure, ...]:
    names = SiteNames(config.site_name)
    failures = tuple(_read_failure(config, event) for event in result.all_events if event.is_step_failure)
    if failures or result.success:
        return failures
    # No step failed, so no hook has sent an alert; the outbox would report the same incident.
    ended_by = next((event for event in result.all_events if event.is_failure), None)
    job_name = result.dagster_run.job_name
    cause = explain_run_failure(ended_by) or "the run ended without reporting an error"
    failure = Failure(
        job_name, cause, "Check the run's page in the UI, and DAGSTER_HOME.", result.run_id, job_name
    )
    _send_alert(config, failure)
    return (StepFailure(names.localize(job_name), cause, failure.next_step, CONFIGURATION_EXIT_CODE),)


def _read_failure(config: Config, event: dg.DagsterEvent) -> StepFailure:
    data = event.step_failure_data
    step = SiteNames(config.site_name).localize(event.step_key or "")
    exit_code = _STEP_EXIT_CODES.get(step, VERIFICATION_EXIT_CODE)
    if data.user_failure_data is not None:
        recorded = data.user_failure_data.metadata.get(EXIT_CODE_KEY)
        exit_code = (
            recorded.value
            if isinstance(recorded, dg.IntMetadataValue) and recorded.value is not None
            else exit_code
        )
    elif data.error is not None and data.error.cls_name == INTERRUPTION:
        return StepFailure(step, "cancelled; nothing of this step was kept", "", CANCELLED_EXIT_CODE)
    reason = explain_step_failure(event)
    return StepFailure(step, add_site(reason.cause, config), add_site(reason.next_step, config), exit_code)


def _ask_git(checkout: Path, *arguments: str) -> str:
    try:
        code, output, _stderr = run_program(
            ["git", "-C", str(checkout), *arguments], environment={}, timeout_seconds=_GIT_TIMEOUT_SECONDS
        )
    except ProgramError:  # git is not installed: nothing to record
        return ""
    return output.strip() if code == 0 else ""
