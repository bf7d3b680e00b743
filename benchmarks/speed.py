"""Capture, verification and restore-free reading against the script of today: `pg_dump | gzip`, `tar czf`, `gzip -t` with `tar -tzf`.

Every contestant reads the same server or folder and writes to the same disk. The script's tar reads the files from the disk, as it does today; ours
asks the S3 server for them, which is the price of a backup that needs no access to the server's volume.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.paired import Timing, run_in_turn
from schedgen_backups.core.archive import capture_bucket
from schedgen_backups.core.clients import find_client
from schedgen_backups.core.command import make_environment
from schedgen_backups.core.dump import capture_database
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.postgres import make_client_environment
from schedgen_backups.core.settings import BackupSettings, BucketSettings, DatabaseSettings
from schedgen_backups.core.verify import verify_archive, verify_dump

_POINT = RecoveryPointId("20261122_020000")


def measure_database(settings: DatabaseSettings, folder: Path, *, rounds: int, server_major: int) -> tuple[Timing, ...]:
    """The script's dump, ours, ours with verification, and the limit: pg_dump into nothing."""
    client = find_client(settings, server_major, None)
    dump = f"'{client.pg_dump}' --format=plain --no-password"
    ours = folder / f"db_{settings.database}_{_POINT}.sql.gz"

    def capture() -> int:
        with ours.open("w+b") as file:
            return capture_database(settings, _options(folder), _POINT, file).size_bytes

    def capture_and_verify() -> int:
        size_bytes = capture()
        assert all(result.is_passed for result in verify_dump(ours))
        return size_bytes

    return run_in_turn(
        {
            "pg_dump \\| gzip (the script)": _shell(f"{dump} | gzip > '{folder}/script.sql.gz'", folder / "script.sql.gz", settings),
            "schedgen-backups": capture,
            "schedgen-backups, verified (stored, parsed)": capture_and_verify,
            "pg_dump > /dev/null (limit)": _shell(f"{dump} > /dev/null", None, settings),
        },
        rounds=rounds,
    )


def measure_bucket(settings: BucketSettings, files: Path, folder: Path, *, rounds: int) -> tuple[Timing, ...]:
    """The script's tar of the files on the disk, ours over S3, and ours with verification."""
    ours = folder / f"minio_{settings.bucket}_{_POINT}.tar.gz"

    def capture() -> int:
        with ours.open("w+b") as file:
            return capture_bucket(settings, _options(folder), _POINT, file, folder=folder).size_bytes

    def capture_and_verify() -> int:
        size_bytes = capture()
        assert all(result.is_passed for result in verify_archive(ours))
        return size_bytes

    return run_in_turn(
        {
            "tar czf of the files (the script)": _shell(f"tar czf '{folder}/script.tar.gz' -C '{files}' .", folder / "script.tar.gz"),
            "schedgen-backups, over S3": capture,
            "schedgen-backups, verified (stored, parsed)": capture_and_verify,
        },
        rounds=rounds,
    )


def measure_verification(folder: Path, database: str, bucket: str, *, rounds: int) -> tuple[Timing, ...]:
    """Reading both files again: stock gzip and tar, and ours, which compares every digest too."""
    dump, archive = folder / f"db_{database}_{_POINT}.sql.gz", folder / f"minio_{bucket}_{_POINT}.tar.gz"

    def verify() -> int:
        results = (*verify_dump(dump), *verify_archive(archive))
        assert all(result.is_passed for result in results)
        return 0

    stock = f"gzip -t '{dump}' && gzip -t '{archive}' && tar -tzf '{archive}' > /dev/null"
    return run_in_turn({"gzip -t, tar -tzf (the script)": _shell(stock, None), "schedgen-backups verify": verify}, rounds=rounds)


def _options(folder: Path) -> BackupSettings:
    return BackupSettings(folder, compression_threads=os.cpu_count() or 1)


def _shell(command: str, result: Path | None, settings: DatabaseSettings | None = None) -> Callable[[], int]:
    environment = make_environment(make_client_environment(settings) if settings else {})

    def run() -> int:
        subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, check=True)
        return result.stat().st_size if result else 0

    return run
