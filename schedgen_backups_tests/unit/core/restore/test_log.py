"""The log of restores: every restore adds a line, whatever its result, and a damaged line hides no other."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.restore.log import (
    RESTORE_LOG_NAME,
    find_last_success,
    logged_restore,
    read_restore_log,
)


def log_one(directory: Path, *, error: BaseException | None = None, result: str = "") -> None:
    with logged_restore(
        directory,
        point_id="20261122_020000",
        subject="database",
        target="user@host:5432/name",
        reason="a look",
    ) as draft:
        if result:
            draft.result = result
        if error is not None:
            raise error


def test_a_restore_is_read_back_as_written(tmp_path: Path) -> None:
    log_one(tmp_path, result="done: equal")
    [entry] = read_restore_log(tmp_path)
    assert (entry.point_id, entry.subject, entry.target, entry.reason) == (
        "20261122_020000",
        "database",
        "user@host:5432/name",
        "a look",
    )
    assert (entry.result, entry.started_at.utcoffset() is not None, entry.seconds >= 0) == (
        "done: equal",
        True,
        True,
    )
    assert entry.user
    assert entry.host
    assert (tmp_path / RESTORE_LOG_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (RestoreError("it broke", hint="mend it"), "failed: it broke"),
        (KeyboardInterrupt(), "failed: KeyboardInterrupt"),
    ],
)
def test_a_failed_restore_is_in_the_log_too(tmp_path: Path, error: BaseException, result: str) -> None:
    with pytest.raises(type(error)):
        log_one(tmp_path, error=error)
    assert [entry.result for entry in read_restore_log(tmp_path)] == [result]


def test_entries_are_appended_oldest_first_and_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    log_one(tmp_path, result="first")
    path = tmp_path / RESTORE_LOG_NAME
    path.write_bytes(path.read_bytes() + b'{"started_at": "2026-11-\n')
    log_one(tmp_path, result="second")
    assert [entry.result for entry in read_restore_log(tmp_path)] == ["first", "second"]


def test_a_directory_without_restores_has_an_empty_log(tmp_path: Path) -> None:
    assert read_restore_log(tmp_path) == ()


def test_the_last_success_is_the_latest_end_of_a_successful_restore(tmp_path: Path) -> None:
    assert find_last_success(tmp_path) is None
    log_one(tmp_path, error=None, result="failed: it broke")
    assert find_last_success(tmp_path) is None
    before = datetime.now(timezone.utc)
    log_one(tmp_path, result="done: equal")
    path = tmp_path / RESTORE_LOG_NAME
    [_failed, entry] = read_restore_log(tmp_path)
    longer = entry.model_copy(update={"seconds": 90.0})
    path.write_text("\n".join(each.model_dump_json() for each in (longer, entry)) + "\n")
    assert find_last_success(tmp_path) == entry.started_at + timedelta(seconds=90)
    assert before <= entry.started_at <= datetime.now(timezone.utc)


def test_a_restore_without_a_recorded_result_is_done(tmp_path: Path) -> None:
    log_one(tmp_path)
    assert [entry.result for entry in read_restore_log(tmp_path)] == ["done"]


def test_bytes_that_are_not_text_hide_no_other_line(tmp_path: Path) -> None:
    log_one(tmp_path, result="done")
    path = tmp_path / RESTORE_LOG_NAME
    path.write_bytes(b'{"user": "\xff"\n' + path.read_bytes())
    assert [entry.result for entry in read_restore_log(tmp_path)] == ["done"]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        log_one(tmp_path / "gone")
