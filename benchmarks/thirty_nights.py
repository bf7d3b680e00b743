"""Measure the disk after thirty nights in packs: `python -m benchmarks.thirty_nights [--objects 5000]`.

Each night another hundredth of the objects, chosen at random, and of the rows changes. The same nights are
kept by `restic backup` of a tree that rclone syncs from the bucket and of the plain dump, and by rsync with
hard links of that tree beside a dump by gzip. The layout of whole files is computed from the sizes of the
artifacts, not run. Sizes are those of files, each inode once, as on a disk without blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import data
from benchmarks.database import OURS, make_point_ids
from benchmarks.next_night import SyncedRestic, check_archive, measure_night
from benchmarks.shell import has_program, run_shell
from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.packed_file import PACKS_NAME, read_local_recipe
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.postgres.client_programs import find_client
from schedgen_backups.core.postgres.connection import make_client_environment
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings, Layout

_SIZE_BYTES = 100_000
_SETTLED_SECONDS = 3.2
RESTIC, RSYNC, FILES = "restic", "rsync with hard links", "files (computed)"


class Nights:
    """The same nights kept by each contestant."""

    def __init__(
        self, folder: Path, postgres: EmbeddedPostgres, database: DatabaseSettings, bucket: BucketSettings
    ) -> None:
        self._folder, self._database, self._bucket = folder, database, bucket
        self._catalog = Catalog(folder / "points")
        self._catalog.prepare()
        self._settings = CaptureSettings(layout=Layout.PACKS)
        self._ids = make_point_ids()
        self._peer = SyncedRestic(bucket, folder / "peer", more=(folder / "dump.sql",))
        self._peer.prepare()
        self._rsync = folder / "rsync"
        self._rsync.mkdir()
        self._snapshots: list[Path] = []
        client = find_client(database, postgres.server_version, None)
        self._dump = f"'{client.pg_dump}' --no-password"
        self._files_bytes = 0

    def take(self) -> dict[str, Any]:
        """Take a night with each; return its cost and the disk that each needs then."""
        own = measure_night(self._take_own, self._catalog.directory)
        run_shell(f"{self._dump} > '{self._folder}/dump.sql'", make_client_environment(self._database))
        synced = measure_night(self._peer.sync, self._peer.tree)
        restic = measure_night(self._peer.back_up, self._peer.repository)
        rsync = measure_night(self._take_rsync, self._rsync)
        return {
            "night": {
                OURS: asdict(own),
                "rclone sync": asdict(synced),
                RESTIC: asdict(restic),
                RSYNC: asdict(rsync),
            },
            "disk": self._measure_disk(),
        }

    def _take_own(self) -> None:
        point_id = next(self._ids)
        dump = take_database_dump(self._catalog, self._database, self._settings, point_id)
        captured = take_bucket_archive(self._catalog, self._bucket, self._settings, point_id)
        check_archive(self._catalog, point_id, captured)
        self._files_bytes += dump.size_bytes + captured.size_bytes

    def _take_rsync(self) -> None:
        snapshot = self._rsync / f"{len(self._snapshots):02}"
        snapshot.mkdir()
        linked = f"--link-dest='{self._snapshots[-1]}/tree'" if self._snapshots else ""
        run_shell(f"rsync -a {linked} '{self._peer.tree}/' '{snapshot}/tree'")
        run_shell(f"gzip < '{self._folder}/dump.sql' > '{snapshot}/dump.sql.gz'")
        self._snapshots.append(snapshot)

    def _measure_disk(self) -> dict[str, int]:
        packs = self._catalog.directory / PACKS_NAME
        dump_packs = {
            name
            for path in self._catalog.find_recipes()
            if path.name.startswith(ArtifactKind.DATABASE.file_prefix)
            for name in read_local_recipe(path).packs
        }
        return {
            "bucket": measure_disk([self._peer.tree]),
            OURS: measure_disk([self._catalog.directory]),
            f"{OURS}: packs of the dumps": sum((packs / name).stat().st_size for name in dump_packs),
            f"{OURS}: recipes": measure_disk(self._catalog.find_recipes()),
            f"{OURS}: index of pieces": measure_disk(packs.glob(".pieces*")),
            RESTIC: measure_disk([self._peer.repository]),
            RSYNC: measure_disk([self._rsync]),
            f"{RSYNC}: dumps": measure_disk(self._rsync.glob("*/dump.sql.gz")),
            FILES: self._files_bytes,
        }


def measure_disk(paths: Iterable[Path]) -> int:
    """Return the bytes of these files and directories, each inode once."""
    found: dict[int, int] = {}
    for path in paths:
        for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
            status = each.lstat()
            if not each.is_dir():
                found[status.st_ino] = status.st_size
    return sum(found.values())


def change_night(files: Path, database: DatabaseSettings, bucket: BucketSettings, night: int) -> None:
    """Change a hundredth of the objects and rows, others each night."""
    paths = sorted(files.iterdir())
    chosen = random.Random(night).sample(paths, max(1, len(paths) // 100))
    data.replace_files(chosen, bucket)
    with psycopg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        dbname=database.database,
    ) as connection:
        connection.execute(
            "UPDATE jobs SET status = %s WHERE id IN (SELECT id FROM jobs ORDER BY random() "
            "LIMIT (SELECT count(*) / 100 + 1 FROM jobs))",
            (f"night {night}",),
        )
        connection.execute(
            "INSERT INTO event SELECT -i - %s * 1000000, md5((i * %s)::text), now(), i FROM "
            "generate_series(1, (SELECT count(*) / 100 FROM event WHERE id > 0)) AS i",
            (night, night + 7),
        )
    time.sleep(_SETTLED_SECONDS)


def judge(disk: dict[str, int]) -> dict[str, float]:
    """Return the ratios that have a bar, and those to the others."""
    dumps = disk[f"{OURS}: packs of the dumps"]
    return {
        "without the dumps' packs : bucket": round((disk[OURS] - dumps) / disk["bucket"], 3),
        **{f"all : {name}": round(disk[OURS] / disk[name], 3) for name in (RESTIC, RSYNC, FILES)},
    }


def main() -> None:
    """Take the nights and print the last one's disk, the ratios and the cost of some nights as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=5_000)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--database-scale", type=int, default=20, help="divide the rows by this")
    arguments = parser.parse_args()
    for program in ("rclone", "restic", "rsync"):
        if not has_program(program):
            parser.error(f"{program} is not installed")
    found: dict[str, Any] = {"load": [os.getloadavg()], "nights": []}
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder, scale = Path(name), arguments.database_scale
        with (
            EmbeddedS3(folder / "s3") as server,
            EmbeddedPostgres(folder / "postgres", server_options={"fsync": "off"}) as postgres,
        ):
            database, bucket = postgres.create_database("nights"), server.settings("thirty-nights")
            data.fill_database(
                database, job_count=5_000 // scale, events_per_job=900, row_count=5_000_000 // scale
            )
            data.make_pdf_like_files(folder / "files", count=arguments.objects, size_bytes=_SIZE_BYTES)
            data.upload_folder(bucket, folder / "files")
            time.sleep(_SETTLED_SECONDS)
            nights = Nights(folder, postgres, database, bucket)
            for night in range(arguments.nights):
                if night:
                    change_night(folder / "files", database, bucket, night)
                found["nights"].append(nights.take())
                print(night, json.dumps(found["nights"][-1]), file=sys.stderr, flush=True)
    found["load"].append(os.getloadavg())
    found["ratios"] = judge(found["nights"][-1]["disk"])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
