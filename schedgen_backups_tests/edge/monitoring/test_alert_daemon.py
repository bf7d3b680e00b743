"""Alerts of a real `dagster dev` whose runs fail, are cancelled and are killed.

One daemon serves the whole test, because sensors run every thirty seconds. `test_outbox` covers each failure
separately, without a daemon.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups_tests.edge.runs.test_cancel import (
    LAUNCH,
    SELECTOR,
    TERMINATE,
    ask,
    end_children,
    is_dumping,
    running_dagster,
)
from schedgen_backups_tests.support.inbox import CANARY, PATH_CANARY, Inbox, open_inbox
from schedgen_backups_tests.support.sites import Site, find_client_processes, wait_until

pytestmark = [pytest.mark.edge]

# A file decides how pg_dump behaves when it is called: the daemon's environment cannot be changed from
# outside.
PG_DUMP = """#!/bin/sh
for word; do [ "$word" = --version ] && exec {real} --version; done
[ -e {folder}/hang ] && exec sleep 3600
[ -e {folder}/wrong ] && export PGPASSWORD={canary}
exec {real} "$@"
"""


@contextmanager
def present(marker: Path) -> Iterator[None]:
    """Make pg_dump behave this way within the block."""
    marker.touch()
    try:
        yield
    finally:
        marker.unlink()


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


@pytest.fixture
def folder(site: Site, postgres_bin_dir: Path) -> Path:
    """Return PostgreSQL's programs with a pg_dump that hangs or fails if a file beside it says so."""
    made = site.folder / "pg-bin"
    made.mkdir()
    for program in postgres_bin_dir.iterdir():
        if program.name != "pg_dump":
            (made / program.name).symlink_to(program)
    (made / "pg_dump").write_text(
        PG_DUMP.format(real=postgres_bin_dir / "pg_dump", folder=made, canary=CANARY)
    )
    (made / "pg_dump").chmod(0o755)
    site.set(PG_BIN_DIR=str(made))
    return made


def find_worker(site: Site) -> int:
    """Return the process that Dagster's launcher started for the run; it starts pg_dump."""
    [hanging] = [
        process_id
        for process_id, command in find_client_processes(site.application).items()
        if command.startswith("sleep")
    ]
    status = Path(f"/proc/{hanging}/status").read_text()
    [parent] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")]
    assert b"multiprocessing" in Path(f"/proc/{parent}/cmdline").read_bytes()
    return parent


def wait_for(inbox: Inbox, number: int, kind: Callable[[Inbox], list[str]], what: str) -> str:
    """Wait until this many messages of the kind have arrived; return the last."""
    wait_until(lambda: len(kind(inbox)) >= number, what)
    assert len(kind(inbox)) == number, inbox.texts
    return kind(inbox)[-1]


def alerts_of(inbox: Inbox) -> list[str]:
    return inbox.alerts


def recoveries_of(inbox: Inbox) -> list[str]:
    return inbox.recoveries


@pytest.mark.timeout(900)
def test_failed_cancelled_and_killed_runs_send_one_alert_each(site: Site, inbox: Inbox, folder: Path) -> None:
    """The daemon's own sensors and run monitoring run at their usual intervals."""
    [port] = free_ports(1)

    def launch() -> str:
        launched = ask(port, LAUNCH, {"params": {"selector": SELECTOR, "mode": "default"}})
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    try:
        with running_dagster(site, port), dg.DagsterInstance.from_config(str(site.home)) as history:

            def has_ended(run_id: str, status: dg.DagsterRunStatus) -> bool:
                found = history.get_run_by_id(run_id)
                return found is not None and found.status is status

            with present(folder / "wrong"):
                failed = launch()
                alert = wait_for(inbox, 1, alerts_of, "alert of the failed run")
                assert alert.startswith("[CRITICAL] Backup failed: database_dump\n")
                assert failed in alert
                assert "password authentication failed" in alert
                wait_until(lambda: has_ended(failed, dg.DagsterRunStatus.FAILURE), "the failed run has ended")
            with present(folder / "hang"):
                cancelled = launch()
                wait_until(lambda: is_dumping(site), "pg_dump runs")
                assert ask(port, TERMINATE, {"id": cancelled})["__typename"] == "TerminateRunSuccess"
                alert = wait_for(inbox, 2, alerts_of, "alert of the cancelled run")
                assert alert.startswith("[HIGH] Backup cancelled: backup_job\n")
                assert cancelled in alert
                killed = launch()
                wait_until(lambda: is_dumping(site), "pg_dump runs again")
                os.kill(find_worker(site), signal.SIGKILL)
                end_children(site)
                alert = wait_for(inbox, 3, alerts_of, "alert of the killed run")
                assert alert.startswith("[CRITICAL] Backup failed: backup_job\n")
                assert killed in alert
            good = launch()
            wait_until(lambda: has_ended(good, dg.DagsterRunStatus.SUCCESS), "the good run has ended")
            recovery = wait_for(inbox, 1, recoveries_of, "the recovery")
            for kind in ("database_dump failed", "backup_job cancelled", "backup_job failed"):
                assert kind in recovery
        assert len(inbox.alerts) == 3, inbox.alerts
        secrets = (
            site.application.database.password,
            site.application.bucket.secret_key,
            CANARY,
            PATH_CANARY,
        )
        assert all(secret.encode() not in inbox.bodies for secret in secrets)
    finally:
        end_children(site)
