"""Measure what copies upload, read and need: `python -m benchmarks.copies [--objects 20000]`.

Bytes and memory do not depend on the load of the machine. The points are made without servers, the store is a
folder that counts what is read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.memory import read_peak
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import AgeEncryptor, Decryptor, make_key_pair
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.protocol import StoredObject
from schedgen_backups_tests.support.copies import CopiedSite, make_point, make_point_id

_SIZE_BYTES = 16_000
_CHANGED_SHARE = 100
"""One of this many objects changes in a night."""
_ENCRYPTED_BYTES = 256 << 20


class CountingStore:
    """A folder that counts the bytes that are read from it."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderStore(folder)
        self._store.prepare()
        self.label = self._store.label
        self.read_bytes = 0

    def put_new(self, key: str, data: bytes) -> None:
        self._store.put_new(key, data)

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        data = self._store.get_range(key, offset, length, version_id=version_id)
        self.read_bytes += len(data)
        return data

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        return self._store.head(key, version_id=version_id)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self._store.list(prefix)

    def delete(self, stored: StoredObject) -> None:
        self._store.delete(stored)

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        self._store.extend_lock(stored, until)


def measure_nights(folder: Path, object_count: int) -> dict[str, Any]:
    """Copy three nights: the first, one in which nothing changed, one in which a hundredth did."""
    objects = _make_objects(object_count, night=0)
    changed = dict(list(_make_objects(object_count, night=1).items())[::_CHANGED_SHARE])
    store = CountingStore(folder / "store")
    pair = make_key_pair()
    site = CopiedSite(folder / "backups", store, encryptor=AgeEncryptor([pair.public]), pack_bytes=16 << 20)
    site.decryptor = Decryptor([pair.private])
    found: dict[str, Any] = {"objects": object_count, "object_bytes": _SIZE_BYTES}
    for night, contents in enumerate((objects, objects, {**objects, **changed})):
        point = make_point(site.catalog, night, contents)
        report = site.copy(night)
        found[f"night_{night}_file_bytes"] = point.size_bytes
        found[f"night_{night}_uploaded_bytes"] = report.uploaded_bytes
    path = site.catalog.get_point(make_point_id(2)).get_path(ArtifactKind.BUCKET)
    with open_archive(path) as archive:
        footer = archive.footer
        entries = list(archive.read_entries())
    found["index_bytes"] = path.stat().st_size - footer.index_offset
    found["changed_bytes"] = sum(entry.length for entry in entries if entry.key in changed)
    return found | _measure_one_object(site, store, folder, entries[object_count // 2].key)


def _measure_one_object(site: CopiedSite, store: CountingStore, folder: Path, key: str) -> dict[str, Any]:
    reader = site.open_reader(2)
    artifact = reader.manifest.artifact(ArtifactKind.BUCKET)
    if artifact is None:
        raise RuntimeError("the point has no archive")
    catalog = reader.fetch_descriptions(folder / "fetched")
    reader.fetch_index(catalog.directory, artifact)
    with open_archive(catalog.directory / artifact.file_name) as archive:
        entry = next(each for each in archive.read_entries() if each.key == key)
    recipe_bytes = sum(file.size_bytes for file in reader.pack_list.files if ".recipe." in file.name)
    before = store.read_bytes
    reader.fetch_ranges(catalog.directory, artifact, [(entry.offset, entry.length)])
    return {
        "one_object_stored_bytes": entry.length,
        "one_object_read_bytes_without_recipes": store.read_bytes - before - recipe_bytes,
    }


def measure_encryption() -> float:
    """Return the encrypted bytes per second of processor time, in packs of 16 MiB."""
    encryptor, data = AgeEncryptor([make_key_pair().public]), os.urandom(16 << 20)
    started = time.process_time()
    for _round in range(_ENCRYPTED_BYTES // len(data)):
        encryptor.encrypt(data)
    return _ENCRYPTED_BYTES / (time.process_time() - started)


def measure_memory(folder: Path, pack_bytes: int) -> int:
    """Return the peak memory in bytes of a process that copies the newest night into a new store."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.copies",
        "--copy",
        str(folder),
        "--pack-bytes",
        str(pack_bytes),
    ]
    peak_bytes = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, read_peak(process.pid))
            time.sleep(0.02)
    if process.returncode != 0:
        raise RuntimeError(f"the copy ended with {process.returncode}")
    return peak_bytes


def _copy(folder: Path, pack_bytes: int) -> None:
    name = f"memory{pack_bytes}"
    store = FolderStore(folder / f"store_{name}")
    store.prepare()
    site = CopiedSite(folder / name, store, pack_bytes=pack_bytes, points=folder / "backups")
    newest = Catalog(folder / "backups").list_points()[-1]
    with site.folder.held():
        site.make_copier().copy(newest)


def _make_objects(count: int, *, night: int) -> dict[str, bytes]:
    return {
        f"pdf/{number:06d}.pdf": Random(number * 2 + night).randbytes(_SIZE_BYTES) for number in range(count)
    }


def main() -> None:
    """Measure everything and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--copy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pack-bytes", type=int, default=16 << 20, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copy is not None:
        _copy(arguments.copy, arguments.pack_bytes)
        return
    with tempfile.TemporaryDirectory(prefix="schedgen-bench-") as name:
        folder = Path(name)
        found = measure_nights(folder, arguments.objects)
        found["encrypted_bytes_per_second"] = round(measure_encryption())
        for pack_bytes in (16 << 20, 64 << 20):
            found[f"peak_bytes_with_packs_of_{pack_bytes >> 20}_MiB"] = measure_memory(folder, pack_bytes)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
