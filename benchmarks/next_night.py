"""Measure a next night against a first one: `python -m benchmarks.next_night [--layout packs] [--beside]`.

The nights of a round run one after the other, on the same machine, server and disk; compare the ratio. A
night is the capture of the bucket and the check of the archive, as in a backup. One percent of the objects
changes before the next night. The processor time is given apart: this process with its finished children, and
the S3 server. On a busy machine it depends less on the others than the seconds do.

With `--beside`, `rclone sync` from the same bucket and `restic backup` of the tree take the same nights;
who begins alternates with the rounds. In the last night nothing has changed: there the listing alone is
measured, too, which every backup of a bucket needs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import data
from benchmarks.database import OURS, make_point_ids
from benchmarks.shell import has_program, make_rclone_environment, run_shell
from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_writer import CapturedArchive
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, Layout
from schedgen_backups.core.verify.commit import record_read_back
from schedgen_backups.core.verify.files import select_current

_SHAPES = {"small": (20_000, 100_000), "large": (300, 10_000_000)}
_CHANGED_SHARE = 0.01
_NIGHTS = ("first night", "1 % changed", "nothing changed")
_SETTLED_SECONDS = 3.2
"""Objects that were read within two seconds of their change are read again."""


RESTIC = "rclone sync + restic"


@dataclass(frozen=True)
class Night:
    """What one night costs."""

    seconds: float
    own_processor_seconds: float
    """Of this process and its finished children."""
    server_processor_seconds: float
    written_bytes: int
    """By which the backup directory, or synced tree and repository, grew."""

    @property
    def processor_seconds(self) -> float:
        """Processor seconds, those of the S3 server included."""
        return self.own_processor_seconds + self.server_processor_seconds


class NightBench:
    """Takes nights of one bucket into one backup directory."""

    def __init__(self, bucket: BucketSettings, files: Path, folder: Path, layout: Layout) -> None:
        self._bucket, self._files, self._folder = bucket, files, folder
        self._settings = CaptureSettings(layout=layout)
        self._ids = make_point_ids()
        self._changes = itertools.count(1)

    def measure_round(self, *, is_beside: bool, is_peer_first: bool) -> dict[str, tuple[Night, ...]]:
        """Return a first night, the next one, and one in which nothing changed, of each contestant."""
        catalog = Catalog(self._folder / "points")
        contestants: dict[str, Callable[[], object]] = {OURS: lambda: self._take(catalog)}
        if is_beside:
            peer = SyncedRestic(self._bucket, self._folder / "peer")
            peer.prepare()
            contestants[RESTIC] = peer.take
        if is_peer_first:
            contestants = dict(reversed(contestants.items()))
        catalog.prepare()
        nights: dict[str, list[Night]] = {name: [] for name in contestants}
        try:
            for number in range(3):
                if number == 1:
                    self._change()
                for name, take in contestants.items():
                    nights[name].append(measure_night(take, self._folder / _FOLDERS[name]))
            nights[LISTING] = [measure_night(self._list, self._folder / "points")]
        finally:
            for name in _FOLDERS.values():
                shutil.rmtree(self._folder / name, ignore_errors=True)
        return {name: tuple(taken) for name, taken in nights.items()}

    def _change(self) -> None:
        number = next(self._changes)
        data.change_files(self._files, self._bucket, share=_CHANGED_SHARE, first=number)
        time.sleep(_SETTLED_SECONDS)

    def _take(self, catalog: Catalog) -> None:
        point_id = next(self._ids)
        captured = take_bucket_archive(catalog, self._bucket, self._settings, point_id)
        check_archive(catalog, point_id, captured)

    def _list(self) -> None:
        with BucketClient(
            self._bucket, threads=1, stall_timeout_seconds=600, max_mb_per_second=0, on_busy=lambda: None
        ) as client:
            assert sum(1 for _listed in client.list_objects())


class SyncedRestic:
    """Backs up a bucket with `rclone sync` into a tree and `restic backup` of that."""

    def __init__(self, bucket: BucketSettings, folder: Path, more: tuple[Path, ...] = ()) -> None:
        self.tree, self.repository = folder / "tree", folder / "restic"
        self._folder, self._bucket, self._more = folder, bucket, more
        self._environment = {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
            **make_rclone_environment(bucket),
        }

    def prepare(self) -> None:
        """Make a new repository."""
        self._folder.mkdir()
        run_shell("restic init --quiet", self._environment)

    def sync(self) -> None:
        """Sync the tree. With the server's times, it needs no HEAD for each object."""
        run_shell(
            "rclone sync --use-server-modtime --fast-list --transfers 16 --checkers 16 "
            f"'s3:{self._bucket.bucket}' '{self.tree}'",
            self._environment,
        )

    def back_up(self) -> None:
        """Back up the tree, and `more`."""
        paths = " ".join(f"'{path}'" for path in (self.tree, *self._more))
        run_shell(f"restic backup --quiet {paths}", self._environment)

    def take(self) -> None:
        """Take one night."""
        self.sync()
        self.back_up()


