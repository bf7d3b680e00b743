"""Alerts about failed backups: one per failure, from hook or outbox, and one when it is resolved.

Runs are real ones against an instance with a home. The sensor is evaluated as the daemon does it, with its
cursor, and a real HTTP server counts the messages. The daemon itself is in `test_alert_daemon`, ticks and
channels that are down in `test_outbox_cursor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups import run_tags
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.definitions import defs
from schedgen_backups.monitoring.outbox import WILL_RETRY_TAG
from schedgen_backups.site_names import DATABASE_DUMP, MINIO_ARCHIVE, RECOVERY_POINT
from schedgen_backups_tests.edge.runs.test_cancel import end_children, is_dumping
from schedgen_backups_tests.support.fake_pg_dump import HANGS_AFTER_THE_FIRST_BYTES, make_pg_bin_dir
from schedgen_backups_tests.support.inbox import CANARY, PATH_CANARY, Inbox, Watcher, open_inbox
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Site, execute_job, wait_until

pytestmark = [pytest.mark.edge]

ROWS = "INSERT INTO jobs (note) SELECT md5(n::text) FROM generate_series(1, {count}) AS n"


@dg.resource
def broken_resource(_context: dg.InitResourceContext) -> None:
    """A resource whose start fails, so that no step begins."""
    raise ConnectionError("no such luck with the resource")


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened
        assert CANARY.encode() not in opened.bodies
        assert PATH_CANARY.encode() not in opened.bodies


@pytest.fixture
def home(site: Site) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(site.home)) as opened:
        yield opened


@pytest.fixture
def outbox(home: dg.DagsterInstance) -> Watcher:
    return Watcher("alert_outbox", home)


@pytest.fixture
def growing(site: Site, database: DatabaseSettings) -> DatabaseSettings:
    """Return a site whose database the test may change."""
    run(database, "CREATE TABLE jobs (s3_key text, note text)")
    site.set(POSTGRES_DB=database.database)
    return database


def assert_a_good_backup_resolves_it(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, *named: str
) -> None:
    """Assert that one message reports what is resolved, from either the hook or the outbox."""
    count = len(inbox.alerts)
    assert inbox.recoveries == []
    assert site.run(home).success
    assert len(inbox.recoveries) == 1
    outbox.evaluate(3)
    assert site.run(home).success
    outbox.evaluate()
    [recovery] = inbox.recoveries
    assert all(text in recovery for text in named)
    assert len(inbox.alerts) == count


@pytest.mark.parametrize(
    ("name", "value", "said", "step"),
    [
        ("POSTGRES_PASSWORD", CANARY, "refused the login", "database_dump"),
        pytest.param(
            "POSTGRES_PASSWORD",
            None,
            "POSTGRES_PASSWORD is not set",
            "database_dump",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "MINIO_SECRET_KEY", CANARY, "MINIO_SECRET_KEY", "minio_archive", marks=pytest.mark.exhaustive
        ),
        ("MINIO_SECRET_KEY", None, "MINIO_SECRET_KEY is not set", "minio_archive"),
    ],
    ids=["wrong password", "no password", "wrong key", "no key"],
)
def test_wrong_or_missing_credentials_are_reported_once_by_the_hook(
    name: str,
    value: str | None,
    said: str,
    step: str,
    site: Site,
    home: dg.DagsterInstance,
    outbox: Watcher,
    inbox: Inbox,
) -> None:
    right = (
        site.application.database.password
        if name == "POSTGRES_PASSWORD"
        else site.application.bucket.secret_key
    )
    site.unset(name) if value is None else site.set(**{name: value})
    failed = site.run(home)
    [alert] = inbox.alerts
    assert alert.startswith(f"[CRITICAL] Backup failed: {step}\n")
    assert said in alert
    assert name in alert
    assert f"run: {failed.run_id}" in alert
    assert "last verified recovery point: none" in alert
    found = home.get_run_by_id(failed.run_id)
    assert found is not None
    assert found.tags[f"{run_tags.ALERTED_PREFIX}{step}"] == "accepted"
    outbox.evaluate(2)
    assert inbox.alerts == [alert]
    site.set(**{name: right})
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, f"{step} failed", "seen 1 time")


def test_two_failed_halves_are_two_alerts_and_one_recovery(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    application = site.application
    site.set(POSTGRES_PASSWORD=CANARY, MINIO_SECRET_KEY=CANARY)
    site.run(home)
    outbox.evaluate(2)
    assert sorted(alert.split("\n")[0] for alert in inbox.alerts) == [
        "[CRITICAL] Backup failed: database_dump",
        "[CRITICAL] Backup failed: minio_archive",
    ]
    site.set(POSTGRES_PASSWORD=application.database.password, MINIO_SECRET_KEY=application.bucket.secret_key)
    assert_a_good_backup_resolves_it(
        site, home, outbox, inbox, "database_dump failed", "minio_archive failed"
    )


def test_only_undelivered_alerts_are_retried(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    application = site.application
    site.set(POSTGRES_PASSWORD=CANARY, MINIO_SECRET_KEY=CANARY)
    inbox.take_only(1)
    site.run(home)
    outbox.evaluate(2)
    assert {alert.split("\n")[0] for alert in inbox.alerts} == {
        "[CRITICAL] Backup failed: database_dump",
        "[CRITICAL] Backup failed: minio_archive",
    }
    inbox.come_up()
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] Backup failed: minio_archive\n")
    site.set(POSTGRES_PASSWORD=application.database.password, MINIO_SECRET_KEY=application.bucket.secret_key)
    assert_a_good_backup_resolves_it(
        site, home, outbox, inbox, "database_dump failed", "minio_archive failed"
    )


def test_the_same_failure_within_the_hour_is_not_reported_again(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    site.set(POSTGRES_PASSWORD=CANARY)
    for _ in range(3):
        site.run(home)
        outbox.evaluate()
    assert len(inbox.alerts) == 1
    site.set(POSTGRES_PASSWORD=site.application.database.password)
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, "seen 3 times")


def test_a_flipped_bit_sends_one_alert_with_the_checks_result(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    assert site.run_selection(
        home, dg.AssetSelection.assets(DATABASE_DUMP, MINIO_ARCHIVE).without_checks()
    ).success
    site.flip_bit(ArtifactKind.DATABASE)
    assert not site.run_selection(
        home, dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(DATABASE_DUMP), "dump_is_complete"))
    ).success
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] Backup failed: database_dump_dump_is_complete\n")
    assert "failed: " in alert
    assert not site.run_selection(home, dg.AssetSelection.assets(RECOVERY_POINT)).success
    assert inbox.alerts[1:][0].startswith("[CRITICAL] Backup failed: recovery_point\n")
    outbox.evaluate()
    assert len(inbox.alerts) == 2
    assert_a_good_backup_resolves_it(
        site, home, outbox, inbox, "dump_is_complete failed", "recovery_point failed"
    )


def test_a_check_that_cannot_run_is_reported_by_its_hook(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """The check was planned and never evaluated, so its reason is the exception's."""
    site.set(BACKUP_DIR=str(site.folder / "nothing-here"))
    checked = site.run_selection(
        home, dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(MINIO_ARCHIVE), "archive_is_readable"))
    )
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] Backup failed: minio_archive_archive_is_readable\nno bucket file in ")
    assert "What to do: Materialize the asset first." in alert
    assert not checked.success
    outbox.evaluate(2)
    assert inbox.alerts == [alert]


