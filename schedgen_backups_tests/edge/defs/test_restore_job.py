"""`restore_job` and the commands that restore tables, objects and deleted rows: preview, confirmation, log.

Restored content is tested in `integration/restore`, whole points in `edge/cli/test_restore`.
"""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.definitions import defs
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.command_server import QUIET
from schedgen_backups_tests.support.inbox import Watcher, open_inbox
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Application, Site, failures_of

pytestmark = [pytest.mark.edge]


@pytest.fixture
def seeded_site(
    database: DatabaseSettings, weed_bucket: BucketSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """Return a site with its own application, which a test may damage, and one verified recovery point."""
    seed_application(database, weed_bucket, user_count=5, job_count=10)
    with dg.DagsterInstance.ephemeral() as instance:
        site = Site(tmp_path, Application(database, weed_bucket), monkeypatch)
        assert site.run(instance).success
    return site


def pick_job(site: Site) -> tuple[str, str]:
    """Return id and key of one job that has a PDF."""
    [(job_id, key)] = run(
        site.application.database,
        "SELECT id::text, s3_key FROM jobs WHERE s3_key IS NOT NULL ORDER BY id LIMIT 1",
    )
    return job_id, key


def delete_job(site: Site, job_id: str, key: str) -> None:
    run(site.application.database, f"DELETE FROM jobs WHERE id = '{job_id}'")
    client_of(site.application.bucket).remove_object(site.application.bucket.bucket, key)


def has_object(site: Site, key: str) -> bool:
    bucket = site.application.bucket
    return key in {
        entry.object_name for entry in client_of(bucket).list_objects(bucket.bucket, recursive=True)
    }


def count(site: Site, table: str) -> int:
    [(rows,)] = run(site.application.database, f"SELECT count(*) FROM {table}")
    return int(rows)


def test_a_deleted_row_is_restored_with_its_object(seeded_site: Site) -> None:
    site = seeded_site
    job_id, key = pick_job(site)
    delete_job(site, job_id, key)
    rows = count(site, "jobs")
    words = ("undelete", "latest", "jobs", "--where", f"id = '{job_id}'")
    tried = site.cli(*words, "--dry-run")
    assert (tried.code, key in tried.stdout, "missing" in tried.stdout) == (0, True, True), tried.stderr
    unconfirmed = site.cli(*words)
    assert (unconfirmed.code, "not confirmed" in unconfirmed.stderr) == (7, True)
    assert (count(site, "jobs"), has_object(site, key)) == (rows, False)
    done = site.cli(
        *words, "--confirm", site.application.database.database, "--reason", "asked by a teacher", "--json"
    )
    assert done.code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["rows_written"], answer["objects_written"], answer["lost_keys"]) == (1, [key], [])
    assert (count(site, "jobs"), has_object(site, key)) == (rows + 1, True)
    assert json.loads(site.cli("audit", "--json").stdout)["rows_without_object"] == []
    entry = read_restore_log(site.directory)[-1]
    assert (entry.reason, entry.result) == ("asked by a teacher", "done: 1 row, 1 object")
    [logged] = json.loads(site.cli("log", "--json").stdout)["entries"]
    assert (logged["reason"], logged["result"], logged["subject"].split()[0]) == (
        "asked by a teacher",
        "done: 1 row, 1 object",
        "missing",
    )
    shown = site.cli("log")
    assert (shown.code, "asked by" in shown.stdout, "done: 1 row" in shown.stdout) == (0, True, True)
    [kept] = (site.directory / "safety").glob("db_*.sql.gz")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [point.state.value for point in site.points()] == ["verified"]


def test_a_table_is_compared_kept_beside_and_restored(seeded_site: Site) -> None:
    site = seeded_site
    name = site.application.database.database
    job_id, key = pick_job(site)
    delete_job(site, job_id, key)
    side = f"side_{name[-20:]}"
    kept = site.cli("restore-tables", "latest", "jobs", "--side-database", side, "--json")
    assert kept.code == 0, kept.stderr
    [shown] = json.loads(kept.stdout)["tables"]
    assert (shown["table"], shown["only_in_backup"], shown["only_live"], shown["changed"]) == (
        "public.jobs",
        1,
        0,
        0,
    )
    assert run(site.application.database.with_database(side), "SELECT count(*) FROM jobs") == [(10,)]
    run(site.application.database, f"DROP DATABASE {side}")
    words = (
        "restore-tables",
        "latest",
        "jobs",
        "--side-database",
        side,
        "--write",
        "missing",
        "--no-safety-backup",
    )
    assert site.cli(*words).code == 7
    written = site.cli(*words, "--confirm", name)
    assert (written.code, "1 row written back" in written.stdout) == (0, True), written.stderr
    assert (count(site, "jobs"), (site.directory / "safety").exists()) == (10, False)
    assert run(site.application.database, f"SELECT count(*) FROM pg_database WHERE datname = '{side}'") == [
        (0,)
    ]


