"""Measure restores from packs beside those from files: `python -m benchmarks.packs_restore [--scale 4]`.

The packs have a history: ten nights, in each of which another hundredth of the objects and rows changed. The
files are taken of the last of these states. Both are restored in turn, who begins alternates; the targets are
new each time. "Read" unpacks every object and discards it, which shows the difference without an S3 server.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks import data
from benchmarks.database import make_point_ids
from benchmarks.next_night import check_archive, measure_night
from benchmarks.shell import run_shell
from benchmarks.thirty_nights import change_night
from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.restore.bucket import prepare_bucket, write_bucket
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.restore.objects import select_keys
from schedgen_backups.core.restore.tables import TableRequest, prepare_tables
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings, Layout

_NIGHTS = 10
_SETTLED_SECONDS = 3.2
_OPTIONS = CaptureSettings().transfer


@dataclass(frozen=True)
class Side:
    """The point of one layout that is restored."""

    catalog: Catalog
    point_id: RecoveryPointId

    def get_path(self, kind: ArtifactKind) -> Path:
        """Return the artifact, or its recipe."""
        return self.catalog.get_point(self.point_id).get_path(kind)


def take_points(
    folder: Path, files: Path, database: DatabaseSettings, bucket: BucketSettings, nights: int
) -> dict[str, Side]:
    """Return the last of several nights in packs, and the same state in files."""
    ids = make_point_ids()
    sides: dict[str, Side] = {}
    for night in range(nights):
        if night:
            change_night(files, database, bucket, night)
        sides["packs"] = _take(folder / "packs", Layout.PACKS, ids, database, bucket)
    sides["files"] = _take(folder / "whole", Layout.FILES, ids, database, bucket)
    return sides


def _take(
    folder: Path,
    layout: Layout,
    ids: Iterator[RecoveryPointId],
    database: DatabaseSettings,
    bucket: BucketSettings,
) -> Side:
    catalog, point_id, settings = Catalog(folder), next(ids), CaptureSettings(layout=layout)
    catalog.prepare()
    take_database_dump(catalog, database, settings, point_id)
    captured = take_bucket_archive(catalog, bucket, settings, point_id)
    check_archive(catalog, point_id, captured)
    return Side(catalog, point_id)


class RestoreBench:
    """The restores that are measured."""

    def __init__(
        self, folder: Path, postgres: EmbeddedPostgres, database: DatabaseSettings, bucket: BucketSettings
    ) -> None:
        self._folder, self._postgres, self._database = folder, postgres, database
        self._target_bucket = bucket.with_bucket(f"{bucket.bucket}-restored")
        self._target_database = postgres.create_database("restored")

    def list_works(self) -> dict[str, tuple[Callable[[Side], object], Callable[[], object], int]]:
        """Return what is measured: the work, what precedes it, and how often it is done in a round."""

        def nothing() -> None:
            pass

        def renew_bucket() -> None:
            data.renew_bucket(self._target_bucket)

        return {
            "read every object": (self._read_all, nothing, 1),
            "bucket": (self._restore_bucket, renew_bucket, 1),
            "database": (partial(self._restore_database, jobs=1), self._renew_database, 1),
            "database, --jobs 2": (partial(self._restore_database, jobs=2), self._renew_database, 1),
            "one object": (self._read_one, nothing, 5),
            "one object as a command": (self._read_one_as_command, self._remove_one, 3),
            "one table": (self._read_table, nothing, 5),
        }

    def _read_all(self, side: Side) -> None:
        with open_archive(side.get_path(ArtifactKind.BUCKET)) as archive:
            # A list first: index and objects are read through the same file.
            for entry in list(archive.read_entries()):
                assert sum(len(block) for block in archive.read_object(entry)) == entry.size_bytes

    def _restore_bucket(self, side: Side) -> None:
        with prepare_bucket(side.get_path(ArtifactKind.BUCKET), self._target_bucket, _OPTIONS) as prepared:
            write_bucket(prepared, overwrite=False, stop=Event())

    def _renew_database(self) -> None:
        self._postgres.drop_database(self._target_database.database)
        self._postgres.create_database(self._target_database.database)

    def _restore_database(self, side: Side, *, jobs: int) -> None:
        path = side.get_path(ArtifactKind.DATABASE)
        with prepare_database(path, self._target_database, _OPTIONS) as prepared:
            DatabaseLoad(
                prepared,
                replace_contents=False,
                jobs=jobs,
                roles=None,
                stop=Event(),
                on_progress=lambda _size_bytes: None,
            ).run()

    def _read_one(self, side: Side) -> None:
        with open_archive(side.get_path(ArtifactKind.BUCKET)) as archive:
            (entry,), _lost = select_keys(archive, (self.key,))
            assert sum(len(block) for block in archive.read_object(entry)) == entry.size_bytes

    @property
    def key(self) -> str:
        """Key of the object that is restored alone."""
        return "uploads/000007.pdf"

    def _remove_one(self) -> None:
        run_shell(f"rm -rf '{self._folder}/one'")

    def _read_one_as_command(self, side: Side) -> None:
        program = Path(sys.executable).with_name("schedgen-backups")
        words = [program, "restore-objects", side.point_id.text, self.key, "--to", self._folder / "one"]
        run_shell(shlex.join(str(word) for word in words), {"BACKUP_DIR": str(side.catalog.directory)})

    def _read_table(self, side: Side) -> None:
        point = side.catalog.get_point(side.point_id)
        request = TableRequest(point, ("users",), self._database, side_name="one_table")
        with prepare_tables(request, _OPTIONS) as prepared:
            assert prepared.tables


def main() -> None:
    """Measure everything and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=4, help="divide the number of objects and rows by this")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--nights", type=int, default=_NIGHTS)
    arguments = parser.parse_args()
    scale = arguments.scale
    found: dict[str, Any] = {"load": [os.getloadavg()]}
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(EmbeddedS3(folder / "s3"))
        options = {"fsync": "off", "shared_buffers": "256MB"}
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", server_options=options))
        database, bucket = postgres.create_database("source"), server.settings("packs-restore")
        data.fill_database(
            database, job_count=5_000 // scale, events_per_job=900, row_count=5_000_000 // scale
        )
        data.make_pdf_like_files(folder / "files", count=20_000 // scale, size_bytes=100_000)
        data.upload_folder(bucket, folder / "files")
        time.sleep(_SETTLED_SECONDS)
        sides = take_points(folder, folder / "files", database, bucket, arguments.nights)
        bench = RestoreBench(folder, postgres, database, bucket)
        for work, (run, prepare, times) in bench.list_works().items():
            measured: dict[str, list[tuple[float, float]]] = {each: [] for each in sides}
            for number in range(arguments.rounds * times):
                order = list(sides) if number % 2 else list(reversed(sides))
                for each in order:
                    prepare()
                    night = measure_night(partial(run, sides[each]), folder / "none")
                    measured[each].append((night.seconds, night.own_processor_seconds))
            found[work] = _describe(measured)
            print(work, json.dumps(found[work]), file=sys.stderr, flush=True)
        found["load"].append(os.getloadavg())
    print(json.dumps(found, indent=1))


def _describe(measured: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return medians, and medians of the ratios of the pairs."""
    found: dict[str, Any] = {}
    for position, name in enumerate(("seconds", "processor_seconds")):
        for side, values in measured.items():
            found[f"{side}, {name}"] = round(statistics.median(value[position] for value in values), 4)
        pairs = zip(measured["packs"], measured["files"], strict=True)
        ratios = [packs[position] / max(whole[position], 1e-3) for packs, whole in pairs]
        found[f"packs : files, {name}"] = round(statistics.median(ratios), 3)
        found[f"packs : files, {name}, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return found


if __name__ == "__main__":
    main()
