"""The project on a booted machine, installed by hand as docs/deploy.md says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.application_service import INBOX, INBOX_URL, SETTINGS
from schedgen_backups_tests.support.booted_machine import PYTHON_AT, BootedMachine
from schedgen_backups_tests.support.docker import wait_for
from schedgen_backups_tests.support.sites import Application, environment_of, wait_until

PROJECT = Path(__file__).resolve().parents[3]
CHECKOUT, STATE, POINTS = (
    "/opt/schedgen-backups",
    "/var/lib/schedgen-backups",
    "/var/backups/schedgen-backups",
)
ENVIRONMENT, ENV_FILE = f"{CHECKOUT}/.venv", f"{CHECKOUT}/.env"
UNIT_DIR = "/etc/systemd/system"
USER = "schedgen-backups"
UNITS = tuple(sorted(path.name for path in (PROJECT / "deploy" / "systemd").iterdir()))
TIMER, BACKUP = "schedgen-backup.timer", "schedgen-backup.service"
SERVICES = ("schedgen-backups-daemon.service", "schedgen-backups-webserver.service")
METRICS_URL = "http://127.0.0.1:9854/metrics"
UI_URL = "http://127.0.0.1:3000"
_APPLICATION_AT = "/srv/application"
_GET = """import sys, urllib.request
body = sys.argv[2].encode() if len(sys.argv) > 2 else None
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
_HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
# The units of an installation are started after the one of this name.
_APPLICATION_UNIT = f"""[Unit]
Description=The application: database, bucket, and what takes its alerts

[Service]
Type=notify
WorkingDirectory={CHECKOUT}
ExecStart={ENVIRONMENT}/bin/python -m schedgen_backups_tests.support.application_service {_APPLICATION_AT}

[Install]
WantedBy=multi-user.target
"""


