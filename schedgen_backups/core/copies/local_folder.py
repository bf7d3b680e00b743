"""What this host remembers of the copies in a store: `copies/STORE` in the backup directory.

Only a cache and the last answers of the store: a copy can be read, proved and pruned without it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.catalog.small_files import translate_storage_errors
from schedgen_backups.core.errors import BackupError, ConfigurationError, LockHeldError
from schedgen_backups.core.formats.packed_file import RECIPE_SUFFIX
from schedgen_backups.core.model import FORMAT_VERSION, FrozenModel, RecoveryPointId
from schedgen_backups.core.store.protocol import Capabilities
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.system.lock import FileLock

COPIES_NAME = "copies"
_STATE_NAME = "state.json"
READERS_NAME = "readers"
"""Local file of a committed copy: for whom its packs are encrypted."""
_INDEX_NAME = "pieces.sqlite"
_WRITER_NAME = "writer_id"
_STAGED_NAME = "staged"
_FETCH_PREFIX = ".fetched-"
_STALE_SECONDS = 3600
_WRITER_PATTERN = re.compile(r"[0-9a-f]{32}")


class CopiedPoint(FrozenModel):
    """A copy that the store holds."""

    point_id: str
    copied_at: AwareDatetime
    size_bytes: int = 0
    """Size in the store, with packs that other copies use too."""


class CopyState(FrozenModel):
    """What was last seen of a store. What was not seen is unknown, which is never success."""

    format_version: int = FORMAT_VERSION
    place: str = ""
    """Where the store was when it was seen."""
    points: tuple[CopiedPoint, ...] = ()
    lost_points: tuple[str, ...] = ()
    """Copies that the store once held and lacks, although its retention keeps them."""
    attempted_at: AwareDatetime | None = None
    problem: str = ""
    """Why the last attempt failed; empty after a success of the same work."""
    problem_work: str = ""
    """What failed: `copy`, `prove` or `prune`."""
    listed_at: AwareDatetime | None = None
    listing_problems: tuple[str, ...] = ()
    stranger_count: int = 0
    """How many of these problems are markers, older versions and foreign files."""
    reread_at: AwareDatetime | None = None
    """When packs were last read back."""
    reread_problems: tuple[str, ...] = ()
    pack_count: int = 0
    unread_count: int = 0
    """Number of packs that were never read back."""
    oldest_reread_at: AwareDatetime | None = None
    """When the pack was read back whose last reading is longest ago; None if some were never read."""
    oldest_unread_at: AwareDatetime | None = None
    """When the pack was sent that has waited longest for its first reading; None if every pack was read."""
    locked_until: AwareDatetime | None = None
    """Until when everything that kept points need is locked; None if that is unknown or something is not."""
    opened_at: AwareDatetime | None = None
    """When a point was last restored from this store, by a drill on this host."""
    opened_point_id: str = ""
    capabilities: Capabilities | None = None

    @property
    def newest(self) -> CopiedPoint | None:
        """The copy of the newest point."""
        return max(self.points, key=lambda point: point.point_id, default=None)


class LocalFolder:
    """The folder of one store in the backup directory."""

    def __init__(self, backup_directory: Path, store_name: str) -> None:
        self.path = backup_directory / COPIES_NAME / store_name
        self._lock = FileLock(self.path / ".lock")

    @property
    def index_path(self) -> Path:
        """The index of pieces."""
        return self.path / _INDEX_NAME

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Hold the right to write to the store from this host; LockHeldError (retryable) if it is held."""
        self.prepare()
        if not self._lock.try_acquire():
            raise LockHeldError(
                f"another run copies to the store {self.path.name}", hint="Wait until it ends."
            )
        try:
            yield
        finally:
            self._lock.release()

    def prepare(self) -> None:
        """Create the folder."""
        with translate_storage_errors(self.path):
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)

    def read_state(self, place: str = "") -> CopyState:
        """Return what was last seen of the store; nothing if that is lost or damaged.

        Nothing either if it was seen at another place than the one that is given: the file of stores has
        changed since, and what the former place holds and can do is not true of the new one.
        """
        try:
            state = CopyState.model_validate_json(read_small_file(self.path / _STATE_NAME))
        except (OSError, ValidationError):
            return CopyState()
        return CopyState() if place and state.place and state.place != place else state

    def write_state(self, state: CopyState) -> None:
        """Remember what was seen of the store."""
        with translate_storage_errors(self.path):
            write_atomically(self.path / _STATE_NAME, state.model_dump_json(indent=2).encode())

    def settle_writer_id(self) -> str:
        """Return the random id under which this backup directory writes to the store."""
        path = self.path / _WRITER_NAME
        with suppress(OSError, UnicodeDecodeError):
            text = read_small_file(path).decode("ascii").strip()
            if _WRITER_PATTERN.fullmatch(text):
                return text
        writer_id = secrets.token_hex(16)
        with translate_storage_errors(self.path):
            write_atomically(path, writer_id.encode())
        return writer_id

    def list_points(self) -> list[RecoveryPointId]:
        """Return the points of which plain files are kept here, oldest first."""
        found: list[RecoveryPointId] = []
        with suppress(OSError):
            for entry in os.scandir(self.path):
                with suppress(ConfigurationError):
                    found.append(RecoveryPointId.parse(entry.name))
        return sorted(found)

    def read_plain(self, point_id: RecoveryPointId, name: str) -> bytes | None:
        """Return a file of a copy as it was before encryption; None if it is not kept here."""
        try:
            return read_small_file(self.path / point_id.text / name)
        except OSError:
            return None

    def list_recipes(self, point_id: RecoveryPointId) -> list[tuple[str, bytes]]:
        """Return name and contents of the recipes kept here of a point."""
        folder = self.path / point_id.text
        names = sorted(path.name for path in folder.glob(f"*{RECIPE_SUFFIX}"))
        return [(name, data) for name in names if (data := self.read_plain(point_id, name)) is not None]

    def write_plain(self, point_id: RecoveryPointId, name: str, data: bytes) -> None:
        """Keep a file of a copy as it is before encryption."""
        with translate_storage_errors(self.path):
            folder = self.path / point_id.text
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(folder / name, data)

    def read_staged(self, point_id: RecoveryPointId, name: str) -> bytes | None:
        """Return what an unfinished copy was about to store under this name."""
        return self.read_plain(point_id, f"{_STAGED_NAME}/{name}")

    def write_staged(self, point_id: RecoveryPointId, name: str, data: bytes) -> None:
        """Keep what is about to be stored, so that a killed copy goes on with the same bytes."""
        with translate_storage_errors(self.path):
            folder = self.path / point_id.text / _STAGED_NAME
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(folder / name, data)

    def has_staged(self, point_id: RecoveryPointId) -> bool:
        """Return whether a copy of this point was begun here and is unfinished."""
        return (self.path / point_id.text / _STAGED_NAME).is_dir()

    def remove_staged(self, point_id: RecoveryPointId) -> None:
        """Remove what was kept while the copy was unfinished."""
        shutil.rmtree(self.path / point_id.text / _STAGED_NAME, ignore_errors=True)

    def remove_point(self, point_id: RecoveryPointId) -> None:
        """Remove what is kept here of a point that the store no longer holds."""
        shutil.rmtree(self.path / point_id.text, ignore_errors=True)


