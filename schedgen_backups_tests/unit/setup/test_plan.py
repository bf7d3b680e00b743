"""The texts that setup plans: a .env with minimal changes, and timers that fire when the cron string does."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from dotenv import dotenv_values

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup.plan import (
    MASK,
    Place,
    describe_env,
    format_line,
    make_calendar,
    merge_env,
    plan_cron,
    plan_units,
)

pytestmark = [pytest.mark.edge]

TEXT = (
    "# mine\nJWT_SECRET=abc\n\n\nexport POSTGRES_PASSWORD=old # from the vault\n# "
    "MINIO_BUCKET=other\nMINIO_SECURE=\nBACKUP_DIR=./backups"
)


def test_only_what_differs_is_changed_and_the_rest_stays_byte_for_byte() -> None:
    merged = merge_env(
        TEXT,
        {"POSTGRES_PASSWORD": "n e$w", "MINIO_BUCKET": "pdfs", "BACKUP_DIR": "./backups", "MINIO_SECURE": ""},
    )
    assert (
        merged
        == TEXT.replace("export POSTGRES_PASSWORD=old", "POSTGRES_PASSWORD='n e$w'") + "\nMINIO_BUCKET=pdfs\n"
    )
    assert merge_env(merged, {"POSTGRES_PASSWORD": "n e$w", "MINIO_BUCKET": "pdfs"}) == merged


def test_the_shown_change_has_no_secret_and_no_other_lines() -> None:
    shown = describe_env(TEXT, merge_env(TEXT, {"POSTGRES_PASSWORD": "new", "MINIO_BUCKET": "pdfs"}))
    assert shown == [f"POSTGRES_PASSWORD={MASK}", "MINIO_BUCKET=pdfs", "# 3 other values are unchanged"]


@pytest.mark.parametrize(
    "value", ["", "plain", "with space", "a#b", "it's", 'say "so"', "$HOME", "a=b", "ü", "`x`"]
)
def test_a_value_is_read_back_as_given(value: str) -> None:
    assert dotenv_values(stream=io.StringIO(format_line("NAME", value)))["NAME"] == value


@pytest.mark.parametrize("value", ["it's $5", "back\\slash", "two\nlines", "${HOME}"])
def test_a_value_that_readers_would_parse_differently_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="NAME"):
        format_line("NAME", value)


CALENDARS = [
    ("0 2 * * *", ["*-*-* 2:0:00"]),
    ("30 */6 * * *", ["*-*-* 0/6:30:00"]),
    ("0 2,14 * * 0", ["Sun *-*-* 2,14:0:00"]),
    ("5 1-3 1 * *", ["*-*-1 1..3:5:00"]),
    ("0 2 * * 5-7", ["Fri,Sat,Sun *-*-* 2:0:00"]),
    ("0 2 1 */3 1", ["*-1/3-1 2:0:00", "Mon *-1/3-* 2:0:00"]),
]


@pytest.mark.parametrize(("cron", "expected"), CALENDARS)
def test_a_timer_fires_when_the_cron_string_does(cron: str, expected: list[str]) -> None:
    assert list(make_calendar(cron)) == expected


def test_systemd_accepts_the_calendars() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    for _cron, lines in CALENDARS:
        for line in lines:
            done = subprocess.run(
                [program, "calendar", f"{line} Africa/Johannesburg"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cron", ["@daily", "0 2 * * MON", "0 2 * *"])
def test_a_cron_string_that_a_timer_cannot_express_is_refused(cron: str) -> None:
    with pytest.raises(ConfigurationError, match="systemd timer"):
        make_calendar(cron)


PROJECT = Path(__file__).resolve().parents[3]
PLACE = Place(
    project=Path("/srv/backups"),
    env_file=Path("/etc/schedgen-backups/env"),
    bin_dir=Path("/srv/backups/.venv/bin"),
    state=Path("/var/lib/schedgen-backups"),
    points=Path("/mnt/points"),
    log=Path("/var/log/schedgen-backups"),
    user="somebody",
)


def plan_service(place: Place) -> str:
    """Return the text of the unit that takes the backup."""
    files = plan_units(PROJECT / "deploy", Path("/etc/systemd/system"), place, "0 2 * * *", "UTC")
    return next(file.text for file in files if file.path.name == "schedgen-backup.service")


def test_a_unit_can_see_its_program_in_a_home() -> None:
    """ProtectHome=true would hide the program from its own unit."""
    assert "\nProtectHome=true\n" in plan_service(PLACE)
    hidden = plan_service(replace(PLACE, bin_dir=Path("/home/somebody/backups/.venv/bin")))
    assert "\nProtectHome=read-only\n" in hidden
    assert "ProtectHome=true" not in hidden


@pytest.mark.parametrize("path", ["/srv/my backups", "/srv/100%", "/srv/a:b"])
def test_a_path_that_units_and_cron_parse_differently_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used in a unit"):
        plan_service(replace(PLACE, points=Path(path)))


def test_units_name_the_environment_file_and_work_where_dagster_finds_no_other() -> None:
    """Dagster prefers the .env of its working directory to the environment."""
    files = plan_units(PROJECT / "deploy", Path("/etc/systemd/system"), PLACE, "0 2 * * *", "UTC")
    for file in files:
        if file.path.suffix == ".service":
            assert "\nEnvironment=BACKUP_ENV_FILE=/etc/schedgen-backups/env\n" in file.text
            assert "\nWorkingDirectory=/var/lib/schedgen-backups\n" in file.text
    [cron] = plan_cron(PROJECT / "deploy", Path("/etc/cron.d"), PLACE, "0 2 * * *")
    assert "\nBACKUP_ENV_FILE=/etc/schedgen-backups/env\n" in cron.text


def test_only_the_daemon_may_write_to_a_folder_store() -> None:
    place = replace(PLACE, stores=(Path("/mnt/nas/copies"),))
    files = plan_units(PROJECT / "deploy", Path("/etc/systemd/system"), place, "0 2 * * *", "UTC")
    writers = [file.path.name for file in files if "\nReadWritePaths=-/mnt/nas/copies\n" in file.text]
    assert writers == ["schedgen-backups-daemon.service"]
