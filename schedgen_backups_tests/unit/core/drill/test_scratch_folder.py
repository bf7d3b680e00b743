"""A sweep accepts only records of this user's dead drills.

A writer to DRILL_DIR cannot have databases dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schedgen_backups.core.drill.scratch_folder import (
    FOLDER_PREFIX,
    open_orphaned_folders,
    open_scratch_folder,
)

ID = "0123456789ab"
NOBODY = 65534


def plant(directory: Path, **record: object) -> Path:
    folder = directory / f"{FOLDER_PREFIX}{ID}"
    folder.mkdir(mode=0o700)
    (folder / "lock").touch(mode=0o600)
    path = folder / "scratch.json"
    path.write_text(json.dumps({"scratch_id": ID, "began_at": "2026-11-22T02:00:00Z", **record}))
    path.chmod(0o600)
    return folder


def list_orphans(directory: Path) -> list[str]:
    with open_orphaned_folders(directory) as folders:
        return [folder.path.name for folder in folders]


def test_the_leftovers_of_a_dead_drill_are_found(tmp_path: Path) -> None:
    folder = plant(
        tmp_path, database={"host": "h", "port": 1, "name": f"schedgen_drill_{ID}", "roles": ["app"]}
    )
    assert list_orphans(tmp_path) == [folder.name]


def test_a_living_drill_is_left_alone(tmp_path: Path) -> None:
    with open_scratch_folder(tmp_path):
        assert list_orphans(tmp_path) == []


@pytest.mark.parametrize("name", ["", "lock", "scratch.json"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.chmod(path.stat().st_mode | 0o002), id="writable by all"),
        pytest.param(lambda path: path.chmod(path.stat().st_mode | 0o020), id="writable by a group"),
        pytest.param(
            lambda path: os.chown(path, NOBODY, NOBODY),
            id="of somebody else",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"),
        ),
        pytest.param(
            lambda path: (
                path.rename(path.with_suffix(".moved")),
                path.symlink_to(path.with_suffix(".moved")),
            ),
            id="a link",
        ),
    ],
)
def test_a_folder_that_another_user_could_have_created_is_ignored(
    tmp_path: Path, name: str, change: Callable[[Path], object]
) -> None:
    change(plant(tmp_path) / name)
    assert list_orphans(tmp_path) == []


@pytest.mark.parametrize(
    "record",
    [
        {"database": {"host": "h", "port": 1, "name": "production"}},
        {"bucket": {"endpoint": "h:1", "name": "production"}},
        {"scratch_id": "ba9876543210"},
        {"database": "x"},
    ],
)
def test_a_record_that_names_anything_else_is_ignored(tmp_path: Path, record: dict[str, object]) -> None:
    plant(tmp_path, **record)
    assert list_orphans(tmp_path) == []
