"""`restore_job`: a restore from the Dagster UI, configured in the Launchpad.

Like the command line, it uses the restore service. It writes nothing until `confirm` is the target's name: an
accidental click on "Launch" must not overwrite anything. Add a field when the command line has the option.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

import dagster as dg
from pydantic import Field

from schedgen_backups import run_tags
from schedgen_backups.config.config import Config
from schedgen_backups.config.restore import (
    read_live_bucket,
    read_restore_request,
    read_restored_part,
    read_table_request,
    read_undelete_request,
)
from schedgen_backups.config.site_parts import list_part_names
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import LATEST, resolve_point
from schedgen_backups.core.errors import RestoreError, VerificationError
from schedgen_backups.core.restore.objects import objects_to_json, prepare_files, prepare_objects
from schedgen_backups.core.restore.point import prepare_restore
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.restore.table_diff import diffs_to_json
from schedgen_backups.core.restore.table_write import WriteMode
from schedgen_backups.core.restore.tables import TableRequest
from schedgen_backups.core.restore.undelete import prepare_undelete
from schedgen_backups.defs.assets import make_points_observation
from schedgen_backups.defs.hooks import make_hooks
from schedgen_backups.defs.resources import get_backup
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.monitoring.markdown import make_list
from schedgen_backups.site_names import RESTORE_JOB, RESTORES, SiteNames

_HOW_TO = """
Configure source and target in the Launchpad, launch, and read what would happen. Then launch again with
`confirm`.

| what | configuration |
| --- | --- |
| a whole point into new targets | `database: restored`, `bucket: restored` |
| the live database, replaced by exchanging names | `database: NAME`, `swap: true` |
| some tables, compared with the live ones | `tables: [jobs]`, then `write: missing` |
| deleted rows and objects | `tables: [jobs]`, `where: id = 7`, `key_column: s3_key`, `write: missing` |
| some objects | `objects: [uploads/1.pdf]`, `bucket: NAME` or `to_folder: NAME` |

