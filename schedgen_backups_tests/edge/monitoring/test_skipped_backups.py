"""A scheduled backup that takes longer than its interval: ticks are skipped, with one alert per incident.

Ticks and runs are those of a real daemon, and of a real schedule without one. Cron's resolution is a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.definitions import defs
from schedgen_backups.site_names import BACKUP_SCHEDULE
from schedgen_backups_tests.edge.runs.test_cancel import running_dagster
from schedgen_backups_tests.support.inbox import Inbox, Ticks, Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site, wait_until

pytestmark = [pytest.mark.edge]

OF_THE_SCHEDULE = {"dagster/schedule_name": BACKUP_SCHEDULE}
REASON = "the scheduled backup of 2026-11-22 02:00 UTC still runs"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


@pytest.fixture
def home(site: Site) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(site.home)) as opened:
        yield opened


def tick(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    """Evaluate the schedule as the daemon does."""
    schedule = defs.resolve_schedule_def(BACKUP_SCHEDULE)
    with dg.build_schedule_context(instance, scheduled_execution_time=datetime.now(timezone.utc)) as context:
        answer = schedule(context)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


def add_run(home: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str]) -> dg.DagsterRun:
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="schedgen_backups.definitions"))
    origin = RemoteRepositoryOrigin(location, "__repository__").get_job_origin("backup_job")
    job = defs.resolve_job_def("backup_job")
    return home.create_run_for_job(job, status=status, tags=tags, remote_job_origin=origin)


@pytest.mark.parametrize("status", UNFINISHED, ids=str)
def test_a_tick_is_skipped_while_the_scheduled_backup_is_unfinished(
    home: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = add_run(home, status, OF_THE_SCHEDULE)
    answer = tick(home)
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message).startswith("the scheduled backup of ")
    home.delete_run(run.run_id)
    assert isinstance(tick(home), dg.RunRequest)


@pytest.mark.parametrize(
    "status",
    [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
    ids=str,
)
def test_a_finished_backup_skips_nothing(home: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    add_run(home, status, OF_THE_SCHEDULE)
    assert isinstance(tick(home), dg.RunRequest)


def test_a_backup_by_hand_delays_the_scheduled_one_and_does_not_replace_it(home: dg.DagsterInstance) -> None:
    """It could fail, and the night would have no backup."""
    add_run(home, dg.DagsterRunStatus.STARTED, {})
    assert isinstance(tick(home), dg.RunRequest)


def test_each_incident_has_one_alert_and_one_message_when_it_is_over(
    site: Site, home: dg.DagsterInstance, inbox: Inbox
) -> None:
    ticks = Ticks(home, BACKUP_SCHEDULE)
    outbox = Watcher("alert_outbox", home)
    ticks.add(TickStatus.SUCCESS, seconds_ago=10_000)
    outbox.evaluate(2)
    assert inbox.texts == []
    for seconds_ago in (9000, 8000):
        ticks.add(TickStatus.SKIPPED, reason=REASON, seconds_ago=seconds_ago)
        outbox.evaluate(2)
    [alert] = inbox.texts
    assert alert.startswith("[MEDIUM] Scheduled backup skipped\n")
    assert REASON in alert
    assert "docs/alerts/backup-skipped.md" in alert
    run = add_run(home, dg.DagsterRunStatus.STARTED, OF_THE_SCHEDULE)
    ticks.add(TickStatus.SUCCESS, seconds_ago=7000, run_ids=[run.run_id])
    outbox.evaluate(2)
    assert inbox.texts == [alert], "whether this one is in time is not known yet"
    home.delete_run(run.run_id)
    done = site.run(home)
    ticks.add(TickStatus.SUCCESS, seconds_ago=6000, run_ids=[done.run_id])
    outbox.evaluate(2)
    [message] = inbox.recoveries
    assert "skipped backup: scheduled backup" in message
    ticks.add(TickStatus.SKIPPED, reason=REASON, seconds_ago=5000)
    outbox.evaluate(2)
    assert len(inbox.alerts) == 2, "a later one is another incident"


def test_the_alert_is_repeated_until_a_channel_accepts_it(home: dg.DagsterInstance, inbox: Inbox) -> None:
    Ticks(home, BACKUP_SCHEDULE).add(TickStatus.SKIPPED, reason=REASON, seconds_ago=60)
    outbox = Watcher("alert_outbox", home)
    inbox.go_down()
    outbox.evaluate()
    inbox.come_up()
    outbox.evaluate(2)
    assert len(inbox.alerts) == 1


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_daemon_never_queues_backups_that_take_longer_than_their_interval(
    site: Site, home: dg.DagsterInstance, inbox: Inbox
) -> None:
    """A run of 75 seconds every minute; then the runs become fast."""
    marker = site.folder / "slow"
    marker.touch()
    site.set(BACKUP_SCHEDULE="* * * * *", BACKUP_BEFORE_COMMAND=f"test ! -e {marker} || sleep 75")
    [port] = free_ports(1)
    most_unfinished = 0

    def count_finished() -> int:
        nonlocal most_unfinished
        scheduled = home.get_runs(dg.RunsFilter(tags=OF_THE_SCHEDULE))
        most_unfinished = max(most_unfinished, sum(not run.is_finished for run in scheduled))
        return sum(run.status is dg.DagsterRunStatus.SUCCESS for run in scheduled)

    with running_dagster(site, port):
        for number in (1, 2):
            wait_until(lambda number=number: count_finished() >= number, f"slow backup {number} has ended")
        marker.unlink()
        wait_until(lambda: count_finished() >= 3 and bool(inbox.recoveries), "a fast one has")
    assert most_unfinished == 1
    [alert] = inbox.alerts
    assert alert.startswith("[MEDIUM] Scheduled backup skipped\n")
    [message] = inbox.recoveries
    assert "skipped backup: scheduled backup" in message
