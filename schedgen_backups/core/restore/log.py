"""The log of restores in the backup directory: who restored what, where to, why, and the result.

`restore-log.jsonl` has one JSON object per line and is only appended to; docs/restore.md describes it. New
fields need a default, so that older lines can still be read. `restore`, `object_restore` and `table_restore`
perform the restores.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.errors import BackupError, StorageError
from schedgen_backups.core.history.events import RestoreEnded
from schedgen_backups.core.model import OWN_VERSION, FrozenModel
from schedgen_backups.core.receipts.receipts import list_subjects, record_with_receipt
from schedgen_backups.core.system.files import read_small_file
from schedgen_backups.core.system.line_file import append_line

RESTORE_LOG_NAME = "restore-log.jsonl"


class RestoreLogEntry(FrozenModel):
    """A restore that has ended."""

    started_at: AwareDatetime
    seconds: float
    user: str
    host: str
    point_id: str
    subject: str
    """The part of the point: `database`, `bucket`, `table public.jobs`, `object a.pdf` …, separated by
    commas."""
    target: str
    """The target, without passwords or keys."""
    reason: str = ""
    result: str
    """`done`, with the result of the comparison (`done: equal`), or `failed: ` and the error's message."""


class RestoreLogDraft:
    """The fields that are set while a restore runs."""

    def __init__(self) -> None:
        self.result = "done"
        self.versions: dict[str, str] = dict(OWN_VERSION)


@contextmanager
def logged_restore(
    directory: Path,
    *,
    point_id: str,
    subject: str,
    target: str,
    reason: str = "",
    points_folder: Path | None = None,
) -> Generator[RestoreLogDraft, None, None]:
    """Log what happens within the block as one entry, whether it fails or not.

    `points_folder` has the point's manifest, if that is not the directory. OSError if the log cannot be
    written.
    """
    draft = RestoreLogDraft()
    started_at = datetime.now(timezone.utc)
    try:
        yield draft
    except BackupError as error:
        draft.result = f"failed: {error.message}"
        raise
    except BaseException as error:
        draft.result = f"failed: {type(error).__name__}"
        raise
    finally:
        ended_at = datetime.now(timezone.utc)
        entry = RestoreLogEntry(
            started_at=started_at,
            seconds=round((ended_at - started_at).total_seconds(), 3),
            user=_find_user(),
            host=socket.gethostname(),
            point_id=point_id,
            subject=subject,
            target=target,
            reason=reason,
            result=draft.result,
        )
        _append(directory, entry)
        subjects = list_subjects(points_folder or directory, [point_id])
        record_with_receipt(
            directory,
            RestoreEnded(
                at=ended_at,
                began_at=started_at,
                manifest_sha256=subjects[0].digest["sha256"] if subjects else "",
                versions=draft.versions,
                **entry.model_dump(exclude={"started_at", "seconds"}),
            ),
            subjects,
        )


def read_restore_log(directory: Path) -> tuple[RestoreLogEntry, ...]:
    """Return every entry, oldest first; a line cut short by a crash is skipped.

    StorageError if the log cannot be read.
    """
    try:
        text = read_small_file(directory / RESTORE_LOG_NAME).decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    except OSError as error:
        message = f"{RESTORE_LOG_NAME} in {directory} cannot be read: {error.strerror}"
        raise StorageError(message, hint="If it is not the log of restores, move it away.") from error
    return tuple(entry for line in text.splitlines() if (entry := _parse(line)) is not None)


def find_last_success(directory: Path) -> datetime | None:
    """Return when the last successful restore ended, or None."""
    ends = [
        entry.started_at + timedelta(seconds=entry.seconds)
        for entry in read_restore_log(directory)
        if entry.result.startswith("done")
    ]
    return max(ends, default=None)


def _parse(line: str) -> RestoreLogEntry | None:
    try:
        return RestoreLogEntry.model_validate_json(line)
    except ValidationError:
        return None


def _append(directory: Path, entry: RestoreLogEntry) -> None:
    append_line(directory / RESTORE_LOG_NAME, entry.model_dump_json().encode())


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
