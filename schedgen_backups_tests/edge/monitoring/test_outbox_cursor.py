"""The outbox's cursor: it moves past what a channel accepted and no further, and ignores history.

Ticks of schedules are written into the instance as the daemon writes them; runs are real ones. Which failure
is reported by which part is in `test_outbox`.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent
from dagster._core.scheduler.instigation import TickStatus

from schedgen_backups.definitions import defs
from schedgen_backups.monitoring.outbox import OutboxCursor
from schedgen_backups.site_names import OUTBOX_SENSOR
from schedgen_backups_tests.support.inbox import CANARY, PATH_CANARY, Inbox, Ticks, Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

SCHEDULE = "daily_backup_schedule"
DAY_SECONDS = 86400


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


def read_cursor(outbox: Watcher) -> OutboxCursor:
    return OutboxCursor.model_validate_json(outbox.cursor or "{}")


def add_failed_run(home: dg.DagsterInstance, *, seconds_ago: float, message: str) -> None:
    """Add a run that failed this long ago."""
    run = home.create_run_for_job(defs.resolve_job_def("backup_job"))
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.RUN_FAILURE.value, job_name=run.job_name, message=message
    )
    home.handle_new_event(
        dg.EventLogEntry(
            error_info=None,
            level=logging.ERROR,
            user_message=message,
            run_id=run.run_id,
            timestamp=time.time() - seconds_ago,
            job_name=run.job_name,
            dagster_event=event,
        )
    )


def rename_table(site: Site, old_name: str, new_name: str) -> None:
    """Rename a table of Dagster's own database within the block."""
    with closing(sqlite3.connect(site.home / "history" / "runs" / "index.db")) as connection, connection:
        connection.execute(f"ALTER TABLE {old_name} RENAME TO {new_name}")


