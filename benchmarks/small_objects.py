"""Measure processor time per small object: `python -m benchmarks.small_objects [--server seaweedfs]`.

A first capture in packs and one in files, beside clients that GET every object and discard it: curl and
h2load (HTTP/1.1, 16 connections, signed addresses where the server checks them). All in turn; the order is
reversed in every other round. By default the server computes its objects (`generated_bucket`, one process);
`--server seaweedfs` is a real one. The processor time is that of the client alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.database import make_point_ids
from benchmarks.generated_bucket import serve_generated_buckets
from benchmarks.next_night import Night, measure_night
from benchmarks.shell import has_program, run_shell
from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, Layout

_SIZES = (1024, 100_000)
_CURL, _H2LOAD = "curl, discarded", "h2load, discarded"


def measure_size(
    bucket: BucketSettings, folder: Path, count: int, size_bytes: int, rounds: int
) -> dict[str, Any]:
    """Return the medians of each contestant, and the ratios of ours to each other within the rounds."""
    ids = make_point_ids()
    addresses = list(data.presign(bucket))
    assert len(addresses) == count
    lines = "".join(f'url = "{address}"\noutput = "/dev/null"\n' for address in addresses)
    (folder / "curl.config").write_text(lines, encoding="utf-8")
    (folder / "addresses").write_text("\n".join(addresses) + "\n", encoding="utf-8")

    def take(layout: Layout) -> None:
        catalog = Catalog(folder / "points")
        catalog.prepare()
        captured = take_bucket_archive(catalog, bucket, CaptureSettings(layout=layout), next(ids))
        assert captured.record.object_count == count

    contestants: dict[str, Callable[[], object]] = {
        f"schedgen-backups, {layout.value}": partial(take, layout) for layout in Layout
    }
    contestants[_CURL] = partial(
        run_shell,
        f"curl --silent --show-error --fail --parallel --parallel-max 16 --config '{folder}/curl.config'",
    )
    if has_program("h2load"):
        contestants[_H2LOAD] = partial(
            run_shell, f"h2load --h1 -t1 -c16 -n {count} --input-file='{folder}/addresses'"
        )
    measured: dict[str, list[Night]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants if number % 2 == 0 else reversed(contestants):
            measured[name].append(measure_night(contestants[name], folder / "points"))
            shutil.rmtree(folder / "points", ignore_errors=True)
            print(size_bytes, name, measured[name][-1], file=sys.stderr, flush=True)
    return _describe(measured, count)


def _describe(measured: dict[str, list[Night]], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, nights in measured.items():
        used = statistics.median(night.own_processor_seconds for night in nights)
        found[name] = {
            "seconds": round(statistics.median(night.seconds for night in nights), 2),
            "processor_milliseconds_per_object": round(1000 * used / count, 3),
            "server_processor_seconds": round(
                statistics.median(night.server_processor_seconds for night in nights), 2
            ),
        }
        if name in {_CURL, _H2LOAD}:
            for layout in Layout:
                own = measured[f"schedgen-backups, {layout.value}"]
                for field in ("seconds", "own_processor_seconds"):
                    ratios = [
                        getattr(ours, field) / getattr(theirs, field)
                        for ours, theirs in zip(own, nights, strict=True)
                    ]
                    found[name][f"ours in {layout.value} : this, {field}"] = round(
                        statistics.median(ratios), 2
                    )
    return found


@contextmanager
def _serve(server: str, folder: Path, count: int, size_bytes: int) -> Generator[BucketSettings, None, None]:
    if server == "generated":
        with serve_generated_buckets(count, 1, small_bytes=size_bytes) as (bucket, _huge):
            yield bucket
        return
    with EmbeddedS3(folder / "s3") as embedded:
        bucket = embedded.settings("small-objects")
        data.upload_small_objects(bucket, count=count, size_bytes=size_bytes)
        yield bucket


def main() -> None:
    """Measure both sizes and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("generated", "seaweedfs"), default="generated")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, action="append", help="default: 1024 and 100000 bytes")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"load": [os.getloadavg()]}
    for size_bytes in arguments.size or _SIZES:
        with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
            folder = Path(name)
            with _serve(arguments.server, folder, arguments.count, size_bytes) as bucket:
                found[f"{arguments.count} x {size_bytes} bytes"] = measure_size(
                    bucket, folder, arguments.count, size_bytes, arguments.rounds
                )
        found["load"].append(os.getloadavg())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
