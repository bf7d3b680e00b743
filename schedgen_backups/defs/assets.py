"""The assets: live system, database dump, bucket archive, and the recovery point made of verified files.

An asset calls core and turns the returned record into metadata. Add an asset for another kind of stored data.
A restore is never an asset: "Materialize all" must not overwrite anything (docs.dagster.io, "Assets").
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

import getpass
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from schedgen_backups import run_tags
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config, Part
from schedgen_backups.config.site_parts import read_buckets, read_databases, read_live_parts
from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dumps
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import Pin, write_pin
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.formats.archive_writer import CapturedArchive
from schedgen_backups.core.formats.dump_file import CapturedDump
from schedgen_backups.core.formats.records import DumpRecord, describe_left_out
from schedgen_backups.core.model import ArtifactKind, ArtifactName, Origin, RecoveryPointId
from schedgen_backups.core.units import describe_labels, format_bytes, name_some, parse_span
from schedgen_backups.core.verify.commit import commit_point, record_read_back
from schedgen_backups.core.verify.reread import reread_sources
from schedgen_backups.defs.hooks import make_hooks, report_start
from schedgen_backups.defs.resources import BackupResource, get_backup
from schedgen_backups.exit_codes import BUCKET_EXIT_CODE, DATABASE_EXIT_CODE, VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.monitoring.markdown import (
    OVERVIEW_KEY,
    make_levels_table,
    make_overview,
    make_tables_table,
)
from schedgen_backups.site_names import (
    DATABASE_DUMP,
    LIVE_SYSTEM,
    MINIO_ARCHIVE,
    RECOVERY_POINT,
    SiteNames,
)

OWNERS = ["team:operations"]
CAPTURE_ASSETS = {ArtifactKind.DATABASE: DATABASE_DUMP, ArtifactKind.BUCKET: MINIO_ARCHIVE}
"""The asset of each kind of artifact."""
_AssetFunction = Callable[[dg.AssetExecutionContext, BackupResource], dg.MaterializeResult]


@dataclass(frozen=True)
class SiteAssets:
    """The assets of one site from its live system to its recovery points."""

    live_system: dg.AssetSpec
    captures: tuple[dg.AssetsDefinition, ...]
    """The dumps of the databases and the archives of the buckets, of which a site has at least one."""
    recovery_point: dg.AssetsDefinition


def make_assets(names: SiteNames, kinds: frozenset[ArtifactKind]) -> SiteAssets:
    """Return the assets of this site, which has databases, buckets or both."""
    hooks = make_hooks(names)
    live_system = dg.AssetSpec(
        dg.AssetKey(names.make_asset_path(LIVE_SYSTEM)),
        group_name=names.group,
        owners=OWNERS,
        kinds={"postgres", "s3"},
        description="The application's database and bucket as they are now. This project only reads them.",
    )

    def make_asset(
        local: str,
        work: _AssetFunction,
        *,
        deps: Sequence[dg.AssetSpec | dg.AssetsDefinition],
        kinds: set[str],
        description: str,
        announce: set[dg.HookDefinition],
        op_tags: Mapping[str, str],
    ) -> dg.AssetsDefinition:
        @dg.asset(
            key=dg.AssetKey(names.make_asset_path(local)),
            deps=deps,
            group_name=names.group,
            owners=OWNERS,
            kinds=kinds,
            pool=names.directory_pool,
            hooks={hooks.alert_on_step_failure, *announce},
            op_tags=op_tags,
            description=description,
            required_resource_keys={names.resource_key},
        )
        def compute(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            return work(context, get_backup(context, names))

        return compute

    database_dump = make_asset(
        DATABASE_DUMP,
        _dump_database,
        deps=[live_system],
        kinds={"postgres", "file"},
        description="A plain SQL dump of the database from one exported snapshot: `db_NAME_ID.sql.gz` in the "
        "backup directory. You can load it without this tool: `gunzip -c FILE | psql -v ON_ERROR_STOP=1`.",
        announce=set(),
        op_tags={"dagster/priority": "10"},
    )
    minio_archive = make_asset(
        MINIO_ARCHIVE,
        _archive_bucket,
        deps=[live_system],
        kinds={"s3", "file"},
        description="Every object of the bucket with its S3 metadata: `minio_NAME_ID.tar.gz` in the backup "
        "directory. The bucket is listed after the dump's snapshot, so that no referenced upload is missed. "
        "You can unpack it without this tool: `tar xzf FILE`.",
        announce=set(),
        op_tags={"dagster/priority": "5"},
    )
    recovery_point = make_asset(
        RECOVERY_POINT,
        _commit_recovery_point,
        deps=[
            *([database_dump] if ArtifactKind.DATABASE in kinds else []),
            *([minio_archive] if ArtifactKind.BUCKET in kinds else []),
        ],
        kinds={"json"},
        description="The manifest that makes dump and archive one recovery point. It is written last, and "
        "only when every check has passed. Checks that have not passed in this run are performed first, for "
        "example when this asset is materialized alone.",
        announce={hooks.announce_recovery_point},
        op_tags={},
    )
    captures = {ArtifactKind.DATABASE: database_dump, ArtifactKind.BUCKET: minio_archive}
    return SiteAssets(
        live_system, tuple(asset for kind, asset in captures.items() if kind in kinds), recovery_point
    )


def _dump_database(context: dg.AssetExecutionContext, backup: BackupResource) -> dg.MaterializeResult:
    """Dump every database for this run's recovery point into the backup directory."""
    with explain_failure(DATABASE_EXIT_CODE):
        config = backup.config
        config.check("schedule", "backup_directory", "commands", *_require(config, "database"))
        catalog = backup.open_catalog(describe_holder(context.run.run_id))
        report_start(config, context.run.run_id)
        backup.commands.begin(context.run.run_id)
        point_id = find_point_id(context.instance, context.run.run_id)
        context.instance.add_run_tags(context.run.run_id, {run_tags.POINT: point_id.text})
        started = time.monotonic()
        databases, errors = read_databases(config)
        taken = take_database_dumps(catalog, databases, point_id)
        seconds = time.monotonic() - started
        reports = {
            name: _describe_dump(
                catalog.find_artifact(ArtifactName(ArtifactKind.DATABASE, name, point_id)), captured
            )
            | _report_damage(context, config, catalog, captured)
            for name, captured in taken.captured.items()
        }
        raise_failures({**errors, **taken.errors}, is_alone=not config.is_divided)
    records = [captured.record for captured in taken.captured.values()]
    return dg.MaterializeResult(
        metadata={
            "recovery_point": point_id.text,
            **_describe_speed(sum(record.size_bytes for record in records), seconds),
            **_merge_reports(reports, is_alone=not config.is_divided),
            **({"snapshot_spread_seconds": _measure_spread(records)} if len(records) > 1 else {}),
        }
    )


