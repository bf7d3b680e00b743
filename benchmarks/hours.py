"""Measure an hour of a large bucket in packs: `python -m benchmarks.hours [--count 1000000] [--hours 2]`.

A first point and then one each hour, in each of which one of 1,000 objects of 1 KiB has changed, all over the
bucket. The server computes its objects (`generated_bucket`). Each point is a process of its own that does in
core what the job `backup` does: dump, archive, every check, commit. Its peak memory is that above the same
process before it begins. The listing alone is a process, too: every backup of a bucket needs it.

`--profile` writes the profile of the last hour (cProfile, of the main thread) to a file. Given several times,
`--count` measures each; the results are one JSON, which `python -m benchmarks.growth` draws.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.generated_bucket import let_hours_pass, serve_generated_buckets
from benchmarks.memory import read_peak
from benchmarks.shell import size_of
from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.model import ArtifactKind, Origin, RecoveryPointId
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    Layout,
    References,
)
from schedgen_backups.core.verify.commit import commit_point, record_read_back
from schedgen_backups.core.verify.files import verify_dump, verify_dump_against_snapshot, verify_every_object
from schedgen_backups.core.verify.live_system import LiveApplication
from schedgen_backups.core.verify.references import verify_references

_RUN = "benchmark"


class PointProcess:
    """What one process does, with the time and processor time of each phase."""

    def __init__(self) -> None:
        self._idle_bytes = read_peak(os.getpid())
        self.phases: dict[str, tuple[float, float]] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work; remember its seconds and its processor seconds."""
        started, before = time.monotonic(), _read_own_processor()
        result = work()
        self.phases[name] = (time.monotonic() - started, _read_own_processor() - before)
        return result

    def describe(self) -> dict[str, Any]:
        """Return the phases and the peak memory."""
        return {
            "seconds": {name: round(seconds, 2) for name, (seconds, _processor) in self.phases.items()},
            "processor_seconds": {name: round(used, 2) for name, (_seconds, used) in self.phases.items()},
            "peak_mebibytes": round((read_peak(os.getpid()) - self._idle_bytes) / (1 << 20), 1),
        }


def take_point(request: dict[str, Any]) -> dict[str, Any]:
    """Take a point as the job does; return what its phases cost."""
    database, bucket = DatabaseSettings(**request["database"]), BucketSettings(**request["bucket"])
    catalog, point_id = Catalog(Path(request["points"])), RecoveryPointId(request["point_id"])
    catalog.prepare()
    settings = CaptureSettings(layout=Layout.PACKS)
    live = LiveApplication(database, bucket, settings.transfer, References())
    process = PointProcess()

    def record(*results: Any) -> None:
        assert all(result.is_passed for result in results), results
        catalog.record_results(
            point_id, tuple(result.model_copy(update={"checked_by": _RUN}) for result in results)
        )

    def check_dump() -> None:
        path = catalog.get_point(point_id).get_path(ArtifactKind.DATABASE)
        record(*verify_dump(path), verify_dump_against_snapshot(path))

    def take_archive() -> None:
        captured = take_bucket_archive(catalog, bucket, settings, point_id)
        path = catalog.get_point(point_id).get_path(ArtifactKind.BUCKET)
        record_read_back(catalog, point_id, path, captured, checked_by=_RUN)

    def check_archive() -> None:
        point = catalog.get_point(point_id)
        path = point.get_path(ArtifactKind.BUCKET)
        record(verify_every_object(path))
        result, _summary = verify_references(point.get_path(ArtifactKind.DATABASE), path, live=live)
        record(result)

    process.run("dump", lambda: take_database_dump(catalog, database, settings, point_id))
    process.run("checks of the dump", check_dump)
    process.run("archive", take_archive)
    process.run("checks of the archive", check_archive)
    process.run("commit", lambda: commit_point(catalog, point_id, origin=Origin(run_id=_RUN), live=live))
    return process.describe()


def list_bucket(request: dict[str, Any]) -> dict[str, Any]:
    """List the bucket and discard what it names."""
    process = PointProcess()

    def read() -> int:
        with BucketClient(
            BucketSettings(**request["bucket"]), threads=1, stall_timeout_seconds=600
        ) as client:
            return sum(1 for _listed in client.list_objects())

    process.run("listing", read)
    return process.describe()


def measure_hours(
    folder: Path, database: DatabaseSettings, count: int, hours: int, profile: Path | None
) -> dict[str, Any]:
    """Return what the listing, a first point and each hour cost."""
    points = folder / "points"
    found: dict[str, Any] = {"objects": count, "load": os.getloadavg(), "hours": []}
    with serve_generated_buckets(count, 1) as (bucket, _huge):
        for hour in range(hours + 1):
            let_hours_pass(bucket, hour)
            before = size_of(points) if points.exists() else 0
            request = {
                "database": _to_json(database),
                "bucket": _to_json(bucket),
                "points": str(points),
                "point_id": f"20261130_{hour:02}0000",
            }
            taken = _start("take", request, profile if hour == hours else None)
            taken["written_bytes"] = size_of(points) - before
            print(count, hour, json.dumps(taken), file=sys.stderr, flush=True)
            found["hours"].append(taken)
        found["listing"] = _start("list", request, None)
    found["beyond"] = [_subtract(hour, found["listing"]) for hour in found["hours"]]
    found["directory_bytes"] = size_of(points)
    return found


def _subtract(hour: dict[str, Any], listing: dict[str, Any]) -> dict[str, float]:
    """Return the seconds in core beyond listing and dump."""
    return {
        name: round(
            sum(seconds for phase, seconds in hour[name].items() if phase != "dump")
            - listing[name]["listing"],
            2,
        )
        for name in ("seconds", "processor_seconds")
    }


def _start(what: str, request: dict[str, Any], profile: Path | None) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.hours", "--work", what]
    if profile is not None:
        words += ["--profile", str(profile)]
    done = subprocess.run(words, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


def _to_json(settings: DatabaseSettings | BucketSettings) -> dict[str, Any]:
    return {name: value for name, value in vars(settings).items() if isinstance(value, (str, int, bool))}


def _read_own_processor() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def main() -> None:
    """Measure each count and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, action="append", help="default: 10000 and 100000")
    parser.add_argument("--hours", type=int, default=2)
    parser.add_argument("--profile", type=Path, help="write the profile of the last hour")
    parser.add_argument("--work", choices=("take", "list"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work = {"take": take_point, "list": list_bucket}[arguments.work]
        request = json.load(sys.stdin)
        if arguments.profile is None:
            print(json.dumps(work(request)))
            return
        with cProfile.Profile() as profiler:
            result = work(request)
        profiler.dump_stats(arguments.profile)
        print(json.dumps(result))
        return
    found: list[dict[str, Any]] = []
    for count in arguments.count or (10_000, 100_000):
        with (
            tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name,
            EmbeddedPostgres(Path(name) / "postgres", server_options={"fsync": "off"}) as postgres,
        ):
            database = postgres.create_database("hours")
            data.fill_database(database, job_count=1, events_per_job=1, row_count=1000)
            found.append(measure_hours(Path(name), database, count, arguments.hours, arguments.profile))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
