"""Measure a next night against a first one: `python -m benchmarks.next_night [--layout packs]`.

Both nights of a round run one after the other, on the same machine, server and disk; compare the ratio. A
night is the capture of the bucket and the check of the archive, as in a backup. One percent of the objects
changes before the next night. The processor time is that of this process and of the S3 server; on a busy
machine it depends less on the others than the seconds do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import data
from benchmarks.database import make_point_ids
from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_file import CapturedArchive
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, Layout
from schedgen_backups.core.verify.commit import record_read_back
from schedgen_backups.core.verify.files import select_current

_SHAPES = {"small": (20_000, 100_000), "large": (300, 10_000_000)}
_CHANGED_SHARE = 0.01
_SETTLED_SECONDS = 3.2
"""Objects that were read within two seconds of their change are read again."""


@dataclass(frozen=True)
class Night:
    """What one night costs."""

    capture_seconds: float
    check_seconds: float
    processor_seconds: float
    written_bytes: int
    """By which the backup directory grew."""

    @property
    def seconds(self) -> float:
        """Seconds of capture and check."""
        return self.capture_seconds + self.check_seconds


class NightBench:
    """Takes nights of one bucket into one backup directory."""

    def __init__(self, bucket: BucketSettings, files: Path, folder: Path, layout: Layout) -> None:
        self._bucket, self._files, self._folder = bucket, files, folder
        self._settings = CaptureSettings(layout=layout)
        self._ids = make_point_ids()

    def measure_round(self) -> tuple[Night, ...]:
        """Return a first night, the next one, and one in which nothing changed, in a new backup directory."""
        folder = self._folder / "points"
        catalog = Catalog(folder)
        catalog.prepare()
        try:
            first = self._take(catalog)
            data.change_files(self._files, self._bucket, share=_CHANGED_SHARE)
            time.sleep(_SETTLED_SECONDS)
            return first, self._take(catalog), self._take(catalog)
        finally:
            shutil.rmtree(folder)

    def _take(self, catalog: Catalog) -> Night:
        point_id = next(self._ids)
        processor = read_processor_seconds()
        before = _measure_disk(catalog.directory)
        started = time.monotonic()
        captured = take_bucket_archive(catalog, self._bucket, self._settings, point_id)
        capture_seconds = time.monotonic() - started
        started = time.monotonic()
        _check(catalog, point_id, captured)
        check_seconds = time.monotonic() - started
        return Night(
            capture_seconds,
            check_seconds,
            read_processor_seconds() - processor,
            _measure_disk(catalog.directory) - before,
        )


def _measure_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_processor_seconds() -> float:
    """Return the processor seconds of this process and its living children so far."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _check(catalog: Catalog, point_id: RecoveryPointId, captured: CapturedArchive) -> None:
    """Do what the asset and its check do, which need no other reading than the capture's own."""
    path = catalog.get_point(point_id).get_path(ArtifactKind.BUCKET)
    record_read_back(catalog, point_id, path, captured, checked_by="benchmark")
    results = select_current(catalog.read_verification(point_id).results, path)
    if not results or not all(result.is_passed for result in results):
        raise RuntimeError(f"the archive of {point_id} is damaged")


def _describe(rounds: list[tuple[Night, ...]]) -> dict[str, Any]:
    def compare(number: int, name: str) -> float:
        """Return the median ratio of this night to the first one."""
        values = [[getattr(night, name) for night in nights] for nights in rounds]
        return round(statistics.median(each[number] / each[0] for each in values), 3)

    return {
        "rounds": [[asdict(night) for night in nights] for nights in rounds],
        **{
            f"{night}: {name}": compare(number, name)
            for number, night in ((1, "1 % changed"), (2, "nothing changed"))
            for name in ("seconds", "processor_seconds", "written_bytes")
        },
    }


def main() -> None:
    """Measure the shapes and print the rounds and their median ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=_SHAPES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="divide the number of objects by this")
    parser.add_argument("--layout", choices=[layout.value for layout in Layout], default="files")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
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
                rounds: list[tuple[Night, ...]] = []
                for _round in range(arguments.rounds):
                    rounds.append(bench.measure_round())
                    print(shape, rounds[-1], file=sys.stderr, flush=True)
                found[f"{count} x {size_bytes} bytes"] = _describe(rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
