"""`restore_job`: a restore from the Dagster UI, with what and where to in the Launchpad's config.

It runs the same `restores` as the command line. Unless the config says otherwise it only tells what it would do: a restore is never an asset, and
pressing "Launch" without thinking must not overwrite anything. Add a field when the command line has the option.
"""

from pathlib import Path

import dagster as dg
from pydantic import Field

from schedgen_backups.config.environment import load_environment, read_backup_settings, read_bucket_settings, read_database_settings
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.core.catalog.catalog import Catalog, PointListing
from schedgen_backups.core.catalog.selection import resolve_point
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.restore.objects import objects_to_json
from schedgen_backups.core.restore.point import RestoreRequest
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.restore.table_diff import diffs_to_json
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import TableRequest
from schedgen_backups.defs.hooks import alert_on_step_failure
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure


class RestoreConfig(dg.Config):
    """What is restored from which point into where."""

    point: str = Field(default="latest", description="Id of a recovery point, or `latest`.")
    as_of: str = Field(default="", description="With `latest`: the newest verified point that is not later than this time.")
    database: str = Field(default="", description="Target database: postgresql://user@host:5432/name, or a name on the server of the backup.")
    bucket: str = Field(default="", description="Target bucket: http(s)://host:port/name, or a name on the server of the backup.")
    tables: list[str] = Field(default=[], description="Only these tables, compared with the live ones; `write` puts rows back.")
    where: str = Field(default="", description="Only these rows of the only table, as behind WHERE in SQL.")
    write: str = Field(default="", description="For tables: `missing` or `changed` rows are put back; empty compares only.")
    key_column: str = Field(default="", description="With one table and `write: missing`: also bring back the objects that this column names.")
    objects: list[str] = Field(default=[], description="Only these objects: keys, prefixes that end in /, globs.")
    to_folder: str = Field(default="", description="Objects go into this folder, of the machine or container that runs the job.")
    overwrite: bool = Field(default=False, description="Objects that are different are replaced, too.")
    into_nonempty: bool = Field(default=False, description="A whole restore may replace what the targets hold.")
    swap: bool = Field(default=False, description="Restore beside the database, compare, then exchange the names.")
    jobs: int = Field(default=1, description="Load an empty database in so many sessions: faster, and no longer one transaction.")
    confirm: str = Field(default="", description="The name of the database or bucket that is written to; without it nothing is written.")
    safety_backup: bool = Field(default=True, description="Keep what is overwritten in BACKUP_DIR/safety first.")
    reason: str = Field(default="", description="Kept in the log of restores.")