LISTING = "the listing alone"
_FOLDERS = {OURS: "points", RESTIC: "peer"}


def measure_night(take: Callable[[], object], folder: Path) -> Night:
    """Take one night; return what it cost and by how much the directory grew."""
    own, server = read_processor_seconds()
    before = _measure_disk(folder)
    started = time.monotonic()
    take()
    seconds = time.monotonic() - started
    own_after, server_after = read_processor_seconds()
    return Night(seconds, own_after - own, server_after - server, _measure_disk(folder) - before)


def _measure_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_processor_seconds() -> tuple[float, float]:
    """Return the processor seconds of this process and its finished children, and of its living ones."""
    own = os.times()
    living = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return (
        own.user + own.system + own.children_user + own.children_system,
        sum(each.user + each.system for each in living),
    )


def check_archive(catalog: Catalog, point_id: RecoveryPointId, captured: CapturedArchive) -> None:
    """Do what the asset and its check do, which need no other reading than the capture's own."""
    path = catalog.get_point(point_id).get_path(ArtifactKind.BUCKET)
    record_read_back(catalog, point_id, path, captured, checked_by="benchmark")
    results = select_current(catalog.read_verification(point_id).results, path)
    if not results or not all(result.is_passed for result in results):
        raise RuntimeError(f"the archive of {point_id} is damaged")


def _describe(rounds: list[dict[str, tuple[Night, ...]]]) -> dict[str, Any]:
    """Return the rounds, and medians of the ratios within each."""

    def compare(over: tuple[str, int], under: tuple[str, int], name: str) -> float:
        values = [
            getattr(nights[over[0]][over[1]], name) / max(getattr(nights[under[0]][under[1]], name), 1e-9)
            for nights in rounds
        ]
        return round(statistics.median(values), 3)

    names = ("seconds", "processor_seconds", "own_processor_seconds", "written_bytes")
    found: dict[str, Any] = {"rounds": [_to_json(nights) for nights in rounds]}
    for contestant in rounds[0]:
        if contestant != LISTING:
            found |= {
                f"{contestant}: {night} : first night, {name}": compare(
                    (contestant, number), (contestant, 0), name
                )
                for number, night in enumerate(_NIGHTS)
                for name in names
                if number
            }
    if RESTIC in rounds[0]:
        found |= {
            f"{night}, ours : {RESTIC}, {name}": compare((OURS, number), (RESTIC, number), name)
            for number, night in enumerate(_NIGHTS)
            for name in names
        }
    return found


def _to_json(nights: dict[str, tuple[Night, ...]]) -> dict[str, Any]:
    return {name: [asdict(night) for night in taken] for name, taken in nights.items()}


def main() -> None:
    """Measure the shapes and print the rounds and their median ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=_SHAPES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="divide the number of objects by this")
    parser.add_argument("--layout", choices=[layout.value for layout in Layout], default="files")
    parser.add_argument("--beside", action="store_true", help="take the same nights with rclone and restic")
    arguments = parser.parse_args()
    if arguments.beside and not (has_program("rclone") and has_program("restic")):
        parser.error("rclone or restic is not installed")
    found: dict[str, Any] = {"load": [os.getloadavg()]}
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder = Path(name)
        with EmbeddedS3(folder / "s3") as server:
            for shape in arguments.shape or _SHAPES:
                count, size_bytes = _SHAPES[shape]
                count //= arguments.scale
                bucket, files = server.settings(f"nights-{shape}"), folder / shape
                data.make_pdf_like_files(files, count=count, size_bytes=size_bytes)
                data.upload_folder(bucket, files)
                time.sleep(_SETTLED_SECONDS)
                bench = NightBench(bucket, files, folder, Layout(arguments.layout))
                rounds: list[dict[str, tuple[Night, ...]]] = []
                for number in range(arguments.rounds):
                    rounds.append(
                        bench.measure_round(is_beside=arguments.beside, is_peer_first=number % 2 == 1)
                    )
                    found["load"].append(os.getloadavg())
                    print(shape, json.dumps(_to_json(rounds[-1])), file=sys.stderr, flush=True)
                found[f"{count} x {size_bytes} bytes"] = _describe(rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
