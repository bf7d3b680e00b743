"""The monthly report is written and mailed; old runs go, but never what the UI or a report still shows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import dagster as dg
import psycopg
import psycopg.conninfo
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from dagster._core.test_utils import instance_for_test

from schedgen_backups.core.history.events import PointCommitted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.definitions import defs
from schedgen_backups.defs.housekeeping import remove_old_runs
from schedgen_backups.monitoring.old_events import remove_old_events
from schedgen_backups_tests.support.alerts import closed_port
from schedgen_backups_tests.support.inbox import Watcher
from schedgen_backups_tests.support.site_stores import UNREACHABLE
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]
UTC = timezone.utc


class _MailBox:
    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.is_full = False

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if self.is_full:
            return "552 the box is full"
        self.mails.append(message_from_bytes(envelope.content, _class=EmailMessage, policy=policy.default))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture
def quiet_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site whose servers are never asked."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    site.directory.mkdir(mode=0o700, exist_ok=True)
    return site


@pytest.fixture
def mail_box(quiet_site: Site) -> Iterator[_MailBox]:
    box = _MailBox()
    controller = Controller(box, hostname=LOOPBACK, port=closed_port())
    controller.start()
    quiet_site.set(
        BACKUP_ALERT_EMAIL="audit@example.com",
        SMTP_HOST=LOOPBACK,
        SMTP_PORT=str(controller.port),
        SMTP_FROM="backup@example.com",
        SMTP_SECURITY="insecure",
        BACKUP_NAME="production",
    )
    yield box
    controller.stop()


def run(site: Site, instance: dg.DagsterInstance, job: str) -> dg.ExecuteInProcessResult:
    del site
    return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False)


def record_point(site: Site) -> str:
    """Record a point in the middle of the last month; return the month."""
    at = datetime.now(UTC).replace(day=1) - timedelta(days=15)
    event = PointCommitted(
        at=at,
        point_id=f"{at:%Y%m%d_020000}",
        snapshot_at=at,
        manifest_sha256="ab" * 32,
        size_bytes=7,
    )
    History(site.directory).record(event)
    return f"{at:%Y-%m}"


def test_the_report_of_the_last_month_is_written_and_mailed(
    quiet_site: Site, instance: dg.DagsterInstance, mail_box: _MailBox
) -> None:
    month = record_point(quiet_site)
    assert run(quiet_site, instance, "monthly_report_job").success
    folder = quiet_site.directory / "reports"
    page, values = folder / f"report-{month}.html", folder / f"report-{month}.json"
    assert {path.name for path in folder.iterdir()} == {page.name, values.name}
    assert len(json.loads(values.read_bytes())["points"]) == 1
    [mail] = mail_box.mails
    assert mail["Subject"] == f"production: Report of backups, {month}"
    [attached] = mail.iter_attachments()
    assert attached.get_filename() == page.name
    content = attached.get_content()
    assert (content.encode() if isinstance(content, str) else content).split() == page.read_bytes().split()


def test_a_refused_mail_fails_the_run_and_keeps_the_report(
    quiet_site: Site, instance: dg.DagsterInstance, mail_box: _MailBox
) -> None:
    mail_box.is_full = True
    result = run(quiet_site, instance, "monthly_report_job")
    [failure] = failures_of(result).values()
    assert "its mail was refused" in failure.description
    assert len(list((quiet_site.directory / "reports").iterdir())) == 2


def test_without_mail_the_report_is_only_written(quiet_site: Site, instance: dg.DagsterInstance) -> None:
    assert run(quiet_site, instance, "monthly_report_job").success
    assert len(list((quiet_site.directory / "reports").iterdir())) == 2


def test_old_runs_go_but_not_the_last_of_an_asset_or_a_check(
    site: Site, instance: dg.DagsterInstance
) -> None:
    first, second = site.run(instance), site.run(instance)
    assert first.success
    assert second.success
    keys = list(defs.resolve_asset_graph().asset_check_keys)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert remove_old_runs(instance, soon - timedelta(days=1), keys) == 0
    assert remove_old_runs(instance, soon, keys) == 1
    assert [run.run_id for run in instance.get_runs()] == [second.run_id]
    assert remove_old_runs(instance, soon, keys) == 0
    latest = instance.get_latest_materialization_event(dg.AssetKey("recovery_point"))
    assert latest is not None
    assert latest.run_id == second.run_id
    committed = [
        event for event in History(site.directory).read().events if isinstance(event, PointCommitted)
    ]
    assert [event.run_id for event in committed] == [first.run_id, second.run_id]


def measure(home: Path) -> dict[str, int]:
    """Return the number of files of Dagster's storage, and of rows in all tables that grow with runs."""
    counted = {
        "files": sum(
            path.is_file() for folder in ("history", "storage") for path in (home / folder).rglob("*")
        )
    }
    for path in sorted((home / "history").rglob("*.db")):
        with closing(sqlite3.connect(path)) as database:
            for table in ("event_logs", "asset_check_executions", "runs", "run_tags", "asset_event_tags"):
                with suppress(sqlite3.OperationalError):  # another file has this table
                    [[rows]] = database.execute(f"SELECT count(*) FROM {table}").fetchall()
                    counted[table] = counted.get(table, 0) + rows
    return counted


