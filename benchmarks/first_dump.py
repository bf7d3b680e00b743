"""Measure the first dump beside pg_dump with zstd: `python -m benchmarks.first_dump [--scale 4]`.

Uses the first installed wheel whose pg_dump can compress with zstd, or the programs in `--bin-dir`. Where
`pgbackrest` is installed and supports the server, `--pgbackrest` measures its full backup, too: it copies the
files of the cluster, without the write-ahead log. All contestants back up the same database, in turn; the
order is reversed in every other round. Each result is new. The processor time is that of the client
programs, without the database server.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.database import make_point_ids
from benchmarks.next_night import Night, measure_night
from benchmarks.shell import run_shell
from schedgen_backups.core.capture.capture import take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.postgres.connection import make_client_environment
from schedgen_backups.core.servers.postgres import EmbeddedPostgres, find_embedded_bin_dirs
from schedgen_backups.core.settings import CaptureSettings, DatabaseSettings, Layout, TransferSettings


def has_zstd(bin_dir: Path) -> bool:
    """Return whether this pg_dump is linked with zstd; it uses it since version 16."""
    linked = subprocess.run(["ldd", bin_dir / "pg_dump"], capture_output=True, text=True, check=False)
    version = subprocess.run([bin_dir / "pg_dump", "--version"], capture_output=True, text=True, check=True)
    return "libzstd" in linked.stdout and int(re.findall(r"\d+", version.stdout)[0]) >= 16


def make_pgbackrest_command(made: Path, data_directory: Path, database: DatabaseSettings) -> str:
    """Return the command of a full backup into a new repository."""
    options = (
        f"--stanza=benchmark --pg1-path='{data_directory}' --pg1-port={database.port} "
        f"--pg1-user={database.user} --repo1-path='{made}' --lock-path='{made}.lock' --log-level-file=off"
    )
    return (
        f"pgbackrest {options} stanza-create && pgbackrest {options} --log-level-console=error "
        "--no-archive-check --start-fast --compress-type=zst --process-max=2 --type=full backup"
    )


def measure_dumps(
    folder: Path, bin_dir: Path, database: DatabaseSettings, rounds: int, data_directory: Path | None
) -> dict[str, dict[str, Any]]:
    """Return the medians of each contestant, and how they compare with ours in packs within the rounds.

    `data_directory` is the cluster for pgBackRest; None leaves it out.
    """
    ids = make_point_ids()
    environment = make_client_environment(database)
    made = folder / "made"

    def take(layout: Layout) -> None:
        catalog = Catalog(made)
        catalog.prepare()
        transfer = TransferSettings(postgres_bin_dir=bin_dir)
        take_database_dump(catalog, database, CaptureSettings(layout=layout, transfer=transfer), next(ids))

    def run(options: str) -> None:
        run_shell(f"'{bin_dir}/pg_dump' --no-password {options}", environment)

    contestants: dict[str, Callable[[], object]] = {
        "schedgen-backups, packs": partial(take, Layout.PACKS),
        "schedgen-backups, files": partial(take, Layout.FILES),
        "pg_dump | gzip (the script)": partial(run, f"| gzip > '{made}'"),
    }
    if has_zstd(bin_dir):
        contestants["pg_dump -Fd -Z zstd"] = partial(run, f"-Fd -Z zstd -f '{made}'")
        contestants["pg_dump -Fd -j2 -Z zstd"] = partial(run, f"-Fd -j2 -Z zstd -f '{made}'")
    if data_directory is not None:
        command = make_pgbackrest_command(made, data_directory, database)
        contestants["pgBackRest, zstd, 2 processes"] = partial(run_shell, command, environment)
    measured: dict[str, list[Night]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants if number % 2 == 0 else reversed(contestants):
            night = measure_night(contestants[name], folder)
            measured[name].append(night)
            print(name, night, file=sys.stderr, flush=True)
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink()
    own = measured["schedgen-backups, packs"]

    def summarise(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in ("seconds", "own_processor_seconds", "written_bytes"):
            values = [getattr(night, field) for night in measured[name]]
            ratios = [getattr(ours, field) / value for ours, value in zip(own, values, strict=True)]
            found[field] = round(statistics.median(values), 2)
            found[f"packs : this, {field}"] = round(statistics.median(ratios), 2)
        return found

    return {name: summarise(name) for name in contestants}


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divide the rows by this")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bin-dir", type=Path, help="programs of PostgreSQL, server and clients")
    parser.add_argument("--pgbackrest", action="store_true")
    arguments = parser.parse_args()
    bin_dir = arguments.bin_dir or next(filter(has_zstd, find_embedded_bin_dirs()), None)
    if bin_dir is None:
        parser.error("no installed wheel has a pg_dump with zstd")
    found: dict[str, Any] = {"load": [os.getloadavg()]}
    options = {"shared_buffers": "256MB", "fsync": "off"}
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder = Path(name) / "dumps"
        folder.mkdir()
        with EmbeddedPostgres(Path(name) / "postgres", bin_dir=bin_dir, server_options=options) as postgres:
            database = postgres.create_database("first")
            data.fill_database(
                database,
                job_count=5_000 // arguments.scale,
                events_per_job=900,
                row_count=5_000_000 // arguments.scale,
            )
            found[f"PostgreSQL {postgres.server_version}"] = measure_dumps(
                folder,
                bin_dir,
                database,
                arguments.rounds,
                Path(name) / "postgres" / "data" if arguments.pgbackrest else None,
            )
    found["load"].append(os.getloadavg())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