def read_states(backup_directory: Path) -> dict[str, CopyState]:
    """Return what was last seen of every store that has a folder here, by its name."""
    found: dict[str, CopyState] = {}
    with suppress(OSError):
        for entry in os.scandir(backup_directory / COPIES_NAME):
            if entry.is_dir(follow_symlinks=False):
                found[entry.name] = LocalFolder(backup_directory, entry.name).read_state()
    return dict(sorted(found.items()))


@contextmanager
def open_fetch_folder(parent: Path) -> Generator[Path, None, None]:
    """Provide an empty folder for fetched files within the block; remove those of killed processes, too."""
    for left in parent.glob(f"{_FETCH_PREFIX}*"):
        lock = FileLock(left / ".lock")
        with suppress(BackupError, FileNotFoundError):
            # A young one may not have its lock yet.
            if time.time() - left.stat().st_mtime > _STALE_SECONDS and lock.try_acquire():
                shutil.rmtree(left, ignore_errors=True)
                lock.release()
    with translate_storage_errors(parent):
        folder = Path(mkdtemp(prefix=_FETCH_PREFIX, dir=parent))
    lock = FileLock(folder / ".lock")
    try:
        lock.try_acquire()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def now_utc() -> datetime:
    """Return the current time, aware UTC."""
    return datetime.now(timezone.utc)