def test_dagsters_storage_is_as_large_after_many_runs_as_after_one(site: Site) -> None:
    """Each hour a backup, what the watch finds, and the removal of what is old."""
    keys = list(defs.resolve_asset_graph().asset_check_keys)
    sizes: list[dict[str, int]] = []
    with dg.DagsterInstance.from_config(str(site.home)) as instance:
        for _hour in range(3):
            site.set(BACKUP_ALLOW_EMPTY="true")
            assert site.run(instance).success
            Watcher("freshness_watch", instance).evaluate()
            soon = datetime.now(UTC) + timedelta(minutes=1)
            remove_old_runs(instance, soon, keys)
            remove_old_events(instance, soon)
            sizes.append(measure(site.home))
        latest = instance.get_latest_asset_check_evaluation_record(
            dg.AssetCheckKey(dg.AssetKey("recovery_point"), "recovery_point_is_intact")
        )
        assert latest is not None
        assert latest.evaluation is not None
        assert latest.evaluation.passed
    assert sizes[0]["asset_check_executions"] > 0
    assert sizes[1] == sizes[2]


def test_old_events_go_in_postgresql_too(site: Site, tmp_path: Path) -> None:
    """The storage of the container deployment."""
    server = site.application.database
    with psycopg.connect(make_conninfo(server), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS dagster_history WITH (FORCE)")
        connection.execute("CREATE DATABASE dagster_history")
    storage = {
        "username": server.user,
        "password": server.password,
        "hostname": server.host,
        "port": server.port,
        "db_name": "dagster_history",
    }
    try:
        overrides = {"storage": {"postgres": {"postgres_db": storage}}}
        with instance_for_test(overrides=overrides, temp_dir=str(tmp_path)) as instance:
            key = dg.AssetKey("recovery_point")
            for _time in range(3):
                instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(asset_key=key, check_name="x", passed=True)
                )
                instance.report_runless_asset_event(dg.AssetObservation(key))
            assert remove_old_events(instance, datetime.now(UTC) - timedelta(hours=1)) == 0
            # Two evaluations, their two events, and two observations.
            assert remove_old_events(instance, datetime.now(UTC) + timedelta(hours=1)) == 6
            assert len(instance.fetch_observations(key, limit=5).records) == 1
    finally:
        with psycopg.connect(make_conninfo(server), autocommit=True) as connection:
            connection.execute("DROP DATABASE dagster_history WITH (FORCE)")


def make_conninfo(server: DatabaseSettings) -> str:
    return psycopg.conninfo.make_conninfo(
        host=server.host, port=server.port, user=server.user, password=server.password, dbname="postgres"
    )


def test_recent_events_stay(site: Site) -> None:
    with dg.DagsterInstance.from_config(str(site.home)) as instance:
        for _time in range(2):
            Watcher("freshness_watch", instance).evaluate()
        assert remove_old_events(instance, datetime.now(UTC) - timedelta(hours=1)) == 0
        assert remove_old_events(instance, datetime.now(UTC) + timedelta(minutes=1)) > 0


def test_the_removal_job_follows_the_setting(quiet_site: Site, instance: dg.DagsterInstance) -> None:
    old = run(quiet_site, instance, "monthly_report_job").run_id
    quiet_site.set(DAGSTER_KEEP_DAYS="0")
    assert run(quiet_site, instance, "remove_old_runs_job").success
    quiet_site.set(DAGSTER_KEEP_DAYS="90")
    assert run(quiet_site, instance, "remove_old_runs_job").success
    assert old in {found.run_id for found in instance.get_runs()}


@pytest.mark.parametrize("name", ["DAGSTER_KEEP_DAYS", "REPORT_SCHEDULE"])
def test_a_wrong_setting_of_housekeeping_fails_its_jobs_and_no_backup(
    site: Site, instance: dg.DagsterInstance, name: str
) -> None:
    site.set(**{name: "soon"})
    for job in ("remove_old_runs_job", "monthly_report_job"):
        [failure] = failures_of(run(site, instance, job)).values()
        assert name in failure.description
    assert site.run(instance).success
    assert name in site.cli("doctor").stdout
