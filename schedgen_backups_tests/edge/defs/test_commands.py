"""The operator's commands around a backup: order, output, time limit, and failures."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import dagster as dg
import pytest

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups_tests.support.inbox import Inbox, open_inbox
from schedgen_backups_tests.support.sites import Site, failures_of, wait_until

pytestmark = [pytest.mark.edge]


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


@pytest.fixture(autouse=True)
def commands(site: Site) -> None:
    """Return commands that each append a line to `said`."""
    for name in ("BEFORE", "AFTER", "FAILURE"):
        site.set(
            **{
                f"BACKUP_{name}_COMMAND": f"echo {name.lower()} $(ls '{site.directory}' | grep -c gz) >> "
                f"'{site.folder}/said'; echo it is said"
            }
        )


def read_said(site: Site) -> list[str]:
    path = site.folder / "said"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_commands_run_before_and_after_and_their_output_is_in_the_run(
    site: Site, instance: dg.DagsterInstance
) -> None:
    result = site.run(instance)
    assert failures_of(result) == {}
    assert read_said(site) == ["before 0", "after 2"]
    logged = [record.user_message for record in instance.all_logs(result.run_id)]
    assert [text for text in logged if "_COMMAND" in text] == [
        "BACKUP_BEFORE_COMMAND exited with code 0\nit is said",
        "BACKUP_AFTER_COMMAND exited with code 0\nit is said",
    ]


def test_a_failed_before_command_aborts_the_backup(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    site.set(BACKUP_BEFORE_COMMAND=f"echo once >> '{site.folder}/said'; echo cannot pause >&2; exit 3")
    result = site.run(instance)
    failures = failures_of(result)
    assert set(failures) == {"database_dump", "minio_archive"}
    assert all(
        "BACKUP_BEFORE_COMMAND exited with code 3: cannot pause" in failure.description
        for failure in failures.values()
    )
    assert site.points() == ()
    assert read_said(site) == ["once", "failure 0"]
    assert any("BACKUP_BEFORE_COMMAND exited with code 3: cannot pause" in text for text in inbox.alerts)
    site.set(BACKUP_BEFORE_COMMAND="exit 3")
    assert site.cli("backup").code == 10


def test_a_failed_backup_runs_only_the_on_failure_command(site: Site, instance: dg.DagsterInstance) -> None:
    site.set(MINIO_BUCKET="no-such-bucket")
    assert set(failures_of(site.run(instance))) == {"minio_archive"}
    assert read_said(site) == ["before 0", "failure 1"]


def test_a_cancelled_backup_runs_the_on_failure_command(site: Site) -> None:
    site.set(BACKUP_BEFORE_COMMAND=f"echo $$ > '{site.folder}/began'; sleep 600")
    with site.start_cli("backup") as process:
        wait_until((site.folder / "began").exists, "the command is run")
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    assert read_said(site) == ["failure 0"]


def test_a_command_over_its_time_limit_is_killed_with_its_children(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(
        BACKUP_COMMAND_TIMEOUT_SECONDS="1",
        BACKUP_BEFORE_COMMAND=f"(sleep 5; echo late >> '{site.folder}/said') & wait",
    )
    failures = failures_of(site.run(instance))
    assert "BACKUP_BEFORE_COMMAND timed out" in failures["database_dump"].description
    assert read_said(site) == ["failure 0"]


def test_a_failed_after_command_raises_an_alert_and_keeps_the_point(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    site.set(BACKUP_AFTER_COMMAND="echo no such service; exit 1")
    assert failures_of(site.run(instance)) == {}
    assert [point.state for point in site.points()] == [PointState.VERIFIED]
    [alert] = inbox.alerts
    assert "[MEDIUM]" in alert
    assert "BACKUP_AFTER_COMMAND exited with code 1: no such service" in alert
    site.set(BACKUP_AFTER_COMMAND="true")
    assert failures_of(site.run(instance)) == {}
    assert len(inbox.recoveries) == 1


def test_a_command_gets_no_secret_of_the_settings(site: Site, instance: dg.DagsterInstance) -> None:
    site.set(BACKUP_BEFORE_COMMAND=f"env > '{site.folder}/environment'")
    assert failures_of(site.run(instance)) == {}
    environment = (site.folder / "environment").read_text(encoding="utf-8")
    assert f"BACKUP_DIR={site.directory}" in environment
    assert "BACKUP_RUN_ID=" in environment
    assert site.application.database.password not in environment
    assert site.application.bucket.secret_key not in environment


def test_an_invalid_limit_is_reported_before_anything_is_captured(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(BACKUP_COMMAND_TIMEOUT_SECONDS="soon")
    assert (
        "BACKUP_COMMAND_TIMEOUT_SECONDS is invalid"
        in failures_of(site.run(instance))["database_dump"].description
    )
    assert read_said(site) == []
