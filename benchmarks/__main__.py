"""Run the benchmarks: `make bench`, or `python -m benchmarks --quick` with a twentieth of the data.

Results go to benchmarks/results/DATE.json; a part that is measured again that day is replaced.
`python -m benchmarks.report` makes docs/performance.md from the newest file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from benchmarks import data, memory
from benchmarks.bucket import BucketBench
from benchmarks.database import measure_database
from benchmarks.generated_bucket import serve_generated_buckets
from benchmarks.paired import Timing
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import seed_application

RESULTS = Path(__file__).parent / "results"
_SERVER_OPTIONS = {"shared_buffers": "256MB", "fsync": "off"}
_PARTS = ("database", "small-objects", "large-objects", "dagster", "drill", "scale")
_IN_DEFAULT = ("database", "small-objects", "large-objects", "dagster", "drill")


class Bench:
    """The servers, the directory and the scale of the benchmarks; a context manager."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres, *, scale: int, rounds: int) -> None:
        self.folder, self.postgres, self.scale, self.rounds = folder, postgres, scale, rounds
        self._servers = ExitStack()

    @cached_property
    def s3(self) -> EmbeddedS3:
        """S3 server, started when a part needs it: idle, it takes a fifth of a core (2026-11-26)."""
        return self._servers.enter_context(EmbeddedS3(self.folder / "s3"))

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._servers.close()

    def measure_database(self) -> list[dict[str, Any]]:
        """Measure a database of 1.2 GB: 5,000 jobs with large JSON, 5 million small rows."""
        database = self.postgres.create_database("speed")
        data.fill_database(
            database, job_count=5_000 // self.scale, events_per_job=900, row_count=5_000_000 // self.scale
        )
        return _as_json(
            measure_database(self.postgres, database, self._make_folder("database"), rounds=self.rounds)
        )

    def measure_small_objects(self) -> list[dict[str, Any]]:
        """Measure 20,000 objects of 100 KB."""
        return self._measure_objects(
            "small", f"{20_000 // self.scale} x 100 KB", 20_000 // self.scale, 100_000
        )

    def measure_large_objects(self) -> list[dict[str, Any]]:
        """Measure 300 PDFs of 10 MB."""
        return self._measure_objects("large", f"{300 // self.scale} x 10 MB", 300 // self.scale, 10_000_000)

    def measure_dagster(self) -> list[dict[str, Any]]:
        """Measure the command `backup` with almost no data: the time that Dagster takes."""
        database, bucket = self.postgres.create_database("almost_empty"), self.s3.settings("almost-empty")
        data.fill_database(database, job_count=1, events_per_job=1, row_count=1)
        data.upload_small_objects(bucket, count=1, size_bytes=1024)
        uses = [
            memory.measure_backup(
                "almost nothing", _make_environment(database, bucket, self.folder / f"dagster{number}")
            )
            for number in range(self.rounds)
        ]
        return _as_json(
            (
                Timing(
                    "whole command, almost no data",
                    "schedgen-backups backup",
                    tuple(use.seconds for use in uses),
                    0,
                ),
            )
        )

    def measure_drill(self) -> list[dict[str, Any]]:
        """Measure a drill of about 1 GB of rows and 10,000 real PDFs; the phases are those of its report."""
        database, bucket = self.postgres.create_database("drilled"), self.s3.settings("drilled")
        seeded = seed_application(database, bucket, user_count=1000, job_count=10_700 // self.scale)
        data.add_rows(database, row_count=12_000_000 // self.scale)
        environment = {**os.environ, **_make_environment(database, bucket, self.folder / "drilled")}
        command = [sys.executable, "-m", "schedgen_backups.cli.main"]
        subprocess.run([*command, "backup"], env=environment, check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(
            [*command, "drill", "--json"], env=environment, check=True, capture_output=True, text=True
        )
        phases = json.loads(done.stdout)["report"]["seconds"]
        work = f"drill of {seeded.objects} PDFs and a dump of 1 GB"
        return [
            {"work": work, "name": name, "seconds": [round(seconds, 1)], "result_bytes": 0}
            for name, seconds in phases.items()
        ]

    def measure_scale(self) -> list[dict[str, Any]]:
        """Measure peak memory with 1,000,000 objects of 1 KiB and one of 50 GiB, from a generated bucket."""
        database = self.postgres.create_database("scale")
        data.fill_database(database, job_count=1, events_per_job=1, row_count=1)
        count, huge_bytes = 1_000_000 // self.scale, (50 << 30) // self.scale
        with serve_generated_buckets(count, huge_bytes) as (many, huge):
            runs = {
                f"{count} x 1 KiB": (many, "many"),
                f"{count} x 1 KiB, next night": (many, "many"),
                f"one of {huge_bytes / (1 << 30):.1f} GiB": (huge, "huge"),
            }
            uses = [
                memory.measure_backup(name, _make_environment(database, bucket, self.folder / folder))
                for name, (bucket, folder) in runs.items()
            ]
        return [
            {
                "work": memory.WORK,
                "name": use.name,
                "seconds": [round(use.seconds, 1)],
                "result_bytes": use.peak_bytes - use.idle_bytes,
            }
            for use in uses
        ]

    def _measure_objects(self, name: str, shape: str, count: int, size_bytes: int) -> list[dict[str, Any]]:
        folder = self._make_folder(name)
        bucket = self.s3.settings(f"bench-{name}")
        data.make_pdf_like_files(folder / "files", count=count, size_bytes=size_bytes)
        data.upload_folder(bucket, folder / "files")
        return _as_json(BucketBench(shape, bucket, folder / "files", folder, rounds=self.rounds).measure())

    def _make_folder(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir()
        return made


def main() -> None:
    """Run the chosen benchmarks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="use a twentieth of the data, one round, and keep no results"
    )
    parser.add_argument(
        "--only",
        choices=_PARTS,
        action="append",
        help="measure this part; can be given several times; default: all but scale",
    )
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    # On SIGTERM, servers and directories are removed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale, rounds = (20, 1) if arguments.quick else (1, arguments.rounds)
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder = Path(name)
        with (
            EmbeddedPostgres(folder / "postgres", server_options=_SERVER_OPTIONS) as postgres,
            Bench(folder, postgres, scale=scale, rounds=rounds) as bench,
        ):
            measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
                "database": bench.measure_database,
                "small-objects": bench.measure_small_objects,
                "large-objects": bench.measure_large_objects,
                "dagster": bench.measure_dagster,
                "drill": bench.measure_drill,
                "scale": bench.measure_scale,
            }
            for part in arguments.only or _IN_DEFAULT:
                date = f"{datetime.now(timezone.utc):%Y-%m-%d}"
                machine = _describe_machine(postgres.server_version)
                parts[part] = {
                    "date": date,
                    "rounds": rounds,
                    "machine": machine,
                    "timings": measures[part](),
                }
                if not arguments.quick:
                    _keep(parts)
    sys.stdout.write(json.dumps(parts, indent=1) + "\n")


def _keep(parts: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(timezone.utc):%Y-%m-%d}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **parts}, indent=1) + "\n", encoding="utf-8")


def _describe_machine(server_version: int) -> str:
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.system()}, "
        f"Python {platform.python_version()}, "
        f"PostgreSQL {server_version} and SeaweedFS on the same machine and disk"
    )


def _as_json(timings: tuple[Timing, ...]) -> list[dict[str, Any]]:
    return [timing.to_json() for timing in timings]


def _make_environment(database: DatabaseSettings, bucket: BucketSettings, folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {
        "DAGSTER_HOME": str(folder / "dagster"),
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_USER": database.user,
        "POSTGRES_PASSWORD": database.password,
        "POSTGRES_DB": database.database,
        "MINIO_ENDPOINT": bucket.endpoint,
        "MINIO_ACCESS_KEY": bucket.access_key,
        "MINIO_SECRET_KEY": bucket.secret_key,
        "MINIO_BUCKET": bucket.bucket,
        "BACKUP_DIR": str(folder / "backups"),
    }


if __name__ == "__main__":
    main()
