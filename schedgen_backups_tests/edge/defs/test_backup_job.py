"""A successful backup job: the files in the directory and what Dagster shows.

Runs are in this process, against a real database and bucket. Failures are in `edge/monitoring/test_failures`.
"""

from __future__ import annotations

import stat

import dagster as dg
import pytest

from schedgen_backups import run_tags
from schedgen_backups.alerts.run_kinds import DRILL_CHECK_NAMES
from schedgen_backups.config.config import load_config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.history.events import PointChecked
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.definitions import defs
from schedgen_backups.defs.assets import find_point_id
from schedgen_backups.defs.checks import make_checks, make_condition_checks
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups.site_names import SiteNames
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Site, execute_job, failures_of

pytestmark = [pytest.mark.edge]

CHECK_NAMES = {
    next(iter(check.check_keys)).name
    for check in [
        *make_checks(SiteNames(), load_config().definitions, frozenset(ArtifactKind)),
        *make_condition_checks(SiteNames()),
    ]
}
CONDITIONS = {"recovery_point_is_intact", "recovery_point_is_fresh"}
"""Checks of all points, not of this run's."""


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.MetadataValue]:
    """Return the metadata that the run recorded with the asset, as the UI shows it."""
    [event] = [
        event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey(asset)
    ]
    return dict(event.materialization.metadata)


def test_a_backup_leaves_a_verified_point_with_private_files(
    site: Site, instance: dg.DagsterInstance
) -> None:
    result = site.run(instance)
    assert failures_of(result) == {}
    assert result.success
    [point] = site.points()
    assert point.state is PointState.VERIFIED
    assert point.point_id == find_point_id(instance, result.run_id)
    database, bucket, text = (
        site.application.database.database,
        site.application.bucket.bucket,
        point.point_id.text,
    )
    assert {path.name for path in site.directory.iterdir()} == {
        f"db_{database}_{text}.sql.gz",
        f"minio_{bucket}_{text}.tar.gz",
        f"manifest_{text}.json",
        f"verification_{text}.json",
        ".alerts",
        ".lock",
        ".records.lock",
        "site.json",
        "missing_objects.json",
        ".staging",
        "history.jsonl",
        "receipts",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in site.directory.iterdir() if path.is_file()} == {
        0o600
    }
    assert stat.S_IMODE(site.directory.stat().st_mode) == 0o700
    assert point.manifest is not None
    assert {artifact.file_name: artifact.size_bytes for artifact in point.manifest.artifacts} == {
        artifact.path.name: artifact.size_bytes for artifact in point.artifacts
    }
    site.assert_left_clean()


def test_every_check_is_recorded_as_passed_on_its_asset(site: Site, instance: dg.DagsterInstance) -> None:
    result = site.run(instance)
    evaluations = result.get_asset_check_evaluations()
    assert {evaluation.check_name for evaluation in evaluations if evaluation.passed} == CHECK_NAMES
    assert len(evaluations) == len(CHECK_NAMES)
    [point] = site.points()
    assert {
        evaluation.metadata["recovery_point"].value
        for evaluation in evaluations
        if evaluation.check_name not in CONDITIONS
    } == {point.point_id.text}
    assert {found.checked_by for found in point.verification.results} == {result.run_id}


def test_the_reading_of_a_new_archive_is_one_event(site: Site, instance: dg.DagsterInstance) -> None:
    assert site.run(instance).success
    events = History(site.directory).read().events
    checked = [event for event in events if isinstance(event, PointChecked)]
    names = [outcome.check for event in checked for outcome in event.outcomes]
    assert names.count("archive_is_stored") == 1
    assert len(names) == len(set(names))


