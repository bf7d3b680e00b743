"""Schedule ticks missed while the daemon was down cause exactly one run."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import dagster as dg
import pytest

from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups_tests.edge.runs.test_cancel import running_dagster
from schedgen_backups_tests.support.sites import Site, wait_until

# The test waits for minutes, cron's resolution.
pytestmark = [pytest.mark.edge, pytest.mark.exhaustive, pytest.mark.timeout(1200)]

SCHEDULED_AT = ".dagster/scheduled_execution_time"
MISSED = 3


def list_scheduled(instance: dg.DagsterInstance) -> list[datetime]:
    """Return the times for which runs were scheduled, in order."""
    runs = instance.get_runs(dg.RunsFilter(job_name="backup_job"))
    return sorted(datetime.fromisoformat(run.tags[SCHEDULED_AT]) for run in runs if SCHEDULED_AT in run.tags)


def test_several_missed_nights_are_one_run(site: Site) -> None:
    site.set(BACKUP_SCHEDULE="* * * * *")
    with dg.DagsterInstance.from_config(str(site.home)) as instance:
        [port] = free_ports(1)
        with running_dagster(site, port):
            wait_until(lambda: len(list_scheduled(instance)) >= 1, "the schedule has started a run")
        ended_at = datetime.now(timezone.utc)
        before = len(list_scheduled(instance))
        # Just after a full minute, so that the next tick is one that was missed.
        time.sleep(
            MISSED * 60 + 5 - ended_at.second % 60
            if ended_at.second < 50
            else MISSED * 60 + 65 - ended_at.second
        )
        back_at = datetime.now(timezone.utc)
        [port] = free_ports(1)
        with running_dagster(site, port):
            wait_until(lambda: len(list_scheduled(instance)) > before, "a missed night is made up for")
            wait_until(
                lambda: any(at > back_at for at in list_scheduled(instance)),
                "the next one is taken at its time",
            )
        missed = [at for at in list_scheduled(instance) if ended_at < at <= back_at]
        assert len(missed) == 1, missed
        assert back_at - missed[0] < (back_at - ended_at) / 2