def test_objects_are_compared_and_restored_or_extracted_to_files(seeded_site: Site, tmp_path: Path) -> None:
    site = seeded_site
    bucket = site.application.bucket
    _job_id, key = pick_job(site)
    good = client_of(bucket).get_object(bucket.bucket, key).data
    client_of(bucket).remove_object(bucket.bucket, key)
    out = tmp_path / "out"
    files = site.cli("restore-objects", "latest", key, "--to", str(out))
    assert (files.code, (out / key).read_bytes() == good) == (0, True), files.stderr
    dry = site.cli("restore-objects", "latest", "*", "--back", "--dry-run", "--json")
    assert [
        found["key"] for found in json.loads(dry.stdout)["objects"] if found["standing"] == "missing"
    ] == [key]
    for words in (("--back",), ("--bucket", bucket.bucket)):
        unconfirmed = site.cli("restore-objects", "latest", "*", *words)
        assert (unconfirmed.code, "not confirmed" in unconfirmed.stderr, has_object(site, key)) == (
            7,
            True,
            False,
        )
    done = site.cli("restore-objects", "latest", "*", "--back", "--confirm", bucket.bucket)
    assert (done.code, has_object(site, key)) == (0, True), done.stderr
    (out / key).write_bytes(b"mine")
    unconfirmed = site.cli("restore-objects", "latest", key, "--to", str(out), "--overwrite")
    assert (unconfirmed.code, (out / key).read_bytes()) == (7, b"mine")
    assert (
        site.cli(
            "restore-objects", "latest", key, "--to", str(out), "--overwrite", "--confirm", str(out)
        ).code
        == 0
    )
    assert (out / key).read_bytes() == good
    assert site.cli("restore-objects", "latest", key).code == 4
    assert site.cli("restore-objects", "latest", "no such key", "--to", str(out)).code == 7


def test_a_point_can_be_browsed_without_a_restore(seeded_site: Site) -> None:
    shown = json.loads(seeded_site.cli("show", "latest", "--tables", "--objects", "", "--json").stdout)
    assert {table["name"]: table["rows"] for table in shown["tables"]}["public.jobs"] == 10
    _job_id, key = pick_job(seeded_site)
    assert key in {found["key"] for found in shown["objects"]}
    seen = seeded_site.cli("show", "latest", "--objects", key)
    assert (seen.stdout.count("\n"), key in seen.stdout) == (1, True)


def test_a_point_is_chosen_by_time(seeded_site: Site) -> None:
    [point] = seeded_site.points()
    assert point.manifest is not None
    taken = point.manifest.snapshot_at
    words = ("restore", "latest", "--database", "nowhere_yet", "--dry-run")
    before = seeded_site.cli(*words, "--as-of", taken.replace(year=2020).isoformat())
    assert (before.code, "no verified recovery point was taken at or before" in before.stderr) == (8, True)
    assert seeded_site.cli(*words, "--as-of", "yesterday").code == 4
    # The point is found; the database is missing and would be created.
    found = seeded_site.cli(*words, "--as-of", taken.replace(year=2099).isoformat())
    assert (found.code, "would create the database" in found.stderr) == (0, True)
    refused = seeded_site.cli(*words, "--no-create")
    assert (refused.code, "has no database nowhere_yet" in refused.stderr) == (1, True)


