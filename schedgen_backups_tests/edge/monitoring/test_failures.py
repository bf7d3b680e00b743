"""A failing backup job: the failed step, its message, what is kept, and that nothing bad is committed.

The causes are real: an unreachable server, a wrong password, a program that dies, a flipped bit. Damage and
sizes are in `edge/defs/test_damage`, cancelled and killed runs in `edge/runs/test_cancel`.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.defs import assets
from schedgen_backups_tests.support import fake_pg_dump
from schedgen_backups_tests.support.fake_pg_dump import make_pg_bin_dir
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]

BOTH_CAPTURES = {"database_dump", "minio_archive"}


def assert_other_half_is_kept(site: Site, result: dg.ExecuteInProcessResult, kept: ArtifactKind) -> None:
    """Assert that the other half is a checked partial point, nothing is committed, and the lock is free."""
    assert not result.success
    assert "recovery_point" not in {str(event.step_key) for event in result.all_events if event.is_step_start}
    [point] = site.points()
    assert point.state is PointState.PARTIAL
    assert [artifact.name.kind for artifact in point.artifacts] == [kept]
    checked = {
        evaluation.check_name for evaluation in result.get_asset_check_evaluations() if evaluation.passed
    }
    own_checks = {
        ArtifactKind.DATABASE: {"dump_is_complete", "dump_matches_snapshot", "dump_size_is_plausible"},
        ArtifactKind.BUCKET: {"archive_is_readable", "every_object_is_archived", "archive_size_is_plausible"},
    }
    assert checked == own_checks[kept]
    site.assert_left_clean()


def test_without_a_database_the_bucket_is_still_captured(site: Site, instance: dg.DagsterInstance) -> None:
    [port] = free_ports(1)
    site.set(POSTGRES_PORT=str(port))
    result = site.run(instance)
    failed = failures_of(result)["database_dump"]
    assert f"PostgreSQL at {LOOPBACK}:{port} cannot be reached" in failed.description
    assert "What to do: " not in failed.description
    assert (
        failed.metadata["exit_code"],
        failed.metadata["error"],
        failed.metadata["trying_again_can_help"],
    ) == (1, "DatabaseUnreachableError", True)
    assert "POSTGRES_PORT" in str(failed.metadata["hint"])
    assert_other_half_is_kept(site, result, ArtifactKind.BUCKET)


def test_a_wrong_password_is_reported_and_the_bucket_is_still_captured(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(POSTGRES_PASSWORD="wrong-canary-4711")
    result = site.run(instance)
    failed = failures_of(result)["database_dump"]
    assert f"refused the login of {site.application.database.user}" in failed.description
    assert "POSTGRES_PASSWORD" in str(failed.metadata["hint"])
    assert failed.metadata["trying_again_can_help"] is False
    assert all("wrong-canary-4711" not in event.to_json() for event in instance.all_logs(result.run_id))
    assert_other_half_is_kept(site, result, ArtifactKind.BUCKET)


def test_without_an_s3_server_the_database_is_still_captured(
    site: Site, instance: dg.DagsterInstance
) -> None:
    [port] = free_ports(1)
    site.set(MINIO_ENDPOINT=f"{LOOPBACK}:{port}")
    result = site.run(instance)
    failed = failures_of(result)["minio_archive"]
    assert f"{LOOPBACK}:{port}" in failed.description
    assert (failed.metadata["exit_code"], failed.metadata["error"]) == (2, "BucketUnreachableError")
    assert_other_half_is_kept(site, result, ArtifactKind.DATABASE)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"MINIO_BUCKET": "no-such-bucket"}, "no-such-bucket"),
        ({"MINIO_SECRET_KEY": "wrong-canary-4711"}, "MINIO_SECRET_KEY"),
    ],
    ids=["bucket", "key"],
)
def test_a_bucket_problem_is_reported_and_the_database_is_still_captured(
    changes: dict[str, str], named: str, site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(**changes)
    result = site.run(instance)
    failed = failures_of(result)["minio_archive"]
    assert named in f"{failed.description} {failed.metadata['hint']}"
    assert failed.metadata["exit_code"] == 2
    assert all("wrong-canary-4711" not in event.to_json() for event in instance.all_logs(result.run_id))
    assert_other_half_is_kept(site, result, ArtifactKind.DATABASE)


@pytest.mark.parametrize(
    ("name", "step", "kept"),
    [
        ("POSTGRES_PASSWORD", "database_dump", ArtifactKind.BUCKET),
        ("MINIO_SECRET_KEY", "minio_archive", ArtifactKind.DATABASE),
    ],
)
@pytest.mark.parametrize("value", [None, " "], ids=["missing", "blank"])
def test_a_missing_secret_fails_the_run_with_its_name(
    name: str, step: str, kept: ArtifactKind, value: str | None, site: Site, instance: dg.DagsterInstance
) -> None:
    """Dagster's own EnvVar would start no run, so no alert would be sent."""
    if value is None:
        site.unset(name)
    else:
        site.set(**{name: value})
    result = site.run(instance)
    failed = failures_of(result)[step]
    assert f"{name} is not set" in failed.description
    assert (failed.metadata["exit_code"], failed.metadata["error"]) == (4, "ConfigurationError")
    assert_other_half_is_kept(site, result, kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKUP_SCHEDULE", "every night at two"),
        ("BACKUP_SCHEDULE", "61 2 * * *"),
        ("BACKUP_TIMEZONE", "Africa/Pretoria"),
        ("BACKUP_TIMEZONE", "../../etc/passwd"),
        ("BACKUP_DOWNLOAD_THREADS", "eight"),
        ("BACKUP_DOWNLOAD_THREADS", "0"),
        ("BACKUP_COMPRESSION_THREADS", "65"),
        ("BACKUP_STALL_TIMEOUT_SECONDS", "-1"),
        ("BACKUP_ALLOW_EMPTY", "perhaps"),
    ],
)
def test_a_wrong_setting_fails_the_run_with_its_name(
    name: str, value: str, site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(**{name: value})
    failures = failures_of(site.run(instance))
    assert failures.keys() == BOTH_CAPTURES
    for failed in failures.values():
        assert f"{name} is invalid, expected " in failed.description
        assert failed.metadata["exit_code"] == 4
    # Only the open incident is left.
    assert {path.name for path in site.directory.iterdir()} == {".alerts", "history.jsonl"}


def test_a_wrong_database_port_fails_only_the_database(site: Site, instance: dg.DagsterInstance) -> None:
    site.set(POSTGRES_PORT="54321x")
    result = site.run(instance)
    assert (
        "POSTGRES_PORT is invalid, expected a whole number from 1 to 65535"
        in failures_of(result)["database_dump"].description
    )
    assert_other_half_is_kept(site, result, ArtifactKind.BUCKET)


def test_every_wrong_setting_is_reported_in_one_message(site: Site, instance: dg.DagsterInstance) -> None:
    """Reporting them one at a time would cost a night each."""
    site.unset("POSTGRES_PASSWORD")
    site.set(POSTGRES_PORT="0", PGSSLMODE="maybe")
    text = failures_of(site.run(instance))["database_dump"].description
    assert all(name in text for name in ("POSTGRES_PASSWORD", "POSTGRES_PORT", "PGSSLMODE"))


def test_a_file_in_place_of_the_backup_directory_fails_both_halves(
    site: Site, instance: dg.DagsterInstance
) -> None:
    in_the_way = site.folder / "file"
    in_the_way.write_text("not a folder", encoding="utf-8")
    site.set(BACKUP_DIR=str(in_the_way / "backups"))
    failures = failures_of(site.run(instance))
    assert failures.keys() == BOTH_CAPTURES
    for failed in failures.values():
        assert f"BACKUP_DIR {in_the_way / 'backups'} cannot be written" in failed.description
        assert failed.metadata["exit_code"] == 4


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (fake_pg_dump.IS_KILLED_HALFWAY, "pg_dump was ended by signal 9"),
        (fake_pg_dump.WRITES_HALF, "its last line is missing"),
        (fake_pg_dump.WRITES_NOTHING, "its last line is missing"),
        (fake_pg_dump.FAILS_AFTER_EVERYTHING, "server closed the connection unexpectedly"),
    ],
    ids=["killed", "half", "nothing", "fails"],
)
def test_a_failing_pg_dump_leaves_no_dump(
    script: str, said: str, site: Site, instance: dg.DagsterInstance, postgres_bin_dir: Path
) -> None:
    site.set(PG_BIN_DIR=str(make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=script)))
    result = site.run(instance)
    assert said in failures_of(result)["database_dump"].description
    assert_other_half_is_kept(site, result, ArtifactKind.BUCKET)


