"""The small files of a backup directory: how one is written and read, and what to do when it is damaged."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

from pydantic import ValidationError

from schedgen_backups.core.errors import (
    BackupError,
    DiskFullError,
    StorageError,
    UnreadableFileError,
    VerificationError,
)
from schedgen_backups.core.model import FORMAT_VERSION, READABLE_FORMAT_VERSIONS, FrozenModel, RecoveryPointId
from schedgen_backups.core.system.files import FileIdentity, identify_file, read_small_file, write_atomically

SITE_NAME = "site.json"
BASELINE_NAME = "missing_objects.json"
"""Of a site of several databases or buckets, each part has its own: see `name_baseline`."""
_NO_FILE_ERRORS = frozenset({errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})
"""Errors for a path that is not a regular or usable file; a retry cannot help (`open_regular`,
`read_small_file`)."""
_Model = TypeVar("_Model", bound=FrozenModel)
_known_values: dict[Path, tuple[FileIdentity, type[FrozenModel], FrozenModel]] = {}
_MOST_KNOWN = 4000
_SETTLED_NS = 1_000_000_000
"""A file that was changed less than a second ago may change again without another time: kernels round to some
milliseconds."""


@contextmanager
def translate_storage_errors(directory: Path) -> Generator[None, None, None]:
    """Convert errors of the file system within the block to StorageError or DiskFullError, with a hint."""
    try:
        yield
    except BackupError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = (
                "Free some space, or move BACKUP_DIR to a larger disk. Nothing was published; older recovery "
                "points are unchanged."
            )
            raise DiskFullError(f"the disk of {directory} is full", hint=hint) from error
        raise StorageError(
            f"{directory} cannot be used: {error.strerror or error}",
            hint="Check the disk and the permissions.",
        ) from error


def read_model(path: Path, kind: type[_Model]) -> _Model | None:
    """Return the value of a small file, or None when there is none; VerificationError when it is damaged.

    UnreadableFileError (retryable) when it cannot be read at the moment. Of a file that has not changed since
    it was read, the same value is returned: a daemon reads every point again and again.
    """
    try:
        return _read_known(path, kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        kind_of_error = VerificationError if error.errno in _NO_FILE_ERRORS else UnreadableFileError
        raise kind_of_error(
            f"{path.name} cannot be read: {error.strerror}", hint=_find_hint(path.name)
        ) from error
    except ValidationError as error:
        raise VerificationError(
            f"{path.name} cannot be read: it is damaged", hint=_find_hint(path.name)
        ) from error


def _read_known(path: Path, kind: type[_Model]) -> _Model:
    version = _find_version(path)
    known = _known_values.get(path)
    if known is not None and known[:2] == (version, kind):
        return cast("_Model", known[2])
    content = read_small_file(path)
    _require_format(path, content)
    value = kind.model_validate_json(content)
    if time.time_ns() - version[-1] > _SETTLED_NS and _find_version(path) == version:
        if len(_known_values) >= _MOST_KNOWN:
            _known_values.clear()
        _known_values[path] = (version, kind, value)
    return value


def write_model(path: Path, value: FrozenModel) -> None:
    """Write the value to a small file; replace an older one."""
    with translate_storage_errors(path.parent):
        write_atomically(path, encode_model(value), owner=_find_owner(path))


def encode_model(value: FrozenModel) -> bytes:
    """Return the content of a small file with this value."""
    return value.model_dump_json(indent=1, exclude_none=True).encode()


def move_aside(path: Path) -> None:
    """Rename a damaged file, so that a new one can be written."""
    with translate_storage_errors(path.parent):
        path.rename(path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}"))


def require_id(point_id: RecoveryPointId, found: str, path: Path) -> None:
    """Raise VerificationError when the file was written for another point: it was exchanged or renamed."""
    if found != point_id.text:
        raise VerificationError(
            f"{path.name} belongs to recovery point {found}",
            hint="It was exchanged or renamed; `schedgen-backups verify ID` checks the point again.",
        )


def _find_version(path: Path) -> FileIdentity:
    """Return what changes with every change of the file; its last number is the time of the change."""
    return identify_file(path.stat())


def _find_owner(path: Path) -> tuple[int, int] | None:
    """Return the owner for a file that root writes: that of the old file, otherwise of the directory.

    None for other users: they own what they write.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = path.stat()
    except OSError:
        status = path.parent.stat()
    return status.st_uid, status.st_gid


def _require_format(path: Path, content: bytes) -> None:
    """Raise VerificationError when the file states an unsupported format version."""
    try:
        stated = json.loads(content).get("format_version", FORMAT_VERSION)
    except (ValueError, AttributeError, RecursionError):
        return
    if not isinstance(stated, int) or stated not in READABLE_FORMAT_VERSIONS:
        raise VerificationError(
            f"{path.name} has an unsupported format; this version writes format {FORMAT_VERSION}",
            hint="It was written by another version of schedgen-backups, which can read it; "
            "`schedgen-backups restore ID` restores the artifacts.",
        )


def name_baseline(source: str) -> str:
    """Return the name of the file of objects that are known to be missing, of one part or of the only one."""
    if not source:
        return BASELINE_NAME
    return f"{BASELINE_NAME.removesuffix('.json')}_{quote(source, safe='')}.json"


def _find_hint(name: str) -> str:
    if name == SITE_NAME:
        return (
            "`schedgen-backups list` shows which points are foreign because of this, and "
            "`schedgen-backups adopt ID` adopts one of them."
        )
    if name.startswith(BASELINE_NAME.removesuffix(".json")):
        return (
            "Until it is repaired, every missing object is reported as new; `schedgen-backups "
            "accept-missing` creates a new file."
        )
    if name.startswith("pin_"):
        return (
            "The point is kept. `schedgen-backups unpin ID` and then `schedgen-backups pin ID` recreate "
            "the pin."
        )
    return (
        "The artifacts contain their own metadata: `schedgen-backups verify ID` checks them again, "
        "`schedgen-backups restore ID` restores them."
    )