def test_a_database_that_shrank_sends_one_high_alert(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, growing: DatabaseSettings
) -> None:
    run(growing, ROWS.format(count=4000))
    assert site.run(home).success
    run(growing, "DELETE FROM jobs WHERE note > '4'")
    site.run(home)
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] Backup failed: database_dump_dump_size_is_plausible\n")
    assert "dropped by more than half" in alert
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, "dump_size_is_plausible failed")


def test_a_database_that_grew_sends_one_low_alert_from_the_outbox(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, growing: DatabaseSettings
) -> None:
    run(growing, ROWS.format(count=100))
    assert site.run(home).success
    run(growing, ROWS.format(count=9000))
    assert site.run(home).success
    assert inbox.texts == []
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[LOW] Check warns: dump_size_is_plausible\ngrew to more than three times")
    assert site.run(home).success
    outbox.evaluate(2)
    [recovery] = inbox.recoveries
    assert "check: dump_size_is_plausible" in recovery


def test_without_a_daemon_the_command_reports_check_warnings_and_their_end(
    site: Site, outbox: Watcher, inbox: Inbox, growing: DatabaseSettings
) -> None:
    """As when cron or a timer starts it. Where a daemon runs as well, nothing is sent twice."""
    run(growing, ROWS.format(count=100))
    assert site.cli("backup").code == 0
    run(growing, ROWS.format(count=9000))
    assert site.cli("backup").code == 0
    [alert] = inbox.alerts
    assert alert.startswith("[LOW] Check warns: dump_size_is_plausible\ngrew to more than three times")
    status = site.cli("status")
    assert (status.code, status.stdout.partition(":")[0]) == (1, "WARNING")
    outbox.evaluate(2)
    assert inbox.alerts == [alert]
    assert site.cli("backup").code == 0
    [recovery] = inbox.recoveries
    assert "check: dump_size_is_plausible" in recovery
    outbox.evaluate(2)
    assert len(inbox.texts) == 2
    assert site.cli("status").code == 0


