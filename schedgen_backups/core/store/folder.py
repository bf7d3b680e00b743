"""A folder as a store: a second disk, or a mounted NAS."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.core.errors import KeyExistsError, KeyMissingError, StoreError, StoreUnreachableError
from schedgen_backups.core.store.keys import check_key, is_unfinished, make_unfinished_name
from schedgen_backups.core.store.protocol import Capabilities, StoredObject
from schedgen_backups.core.system.files import (
    NO_LINK_ERRORS,
    create_private,
    open_regular,
    sync_path,
    write_new,
)

_MARK_NAME = ".schedgen-backups-store"
"""Created once by `prepare`. Without it the disk is not mounted, and its empty mount point is not written."""
_PASSING_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.ENODEV, errno.EAGAIN}
)
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


class FolderStore:
    """Objects as files below a folder; see `Store`. No versions, no locks.

    A file appears under its name when it is complete and on disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def label(self) -> str:
        """The folder's path."""
        return str(self._folder)

    def prepare(self) -> None:
        """Create the folder if its parent exists, and mark it as a store."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            mark = self._folder / _MARK_NAME
            if not mark.exists():
                os.close(create_private(mark))
                sync_path(self._folder)
        except OSError as error:
            raise self._explain(error) from error

    def put_new(self, key: str, data: bytes) -> None:
        """Write the file beside its place, sync it, and link it to its name."""
        path = self._find_path(key)
        try:
            self._make_folders(path.parent)
            write_new(path, data, temporary=path.with_name(make_unfinished_name(path.name)))
        except FileExistsError as error:
            raise KeyExistsError(f"{self.label} already holds {key}") from error
        except OSError as error:
            raise self._explain(error) from error

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Return a part of the file."""
        try:
            with open_regular(self._find_path(key)) as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            if error.errno in _MISSING or self.head(key) is None:
                raise KeyMissingError(f"{self.label} holds no {key}") from error
            raise self._explain(error) from error

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size and time of the file."""
        path = self._find_path(key)
        try:
            status = path.stat()
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise self._explain(error) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        return StoredObject(key, status.st_size, _to_time(status.st_mtime))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the files whose path starts with the prefix."""
        try:
            self._check_mounted()
            yield from self._list_folder(self._folder, "", prefix)
        except OSError as error:
            raise self._explain(error) from error

    def delete(self, stored: StoredObject) -> None:
        """Delete the file, and its folder when nothing is left in it."""
        path = self._find_path(stored.key)
        try:
            path.unlink(missing_ok=True)
            for folder in path.relative_to(self._folder).parents[:-1]:
                (self._folder / folder).rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise self._explain(error) from error

    def remove_unfinished(self, prefix: str, before: datetime) -> tuple[StoredObject, ...]:
        """Remove what killed uploads left."""
        removed: list[StoredObject] = []
        try:
            self._check_mounted()
            for stored in self._list_folder(self._folder, "", prefix, chooses=is_unfinished):
                if stored.modified_at < before:
                    (self._folder / stored.key).unlink(missing_ok=True)
                    removed.append(stored)
        except OSError as error:
            raise self._explain(error) from error
        return tuple(removed)

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Refuse: a folder has no locks."""
        raise StoreError(f"{self.label} is a folder, which cannot lock files")

    def probe(self, key: str) -> Capabilities:
        """Find out whether the file system refuses a second link of the same name."""
        self.put_new(key, b"first")
        has_links = False
        try:
            os.link(self._find_path(key), self._find_path(key))
        except FileExistsError:
            has_links = True
        except OSError as error:
            if error.errno not in NO_LINK_ERRORS:
                raise self._explain(error) from error
        return Capabilities(
            has_conditional_put=has_links, has_checksums=False, has_versions=False, has_lock=False
        )

    def _find_path(self, key: str) -> Path:
        check_key(key)
        if _is_hidden(key.rpartition("/")[2]):
            raise StoreError(f"{key} is not a key: {self.label} takes such a file for an unfinished one")
        self._check_mounted()
        return self._folder / key

    def _check_mounted(self) -> None:
        if not (self._folder / _MARK_NAME).exists():
            raise StoreUnreachableError(
                f"{self.label} is not a store: its file {_MARK_NAME} is missing",
                hint="Mount the disk. For a new store, run `schedgen-backups stores prepare NAME`.",
            )

    def _make_folders(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in (folder, *folder.parents):
            sync_path(made)
            if made == self._folder:
                break

    def _list_folder(
        self,
        folder: Path,
        above: str,
        prefix: str,
        *,
        chooses: Callable[[str], bool] = lambda name: not _is_hidden(name),
    ) -> Iterator[StoredObject]:
        with os.scandir(folder) as scan:
            # Folders sort as keys do: with the slash that follows their name.
            entries = sorted(scan, key=lambda entry: f"{entry.name}/" if entry.is_dir() else entry.name)
        for entry in entries:
            key = above + entry.name
            if entry.is_dir(follow_symlinks=False):
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._list_folder(folder / entry.name, f"{key}/", prefix, chooses=chooses)
            elif key.startswith(prefix) and chooses(entry.name):
                # Another writer may have finished or removed it since the folder was read.
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield StoredObject(key, status.st_size, _to_time(status.st_mtime))

    def _explain(self, error: OSError) -> StoreError:
        message = f"{self.label}: {error.strerror or error}"
        if error.errno in _PASSING_ERRORS:
            return StoreUnreachableError(message, hint="Check the disk or the network mount.")
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreError(message, hint="Free space in the store, or keep fewer points in it.")
        return StoreError(message, hint="Check the folder's owner and permissions, and the disk.")


def _is_hidden(name: str) -> bool:
    return name == _MARK_NAME or is_unfinished(name)


def _to_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)
