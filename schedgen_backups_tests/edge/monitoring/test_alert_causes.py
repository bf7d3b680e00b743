"""Causes of alerts that `test_alert_daemon` does not cover, under a running daemon.

One alert each, and one message when resolved. Checks, resources and schedules fail while a file says so
(`breakable_location`). To simulate days without a backup, the test puts back the watch's cursor: a faked
clock (libfaketime) makes Dagster's gRPC hang.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.monitoring.watch import WatchCursor
from schedgen_backups_tests.edge.monitoring.test_alert_daemon import (
    alerts_of,
    present,
    recoveries_of,
    wait_for,
)
from schedgen_backups_tests.edge.runs.test_cancel import LAUNCH, ask, running_dagster
from schedgen_backups_tests.support.breakable_location import FOLDER_VARIABLE
from schedgen_backups_tests.support.inbox import Inbox, open_inbox
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Application, Site, wait_until

# The daemon needs four minutes: `make test-daemons`, which CI runs.
pytestmark = [pytest.mark.edge, pytest.mark.exhaustive]

PROJECT = Path(__file__).resolve().parents[3]
MODULE = "schedgen_backups_tests.support.breakable_location"
SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": MODULE, "jobName": "backup_job"}
ROWS = "INSERT INTO jobs (note) SELECT md5(n::text) FROM generate_series(1, {count}) AS n"


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


@pytest.fixture
def growing_site(site: Site, postgres_server: EmbeddedPostgres) -> Iterator[Site]:
    """Return a site whose database the test may change."""
    name = f"growing_{uuid4().hex}"
    database = postgres_server.create_database(name)
    run(database, "CREATE TABLE jobs (id serial PRIMARY KEY, s3_key text, note text)")
    site.application = Application(database, site.application.bucket)
    site.set(POSTGRES_DB=name, PYTHONPATH=str(PROJECT), **{FOLDER_VARIABLE: str(site.folder)})
    yield site
    postgres_server.drop_database(name)


def launch(port: int) -> str:
    launched = ask(port, LAUNCH, {"params": {"selector": SELECTOR, "mode": "default"}})
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def make_watch(site: Site) -> Callable[[str, dg.DagsterRunStatus], None]:
    """Return a function that waits until a run has ended with this status."""

    def watch(run_id: str, status: dg.DagsterRunStatus) -> None:
        def has_ended() -> bool:
            with dg.DagsterInstance.from_config(str(site.home)) as history:
                found = history.get_run_by_id(run_id)
                return found is not None and found.is_finished and found.status is status

        wait_until(has_ended, f"run {run_id} ends as {status.value}")

    return watch


@pytest.mark.timeout(900)
def test_failed_checks_resources_and_ticks_send_one_alert_and_one_recovery(
    growing_site: Site, inbox: Inbox
) -> None:
    site = growing_site
    [port] = free_ports(1)
    watch = make_watch(site)
    run(site.application.database, ROWS.format(count=4000))
    with running_dagster(site, port, MODULE):
        watch(launch(port), dg.DagsterRunStatus.SUCCESS)
        run(site.application.database, "DELETE FROM jobs WHERE note > '4'")
        watch(launch(port), dg.DagsterRunStatus.FAILURE)
        alert = wait_for(inbox, 1, alerts_of, "alert of the failed blocking check")
        assert alert.startswith("[HIGH] Backup failed: database_dump_dump_size_is_plausible\n")

        run(site.application.database, ROWS.format(count=20000))
        watch(launch(port), dg.DagsterRunStatus.SUCCESS)
        alert = wait_for(inbox, 2, alerts_of, "alert of the check that warns")
        assert alert.startswith("[LOW] Check warns: dump_size_is_plausible\n")
        assert "dump_size_is_plausible failed" in wait_for(
            inbox, 1, recoveries_of, "the good run ends the first alert"
        )

        with present(site.folder / "broken resource"):
            watch(launch(port), dg.DagsterRunStatus.FAILURE)
            alert = wait_for(inbox, 3, alerts_of, "alert of the resource that failed to start")
            assert alert.startswith("[CRITICAL] Backup failed: backup_job\n")
            assert "no such luck with the resource" in alert
        watch(launch(port), dg.DagsterRunStatus.SUCCESS)
        wait_until(
            lambda: all(
                kind in "".join(inbox.recoveries) for kind in ("backup_job failed", "check: dump_size")
            ),
            "both are over",
        )

        before = len(inbox.recoveries)
        with present(site.folder / "broken schedule"):
            alert = wait_for(inbox, 4, alerts_of, "alert of the schedule that raised")
            assert alert.startswith("[CRITICAL] No run was started: breakable_schedule\n")
            assert "no such luck with the schedule" in alert
        assert "tick: breakable_schedule" in wait_for(
            inbox, before + 1, recoveries_of, "the schedule works again"
        )
    assert len(inbox.alerts) == 4, inbox.alerts


@pytest.mark.timeout(900)
def test_an_alert_waits_for_its_channel_and_days_without_a_backup_alert(
    growing_site: Site, inbox: Inbox
) -> None:
    """No channel accepts the first daemon's alert.

    Then two days pass for the watch: Dagster's own command puts its cursor back.
    """
    site = growing_site
    site.set(BACKUP_MAX_AGE_HOURS="26")
    run(site.application.database, ROWS.format(count=10))
    [port] = free_ports(1)
    watch = make_watch(site)
    inbox.go_down()
    with running_dagster(site, port, MODULE):
        with present(site.folder / "broken resource"):
            watch(launch(port), dg.DagsterRunStatus.FAILURE)
        wait_until(lambda: len(inbox.texts) > 1, "the outbox tried more than once and was refused")
        wait_until(lambda: has_cursor(site, "freshness_watch"), "the watch over silence has begun")
    inbox.come_up()
    cursor = WatchCursor(watched_since=datetime.now(timezone.utc) - timedelta(hours=48)).model_dump_json()
    words = [
        sys.executable,
        "-m",
        "dagster",
        "sensor",
        "cursor",
        "freshness_watch",
        "--set",
        cursor,
        "--module-name",
        MODULE,
    ]
    subprocess.run(words, cwd=site.folder, check=True, capture_output=True)
    with running_dagster(site, port, MODULE):
        wait_until(lambda: len(inbox.alerts) > 1, "both alerts")
        titles = sorted(alert.split("\n", 1)[0] for alert in inbox.alerts)
        assert titles == [
            "[CRITICAL] Backup failed: backup_job",
            "[CRITICAL] No verified recovery point for 26 hours",
        ]
        watch(launch(port), dg.DagsterRunStatus.SUCCESS)
        wait_until(
            lambda: all(
                kind in "".join(inbox.recoveries)
                for kind in ("backup_job failed", "no verified recovery point")
            ),
            "both are over",
        )
    assert len(inbox.alerts) == 2, inbox.alerts


def has_cursor(site: Site, sensor: str) -> bool:
    with dg.DagsterInstance.from_config(str(site.home)) as history:
        states = [state for state in history.all_instigator_state() if state.instigator_name == sensor]
        return any(getattr(state.instigator_data, "cursor", None) for state in states)
