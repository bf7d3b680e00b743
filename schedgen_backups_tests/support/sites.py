"""A site for the edge tests: a backup directory, its environment, and helpers for runs.

Fixtures are in `edge/conftest.py`. Runs are real ones, in this process, against a given instance. Add what
two test files need.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.definitions import defs
from schedgen_backups.defs.assets import find_point_id
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.command_server import QUIET, open_command_server

PATIENCE_SECONDS = 180
NEVER = "0 0 29 2 *"
"""A schedule that never fires during a test."""


@dataclass(frozen=True)
class Application:
    """A database and a bucket that match; tests that share one only read it."""

    database: DatabaseSettings
    bucket: BucketSettings


@dataclass(frozen=True)
class Failed:
    """The reason of a failed step: that of `dg.Failure`, or the text of another exception."""

    description: str
    metadata: dict[str, object]


@dataclass(frozen=True)
class CliResult:
    """How a command ended and what it printed; stderr has no line breaks, which depend on the width."""

    code: int
    stdout: str
    stderr: str


class Site:
    """One backup directory, with the environment pointing to it and to an application."""

    def __init__(self, folder: Path, application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.directory = folder / "backups"
        self.application = application
        self._monkeypatch = monkeypatch
        # An environment file of its own hides a developer's .env.
        self.env = folder / ".env"
        self.env.touch(mode=0o600)
        monkeypatch.setenv(ENV_FILE_VARIABLE, str(self.env))
        monkeypatch.chdir(folder)
        self.home = folder / "home"
        self.home.mkdir()
        shutil.copy(Path(__file__).resolve().parents[2] / "dagster.yaml", self.home)
        monkeypatch.setenv("DAGSTER_HOME", str(self.home))
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        self.set(**environment_of(application, self.directory))

    def set(self, **values: str) -> None:
        for name, value in values.items():
            self._monkeypatch.setenv(name, value)

    def unset(self, *names: str) -> None:
        for name in names:
            self._monkeypatch.delenv(name)

    def run(
        self, instance: dg.DagsterInstance, job: str = "backup_job", tags: Mapping[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Run the job to its end in this process."""
        return execute_job(defs.resolve_job_def(job), instance, tags)

    def run_selection(
        self, instance: dg.DagsterInstance, selection: dg.AssetSelection
    ) -> dg.ExecuteInProcessResult:
        """Run only these assets or checks, as when they are selected in the UI."""
        chosen = dg.Definitions.merge(
            defs, dg.Definitions(jobs=[dg.define_asset_job("chosen", selection=selection)])
        )
        return execute_job(chosen.resolve_job_def("chosen"), instance, None)

    def start_cli(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command line as a new interpreter in the site's folder."""
        words = [sys.executable, "-m", "schedgen_backups.cli.main", *arguments]
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cli(self, *arguments: str, **environment: str) -> CliResult:
        """Run the command to its end."""
        code, stdout, stderr = open_command_server().run(
            arguments, self.folder, {**os.environ, **environment}
        )
        return CliResult(code, stdout, " ".join(stderr.split()))

    def points(self) -> tuple[PointListing, ...]:
        return Catalog(self.directory).list_points()

    def flip_bit(self, kind: ArtifactKind) -> None:
        """Flip one bit in the middle of the newest file of this kind; its size and name stay."""
        path = self.points()[-1].get_path(kind)
        data = path.read_bytes()
        path.write_bytes(damage(data, len(data) * 4))

    def assert_left_clean(self) -> None:
        """Assert that nothing is staged and the lock is free."""
        staging = self.directory / ".staging"
        assert list(staging.iterdir() if staging.exists() else []) == []
        lock = Catalog(self.directory).lock
        assert lock.acquire("a test")
        lock.release()


def environment_of(application: Application, directory: Path) -> dict[str, str]:
    """Return every variable that a backup of the application into the directory needs."""
    database, bucket = application.database, application.bucket
    return {
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_USER": database.user,
        "POSTGRES_PASSWORD": database.password,
        "POSTGRES_DB": database.database,
        "MINIO_ENDPOINT": bucket.endpoint,
        "MINIO_ACCESS_KEY": bucket.access_key,
        "MINIO_SECRET_KEY": bucket.secret_key,
        "MINIO_BUCKET": bucket.bucket,
        "MINIO_REGION": bucket.region,
        "BACKUP_DIR": str(directory),
        "BACKUP_SCHEDULE": NEVER,
        "AUDIT_SCHEDULE": NEVER,
        "DRILL_SCHEDULE": NEVER,
        "BACKUP_COMPRESSION_THREADS": "1",
        # A lowered priority stays, here for all tests of the process.
        "BACKUP_NICE": "0",
        "BACKUP_STALL_TIMEOUT_SECONDS": "60",
    }


def execute_job(
    job: dg.JobDefinition, instance: dg.DagsterInstance, tags: Mapping[str, str] | None
) -> dg.ExecuteInProcessResult:
    """Run the job to its end in this process; return after the second of its point's id."""
    result = job.execute_in_process(
        instance=instance, tags=dict(tags or {}), raise_on_error=False, run_config=QUIET
    )
    point_id = find_point_id(instance, result.run_id)
    while RecoveryPointId.from_time(datetime.now(timezone.utc)) <= point_id:
        time.sleep(0.05)
    return result


def failures_of(result: dg.ExecuteInProcessResult) -> dict[str, Failed]:
    """Return step → reason of its failure."""
    found: dict[str, Failed] = {}
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            user = data.user_failure_data
            metadata = (
                {name: value.value for name, value in user.metadata.items()} if user is not None else {}
            )
            text = (
                user.description
                if user is not None
                else data.error.to_string()
                if data.error is not None
                else ""
            )
            found[str(event.step_key)] = Failed(text or "", metadata)
    return found


def find_client_processes(application: Application) -> dict[int, str]:
    """Return pid → command line of every running program that logs in to the application's database."""
    wanted = f"PGDATABASE={application.database.database}".encode()
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Return when the condition holds; fail after more time than a slow machine needs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)