def launch(instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    run_config = {**QUIET, "ops": {"restore_recovery_point": {"config": config}}}
    return defs.resolve_job_def("restore_job").execute_in_process(
        instance=instance, run_config=run_config, raise_on_error=False
    )


def test_the_launchpad_previews_and_restores_only_when_confirmed(
    seeded_site: Site, second_database: DatabaseSettings
) -> None:
    site = seeded_site
    target = second_database.database
    with dg.DagsterInstance.ephemeral() as instance:
        assert launch(instance, database=target).success
        assert run(second_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
        assert launch(instance, database=target, confirm=target, reason="a look").success
        assert run(second_database, "SELECT count(*) FROM jobs") == [(10,)]
        job_id, key = pick_job(site)
        delete_job(site, job_id, key)
        live = site.application.database.database
        back = launch(
            instance,
            tables=["jobs"],
            where=f"id = '{job_id}'",
            write="missing",
            key_column="s3_key",
            confirm=live,
        )
        assert back.success
        assert (count(site, "jobs"), has_object(site, key)) == (10, True)
        client_of(site.application.bucket).remove_object(site.application.bucket.bucket, key)
        assert launch(instance, objects=[key], confirm=site.application.bucket.bucket).success
        assert has_object(site, key)
    log = read_restore_log(site.directory)
    assert (log[0].reason, log[0].result) == ("a look", "done: equal")
    assert len(log) == 3


def test_a_site_of_one_database_and_one_bucket_has_no_part_to_name(seeded_site: Site) -> None:
    bucket = seeded_site.application.bucket.bucket
    _job_id, key = pick_job(seeded_site)
    client_of(seeded_site.application.bucket).remove_object(bucket, key)
    with dg.DagsterInstance.ephemeral() as instance:
        result = launch(instance, part="main", objects=[key], confirm=bucket)
    assert "no part 'main'" in failures_of(result)["restore_recovery_point"].description
    assert not has_object(seeded_site, key)


def test_files_are_written_below_the_backup_directory_only_when_confirmed(
    seeded_site: Site, tmp_path: Path
) -> None:
    site = seeded_site
    _job_id, key = pick_job(site)
    place = site.directory / "restored" / "out" / key
    with dg.DagsterInstance.ephemeral() as instance:
        assert launch(instance, objects=[key], to_folder="out").success
        assert launch(instance, objects=[key], to_folder="out", confirm="another").success
        assert not place.exists()
        assert launch(instance, objects=[key], to_folder="out", confirm="out").success
        good = place.read_bytes()
        place.write_bytes(b"mine")
        assert not launch(instance, objects=[key], to_folder="out", confirm="out").success
        assert launch(instance, objects=[key], to_folder="out", overwrite=True).success
        assert place.read_bytes() == b"mine"
        assert launch(instance, objects=[key], to_folder="out", overwrite=True, confirm="out").success
        assert place.read_bytes() == good
        for outside in (str(tmp_path / "elsewhere"), "../elsewhere", "out/../../elsewhere"):
            assert not launch(
                instance, objects=[key], to_folder=outside, overwrite=True, confirm=outside
            ).success
    assert not (tmp_path / "elsewhere").exists()
    assert not (site.directory / "elsewhere").exists()


def test_only_a_confirmed_failed_restore_alerts_and_a_restore_resolves_it(
    seeded_site: Site,
) -> None:
    """The restore that resolves it may be one of the command line."""
    site = seeded_site
    _job_id, key = pick_job(site)
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        outbox = Watcher("alert_outbox", instance)
        untouched = launch(instance)
        assert untouched.success
        [observation] = untouched.asset_observations_for_node("restore_recovery_point")
        assert "confirm" in str(observation.metadata["how_to_restore"].value)
        outbox.evaluate(2)
        assert inbox.texts == []
        assert not launch(instance, objects=[key], to_folder="../out", confirm="../out").success
        outbox.evaluate(2)
        [alert] = inbox.alerts
        assert alert.startswith("[HIGH] Restore failed: restore_recovery_point\n")
        # A preview succeeds and resolves nothing.
        assert launch(instance).success
        assert launch(instance, objects=[key], to_folder="out").success
        outbox.evaluate(2)
        assert inbox.recoveries == []
        assert site.cli("restore-objects", "latest", key, "--to", str(site.folder / "out")).code == 0
        outbox.evaluate(2)
        assert len(inbox.recoveries) == 1


def test_the_audit_is_a_warning_check_and_a_command_that_exits_with_3(seeded_site: Site) -> None:
    site = seeded_site
    with dg.DagsterInstance.ephemeral() as instance:
        assert site.run(instance, "audit_job").get_asset_check_evaluations()[0].passed
        assert site.cli("audit").code == 0
        _job_id, key = pick_job(site)
        client_of(site.application.bucket).remove_object(site.application.bucket.bucket, key)
        result = site.run(instance, "audit_job")
        [found] = result.get_asset_check_evaluations()
        assert (result.success, found.passed, found.severity) == (True, False, dg.AssetCheckSeverity.WARN)
        assert found.description is not None
        assert "1 row without their object" in found.description
        answer = site.cli("audit")
        assert (answer.code, key in answer.stdout) == (3, True)
