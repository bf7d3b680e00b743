"""Runs every measurement and writes the report: `make bench`, or `python -m benchmarks --quick` for a tenth of the data."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import psutil

from benchmarks import data, memory, speed
from benchmarks.paired import Timing
from schedgen_backups.core.embedded_postgres import EmbeddedPostgres
from schedgen_backups.core.embedded_s3 import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

_RESULTS = Path(__file__).parent / "results"
_SERVER_OPTIONS = {"shared_buffers": "256MB", "fsync": "off"}


def main() -> None:
    """The report is on stdout and in benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one round, no file")
    parser.add_argument("--only", choices=("speed", "memory"), help="leave the other part out")
    arguments = parser.parse_args()
    scale, rounds = (10, 1) if arguments.quick else (1, 3)
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder = Path(name)
        with (
            EmbeddedPostgres(folder / "postgres", server_options=_SERVER_OPTIONS) as postgres,
            EmbeddedS3(folder / "s3") as s3,
        ):
            lines = [
                (
                    f"Measured {datetime.now(timezone.utc):%Y-%m-%d} on {os.cpu_count()} cores and {psutil.virtual_memory().total / 1e9:.0f} GB, "
                    f"{platform.system()}, Python {platform.python_version()}; servers, contestants and disk share the machine. "
                    f"PostgreSQL {postgres.server_version}, SeaweedFS. Speed: {rounds} rounds in turn; memory: one run each."
                ),
            ]
            if arguments.only != "memory":
                lines += _measure_speed(postgres, s3, folder, scale, rounds)
            if arguments.only != "speed":
                lines += _measure_memory(postgres, s3, folder, scale)
    report = "\n".join(lines) + "\n"
    print(report)
    if not arguments.quick:
        _RESULTS.mkdir(exist_ok=True)
        part = f"-{arguments.only}" if arguments.only else ""
        (_RESULTS / f"{datetime.now(timezone.utc):%Y-%m-%d}{part}.md").write_text(report)


def _measure_speed(postgres: EmbeddedPostgres, s3: EmbeddedS3, folder: Path, scale: int, rounds: int) -> list[str]:
    database = postgres.create_database("speed")
    job_count, row_count, pdf_count, pdf_bytes = 5_000 // scale, 2_000_000 // scale, 100 // min(scale, 5), 5_000_000
    data.fill_database(database, job_count=job_count, events_per_job=500, row_count=row_count)
    files = folder / "files"
    data.make_pdf_like_files(files, count=pdf_count, size_bytes=pdf_bytes)
    bucket = s3.settings("speed")
    data.upload_folder(bucket, files)
    timings = speed.measure_database(database, folder, rounds=rounds, server_major=postgres.server_version)
    lines = ["", f"Database: {job_count} jobs with large JSON and {row_count} small rows.", *_draw(timings)]
    timings = speed.measure_bucket(bucket, files, folder, rounds=rounds)
    lines += ["", f"Bucket: {pdf_count} PDF-like objects of {pdf_bytes / 1e6:.0f} MB.", *_draw(timings)]
    timings = speed.measure_verification(folder, database.database, bucket.bucket, rounds=rounds)
    return [*lines, "", "Verifying both files.", *_draw(timings)]


def _measure_memory(postgres: EmbeddedPostgres, s3: EmbeddedS3, folder: Path, scale: int) -> list[str]:
    database = postgres.create_database("memory")
    data.fill_database(database, job_count=1_000, events_per_job=100, row_count=100_000)
    object_count, huge_bytes = 100_000 // scale, (2 << 30) // scale
    many, huge = s3.settings("many"), s3.settings("huge")
    data.upload_small_objects(many, count=object_count, size_bytes=1024)
    data.upload_huge_object(huge, size_bytes=huge_bytes)
    uses = [
        memory.measure_backup(f"{object_count} objects of 1 KiB", _make_environment(database, many, folder / "many")),
        memory.measure_backup(f"one object of {huge_bytes / (1 << 30):.1f} GiB", _make_environment(database, huge, folder / "huge")),
    ]
    header = ["", "| whole backup | MiB above idle | MiB idle | seconds |", "| --- | ---: | ---: | ---: |"]
    return [*header, *(use.describe() for use in uses)]


def _draw(timings: tuple[Timing, ...]) -> list[str]:
    header = ["", "| | seconds: median (lowest to highest) | times as fast as the script | MB |", "| --- | --- | ---: | ---: |"]
    return [*header, *(timing.describe(timings[0]) for timing in timings)]


def _make_environment(database: DatabaseSettings, bucket: BucketSettings, folder: Path) -> dict[str, str]:
    folder.mkdir()
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
