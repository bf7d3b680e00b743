"""Measure a next night against a first one: `python -m benchmarks.next_night [--shape small] [--rounds 3]`.

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
from schedgen_backups.core.settings import BucketSettings, CaptureSettings
from schedgen_backups.core.verify.commit import record_read_back
from schedgen_backups.core.verify.files import select_current

_SHAPES = {"small": (20_000, 100_000), "large": (300, 10_000_000)}
_CHANGED_SHARE = 0.01
_SETTLED_SECONDS = 3.2
"""Objects that were read within two seconds of their change are read again."""


@dataclass(frozen=True)
class Night:
    """Wall-clock and processor seconds of one night."""

    capture_seconds: float
    check_seconds: float
    processor_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of capture and check."""
        return self.capture_seconds + self.check_seconds


class NightBench:
    """Takes nights of one bucket into one backup directory."""

    def __init__(self, bucket: BucketSettings, files: Path, folder: Path) -> None:
        self._bucket, self._files, self._folder = bucket, files, folder
        self._ids = make_point_ids()

    def measure_round(self) -> tuple[Night, Night]:
        """Return a first night and the next one, in a new backup directory."""
        folder = self._folder / "points"
        catalog = Catalog(folder)
        catalog.prepare()
        try:
            first = self._take(catalog)
            data.change_files(self._files, self._bucket, share=_CHANGED_SHARE)
            time.sleep(_SETTLED_SECONDS)
            return first, self._take(catalog)
        finally:
            shutil.rmtree(folder)

    def _take(self, catalog: Catalog) -> Night:
        point_id = next(self._ids)
        processor = read_processor_seconds()
        started = time.monotonic()
        captured = take_bucket_archive(catalog, self._bucket, CaptureSettings(), point_id)
        capture_seconds = time.monotonic() - started
        started = time.monotonic()
        _check(catalog, point_id, captured)
        check_seconds = time.monotonic() - started
        return Night(capture_seconds, check_seconds, read_processor_seconds() - processor)


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


def _describe(rounds: list[tuple[Night, Night]]) -> dict[str, Any]:
    return {
        "rounds": [[asdict(night) for night in pair] for pair in rounds],
        "ratio of seconds": statistics.median(later.seconds / first.seconds for first, later in rounds),
        "ratio of processor seconds": statistics.median(
            later.processor_seconds / first.processor_seconds for first, later in rounds
        ),
    }


def main() -> None:
    """Measure the shapes and print the rounds and their median ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=_SHAPES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="divide the number of objects by this")
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
                bench = NightBench(bucket, files, folder)
                rounds: list[tuple[Night, Night]] = []
                for _round in range(arguments.rounds):
                    rounds.append(bench.measure_round())
                    print(shape, rounds[-1], file=sys.stderr, flush=True)
                found[f"{count} x {size_bytes} bytes"] = _describe(rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