class Installation:
    """What an operator does and sees on the machine."""

    def __init__(self, machine: BootedMachine) -> None:
        self.machine = machine

    def install(self, folder: Path) -> None:
        """The machine is up, the application runs, and the project is installed without its units."""
        machine = self.machine
        machine.mount_overlay(sys.prefix, ENVIRONMENT)
        self._move_environment()
        source = folder / "source"
        for name in ("schedgen_backups", "schedgen_backups_tests", "deploy", "docker", "docs", "locks"):
            shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in (
            "pyproject.toml",
            "README.md",
            "workspace.yaml",
            "dagster.yaml",
            ".env.example",
            ".dockerignore",
        ):
            shutil.copyfile(PROJECT / name, source / name)
        shutil.copytree(source, machine.path(CHECKOUT), dirs_exist_ok=True)
        # Here, since the machine reaches no index for what builds it; from a copy, since another worker may
        # build at the same time.
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        [wheel] = folder.glob("*.whl")
        shutil.copy(wheel, machine.path("/srv"))
        machine.path(f"{UNIT_DIR}/postgresql.service").write_text(_APPLICATION_UNIT, encoding="utf-8")
        machine.boot()
        machine.run("useradd", "--system", "--home-dir", STATE, "--shell", "/usr/sbin/nologin", USER)
        pip = (
            f"{ENVIRONMENT}/bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
        )
        machine.run(*pip, "--no-deps", "--no-index", "--force-reinstall", f"/srv/{wheel.name}")
        machine.run("systemctl", "enable", "--now", "postgresql.service")

    def clear(self) -> None:
        """Leave the machine up, without our units, points, history and alerts, and with a right .env."""
        if not self.machine.is_up:
            # A test failed meanwhile.
            self.machine.boot()
        stamps = "/var/lib/systemd/timers/stamp-schedgen-*"
        doomed = (
            f"{UNIT_DIR}/schedgen-* {UNIT_DIR}/*.wants/schedgen-* {stamps} {STATE} {POINTS} "
            f"{_APPLICATION_AT}/{INBOX}"
        )
        commands = (
            "systemctl stop 'schedgen-*'",
            f"rm -rf {doomed}",
            "systemctl daemon-reload",
            "systemctl reset-failed 'schedgen-*'",
        )
        self.machine.run("sh", "-ec", "\n".join(commands))
        self.machine.run("install", "-d", "-o", USER, "-g", USER, "-m", "0750", POINTS, STATE)
        self.write_env()

    def write_env(self, **changes: str) -> None:
        """The environment file, as docs/deploy.md makes it."""
        values = {
            **environment_of(self.application, Path(POINTS)),
            "BACKUP_ALERT_WEBHOOK_URL": INBOX_URL,
            "BACKUP_SCHEDULE": "0 2 * * *",
            **changes,
        }
        self.machine.run("install", "-o", "root", "-g", USER, "-m", "0640", "/dev/null", ENV_FILE)
        text = "".join(f"{name}='{value}'\n" for name, value in values.items())
        self.machine.path(ENV_FILE).write_text(text, encoding="utf-8")

    def add_units(self) -> None:
        """The units are the checkout's."""
        self.machine.run("sh", "-c", f"cp {CHECKOUT}/deploy/systemd/* {UNIT_DIR}/ && systemctl daemon-reload")

    def edit(self, unit: str, text: str) -> None:
        """As `systemctl edit` does."""
        folder = self.machine.path(f"{UNIT_DIR}/{unit}.d")
        folder.mkdir(exist_ok=True)
        (folder / "override.conf").write_text(text, encoding="utf-8")
        self.machine.run("systemctl", "daemon-reload")

    def show(self, unit: str, name: str) -> str:
        """A property of the unit."""
        return self.machine.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def read_journal(self, unit: str) -> str:
        return self.machine.run("journalctl", "--no-pager", "--output", "cat", "--unit", unit)

    def command(self, *words: str, user: str = USER) -> tuple[int, str]:
        """`schedgen-backups` ran as this user; exit code and what it printed."""
        names = (f"DAGSTER_HOME={STATE}", f"BACKUP_ENV_FILE={ENV_FILE}")
        switch = (
            "setpriv",
            f"--reuid={user}",
            f"--regid={user}",
            "--clear-groups",
            "env",
            "-C",
            STATE,
            *names,
        )
        return self.machine.try_run(*switch, f"{ENVIRONMENT}/bin/schedgen-backups", *words)

    def read_server_info(self) -> str:
        """What the webserver answers to probes; nothing while it does not."""
        return self.machine.try_run(f"{ENVIRONMENT}/bin/python", "-c", _GET, f"{UI_URL}/server_info")[1]

    def read_metrics(self) -> str:
        """Return what the metrics unit answers, or why it does not."""
        return self.machine.try_run(f"{ENVIRONMENT}/bin/python", "-c", _GET, METRICS_URL)[1]

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """What the webserver answered to GraphQL; an error fails."""
        body = json.dumps({"query": query, "variables": variables})
        answer = json.loads(
            self.machine.run(f"{ENVIRONMENT}/bin/python", "-c", _GET, f"{UI_URL}/graphql", body)
        )
        assert "errors" not in answer, answer
        return answer["data"]

    def wait_for_point(self) -> None:
        """There is a verified point."""
        wait_until(
            lambda: any(point.state is PointState.VERIFIED for point in self.points), "a point is taken"
        )

    def wait_for_services(self) -> None:
        """The UI answers, and every daemon that Dagster requires is alive."""
        wait_for(
            lambda: "dagster_webserver_version" in self.read_server_info() or None, "the webserver answers"
        )

        def look() -> bool | None:
            statuses = self.ask(_HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"]
            return True if all(status["healthy"] for status in statuses if status["required"]) else None

        wait_for(look, "Dagster's daemons are alive")

    def assert_took_points(self, count: int) -> None:
        """Assert that there are this many points, all verified."""
        assert [point.state for point in self.points] == [PointState.VERIFIED] * count

    @property
    def points(self) -> tuple[PointListing, ...]:
        return Catalog(self.machine.path(POINTS)).list_points()

    @property
    def alerts(self) -> list[str]:
        """The texts of the alerts that were sent."""
        path = self.machine.path(f"{_APPLICATION_AT}/{INBOX}")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line)["text"] for line in lines]

    @property
    def application(self) -> Application:
        read: dict[str, dict[str, Any]] = json.loads(
            self.machine.path(f"{_APPLICATION_AT}/{SETTINGS}").read_text(encoding="utf-8")
        )
        read["database"]["libpq_variables"] = ()
        return Application(DatabaseSettings(**read["database"]), BucketSettings(**read["bucket"]))

    def _move_environment(self) -> None:
        """Make the virtual environment of the tests one of the machine's Python at its new place."""
        programs = self.machine.path(f"{ENVIRONMENT}/bin")
        for path in programs.iterdir():
            if path.is_symlink():
                path.unlink()
            elif path.is_file() and path.read_bytes().startswith(f"#!{sys.prefix}/bin/".encode()):
                path.write_bytes(
                    path.read_bytes().replace(
                        f"#!{sys.prefix}/bin/".encode(), f"#!{ENVIRONMENT}/bin/".encode(), 1
                    )
                )
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for name in ("python", "python3", version):
            (programs / name).symlink_to(f"{PYTHON_AT}/bin/{version}")
        self.machine.path(f"{ENVIRONMENT}/pyvenv.cfg").write_text(
            f"home = {PYTHON_AT}/bin\ninclude-system-site-packages = false\n", encoding="utf-8"
        )