def _require(config: Config, part: Literal["database", "bucket"]) -> tuple[Part, ...]:
    """Return what must be right before anything begins; of several databases, each fails on its own."""
    return () if config.is_divided else (part, "capture")


def _measure_spread(records: Sequence[DumpRecord]) -> float:
    times = [record.snapshot_at for record in records]
    return round((max(times) - min(times)).total_seconds(), 3)


def _describe_dump(path: Path, captured: CapturedDump) -> dict[str, Any]:
    record = captured.record
    return {
        "snapshot_at": dg.MetadataValue.timestamp(record.snapshot_at),
        "tables": record.table_count,
        "dagster/row_count": record.row_count,
        "references": record.reference_count,
        "left_out": describe_left_out(record.left_out) or "nothing",
        "rows_by_table": dg.MetadataValue.md(make_tables_table(captured.tables)),
        "file_size": format_bytes(captured.size_bytes),
        "file_bytes": captured.size_bytes,
        "plain_size": format_bytes(record.size_bytes),
        "plain_bytes": record.size_bytes,
        "path": dg.MetadataValue.path(path),
        "sha256": captured.sha256,
        "server_version": record.server_version,
        "pg_dump_version": record.client_version,
    }


def _describe_speed(size_bytes: int, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "megabytes_per_second": round(size_bytes / 1e6 / max(seconds, 1e-3), 1),
    }


def _merge_reports(reports: Mapping[str, Mapping[str, Any]], *, is_alone: bool) -> dict[str, Any]:
    """Return the metadata of one capture, or that of several with their names and the sums of numbers."""
    if is_alone:
        return {key: value for report in reports.values() for key, value in report.items()}
    totals: Counter[str] = Counter()
    merged: dict[str, Any] = {}
    for name, report in reports.items():
        for key, value in report.items():
            if isinstance(value, int):
                totals[key] += value
            if key != "dagster/row_count":
                merged[f"{name}: {key}"] = value
    return {**totals, **merged}


def raise_failures(errors: Mapping[str, BackupError], *, is_alone: bool) -> None:
    """Raise why databases, buckets or parts of a site failed, by name; what others gave stays."""
    if not errors:
        return
    first = next(iter(errors.values()))
    if is_alone:
        raise first
    raise first.restate(
        "; ".join(f"{name}: {error.message}" for name, error in errors.items()),
        hint=" ".join(dict.fromkeys(error.hint for error in errors.values() if error.hint)),
    ) from first


