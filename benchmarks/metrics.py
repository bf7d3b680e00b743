"""Measure a scrape of 400 recovery points: `python -m benchmarks.metrics [--points 400]`.

The points are made without servers; their small files are like those of a real site. `cold` is the
first scrape of a process, `warm` any further one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support.copies import list_objects, make_point

_SCRAPES = 21
_MEASURE = """
import json, statistics, sys, time
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.evidence.metrics import measure
from schedgen_backups.config.config import load_config

config = load_config()
seconds, processor = [], []
for _number in range(int(sys.argv[1])):
    wall, cpu = time.perf_counter(), time.process_time()
    text = render_metrics(measure(config.reload()))
    seconds.append(time.perf_counter() - wall)
    processor.append(time.process_time() - cpu)
print(json.dumps({
    "cold_ms": round(1000 * seconds[0], 1),
    "warm_ms": round(1000 * statistics.median(seconds[1:]), 1),
    "warm_worst_ms": round(1000 * max(seconds[1:]), 1),
    "warm_best_ms": round(1000 * min(seconds[1:]), 1),
    "warm_processor_ms": round(1000 * statistics.median(processor[1:]), 1),
    "bytes": len(text),
    "series": sum(not line.startswith(b"#") for line in text.splitlines()),
}))
"""


def measure(point_count: int) -> dict[str, Any]:
    """Return the times of scrapes in a process of its own, as `metrics --listen` makes them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = Catalog(folder / "points")
        for night in range(point_count):
            make_point(catalog, night - point_count, list_objects(3))
        (folder / ".env").touch(mode=0o600)
        environment = {
            **os.environ,
            "BACKUP_DIR": str(catalog.directory),
            "BACKUP_ENV_FILE": str(folder / ".env"),
        }
        words = [sys.executable, "-c", _MEASURE, str(_SCRAPES)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return {"points": point_count, **json.loads(done.stdout)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=400)
    for count in (1, parser.parse_args().points):
        print(json.dumps(measure(count)))
