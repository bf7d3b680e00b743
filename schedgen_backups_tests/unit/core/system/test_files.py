"""Small files are synced before they get their name, and the name is synced before the call returns."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.system.files import write_atomically


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[tuple[str, bool]]]:
    """Watch a name; yield each sync of directory or file, and whether the name existed then."""

    def watch(target: Path) -> list[tuple[str, bool]]:
        seen: list[tuple[str, bool]] = []
        fsync, directory = os.fsync, target.parent.stat().st_ino

        def record(descriptor: int) -> None:
            fsync(descriptor)
            seen.append(
                ("directory" if os.fstat(descriptor).st_ino == directory else "file", target.exists())
            )

        monkeypatch.setattr(os, "fsync", record)
        return seen

    return watch


def test_a_small_file_is_synced_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, synced: Callable[[Path], list[tuple[str, bool]]]
) -> None:
    seen = synced(tmp_path / "a.json")
    write_atomically(tmp_path / "a.json", b"{}")
    assert seen == [("file", False), ("directory", True)]


def test_an_artifact_is_synced_before_it_is_published_and_its_name_after(
    tmp_path: Path, synced: Callable[[Path], list[tuple[str, bool]]]
) -> None:
    catalog = Catalog(tmp_path)
    with catalog.stage("x") as folder:
        (folder / "db.gz").write_bytes(b"1")
        seen = synced(tmp_path / "db.gz")
        catalog.publish(folder / "db.gz")
    assert seen == [("file", False), ("directory", True)]


def test_a_removed_file_is_gone_from_the_disk(
    tmp_path: Path, synced: Callable[[Path], list[tuple[str, bool]]]
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    seen = synced(tmp_path / "a")
    Catalog(tmp_path).remove_file(tmp_path / "a")
    assert seen == [("directory", False)]