def _archive_bucket(context: dg.AssetExecutionContext, backup: BackupResource) -> dg.MaterializeResult:
    """Archive every bucket for this run's recovery point in the backup directory."""
    with explain_failure(BUCKET_EXIT_CODE):
        config = backup.config
        config.check("schedule", "backup_directory", "commands", *_require(config, "bucket"))
        catalog = backup.open_catalog(describe_holder(context.run.run_id))
        backup.commands.begin(context.run.run_id)
        point_id = find_point_id(context.instance, context.run.run_id)
        context.instance.add_run_tags(context.run.run_id, {run_tags.POINT: point_id.text})
        started = time.monotonic()
        buckets, wrong = read_buckets(config)
        errors: dict[str, BackupError] = dict(wrong)
        captures: dict[str, CapturedArchive] = {}
        reports: dict[str, dict[str, Any]] = {}
        for bucket in buckets:
            try:
                captured = take_bucket_archive(
                    catalog,
                    bucket.settings,
                    bucket.capture,
                    point_id,
                    name=bucket.name,
                    others=[other.name for other in buckets],
                )
            except BackupError as error:
                errors[bucket.name] = error
                continue
            path = catalog.find_artifact(ArtifactName(ArtifactKind.BUCKET, bucket.name, point_id))
            record_read_back(
                catalog,
                point_id,
                path,
                captured,
                checked_by=context.run.run_id,
                source=bucket.name if len(config.parts) > 1 else "",
            )
            captures[bucket.name] = captured
            reports[bucket.name] = _describe_archive(path, captured) | _report_damage(
                context, config, catalog, captured
            )
        seconds = time.monotonic() - started
        raise_failures(errors, is_alone=not config.is_divided)
    size_bytes = sum(captured.record.size_bytes for captured in captures.values())
    return dg.MaterializeResult(
        metadata={
            "recovery_point": point_id.text,
            **_describe_speed(size_bytes, seconds),
            **_merge_reports(reports, is_alone=not config.is_divided),
        }
    )


def _describe_archive(path: Path, captured: CapturedArchive) -> dict[str, Any]:
    record = captured.record
    return {
        "listed_at": dg.MetadataValue.timestamp(record.listed_at),
        "objects": record.object_count,
        "objects_size": format_bytes(record.size_bytes),
        "object_bytes": record.size_bytes,
        "left_out": describe_left_out(record.left_out) or "nothing",
        "objects_reused": record.reused_count,
        "objects_changed_meanwhile": record.changed_count,
        "objects_deleted_meanwhile": record.deleted_count,
        "objects_failed": record.failed_count,
        "objects_unproven": record.unproven_count,
        "objects_with_unread_tags": record.unread_tags_count,
        "file_size": format_bytes(captured.size_bytes),
        "file_bytes": captured.size_bytes,
        "path": dg.MetadataValue.path(path),
        "sha256": captured.sha256,
    }


def _report_damage(
    context: dg.AssetExecutionContext,
    config: Config,
    catalog: Catalog,
    captured: CapturedDump | CapturedArchive,
) -> dict[str, str]:
    """Read the older artifacts again that the capture found damaged; return metadata about them."""
    damaged = reread_sources(catalog, captured.damaged_sources, checked_by=context.run.run_id)
    for problem in damaged:
        context.log.warning(problem)
    if captured.healed_packs:
        said = f"damaged and made whole again: {name_some(captured.healed_packs)}"
        context.log.warning(said)
        # Nothing is wrong any more that a check could find; the disk that did it still is.
        with suppress(ConfigurationError):  # the end of the run reports wrong settings
            AlertService(config).announce(
                "Damaged packs were healed",
                said,
                "Check the disk of BACKUP_DIR and its memory: bytes changed there after they were written.",
            )
    kind = "dumps" if isinstance(captured, CapturedDump) else "archives"
    return {
        f"older_{kind}_damaged": "; ".join(damaged) or "none",
        **({"packs_healed": ", ".join(captured.healed_packs)} if captured.healed_packs else {}),
    }


