"""The timer under a booted systemd: when it fires, missed nights, failures, and setup's units."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.exit_codes import DATABASE_EXIT_CODE
from schedgen_backups_tests.edge.systemd.installation import (
    BACKUP,
    ENV_FILE,
    POINTS,
    TIMER,
    UNIT_DIR,
    UNITS,
    Installation,
)
from schedgen_backups_tests.support.docker import wait_for

pytestmark = [pytest.mark.edge, pytest.mark.exhaustive, pytest.mark.timeout(900)]

# Its time comes when the test wants it, to the second.
AT_ONCE = "AccuracySec=1s\nRandomizedDelaySec=0\n"
STAMP = f"/var/lib/systemd/timers/stamp-{TIMER}"


def start_timer(installation: Installation, at: datetime) -> None:
    """The timer is on, with a time of day of its own and without its delay."""
    installation.edit(TIMER, f"[Timer]\nOnCalendar=\nOnCalendar=*-*-* {at:%H:%M:%S} UTC\n{AT_ONCE}")
    installation.machine.run("systemctl", "enable", "--now", TIMER)


def wait_for_backup(installation: Installation) -> None:
    """A backup of the timer has come to its end."""
    installation.wait_for_point()
    wait_for(
        lambda: installation.show(BACKUP, "ActiveState") == "inactive" or None, "the backup's unit has ended"
    )


def test_the_timer_takes_a_verified_point_when_its_time_comes(installation: Installation) -> None:
    installation.add_units()
    start_timer(installation, datetime.now(timezone.utc) + timedelta(seconds=10))
    installation.assert_took_points(0)
    wait_for_backup(installation)
    installation.assert_took_points(1)
    [point] = installation.points
    assert point.manifest is not None
    assert (point.manifest.origin.reason, point.manifest.origin.user) == ("timer", "schedgen-backups")
    assert installation.show(BACKUP, "Result") == "success"
    assert installation.command("status")[0] == 0


def test_a_boot_makes_up_for_several_missed_nights_with_one_backup(installation: Installation) -> None:
    installation.add_units()
    machine = installation.machine
    # Half a day away, so that nothing but what was missed is due.
    start_timer(installation, datetime.now(timezone.utc) + timedelta(hours=12))
    machine.power_off()
    installation.assert_took_points(0)
    last = time.time() - timedelta(days=3, hours=1).total_seconds()
    os.utime(machine.path(STAMP), (last, last))
    machine.boot()
    wait_for_backup(installation)
    # The database was started by the same boot, and the backup has waited for it.
    database_up = int(installation.show("postgresql.service", "ActiveEnterTimestampMonotonic"))
    assert 0 < database_up <= int(installation.show(BACKUP, "ExecMainStartTimestampMonotonic"))
    assert installation.read_journal(BACKUP).count("Starting schedgen-backup.service") == 1
    installation.assert_took_points(1)
    assert machine.path(STAMP).stat().st_mtime > last
    machine.power_off()
    machine.boot()
    assert installation.show(TIMER, "ActiveState") == "active"
    assert installation.show(BACKUP, "ExecMainStartTimestampMonotonic") == "0"
    installation.assert_took_points(1)


def test_a_wrong_password_fails_the_unit_and_sends_one_alert(installation: Installation) -> None:
    code, seen = installation.command("deploy", "systemd", "--to", "/srv/units", user="root")
    assert code == 0, seen
    machine = installation.machine
    machine.run("sh", "-ec", f"mv /srv/units/* {UNIT_DIR}/\nrmdir /srv/units\nsystemctl daemon-reload")
    installation.write_env(POSTGRES_PASSWORD="wrong")
    assert machine.try_run("systemctl", "start", BACKUP)[0] == 1
    assert (installation.show(BACKUP, "ActiveState"), installation.show(BACKUP, "Result")) == (
        "failed",
        "exit-code",
    )
    assert installation.show(BACKUP, "ExecMainStatus") == str(DATABASE_EXIT_CODE)
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").split()[0] == BACKUP
    [alert] = installation.alerts
    assert alert.startswith("[CRITICAL]")
    assert "POSTGRES_PASSWORD" in alert
    assert "password" in installation.read_journal(BACKUP)
    assert installation.command("status")[0] == 2
    # The right one comes as a credential.
    secret = machine.path("/etc/postgres_password")
    secret.touch(mode=0o600)
    secret.write_text(installation.application.database.password, encoding="utf-8")
    lines = (
        f"LoadCredential=postgres_password:/etc/{secret.name}",
        "Environment=POSTGRES_PASSWORD_FILE=%d/postgres_password",
    )
    installation.edit(BACKUP, "\n".join(("[Service]", *lines)))
    installation.write_env(POSTGRES_PASSWORD="")
    machine.run("systemctl", "start", BACKUP)
    assert installation.show(BACKUP, "Result") == "success"
    # The failed one has left the half that it could take.
    assert [point.state for point in installation.points] == [PointState.PARTIAL, PointState.VERIFIED]
    [_alert, resolved] = installation.alerts
    assert resolved.startswith("[INFO]")


def test_setup_installs_units_that_systemd_starts_in_the_schedules_zone(installation: Installation) -> None:
    machine, application = installation.machine, installation.application
    machine.run("rm", ENV_FILE)
    answers = {
        "deployment": "systemd",
        "postgres-host": application.database.host,
        "postgres-port": str(application.database.port),
        "postgres-user": application.database.user,
        "postgres-db": application.database.database,
        "minio-endpoint": application.bucket.endpoint,
        "minio-bucket": application.bucket.bucket,
        "minio-access-key": application.bucket.access_key,
        "backup-dir": POINTS,
        "schedule": "0 2 * * *",
        "timezone": "Africa/Johannesburg",
    }
    secrets = {
        "postgres-password-file": application.database.password,
        "minio-secret-key-file": application.bucket.secret_key,
    }
    for name, secret in secrets.items():
        machine.path(f"/srv/{name}").write_text(secret, encoding="utf-8")
        answers[name] = f"/srv/{name}"
    code, seen = installation.command(
        "setup",
        "--yes",
        *(word for name, value in answers.items() for word in (f"--{name}", value)),
        user="root",
    )
    assert (code, "schedgen-backup.timer is enabled" in seen) == (0, True), seen
    installation.assert_took_points(1)
    assert installation.show(TIMER, "TimersCalendar").startswith(
        "{ OnCalendar=*-*-* 02:00:00 Africa/Johannesburg ; "
    )
    [timer] = [
        line
        for line in json.loads(machine.run("systemctl", "list-timers", "--output=json"))
        if line["unit"] == TIMER
    ]
    assert timer["activates"] == BACKUP
    at = datetime.fromtimestamp(timer["next"] / 1_000_000, ZoneInfo("Africa/Johannesburg"))
    assert (
        timedelta(hours=2)
        <= timedelta(hours=at.hour, minutes=at.minute, seconds=at.second)
        <= timedelta(hours=2, minutes=15)
    )
    machine.run("systemctl", "start", BACKUP)
    installation.assert_took_points(2)
    code, seen = installation.command("setup", "--remove", user="root")
    assert code == 0, seen
    assert [name for name in UNITS if machine.path(f"{UNIT_DIR}/{name}").exists()] == []
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "schedgen-*") == ""
    installation.assert_took_points(2)
