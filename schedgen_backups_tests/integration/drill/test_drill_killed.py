"""Drills killed at any moment: no server survives, and the next sweep removes exactly what they made.

The drills are separate processes that report their phase and wait there to be killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.drill.reaper import find_processes_in
from schedgen_backups.core.drill.scratch import sweep_scratch
from schedgen_backups.core.drill.scratch_folder import open_scratch_folder
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DrillSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.artifacts import POINT, make_live, publish_archive, publish_dump
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import wait_until

pytestmark = pytest.mark.integration

DRILL_AND_WAIT = """
import json, sys, time
from pathlib import Path
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.settings import TransferSettings, BucketSettings, DatabaseSettings, DrillSettings
asked = json.loads(sys.stdin.readline())
def wait(phase, _size_bytes):
    if phase == asked["phase"]:
        print(phase, flush=True)
        time.sleep(600)
database = DatabaseSettings(**asked["database"]) if asked["database"] else None
bucket = BucketSettings(**asked["bucket"]) if asked["bucket"] else None
drill = DrillSettings(Path(asked["scratch"]), database=database, is_source_server_allowed=True, bucket=bucket)
directory = Path(asked["directory"])
drill_point(Catalog(directory), None, TransferSettings(), drill, source=None, drilled_by="a test",
    on_progress=wait)
print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def directory(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a backup directory with one verified recovery point; the drills only read it."""
    folder = tmp_path_factory.mktemp("killed")
    database = postgres_server.create_database(f"test_{uuid4().hex}")
    catalog = Catalog(folder / "backups")
    catalog.prepare()
    with EmbeddedS3(folder / "s3") as server:
        bucket = server.settings("source")
        seed_application(database, bucket, user_count=10, job_count=20)
        publish_dump(catalog, database)
        publish_archive(catalog, bucket)
        live = make_live(database, bucket)
        commit_point(catalog, RecoveryPointId(POINT), origin=Origin(run_id="a run"), live=live)
    postgres_server.drop_database(database.database)
    return catalog.directory


@contextmanager
def drill_in(directory: Path, drill: DrillSettings, phase: str) -> Iterator[subprocess.Popen[str]]:
    """Run a drill in its own process that waits at the phase; kill it at the end of the block."""
    asked = {
        "phase": phase,
        "directory": str(directory),
        "scratch": str(drill.directory),
        "database": asdict(drill.database) if drill.database else None,
        "bucket": asdict(drill.bucket) if drill.bucket else None,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRILL_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def await_phase(process: subprocess.Popen[str], phase: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{phase}\n"


def find_folder(drill: DrillSettings) -> Path:
    [folder] = drill.directory.glob("schedgen-drill-*")
    return folder


def assert_swept(drill: DrillSettings, folder: Path) -> None:
    """Assert that nothing runs any more, and that a sweep removes the rest.

    The guard counts as alive for a moment.
    """
    wait_until(lambda: find_processes_in(folder) == (), "the servers of the killed drill end")
    said: list[str] = []

    def is_gone() -> bool:
        said.extend(sweep_scratch(drill))
        return not folder.exists()

    wait_until(is_gone, "the folder of the killed drill is swept")
    assert [line.startswith("removed what was left by the drill of ") for line in said] == [True]


@pytest.mark.parametrize("phase", ["start", "verify", "database", "compare", "sample"])
def test_a_drill_killed_on_its_own_servers_leaves_nothing(
    directory: Path, tmp_path: Path, phase: str
) -> None:
    drill = DrillSettings(tmp_path / "scratch")
    with drill_in(directory, drill, phase) as process:
        if phase == "start":
            wait_until(
                lambda: any(find_processes_in(found) for found in drill.directory.glob("schedgen-drill-*")),
                "a server is being started",
            )
        else:
            await_phase(process, phase)
            assert find_processes_in(find_folder(drill)) != ()
        folder = find_folder(drill)
        process.kill()
        process.wait()
        assert_swept(drill, folder)
    pin = read_pin(Catalog(directory), RecoveryPointId(POINT))
    assert pin is None or pin.expires_at is not None


@pytest.mark.parametrize("phase", ["verify", "compare"])
def test_a_drill_killed_on_named_servers_leaves_nothing_after_a_sweep(
    directory: Path, postgres_server: EmbeddedPostgres, bucket: BucketSettings, tmp_path: Path, phase: str
) -> None:
    server = postgres_server.settings("postgres")
    drill = DrillSettings(tmp_path / "scratch", database=server, bucket=bucket)
    with drill_in(directory, drill, phase) as process:
        await_phase(process, phase)
        folder = find_folder(drill)
        name = folder.name.replace("-", "_")
        assert run(server, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == [(1,)]
        assert client_of(bucket).bucket_exists(folder.name)
        # A sweep must not remove a living drill's folder.
        assert sweep_scratch(drill) == ()
        process.kill()
        process.wait()
        assert_swept(drill, folder)
    assert run(server, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == [(0,)]
    assert not client_of(bucket).bucket_exists(folder.name)


def test_a_sweep_also_stops_the_servers_of_a_drill_whose_guard_was_killed(
    directory: Path, tmp_path: Path
) -> None:
    drill = DrillSettings(tmp_path / "scratch")
    with drill_in(directory, drill, "compare") as process:
        await_phase(process, "compare")
        folder = find_folder(drill)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = path.read_bytes().split(b"\0")
            if any(word.endswith(b"scratch_guard.py") for word in words) and os.fsencode(folder) in words:
                os.kill(int(path.parent.name), signal.SIGKILL)
        process.kill()
        process.wait()
        wait_until(lambda: bool(sweep_scratch(drill)), "somebody sweeps")
        assert (find_processes_in(folder), folder.exists()) == ((), False)


def test_a_sweep_removes_only_what_bears_our_mark(tmp_path: Path) -> None:
    drill = DrillSettings(tmp_path / "scratch")
    with open_scratch_folder(drill.directory) as living:
        foreign = [
            drill.directory / name
            for name in (
                "schedgen-drill-0123456789ab",
                "schedgen-drill-x",
                "somebody's",
                "schedgen-drill-aaaaaaaaaaaa",
            )
        ]
        for folder in foreign:
            folder.mkdir()
            (folder / "lock").touch()
        # The record of another drill.
        (foreign[-1] / "scratch.json").write_text(living.record.model_dump_json(), encoding="utf-8")
        assert sweep_scratch(drill) == ()
        assert living.path.is_dir()
    assert sorted(path for path in drill.directory.iterdir() if path.is_dir()) == sorted(foreign)


def test_leftovers_on_a_server_no_longer_named_are_reported_and_stay(
    directory: Path, postgres_server: EmbeddedPostgres, bucket: BucketSettings, tmp_path: Path
) -> None:
    drill = DrillSettings(tmp_path / "scratch", database=postgres_server.settings("postgres"), bucket=bucket)
    with drill_in(directory, drill, "verify") as process:
        await_phase(process, "verify")
        folder = find_folder(drill)
        process.kill()
        process.wait()
        said: list[str] = []
        wait_until(
            lambda: bool(said.extend(sweep_scratch(DrillSettings(drill.directory))) or said),
            "somebody sweeps",
        )
        assert "which DRILL_DATABASE_URL no longer names" in said[0]
        assert folder.name.replace("-", "_") in said[0]
        assert_swept(drill, folder)
