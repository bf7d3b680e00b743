"""A machine on which tests run setup, without a terminal or as a person at one."""

from __future__ import annotations

import io
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pexpect

from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups_tests.support.sites import Application

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 180


class Machine:
    """A checkout with its own .env, and the places where setup installs files."""

    def __init__(self, folder: Path, application: Application, webhook_url: str) -> None:
        self.folder = folder / "schedgen-backups"
        for name in ("schedgen_backups", "deploy", "docker"):
            shutil.copytree(PROJECT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("workspace.yaml", "dagster.yaml"):
            (self.folder / name).write_bytes((PROJECT / name).read_bytes())
        self.env = self.folder / ".env"
        self.points = folder / "points"
        self.places = {name: folder / name for name in ("unit-dir", "cron-dir", "state-dir", "log-dir")}
        self.database, self.bucket = application.database, application.bucket
        self.webhook_url = webhook_url
        names = {*NAMES, ENV_FILE_VARIABLE, "DAGSTER_HOME"}
        self.environment = {name: value for name, value in os.environ.items() if name not in names}

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.database.password, self.bucket.secret_key, self.webhook_url, "canary")

    def words(self, *flags: str) -> list[str]:
        """Return the command line of setup."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        places = [word for name, path in self.places.items() for word in (f"--{name}", str(path))]
        return [
            sys.executable,
            "-m",
            "schedgen_backups.cli.main",
            "setup",
            "--service-user",
            user,
            *places,
            *flags,
        ]

    def answer_flags(self) -> list[str]:
        """Return every answer as flags, secrets in files."""
        files = {
            "postgres-password": self.database.password,
            "minio-secret-key": self.bucket.secret_key,
            "alert-webhook-url": self.webhook_url,
        }
        values = {
            "postgres-host": self.database.host,
            "postgres-port": str(self.database.port),
            "postgres-user": self.database.user,
            "postgres-db": self.database.database,
            "minio-endpoint": self.bucket.endpoint,
            "minio-bucket": self.bucket.bucket,
            "minio-access-key": self.bucket.access_key,
            "backup-dir": str(self.points),
        }
        for name, secret in files.items():
            path = self.folder.parent / f"secret-{name}"
            path.write_text(f"{secret}\n", encoding="utf-8")
            values[f"{name}-file"] = str(path)
        return [word for name, value in values.items() for word in (f"--{name}", value)]

    def run(self, *flags: str, **environment: str) -> tuple[int, str]:
        """Run setup without a terminal; return exit code and output."""
        done = subprocess.run(
            self.words(*flags),
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def run_command(self, *words: str | Path, **environment: str) -> tuple[int, str]:
        """Run another command with the settings that setup wrote; return exit code and output."""
        done = subprocess.run(
            [sys.executable, "-m", "schedgen_backups.cli.main", *words],
            cwd=self.folder,
            env={**self.environment, ENV_FILE_VARIABLE: str(self.env), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def run_watched(self, *flags: str, **environment: str) -> tuple[int, str, set[bytes]]:
        """Do as `run`, and also return the command lines of all processes seen meanwhile."""
        seen: set[bytes] = set()
        is_done = threading.Event()

        def watch() -> None:
            while not is_done.is_set():
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):  # it has ended
                        seen.add(path.read_bytes())
                is_done.wait(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            code, text = self.run(*flags, **environment)
        finally:
            is_done.set()
            watcher.join()
        return code, text, seen

    def snapshot(self) -> dict[str, bytes]:
        """Return path → content of every file below the folder."""
        return {
            str(path): path.read_bytes()
            for path in self.folder.parent.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


class Person:
    """A person who answers one run of setup at a terminal."""

    def __init__(
        self, machine: Machine, *flags: str, dimensions: tuple[int, int] = (60, 250), **environment: str
    ) -> None:
        program, *words = machine.words(*flags)
        self._child = pexpect.spawn(
            program,
            words,
            cwd=str(machine.folder),
            env={**machine.environment, "TERM": "xterm", **environment},
            timeout=PATIENCE_SECONDS,
            encoding="utf-8",
            dimensions=dimensions,
        )
        self._log = self._child.logfile_read = io.StringIO()

    @property
    def seen(self) -> str:
        """Return everything the terminal has shown."""
        return self._log.getvalue()

    def expect(self, text: str) -> None:
        self._child.expect_exact(text)

    def answer(self, prompt: str, text: str = "") -> None:
        self.expect(prompt)
        self._child.expect(r": $")
        self._child.sendline(text)

    def answer_all(self, answers: Sequence[tuple[str, str]]) -> None:
        for prompt, text in answers:
            self.answer(prompt, text)

    def interrupt(self) -> None:
        """Press Ctrl-C, and again while setup does not end.

        Just before the program reads, Python keeps the signal until the next key.
        """
        for _press in range(10):
            self._child.sendintr()
            with suppress(pexpect.TIMEOUT):
                self._child.expect(pexpect.EOF, timeout=10)
                return

    def see_the_end(self) -> int | None:
        self._child.expect(pexpect.EOF)
        self._child.close()
        return self._child.exitstatus