def test_the_dump_shows_its_figures(site: Site, instance: dg.DagsterInstance, seeded: SeedSummary) -> None:
    metadata = metadata_of(site.run(instance), "database_dump")
    [point] = site.points()
    path = point.get_path(ArtifactKind.DATABASE)
    tables = [
        name
        for (name,) in run(
            site.application.database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
    ]
    rows = sum(
        count
        for table in tables
        for (count,) in run(site.application.database, f"SELECT count(*) FROM {table}")
    )
    assert metadata["path"] == dg.MetadataValue.path(str(path))
    assert metadata["file_bytes"] == dg.MetadataValue.int(path.stat().st_size)
    assert metadata["dagster/row_count"] == dg.MetadataValue.int(rows)
    assert metadata["tables"] == dg.MetadataValue.int(len(tables))
    assert metadata["references"] == dg.MetadataValue.int(seeded.objects)
    assert metadata["recovery_point"] == dg.MetadataValue.text(point.point_id.text)
    assert isinstance(metadata["plain_bytes"], dg.IntMetadataValue)
    assert isinstance(metadata["seconds"], dg.FloatMetadataValue)
    assert isinstance(metadata["megabytes_per_second"], dg.FloatMetadataValue)
    assert isinstance(metadata["snapshot_at"], dg.TimestampMetadataValue)
    assert point.manifest is not None
    assert metadata["snapshot_at"].value == point.manifest.snapshot_at.timestamp()
    committed = point.manifest.artifact(ArtifactKind.DATABASE)
    assert committed is not None
    assert metadata["sha256"] == dg.MetadataValue.text(committed.sha256)
    table = metadata["rows_by_table"]
    assert isinstance(table, dg.MarkdownMetadataValue)
    assert str(table.value).startswith("| table | rows | size |\n| --- | ---: | ---: |\n")
    assert f"| public.users | {seeded.users} | " in str(table.value)


def test_the_archive_shows_its_figures(site: Site, instance: dg.DagsterInstance, seeded: SeedSummary) -> None:
    metadata = metadata_of(site.run(instance), "minio_archive")
    [point] = site.points()
    path = point.get_path(ArtifactKind.BUCKET)
    assert metadata["path"] == dg.MetadataValue.path(str(path))
    assert metadata["file_bytes"] == dg.MetadataValue.int(path.stat().st_size)
    assert metadata["objects"] == dg.MetadataValue.int(seeded.objects)
    assert metadata["object_bytes"] == dg.MetadataValue.int(seeded.object_bytes)
    for name in (
        "objects_reused",
        "objects_changed_meanwhile",
        "objects_deleted_meanwhile",
        "objects_failed",
        "objects_with_unread_tags",
    ):
        assert metadata[name] == dg.MetadataValue.int(0)
    assert isinstance(metadata["seconds"], dg.FloatMetadataValue)
    assert isinstance(metadata["megabytes_per_second"], dg.FloatMetadataValue)
    assert isinstance(metadata["listed_at"], dg.TimestampMetadataValue)


def test_the_recovery_point_shows_its_verification_level(
    site: Site, instance: dg.DagsterInstance, seeded: SeedSummary
) -> None:
    metadata = metadata_of(site.run(instance, tags={run_tags.REASON: "before the move"}), "recovery_point")
    [point] = site.points()
    levels = [line.split(" | ")[:2] for line in str(metadata["levels"].value).splitlines()[2:]]
    statuses = {
        "| stored": "passed",
        "| parsed": "passed",
        "| coherent": "passed",
        "| restored": "unknown",
        "| equal": "unknown",
    }
    assert levels == [list(pair) for pair in statuses.items()]
    overview = str(metadata["recovery_points"].value).splitlines()
    cells = overview[-1].strip("| ").split(" | ")
    assert [cells[0].replace("\\", ""), *cells[1:4]] == [
        point.point_id.text,
        "verified",
        "coherent",
        "0\N{NO-BREAK SPACE}min",
    ]
    assert cells[-1] == "read 0 min ago; before the move"
    assert {record.tags[run_tags.POINT] for record in instance.get_runs()} == {point.point_id.text}
    assert metadata["levels_passed"] == dg.MetadataValue.int(3)
    assert metadata["references"] == dg.MetadataValue.int(seeded.objects)
    assert metadata["references_resolved"] == dg.MetadataValue.int(seeded.objects)
    assert metadata["bytes"] == dg.MetadataValue.int(point.size_bytes)
    assert metadata["path"] == dg.MetadataValue.path(str(site.directory / f"manifest_{point.point_id}.json"))
    assert metadata["reason"] == dg.MetadataValue.text("before the move")
    assert isinstance(metadata["age_seconds"], dg.FloatMetadataValue)


def test_the_manifest_holds_the_runs_tags(site: Site, instance: dg.DagsterInstance) -> None:
    tags = {
        run_tags.REASON: "before v2.1.0",
        f"{run_tags.LABEL_PREFIX}deployment": "v2.1.0",
        f"{run_tags.LABEL_PREFIX}ticket": "OPS-17",
        run_tags.GIT_COMMIT: "0123456789abcdef",
        run_tags.GIT_BRANCH: "release/2.1",
        run_tags.USER: "thandi",
        "somebody/elses": "tag",
    }
    result = site.run(instance, tags=tags)
    [point] = site.points()
    assert point.manifest is not None
    origin = point.manifest.origin
    assert origin.reason == "before v2.1.0"
    assert origin.labels == {"deployment": "v2.1.0", "ticket": "OPS-17"}
    assert (origin.git_commit, origin.git_branch, origin.user) == (
        "0123456789abcdef",
        "release/2.1",
        "thandi",
    )
    assert origin.run_id == result.run_id
    assert origin.host


def test_materialize_all_backs_up_and_starts_no_drill(site: Site, instance: dg.DagsterInstance) -> None:
    """The UI's button runs Dagster's implicit job, not ours."""
    result = execute_job(defs.resolve_implicit_global_asset_job_def(), instance, None)
    assert failures_of(result) == {}
    evaluations = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    assert {name for name, evaluation in evaluations.items() if evaluation.passed} == CHECK_NAMES | {
        "live_references_resolve"
    }
    unknown = {
        evaluation.description for name, evaluation in evaluations.items() if name in DRILL_CHECK_NAMES
    }
    assert [
        text
        for text in unknown
        if text is None or not text.startswith("unknown: no recovery point has been drilled yet")
    ] == []
    assert [point.state for point in site.points()] == [PointState.VERIFIED]
    site.assert_left_clean()


def test_without_a_reference_query_the_point_is_committed_without_that_check(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(BACKUP_PRESET="none")
    result = execute_job(build_site_definitions(load_config()).resolve_job_def("backup_job"), instance, None)
    assert failures_of(result) == {}
    assert "references_resolve" not in {
        evaluation.check_name for evaluation in result.get_asset_check_evaluations()
    }
    [point] = site.points()
    assert (point.state, point.verification.level(VerificationLevel.COHERENT).status) == (
        PointState.VERIFIED,
        CheckStatus.NOT_CONFIGURED,
    )


def test_two_consecutive_runs_are_both_kept(site: Site, instance: dg.DagsterInstance) -> None:
    first, second = site.run(instance), site.run(instance)
    assert [find_point_id(instance, result.run_id) for result in (first, second)] == [
        point.point_id for point in site.points()
    ]
    assert [point.state for point in site.points()] == [PointState.VERIFIED, PointState.VERIFIED]


def test_the_bucket_is_listed_after_the_dumps_snapshot(site: Site, instance: dg.DagsterInstance) -> None:
    """Objects listed before the snapshot would miss later uploads.

    The order is a priority, not a dependency.
    """
    result = site.run(instance)
    order = [str(event.step_key) for event in result.all_events if event.is_step_start]
    assert order.index("database_dump") < order.index("minio_archive")
    taken, listed = (
        metadata_of(result, "database_dump")["snapshot_at"].value,
        metadata_of(result, "minio_archive")["listed_at"].value,
    )
    assert isinstance(taken, float)
    assert isinstance(listed, float)
    assert taken < listed


def test_a_run_reads_the_current_environment(site: Site, instance: dg.DagsterInstance) -> None:
    """The code location outlives a change of the environment file.

    A run must not reuse values from its load or from an earlier run.
    """
    assert site.run(instance).success
    elsewhere = site.folder / "elsewhere"
    site.set(BACKUP_DIR=str(elsewhere))
    assert site.run(instance).success
    assert [len(Catalog(directory).list_points()) for directory in (site.directory, elsewhere)] == [1, 1]
