"""Record of each sensor's last tick, which `doctor` can read from a container other than the daemon's."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.incidents import FOLDER_NAME
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.system.lock import FileLock

RECORD_INTERVAL = timedelta(minutes=5)
"""Minimum time between two recorded ticks of a sensor: recording is a synchronous write."""
_NAME = "ticks.json"
_LOCK_NAME = "ticks.lock"
_LOG = logging.getLogger(__name__)


class _Ticks(FrozenModel):
    looked_at: dict[str, AwareDatetime] = {}


def read_ticks(backup_directory: Path) -> dict[str, datetime]:
    """Return sensor → time of its last tick, accurate to five minutes; empty without any."""
    try:
        return dict(
            _Ticks.model_validate_json(read_small_file(backup_directory / FOLDER_NAME / _NAME)).looked_at
        )
    except (OSError, ValidationError):
        return {}


def record_tick(backup_directory: Path, sensor_name: str, now: datetime) -> None:
    """Record a tick of the sensor.

    Best effort: if the directory is not writable, a warning is logged; a missing backup directory is not
    created.
    """
    last = read_ticks(backup_directory).get(sensor_name)
    if not backup_directory.is_dir() or (last is not None and timedelta(0) <= now - last < RECORD_INTERVAL):
        return
    folder = backup_directory / FOLDER_NAME
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(folder / _LOCK_NAME).waited_for():
            times = {**read_ticks(backup_directory), sensor_name: now}
            write_atomically(folder / _NAME, _Ticks(looked_at=times).model_dump_json(indent=1).encode())
    except (OSError, StorageError) as error:
        _LOG.warning("the tick of %s cannot be recorded in %s: %s", sensor_name, folder, error)