def test_a_failed_tick_sends_one_alert_and_a_good_one_resolves_it(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """Without a run, no hook runs: this is how a setting that Dagster itself refuses shows."""
    ticks = Ticks(home, SCHEDULE)
    ticks.add(TickStatus.FAILURE, reason="the schedule's function raised")
    outbox.evaluate(3)
    [alert] = inbox.alerts
    assert alert.startswith(f"[CRITICAL] No run was started: {SCHEDULE}\nthe schedule's function raised\n")
    ticks.add(TickStatus.FAILURE, reason="the schedule's function raised again")
    outbox.evaluate(2)
    assert inbox.texts == [alert]
    ticks.add(TickStatus.SUCCESS)
    outbox.evaluate(2)
    [recovery] = inbox.recoveries
    assert f"tick: {SCHEDULE}" in recovery
    assert "seen 2 times" in recovery
    assert inbox.alerts == [alert]


def test_a_good_backup_does_not_resolve_a_schedule_failure(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """A manual backup does not make the schedule start one tonight."""
    Ticks(home, SCHEDULE).add(TickStatus.FAILURE, reason="still broken")
    outbox.evaluate()
    assert site.run(home).success
    outbox.evaluate(2)
    assert (len(inbox.alerts), inbox.recoveries) == (1, [])


def test_a_tick_that_failed_long_after_it_began_is_reported(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """A tick bears its due time: a daemon that was down catches up on a tick of hours ago."""
    sensor, schedule = Ticks(home, "freshness_watch"), Ticks(home, SCHEDULE)
    sensor.add(TickStatus.FAILURE, reason="the sensor raised")
    outbox.evaluate()
    schedule.add(TickStatus.FAILURE, reason="the schedule raised", seconds_ago=3600)
    outbox.evaluate(2)
    assert [alert.split("\n")[1] for alert in inbox.alerts] == ["the sensor raised", "the schedule raised"]


def test_the_outbox_does_not_report_its_own_ticks(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """A tick that failed because an alert was not delivered would be reported forever."""
    Ticks(home, OUTBOX_SENSOR).add(TickStatus.FAILURE, reason="the outbox raised")
    outbox.evaluate(2)
    assert inbox.texts == []


def test_what_is_older_than_two_days_at_the_first_evaluation_is_ignored(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    add_failed_run(home, seconds_ago=3 * DAY_SECONDS, message="three days ago")
    Ticks(home, SCHEDULE).add(TickStatus.FAILURE, reason="a tick three days ago", seconds_ago=3 * DAY_SECONDS)
    outbox.evaluate()
    assert inbox.texts == []
    add_failed_run(home, seconds_ago=DAY_SECONDS, message="yesterday")
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert "yesterday" in alert


def test_undelivered_alerts_are_sent_late_even_after_two_days(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    outbox.evaluate()
    cursor = read_cursor(outbox)
    assert cursor.since_seconds == pytest.approx(time.time() - 2 * DAY_SECONDS, abs=60)
    # As if the first evaluation had been four days ago, and the channel down since then.
    outbox.cursor = cursor.model_copy(
        update={"since_seconds": time.time() - 6 * DAY_SECONDS}
    ).model_dump_json()
    add_failed_run(home, seconds_ago=3 * DAY_SECONDS, message="three days ago")
    inbox.go_down()
    outbox.evaluate()
    inbox.come_up()
    outbox.evaluate(2)
    [alert] = inbox.texts
    assert "three days ago" in alert


def test_an_undelivered_alert_waits_and_is_sent_once(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    outbox.evaluate()
    before = read_cursor(outbox)
    inbox.go_down()
    site.set(POSTGRES_PASSWORD=CANARY)
    site.run(home)
    outbox.evaluate(3)
    assert read_cursor(outbox).failure_id == before.failure_id
    assert len(inbox.texts) == 4
    inbox.come_up()
    outbox.evaluate(3)
    [alert] = inbox.texts
    assert alert.startswith("[CRITICAL] Backup failed: database_dump\n")
    assert read_cursor(outbox).failure_id > before.failure_id


def test_an_undelivered_recovery_waits_and_is_sent_once(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    site.set(POSTGRES_PASSWORD=CANARY)
    site.run(home)
    inbox.go_down()
    site.set(POSTGRES_PASSWORD=site.application.database.password)
    assert site.run(home).success
    outbox.evaluate(2)
    inbox.come_up()
    outbox.evaluate(3)
    [recovery] = inbox.texts
    assert recovery.startswith("[INFO] Backups work again")


def test_a_cancelled_run_and_a_tick_wait_for_the_channel(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    inbox.go_down()
    home.report_run_canceled(home.create_run_for_job(defs.resolve_job_def("backup_job")))
    Ticks(home, SCHEDULE).add(TickStatus.FAILURE, reason="no run")
    outbox.evaluate(2)
    inbox.come_up()
    outbox.evaluate(3)
    assert sorted(text.split("\n")[0] for text in inbox.texts) == [
        "[CRITICAL] No run was started: daily_backup_schedule",
        "[HIGH] Backup cancelled: backup_job",
    ]


def test_without_a_channel_the_cursor_moves_and_nothing_piles_up(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """A channel that is configured later gets what happens from then on."""
    site.unset("BACKUP_ALERT_WEBHOOK_URL")
    add_failed_run(home, seconds_ago=60, message="no channel yet")
    outbox.evaluate()
    site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
    outbox.evaluate(2)
    assert inbox.alerts == []


@pytest.mark.timeout(120)
def test_a_tick_ends_in_time_with_a_slow_channel_and_the_rest_is_sent_later(
    home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has its share of the time, so none keeps the others from reporting."""
    monkeypatch.setattr("schedgen_backups.monitoring.outbox._PART_SECONDS", 0.5)
    monkeypatch.setattr("schedgen_backups.monitoring.outbox._TICK_SECONDS", 1.0)
    add_failed_run(home, seconds_ago=60, message="lost")
    for name in (SCHEDULE, "weekly_drill_schedule", "weekly_audit_schedule", "retention_sensor"):
        Ticks(home, name).add(TickStatus.FAILURE, reason=f"no run of {name}", seconds_ago=30)
    inbox.answer_slowly(seconds_per_byte=0.3)
    started_at = time.monotonic()
    outbox.evaluate()
    assert time.monotonic() - started_at < 5
    assert 0 < len(inbox.alerts) < 5
    outbox.evaluate(5)
    titles = [alert.partition("\n")[0] for alert in inbox.alerts]
    assert len(titles) == len(set(titles)) == 5


def test_a_failing_part_of_the_outbox_is_reported_once_and_stops_no_other(
    site: Site, home: dg.DagsterInstance, outbox: Watcher, inbox: Inbox
) -> None:
    """Dagster's database lacks the table of checks, so warnings cannot be found.

    The newer failure is still reported.
    """
    add_failed_run(home, seconds_ago=60, message="one failure")
    outbox.evaluate()
    add_failed_run(home, seconds_ago=30, message="the other failure")
    home.report_run_canceled(home.create_run_for_job(defs.resolve_job_def("backup_job")))
    rename_table(site, "asset_check_executions", "elsewhere")
    outbox.evaluate(3)
    titles = [alert.split("\n")[0] for alert in inbox.alerts]
    assert titles == [
        "[CRITICAL] Backup failed: backup_job",
        "[HIGH] Backup cancelled: backup_job",
        "[HIGH] Alerts may be missing: warnings of checks",
    ]
    rename_table(site, "elsewhere", "asset_check_executions")
    outbox.evaluate(2)
    [recovery] = inbox.recoveries
    assert "outbox: warnings of checks" in recovery