def _commit_recovery_point(context: dg.AssetExecutionContext, backup: BackupResource) -> dg.MaterializeResult:
    """Commit the dump and archive of this run or, when materialized alone, the newest existing pair."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        catalog = backup.open_catalog(describe_holder(context.run.run_id))
        own_id = find_point_id(context.instance, context.run.run_id)
        points = catalog.list_points()
        complete = [point.point_id for point in points if _is_complete(point, backup.config)]
        own = [point.point_id for point in points if point.point_id == own_id]
        any_left = [
            point.point_id for point in points
        ]  # committing refuses it with an error that names the missing file
        point_id = (own or complete[-1:] or any_left[-1:] or [own_id])[0]
        origin = read_origin(context.run.tags, context.run.run_id)
        context.instance.add_run_tags(context.run.run_id, {run_tags.POINT: point_id.text})
        config = backup.config
        manifest, verification = commit_point(
            catalog,
            point_id,
            origin=origin,
            live=None if config.is_divided else config.live_application,
            parts=read_live_parts(config),
        )
        pin = _pin_as_tagged(catalog, point_id, context.run.tags, origin)
        # The point is safe; fail the run if alert settings are wrong: the next failure could not be reported.
        AlertService(backup.config)
    references = manifest.references
    size_bytes = sum(artifact.size_bytes for artifact in manifest.artifacts)
    now = datetime.now(timezone.utc)
    return dg.MaterializeResult(
        metadata={
            OVERVIEW_KEY: dg.MetadataValue.md(make_overview(catalog, now)),
            "recovery_point": point_id.text,
            "snapshot_at": dg.MetadataValue.timestamp(manifest.snapshot_at),
            "levels": dg.MetadataValue.md(make_levels_table(verification)),
            "size": format_bytes(size_bytes),
            "bytes": size_bytes,
            "references": references.reference_count,
            "references_resolved": references.resolved_count,
            "left_out": describe_left_out(manifest.left_out) or "nothing",
            "reason": origin.reason or "not given",
            "pinned": "no" if pin is None else f"{pin.reason}, until {pin.expires_at:%Y-%m-%d}",
            "levels_passed": sum(level.status.value == "passed" for level in verification.levels()),
            "age_seconds": round((now - manifest.snapshot_at).total_seconds(), 1),
            "path": dg.MetadataValue.path(catalog.manifest_path(point_id)),
        }
    )


def _is_complete(point: PointListing, config: Config) -> bool:
    """Return whether the point has every file that it is to have."""
    if not config.is_divided:
        return len(point.artifacts) == len(ArtifactKind)
    wanted = {
        (kind, part.part.get_source(kind))
        for part in config.parts
        if part.part is not None
        for kind in part.part.kinds
    }
    return {(found.name.kind, found.name.source_name) for found in point.artifacts} >= wanted


def make_points_observation(
    names: SiteNames, catalog: Catalog, metadata: Mapping[str, dg.MetadataValue] | None = None
) -> dg.AssetObservation:
    """Return the state of all recovery points as an observation, for runs that take no point."""
    overview = dg.MetadataValue.md(make_overview(catalog, datetime.now(timezone.utc)))
    return dg.AssetObservation(
        dg.AssetKey(names.make_asset_path(RECOVERY_POINT)),
        metadata={**(metadata or {}), OVERVIEW_KEY: overview},
    )


def find_point_id(instance: dg.DagsterInstance, run_id: str) -> RecoveryPointId:
    """Return the id of the run's recovery point.

    It is the second at which the run was created, so that all its steps use the same id.
    """
    record = instance.get_run_record_by_id(run_id)
    created_at = record.create_timestamp if record else datetime.now(timezone.utc)
    if created_at.tzinfo is None:
        created_at = created_at.replace(tzinfo=timezone.utc)
    return RecoveryPointId.from_time(created_at)


def describe_holder(run_id: str) -> str:
    """Return the text in the lock file for a run."""
    return f"run {run_id}"


def read_origin(tags: Mapping[str, str], run_id: str) -> Origin:
    """Return who requested the run and why, from its tags."""
    return Origin(
        reason=tags.get(run_tags.REASON, ""),
        labels={
            name.removeprefix(run_tags.LABEL_PREFIX): value
            for name, value in tags.items()
            if name.startswith(run_tags.LABEL_PREFIX)
        },
        git_commit=tags.get(run_tags.GIT_COMMIT, ""),
        git_branch=tags.get(run_tags.GIT_BRANCH, ""),
        user=tags.get(run_tags.USER) or _find_user_name(),
        host=socket.gethostname(),
        run_id=run_id,
    )


def _find_user_name() -> str:
    with suppress(KeyError, OSError):  # a user without a name, as in a container
        return getpass.getuser()
    return ""


def _pin_as_tagged(
    catalog: Catalog, point_id: RecoveryPointId, tags: Mapping[str, str], origin: Origin
) -> Pin | None:
    """Pin the point if the run's tags request it; return the pin.

    The pin's reason is the run's labels or reason. Raise ConfigurationError for an invalid duration.
    """
    if run_tags.PIN_FOR not in tags:
        return None
    span = parse_span(tags[run_tags.PIN_FOR])
    now = datetime.now(timezone.utc)
    reason = describe_labels(origin.labels) or origin.reason or "pinned when it was taken"
    pin = Pin(
        point_id=point_id.text, reason=reason, pinned_by=origin.user, pinned_at=now, expires_at=now + span
    )
    write_pin(catalog, pin)
    return pin