class _Work:
    """One run's restore: tells what it would do, and does it when it was confirmed."""

    def __init__(self, context: dg.OpExecutionContext, config: RestoreConfig) -> None:
        self._log = context.log
        self._config = config
        self._environment = load_environment()
        backup = read_backup_settings(self._environment)
        options = RestoreOptions(f"run {context.run_id}", config.reason, config.safety_backup)
        self._service = RestoreService(Catalog(backup.directory), backup.capture, options, report=self._log.info)
        self._point: PointListing = resolve_point(self._service.catalog, config.point, as_of=config.as_of)

    def run(self) -> dict[str, dg.MetadataValue]:
        """What was found and done, for the run's events."""
        if self._config.tables:
            return self._restore_tables()
        if self._config.objects:
            return self._restore_objects()
        return self._restore_whole()

    def _is_confirmed(self, name: str) -> bool:
        if self._config.confirm == name:
            return True
        self._log.warning(f"nothing was written: launch again with `confirm: {name}` to do it")
        return False

    def _restore_whole(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        request = RestoreRequest(
            point=self._point,
            database=read_database_target(config.database, self._environment) if config.database else None,
            bucket=read_bucket_target(config.bucket, self._environment) if config.bucket else None,
            replace_contents=config.into_nonempty,
            jobs=config.jobs,
        )
        if request.database is None and request.bucket is None:
            raise RestoreError(
                "nothing to restore: neither a database nor a bucket is named", hint="Set `database`, `bucket`, `tables` or `objects`."
            )
        steps = self._service.describe_whole(request, is_swap=config.swap)
        found: dict[str, dg.MetadataValue] = {"steps": dg.MetadataValue.md("\n".join(f"- {step}" for step in steps))}
        name = request.database.database if request.database is not None else request.bucket.bucket if request.bucket is not None else ""
        if self._is_confirmed(name):
            report = self._service.restore_whole(request, is_swap=config.swap)
            found["results"] = dg.MetadataValue.json([result.model_dump(mode="json") for result in report.results])
            found["is_equal"] = dg.MetadataValue.bool(report.is_equal)
            if not report.is_equal:
                summaries = "; ".join(f"{result.check.value}: {result.summary}" for result in report.results if not result.is_passed)
                raise VerificationError(f"restored, and not seen to be equal: {summaries}")
        return found

    def _restore_tables(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        live = read_database_target(config.database, self._environment) if config.database else read_database_settings(self._environment)
        request = TableRequest(self._point, tuple(config.tables), live, config.where)
        if config.write not in {"", *(mode.value for mode in WriteMode)}:
            raise RestoreError(f"`write: {config.write}` is no word for rows", hint="Use missing, changed, or leave it empty.")
        if config.key_column:
            return self._undelete(request)
        with self._service.open_tables(request) as restored:
            found: dict[str, dg.MetadataValue] = {"difference": dg.MetadataValue.json(diffs_to_json(restored.diffs))}
            if config.write and self._is_confirmed(live.database):
                written = self._service.write_back(request, restored, WriteMode(config.write))
                found["rows_written"] = dg.MetadataValue.int(sum(rows.count for rows in written))
        return found

    def _undelete(self, request: TableRequest) -> dict[str, dg.MetadataValue]:
        bucket = read_bucket_target(self._config.bucket or read_bucket_settings(self._environment).bucket, self._environment)
        with self._service.open_undelete(request, self._config.key_column, bucket) as undelete:
            found: dict[str, dg.MetadataValue] = {
                "difference": dg.MetadataValue.json(diffs_to_json(undelete.tables.diffs)),
                "objects": dg.MetadataValue.json(objects_to_json(undelete.differences)),
            }
            if self._is_confirmed(request.live.database):
                objects, rows = self._service.finish_undelete(request, undelete, bucket)
                found |= {"rows_written": dg.MetadataValue.int(rows), "objects_written": dg.MetadataValue.int(len(objects))}
        return found

    def _restore_objects(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        entries = self._service.find_objects(self._point, tuple(config.objects))
        if config.to_folder:
            paths = self._service.extract_objects(self._point, entries, Path(config.to_folder), overwrite=config.overwrite)
            return {"files": dg.MetadataValue.json([str(path) for path in paths])}
        target = read_bucket_target(config.bucket or read_bucket_settings(self._environment).bucket, self._environment)
        differences = self._service.compare(entries, target)
        found: dict[str, dg.MetadataValue] = {"objects": dg.MetadataValue.json(objects_to_json(differences))}
        if self._is_confirmed(target.bucket):
            written = self._service.restore_objects(self._point, differences, target, overwrite=config.overwrite)
            found["objects_written"] = dg.MetadataValue.int(len(written))
        return found


@dg.op
def restore_recovery_point(context: dg.OpExecutionContext, config: RestoreConfig) -> None:
    """What the config names is restored; without its confirmation only what would happen was told."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        found = _Work(context, config).run()
    context.log_event(dg.AssetObservation("restores", description=config.reason or None, metadata=found))


@dg.job(
    hooks={alert_on_step_failure},
    executor_def=dg.in_process_executor,
    description="Restores what the Launchpad's config names. Tells what it would do until `confirm` holds the target's name.",
)
def restore_job() -> None:
    """One restore; see the config's fields."""
    restore_recovery_point()
