"""Damaged, truncated, missing or unlikely sized files are never committed, whichever assets or checks run.

Captures and checks run as separate runs of one instance, so that files can be damaged in between.
"""

from __future__ import annotations

import os
import time
from io import BytesIO
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.catalog.check_results import BUCKET_CHECKS, CheckResult
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.pack_reader import PackKeys
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.defs import checks
from schedgen_backups.site_names import DATABASE_DUMP, MINIO_ARCHIVE, RECOVERY_POINT
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]

CAPTURES = dg.AssetSelection.assets(DATABASE_DUMP, MINIO_ARCHIVE).without_checks()
SEAL = dg.AssetSelection.assets(RECOVERY_POINT)
ROWS = "INSERT INTO jobs (note) SELECT md5(n::text) FROM generate_series(1, {count}) AS n"


def check_of(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    [evaluation] = [
        evaluation for evaluation in result.get_asset_check_evaluations() if evaluation.check_name == name
    ]
    return evaluation


def started_steps(result: dg.ExecuteInProcessResult) -> set[str]:
    return {str(event.step_key) for event in result.all_events if event.is_step_start}


@pytest.fixture
def growing(site: Site, database: DatabaseSettings) -> DatabaseSettings:
    """Return a site whose database the test may change; it uses the shared bucket."""
    run(database, "CREATE TABLE jobs (s3_key text, note text)")
    site.set(POSTGRES_DB=database.database)
    return database


@pytest.mark.parametrize(
    ("kind", "asset", "check"),
    [
        (ArtifactKind.DATABASE, DATABASE_DUMP, "dump_is_complete"),
        (ArtifactKind.BUCKET, MINIO_ARCHIVE, "archive_is_readable"),
    ],
    ids=["dump", "archive"],
)
def test_a_flipped_bit_fails_the_check_and_is_never_committed(
    kind: ArtifactKind, asset: str, check: str, site: Site, instance: dg.DagsterInstance
) -> None:
    assert site.run_selection(instance, CAPTURES).success
    site.flip_bit(kind)
    checked = check_of(site.run_selection(instance, dg.AssetSelection.checks_for_assets(asset)), check)
    assert (checked.passed, checked.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert checked.description
    committing = site.run_selection(instance, SEAL)
    failed = failures_of(committing)["recovery_point"]
    assert "is not committed" in failed.description
    assert failed.metadata["exit_code"] == 3
    [point] = site.points()
    assert (point.state, point.manifest) == (PointState.FAILED, None)
    site.assert_left_clean()


@pytest.mark.parametrize("kind", list(ArtifactKind), ids=["dump", "archive"])
def test_the_recovery_point_alone_finds_damage_without_a_check_run(
    kind: ArtifactKind, site: Site, instance: dg.DagsterInstance
) -> None:
    """Blocking checks block only within their own run.

    Dagster lets any user materialize the last asset alone.
    """
    assert site.run_selection(instance, CAPTURES).success
    site.flip_bit(kind)
    assert "is not committed" in failures_of(site.run_selection(instance, SEAL))["recovery_point"].description
    assert [(point.state, point.manifest) for point in site.points()] == [(PointState.FAILED, None)]


def test_damage_of_the_older_archive_stays_there_and_is_reported(
    site: Site, instance: dg.DagsterInstance
) -> None:
    """One flipped bit, with the time of the last modification as before: nothing else would notice it."""
    # Objects that are younger than two seconds are not copied.
    time.sleep(3.2)
    assert site.run(instance).success
    path = site.points()[-1].get_path(ArtifactKind.BUCKET)
    before = path.stat()
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
    # Within an object's bytes: a flipped bit in the header of a gzip member may mean nothing.
    middle = entries[len(entries) // 2]
    path.write_bytes(damage(path.read_bytes(), 8 * (middle.offset + middle.length * 3 // 4)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [point.state for point in site.points()] == [PointState.VERIFIED]
    result = site.run(instance)
    assert result.success
    older, newer = site.points()
    assert (older.state, newer.state) == (PointState.FAILED, PointState.VERIFIED)
    with open_archive(newer.get_path(ArtifactKind.BUCKET)) as archive:
        record = archive.record
    assert record.reused_count == record.object_count - 1
    [materialization] = result.asset_materializations_for_node("minio_archive")
    assert older.point_id.text in str(materialization.metadata["older_archives_damaged"].value)


def test_the_archive_is_not_read_again_in_the_run_of_its_capture(
    site: Site, instance: dg.DagsterInstance
) -> None:
    result = site.run(instance)
    assert check_of(result, "archive_is_readable").passed
    [point] = site.points()
    found = [point.verification.result(check) for check in BUCKET_CHECKS]
    assert [each.checked_by for each in found if each is not None] == [result.run_id] * 3
    stored, _readable, every = found
    assert stored is not None
    assert every is not None
    [materialized] = [
        event
        for event in result.all_events
        if event.is_step_materialization and event.step_key == "minio_archive"
    ]
    recorded = instance.get_latest_materialization_event(materialized.asset_key)
    assert recorded is not None
    assert stored.checked_at.timestamp() < recorded.timestamp < every.checked_at.timestamp()


def test_an_archive_that_is_touched_after_its_capture_is_read_again_before_the_commit(
    site: Site, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bit flips behind the check's back: between the capture and the commit of one run."""
    verify_every = checks.verify_every_object

    def flip_first(path: Path, keys: PackKeys) -> CheckResult:
        before = path.stat()
        data = path.read_bytes()
        path.write_bytes(damage(data, len(data) * 4))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return verify_every(path, keys)

    monkeypatch.setattr(checks, "verify_every_object", flip_first)
    result = site.run(instance)
    assert not result.success
    [point] = site.points()
    assert point.manifest is None
    assert point.state is PointState.FAILED


def test_the_recovery_point_alone_finds_damage_after_a_passed_check(
    site: Site, instance: dg.DagsterInstance
) -> None:
    """The result of an earlier run says nothing about the file's present content."""
    both = dg.AssetSelection.assets(DATABASE_DUMP, MINIO_ARCHIVE)
    assert site.run_selection(instance, both).success
    site.flip_bit(ArtifactKind.DATABASE)
    assert "is not committed" in failures_of(site.run_selection(instance, SEAL))["recovery_point"].description


def test_the_recovery_point_alone_commits_a_capture_of_an_older_run(
    site: Site, instance: dg.DagsterInstance
) -> None:
    assert site.run_selection(instance, CAPTURES).success
    assert [point.state for point in site.points()] == [PointState.PARTIAL]
    result = site.run_selection(instance, SEAL)
    assert failures_of(result) == {}
    [point] = site.points()
    assert point.state is PointState.VERIFIED
    assert point.manifest is not None
    assert point.manifest.origin.run_id == result.run_id
    assert {found.checked_by for found in point.verification.results} == {result.run_id}


def test_rematerializing_the_recovery_point_keeps_its_manifest(
    site: Site, instance: dg.DagsterInstance
) -> None:
    assert site.run(instance).success
    [before] = site.points()
    assert site.run_selection(instance, SEAL).success
    [after] = site.points()
    assert after.manifest == before.manifest
    assert after.state is PointState.VERIFIED


@pytest.mark.parametrize("kind", list(ArtifactKind), ids=["without dump", "without archive"])
def test_the_recovery_point_alone_fails_when_a_half_is_missing(
    kind: ArtifactKind, site: Site, instance: dg.DagsterInstance
) -> None:
    captured = MINIO_ARCHIVE if kind is ArtifactKind.DATABASE else DATABASE_DUMP
    assert site.run_selection(instance, dg.AssetSelection.assets(captured).without_checks()).success
    failed = failures_of(site.run_selection(instance, SEAL))["recovery_point"]
    assert f"has no {kind.value} file" in failed.description
    assert failed.metadata["exit_code"] == 3
    assert [(point.state, point.manifest) for point in site.points()] == [(PointState.PARTIAL, None)]


def test_the_recovery_point_alone_fails_in_an_empty_directory(
    site: Site, instance: dg.DagsterInstance
) -> None:
    assert not site.run_selection(instance, SEAL).success
    assert site.points() == ()


def test_a_check_alone_fails_without_a_capture(site: Site, instance: dg.DagsterInstance) -> None:
    result = site.run_selection(instance, dg.AssetSelection.checks_for_assets(DATABASE_DUMP))
    assert not result.success
    assert all("database file" in failed.description for failed in failures_of(result).values())
    assert [evaluation for evaluation in result.get_asset_check_evaluations() if evaluation.passed] == []


def test_a_check_that_cannot_run_fails(site: Site, instance: dg.DagsterInstance) -> None:
    """Unknown is never success."""
    assert site.run(instance).success
    site.points()[-1].get_path(ArtifactKind.BUCKET).write_bytes(b"not a gzip file")
    result = site.run_selection(instance, dg.AssetSelection.checks_for_assets(MINIO_ARCHIVE))
    assert [
        evaluation.check_name for evaluation in result.get_asset_check_evaluations() if evaluation.passed
    ] == []
    assert not result.success


def test_a_database_that_halved_is_not_committed_until_the_next_night(
    site: Site, instance: dg.DagsterInstance, growing: DatabaseSettings
) -> None:
    run(growing, ROWS.format(count=4000))
    assert site.run(instance).success
    run(growing, "DELETE FROM jobs WHERE note > '4'")
    dropped = site.run(instance)
    check = check_of(dropped, "dump_size_is_plausible")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "dropped by more than half" in str(check.description)
    change = check.metadata["change_percent"].value
    assert isinstance(change, float)
    assert change < -50
    assert not dropped.success
    assert "recovery_point" not in started_steps(dropped)
    assert [point.state for point in site.points()] == [PointState.VERIFIED, PointState.PARTIAL]
    the_night_after = site.run(instance)
    assert the_night_after.success
    assert check_of(the_night_after, "dump_size_is_plausible").passed
    assert [point.state for point in site.points()] == [
        PointState.VERIFIED,
        PointState.PARTIAL,
        PointState.VERIFIED,
    ]


@pytest.mark.parametrize("content", [b"", b"no gzip", None], ids=["empty", "other bytes", "a folder"])
def test_unreadable_older_files_prevent_no_backup(
    site: Site, instance: dg.DagsterInstance, content: bytes | None
) -> None:
    """They may be damaged, or older than this format."""
    assert site.run(instance).success
    [point] = site.points()
    for artifact in point.artifacts:
        artifact.path.unlink()
        if content is None:
            artifact.path.mkdir()
        else:
            artifact.path.write_bytes(content)
    (point.artifacts[0].path.parent / f"manifest_{point.point_id}.json").write_bytes(b"{}")
    the_night_after = site.run(instance)
    assert the_night_after.success
    assert "nothing to compare with" in str(
        check_of(the_night_after, "archive_size_is_plausible").description
    )
    assert [point.state for point in site.points()] == [PointState.DAMAGED, PointState.VERIFIED]


def test_a_database_that_tripled_is_committed_with_a_warning(
    site: Site, instance: dg.DagsterInstance, growing: DatabaseSettings
) -> None:
    run(growing, ROWS.format(count=500))
    assert site.run(instance).success
    run(growing, ROWS.format(count=4000))
    result = site.run(instance)
    check = check_of(result, "dump_size_is_plausible")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "grew to more than three times" in str(check.description)
    assert result.success
    assert [point.state for point in site.points()] == [PointState.VERIFIED, PointState.VERIFIED]


def test_objects_that_halved_are_not_committed(
    site: Site, instance: dg.DagsterInstance, growing: DatabaseSettings, weed_bucket: BucketSettings
) -> None:
    run(growing, ROWS.format(count=10))
    site.set(MINIO_BUCKET=weed_bucket.bucket)
    client = client_of(weed_bucket)
    for key in ("first.pdf", "second.pdf", "third.pdf"):
        client.put_object(weed_bucket.bucket, key, BytesIO(bytes(10_000)), 10_000)
    assert site.run(instance).success
    client.remove_object(weed_bucket.bucket, "first.pdf")
    client.remove_object(weed_bucket.bucket, "second.pdf")
    dropped = site.run(instance)
    check = check_of(dropped, "archive_size_is_plausible")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "10.0 kB, 30.0 kB before (-66.7 %)" in str(check.description)
    assert "recovery_point" not in started_steps(dropped)
    assert [point.state for point in site.points()] == [PointState.VERIFIED, PointState.PARTIAL]


def test_a_referenced_object_missing_in_the_bucket_is_reported_and_committed(
    site: Site, instance: dg.DagsterInstance, growing: DatabaseSettings
) -> None:
    """The backup holds all there was; a row without its file is a state of the live system."""
    run(growing, "INSERT INTO jobs VALUES ('uploads/nobody/has/this.pdf', 'lost')")
    result = site.run(instance)
    assert result.success
    assert "already missing in the live system" in str(check_of(result, "references_resolve").description)
    [point] = site.points()
    assert point.state is PointState.VERIFIED
    assert point.manifest is not None
    assert [missing.key for missing in point.manifest.references.missing] == ["uploads/nobody/has/this.pdf"]