`point` is an id such as 20261122_020000, or `latest`. `confirm` is the name of the target database, bucket or
directory.
"""

_PARTS = """
This site has several databases or buckets. Always set `part`, too, to the one that is restored: {names}.
"""


class RestoreConfig(dg.Config):
    """Source and target of a restore."""

    point: str = Field(default="latest", description="Id of a recovery point, or `latest`.")
    as_of: str = Field(
        default="", description="With `latest`: the newest verified point that is not later than this time."
    )
    part: str = Field(
        default="",
        description="The database, or the bucket to which no database refers, that is restored: NAME of "
        "`--site SITE/NAME`. Only for a site that has several databases or buckets.",
    )
    database: str = Field(
        default="",
        description="Target database: postgresql://user@host:5432/name, or a name on the server that is "
        "backed up.",
    )
    bucket: str = Field(
        default="",
        description="Target bucket: http(s)://host:port/name, or a name on the server that is backed up.",
    )
    tables: list[str] = Field(
        default=[],
        description="Restore only these tables and compare them with the live ones; `write` writes rows "
        "back.",
    )
    where: str = Field(
        default="",
        description="SQL condition (after WHERE) for the rows; only with a single table.",
    )
    write: str = Field(
        default="",
        description="With `tables`: write `missing` or `changed` rows back; if empty, only compare.",
    )
    key_column: str = Field(
        default="",
        description="With one table and `write: missing`: also restore the objects whose keys are in this "
        "column.",
    )
    objects: list[str] = Field(
        default=[], description="Restore only these objects: keys, prefixes that end in /, globs."
    )
    to_folder: str = Field(
        default="",
        description="With `objects`: write them as files into this directory below BACKUP_DIR/restored.",
    )
    overwrite: bool = Field(default=False, description="Replace objects or files that differ.")
    into_nonempty: bool = Field(
        default=False,
        description="Replace the contents of the database; overwrite objects that have the same keys.",
    )
    swap: bool = Field(
        default=False,
        description="Load into a second database, compare, then exchange the names; the old database is kept "
        "under another name.",
    )
    create: bool = Field(default=True, description="Create a missing database or bucket.")
    jobs: int = Field(
        default=1,
        description="Concurrent sessions that load an empty database; with more than one, the load is not a "
        "single transaction.",
    )
    confirm: str = Field(
        default="",
        description="Name of the target database, bucket or `to_folder`; without it nothing is written.",
    )
    safety_backup: bool = Field(
        default=True, description="Copy what is overwritten to BACKUP_DIR/safety first."
    )
    reason: str = Field(default="", description="Why this is restored; recorded in the restore log.")


class _Work:
    """One run's restore: it reports what it would do, and does it if it was confirmed."""

    def __init__(self, context: dg.OpExecutionContext, config: RestoreConfig, site: Config) -> None:
        self._log = context.log
        self._config = config
        self._site = site
        options = RestoreOptions(f"run {context.run_id}", config.reason, config.safety_backup)
        self._service = RestoreService(site.make_catalog(), site.capture, options, report=self._log.info)
        self._point: PointListing = resolve_point(self._service.catalog, config.point, as_of=config.as_of)

    @property
    def point_id(self) -> str:
        """Id of the point that is restored."""
        return self._point.point_id.text

    def run(self) -> dict[str, dg.MetadataValue]:
        """Restore what is configured; return the metadata for the run's event."""
        if self._config.tables:
            return self._restore_tables()
        if self._config.objects:
            return self._restore_objects()
        return self._restore_whole()

    def _is_confirmed(self, name: str) -> bool:
        if self._config.confirm == name:
            return True
        self._log.warning(f"nothing was written: to restore, launch again with `confirm: {name}`")
        return False

    def _restore_whole(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        request = read_restore_request(
            self._site,
            self._point,
            database=config.database,
            bucket=config.bucket,
            replace_contents=config.into_nonempty,
            jobs=config.jobs,
            is_swap=config.swap,
            creates_targets=config.create,
        )
        with prepare_restore(request, self._service.transfer) as prepared:
            found: dict[str, dg.MetadataValue] = {
                "steps": dg.MetadataValue.md(make_list(prepared.describe()))
            }
            if not self._is_confirmed(request.target_name):
                return found
            report = self._service.restore_whole(prepared)
        found["results"] = dg.MetadataValue.json(
            [result.model_dump(mode="json") for result in report.results]
        )
        found["is_equal"] = dg.MetadataValue.bool(report.is_equal)
        if not report.is_equal:
            summaries = "; ".join(
                f"{result.check.value}: {result.summary}" for result in report.results if not result.is_passed
            )
            raise VerificationError(f"restored, but not confirmed to be equal: {summaries}")
        return found

    def _restore_tables(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        request = read_table_request(
            self._site, self._point, tuple(config.tables), database=config.database, where=config.where
        )
        if config.write not in {"", *(mode.value for mode in WriteMode)}:
            raise RestoreError(
                f"invalid value `write: {config.write}`", hint="Use missing, changed, or leave it empty."
            )
        if config.key_column:
            return self._undelete(request)
        with self._service.open_tables(request) as prepared:
            found: dict[str, dg.MetadataValue] = {
                "difference": dg.MetadataValue.json(diffs_to_json(prepared.describe()))
            }
            if config.write and self._is_confirmed(request.target_name):
                written = self._service.write_rows(prepared, WriteMode(config.write))
                found["rows_written"] = dg.MetadataValue.int(sum(rows.count for rows in written))
        return found

    def _undelete(self, rows: TableRequest) -> dict[str, dg.MetadataValue]:
        request = read_undelete_request(
            self._site, rows, bucket=self._config.bucket, key_column=self._config.key_column
        )
        with prepare_undelete(request, self._service.transfer) as prepared:
            found: dict[str, dg.MetadataValue] = {
                "difference": dg.MetadataValue.json(diffs_to_json(prepared.tables.describe())),
                "objects": dg.MetadataValue.json(objects_to_json(prepared.objects.describe())),
            }
            if self._is_confirmed(request.target_name):
                undeleted = self._service.undelete(prepared)
                found |= {
                    "rows_written": dg.MetadataValue.int(undeleted.row_count),
                    "objects_written": dg.MetadataValue.int(len(undeleted.objects)),
                }
        return found

    def _restore_objects(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        if config.to_folder:
            return self._write_files()
        target = read_live_bucket(self._site, config.bucket)
        with prepare_objects(self._point, tuple(config.objects), target, self._service.transfer) as prepared:
            found: dict[str, dg.MetadataValue] = {
                "objects": dg.MetadataValue.json(objects_to_json(prepared.describe()))
            }
            if self._is_confirmed(prepared.target_name):
                written = self._service.write_objects(prepared, overwrite=config.overwrite)
                found["objects_written"] = dg.MetadataValue.int(len(written))
        return found

    def _write_files(self) -> dict[str, dg.MetadataValue]:
        config = self._config
        folder = self._service.find_folder(config.to_folder)
        with prepare_files(self._point, tuple(config.objects), folder) as prepared:
            found: dict[str, dg.MetadataValue] = {
                "steps": dg.MetadataValue.md(make_list(prepared.describe()))
            }
            if self._is_confirmed(config.to_folder):
                paths = self._service.write_files(prepared, overwrite=config.overwrite)
                found["files"] = dg.MetadataValue.json([str(path) for path in paths])
        return found


def make_restore_job(names: SiteNames) -> dg.JobDefinition:
    """Return the job that restores once; see the fields of the configuration."""
    op_name = names.qualify("restore_recovery_point")

    # A backup during a restore would capture what is half restored.
    @dg.op(
        name=op_name,
        description="Restore what is configured; without confirmation, only report what would happen.",
        pool=names.directory_pool,
        required_resource_keys={names.resource_key},
    )
    def restore_recovery_point(context: dg.OpExecutionContext, config: RestoreConfig) -> None:
        _restore_recovery_point(context, config, get_backup(context, names).config, names)

    @dg.job(
        name=names.qualify(RESTORE_JOB),
        hooks={make_hooks(names).alert_on_step_failure},
        executor_def=dg.in_process_executor,
        description=(
            "Restore a whole point, tables, rows with their objects, or objects, as configured in the "
            "Launchpad. Nothing is written, and the run only reports what it would do, unless `confirm` is "
            "the target's name. Launched with an empty configuration, it shows how to configure a restore."
        ),
        config={
            "ops": {
                op_name: {
                    "config": {"point": LATEST, "database": "", "bucket": "", "confirm": "", "reason": ""}
                }
            }
        },
    )
    def restore_job() -> None:
        restore_recovery_point()

    return restore_job


def _restore_recovery_point(
    context: dg.OpExecutionContext, config: RestoreConfig, site: Config, names: SiteNames
) -> None:
    restores_key = dg.AssetKey(names.make_asset_path(RESTORES))
    named = (config.part, config.database, config.bucket, config.tables, config.objects, config.confirm)
    if not any(named):
        context.log.warning(
            "nothing was restored: the configuration is empty. See `how_to_restore` in the next event."
        )
        how = dg.MetadataValue.md(_explain(site))
        context.log_event(dg.AssetObservation(restores_key, metadata={"how_to_restore": how}))
        return
    if not config.confirm:
        context.instance.add_run_tags(
            context.run_id, {f"{run_tags.ALERTED_PREFIX}{context.op.name}": run_tags.REHEARSAL}
        )
    with explain_failure(VERIFICATION_EXIT_CODE):
        part = read_restored_part(site, config.part)
        work = _Work(context, config, part)
        context.instance.add_run_tags(context.run_id, {run_tags.POINT: work.point_id})
        found = work.run()
    if config.part:
        found["part"] = dg.MetadataValue.text(config.part)
    context.log_event(dg.AssetObservation(restores_key, description=config.reason or None, metadata=found))
    context.log_event(make_points_observation(names, site.make_catalog()))


def _explain(site: Config) -> str:
    """Return how a restore of this site is configured."""
    return _HOW_TO + _PARTS.format(names=", ".join(list_part_names(site))) if site.is_divided else _HOW_TO