def test_a_hung_pg_dump_is_killed_after_the_time_limit(
    site: Site, instance: dg.DagsterInstance, postgres_bin_dir: Path
) -> None:
    script = fake_pg_dump.HANGS_AFTER_THE_FIRST_BYTES
    site.set(
        PG_BIN_DIR=str(make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=script)),
        BACKUP_STALL_TIMEOUT_SECONDS="1",
    )
    result = site.run(instance)
    assert "pg_dump wrote no data for 1 seconds" in failures_of(result)["database_dump"].description
    assert_other_half_is_kept(site, result, ArtifactKind.BUCKET)


def test_a_database_without_the_application_tables_is_committed_as_not_coherent(
    site: Site, instance: dg.DagsterInstance, database: DatabaseSettings
) -> None:
    """Without a reference query, nothing shows that the references resolve.

    The backup is taken all the same.
    """
    run(database, "CREATE TABLE notes AS SELECT 'a note' AS text")
    site.set(POSTGRES_DB=database.database)
    result = site.run(instance)
    assert failures_of(result) == {}
    [check] = [
        evaluation
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.check_name == "references_resolve"
    ]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "not configured" in str(check.description)
    [point] = site.points()
    assert point.state is PointState.VERIFIED
    metadata = next(
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.step_key == "recovery_point"
    )
    assert "| coherent | not configured |" in str(metadata["levels"].value)
    assert metadata["levels_passed"] == dg.MetadataValue.int(2)


def test_a_run_names_the_process_that_holds_the_lock(site: Site, instance: dg.DagsterInstance) -> None:
    catalog = Catalog(site.directory)
    catalog.prepare()
    catalog.lock.acquire("run of somebody else")
    failures = failures_of(site.run(instance))
    assert failures.keys() == BOTH_CAPTURES
    for failed in failures.values():
        assert "in use by run of somebody else" in failed.description
        assert (
            failed.metadata["exit_code"],
            failed.metadata["error"],
            failed.metadata["trying_again_can_help"],
        ) == (5, "LockHeldError", True)
    catalog.lock.release()
    assert site.run(instance).success
    assert [point.state for point in site.points()] == [PointState.VERIFIED]


def test_an_unforeseen_error_fails_the_step_unchanged(
    site: Site, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not one of core's must neither pass as success nor lose its traceback."""
    for name in ("take_database_dumps", "take_bucket_archive"):
        monkeypatch.setattr(assets, name, lambda *_arguments, **_options: 1 // 0)
    failures = failures_of(site.run(instance))
    assert failures.keys() == BOTH_CAPTURES
    for failed in failures.values():
        assert "ZeroDivisionError" in failed.description
        assert "test_failures.py" in failed.description
    assert site.points() == ()