def test_a_warning_is_not_resolved_by_the_recovery_point_of_its_own_run(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, growing: DatabaseSettings
) -> None:
    """The outbox may run between the check and the commit.

    Only the next night's check resolves the warning.
    """
    run(growing, ROWS.format(count=100))
    assert site.run(home).success
    run(growing, ROWS.format(count=9000))
    captured = dg.AssetSelection.assets(DATABASE_DUMP, MINIO_ARCHIVE) | dg.AssetSelection.checks_for_assets(
        DATABASE_DUMP, MINIO_ARCHIVE
    )
    assert site.run_selection(home, captured).success
    outbox.evaluate()
    assert len(inbox.alerts) == 1
    assert site.run_selection(home, dg.AssetSelection.assets(RECOVERY_POINT)).success
    outbox.evaluate(2)
    assert inbox.recoveries == []


def test_a_warning_is_reported_although_the_check_was_not_reached_the_night_before(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, growing: DatabaseSettings
) -> None:
    """Dagster keeps a planned check that never ran as not evaluated, forever."""
    run(growing, ROWS.format(count=100))
    assert site.run(home).success
    site.set(POSTGRES_PASSWORD=CANARY)
    assert not site.run(home).success
    outbox.evaluate()
    site.set(POSTGRES_PASSWORD=site.application.database.password)
    run(growing, ROWS.format(count=9000))
    assert site.run(home).success
    outbox.evaluate(2)
    assert [alert.split("\n")[0] for alert in inbox.alerts] == [
        "[CRITICAL] Backup failed: database_dump",
        "[LOW] Check warns: dump_size_is_plausible",
    ]


def test_a_resource_that_fails_to_start_is_reported_by_the_outbox_with_its_reason(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    broken = dg.Definitions(
        assets=list(defs.assets or []),
        asset_checks=list(defs.asset_checks or []),
        jobs=[
            dg.define_asset_job(
                "backup_job", selection=dg.AssetSelection.assets(DATABASE_DUMP, MINIO_ARCHIVE, RECOVERY_POINT)
            )
        ],
        resources={"backup": broken_resource},
        executor=dg.in_process_executor,
    )
    assert not execute_job(broken.resolve_job_def("backup_job"), home, None).success
    assert inbox.texts == []
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] Backup failed: backup_job\n")
    assert "no such luck with the resource" in alert
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, "backup_job failed")


@pytest.mark.parametrize("number", ["KILL", pytest.param("INT", marks=pytest.mark.exhaustive)])
def test_a_killed_backup_of_the_command_line_is_reported_by_the_outbox(
    number: str, site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, postgres_bin_dir: Path
) -> None:
    """No hook runs in a process that is killed or interrupted."""
    bin_dir = make_pg_bin_dir(site.folder, postgres_bin_dir, pg_dump_script=HANGS_AFTER_THE_FIRST_BYTES)
    try:
        with site.start_cli("backup", PG_BIN_DIR=str(bin_dir)) as process:
            wait_until(lambda: is_dumping(site), "pg_dump runs")
            outbox.evaluate()
            assert [found.status for found in home.get_runs()] == [dg.DagsterRunStatus.STARTED]
            process.kill() if number == "KILL" else process.send_signal(2)
    finally:
        end_children(site)
    assert inbox.texts == []
    outbox.evaluate(2)
    assert [found.status for found in home.get_runs()] == [dg.DagsterRunStatus.FAILURE]
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] Backup failed: ")
    assert ("it was killed" if number == "KILL" else "cancelled: ") in alert
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, " failed")


def test_a_cancelled_run_is_reported_once_by_the_outbox(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    cancelled = home.create_run_for_job(defs.resolve_job_def("backup_job"))
    home.report_run_canceled(cancelled)
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] Backup cancelled: backup_job\n")
    assert cancelled.run_id in alert
    assert_a_good_backup_resolves_it(site, home, outbox, inbox, "backup_job cancelled")


def test_a_run_that_dagster_will_retry_is_not_reported(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    for will_retry in ("true", "false"):
        failed = home.create_run_for_job(
            defs.resolve_job_def("backup_job"), tags={WILL_RETRY_TAG: will_retry}
        )
        home.report_run_failed(failed, message=f"will retry: {will_retry}")
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert "will retry: false" in alert
