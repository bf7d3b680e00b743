"""Measure a night's copy beside restic's second backup: `python -m benchmarks.copy_speed [--objects 20000]`.

All send the same changed hundredth of the same objects to the same S3 server, each as a process of its own,
in turn. restic backs up the recovery point's two files, which a copy reads, too; and a tree of the objects as
files, and sees by their times which have changed. Needs `restic`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from minio import Minio

from benchmarks.memory import read_peak
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.settings import LARGE_SITE_PACK_BYTES, PACK_BYTES
from schedgen_backups.core.packs.encryption import AgeEncryptor, make_key_pair
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store, probe_store
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities
from schedgen_backups_tests.support.copies import KEYS, CopiedSite, make_point

_SIZE_BYTES = 16_000
_CHANGED_SHARE = 100
"""One of this many objects changes in a night."""
_NIGHTS = 4
_COPY = (sys.executable, "-m", "benchmarks.copy_speed", "--copy")
_BUCKET = "copies"
_FILES_REPOSITORY = "FILES_REPOSITORY"
_CAPABILITIES = "capabilities.json"
"""What the store was seen to do, which a real installation records once, too."""


@dataclass(frozen=True)
class Use:
    """Seconds, seconds of processor time and peak memory of one process."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def measure_nights(folder: Path, settings: BucketSettings, object_count: int) -> list[dict[str, Any]]:
    """Back up the same nights with both, in turn; the first is the whole of it."""
    tree = folder / "tree"
    objects = {f"pdf/{number:06d}.pdf": _make_object(number, 0) for number in range(object_count)}
    environment = {
        "AWS_ACCESS_KEY_ID": settings.access_key,
        "AWS_SECRET_ACCESS_KEY": settings.secret_key,
        "RESTIC_PASSWORD": "benchmark",
        "RESTIC_REPOSITORY": f"s3:http://{settings.endpoint}/{_BUCKET}/restic",
        "RESTIC_CACHE_DIR": str(folder / "cache"),
    }
    pair = make_key_pair()
    copy_environment = {
        **environment,
        "RECIPIENT": pair.public,
        "ENDPOINT": f"http://{settings.endpoint}",
        "PREFIX": "copies",
    }
    environment[_FILES_REPOSITORY] = f"s3:http://{settings.endpoint}/{_BUCKET}/restic-files"
    for repository in ("RESTIC_REPOSITORY", _FILES_REPOSITORY):
        _run(["restic", "init", "--quiet"], {**environment, "RESTIC_REPOSITORY": environment[repository]})
    location = _locate(copy_environment)
    unprobed = open_store(location, UNPROBED)
    (folder / _CAPABILITIES).write_text(json.dumps(asdict(probe_store(unprobed, KEYS.site_id))))
    catalog = Catalog(folder / "points")
    found: list[dict[str, Any]] = []
    changed = objects
    for night in range(_NIGHTS):
        if night:
            numbers = range(night, object_count, _CHANGED_SHARE)
            changed = {f"pdf/{number:06d}.pdf": _make_object(number, night) for number in numbers}
        objects = {**objects, **changed}
        for key, data in changed.items():
            path = tree / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        point = make_point(catalog, night, objects)
        files = [str(artifact.path) for artifact in point.artifacts]
        restic_tree = _run(["restic", "backup", "--quiet", str(tree)], environment)
        restic_files = _run(
            ["restic", "backup", "--quiet", *files],
            {**environment, "RESTIC_REPOSITORY": environment[_FILES_REPOSITORY]},
        )
        copy = _run(
            [*_COPY, str(folder), "--night", str(night), "--pack-bytes", str(PACK_BYTES)], copy_environment
        )
        found.append(
            {
                "night": night,
                "restic_of_files": asdict(restic_files),
                "restic_of_tree": asdict(restic_tree),
                "copy": asdict(copy),
                "ratio_to_restic_of_files": round(copy.seconds / restic_files.seconds, 2),
                "ratio_to_restic_of_tree": round(copy.seconds / restic_tree.seconds, 2),
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    # The first night once more, into another prefix, as a site of over 100 GB does it.
    large = _run(
        [*_COPY, str(folder), "--night", "0", "--pack-bytes", str(LARGE_SITE_PACK_BYTES)],
        {**copy_environment, "PREFIX": "large"},
    )
    return [*found, {"night": 0, "copy_with_large_packs": asdict(large)}]


def _run(command: list[str], environment: Mapping[str, str]) -> Use:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    peak_bytes = 0
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, read_peak(process.pid))
            time.sleep(0.01)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Use(round(time.monotonic() - started, 2), round(used, 2), peak_bytes)


def _copy(folder: Path, night: int, pack_bytes: int) -> None:
    capabilities = Capabilities(**json.loads((folder / _CAPABILITIES).read_bytes()))
    store = open_store(_locate(os.environ), capabilities)
    encryptor = AgeEncryptor([os.environ["RECIPIENT"]])
    site = CopiedSite(
        folder / os.environ["PREFIX"],
        store,
        encryptor=encryptor,
        pack_bytes=pack_bytes,
        points=folder / "points",
    )
    site.copy(night)


def _locate(environment: Mapping[str, str]) -> StoreLocation:
    return StoreLocation(
        url=f"s3://{_BUCKET}/{environment['PREFIX']}",
        endpoint=environment["ENDPOINT"],
        access_key=environment["AWS_ACCESS_KEY_ID"],
        secret_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def _make_object(number: int, night: int) -> bytes:
    return Random(number * _NIGHTS + night).randbytes(_SIZE_BYTES)


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--copy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--night", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pack-bytes", type=int, default=PACK_BYTES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copy is not None:
        _copy(arguments.copy, arguments.night, arguments.pack_bytes)
        return
    if shutil.which("restic") is None:
        parser.error("restic is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name,
        EmbeddedS3(Path(name) / "s3") as server,
    ):
        settings = server.settings(_BUCKET)
        Minio(settings.endpoint, settings.access_key, settings.secret_key, secure=False).make_bucket(_BUCKET)
        print(json.dumps(measure_nights(Path(name), settings, arguments.objects), indent=1))


if __name__ == "__main__":
    main()
