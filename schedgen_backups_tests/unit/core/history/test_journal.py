"""The history keeps every event that was recorded: several writers, torn lines, new years, full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.history.events import (
    EVENT_ADAPTER,
    AlertDelivered,
    CopyFailed,
    HistoryEvent,
    RunStarted,
)
from schedgen_backups.core.history.journal import HISTORY_NAME, History
from schedgen_backups_tests.support.small_disk import mount_small_disk

st.register_type_strategy(AwareDatetime, st.datetimes(timezones=st.just(timezone.utc)))
AT = datetime(2026, 11, 30, 2, 0, tzinfo=timezone.utc)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
WRITERS, LINES = 4, 40
WRITE = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from schedgen_backups.core.history.events import RunStarted
from schedgen_backups.core.history.journal import History
history = History(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    year = 2026 + number // 20
    at = datetime(year, 1, 1, tzinfo=timezone.utc)
    history.record(RunStarted(at=at, kind="run", run_id=f"{sys.argv[2]}-{number}-" + "x" * 5000))
"""


def make_event(number: int, at: datetime = AT) -> RunStarted:
    return RunStarted(at=at, kind="run", run_id=str(number))


def list_ids(events: tuple[HistoryEvent, ...]) -> list[str]:
    return [event.run_id for event in events if isinstance(event, RunStarted)]


@given(st.data())
def test_every_event_is_read_as_it_was_written(data: st.DataObject) -> None:
    for kind in get_args(HistoryEvent):
        numbers = {name: FINITE for name, field in kind.model_fields.items() if field.annotation is float}
        event = data.draw(st.builds(kind, **numbers))
        assert EVENT_ADAPTER.validate_json(event.model_dump_json()) == event


def test_events_of_a_time_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    history = History(tmp_path)
    for hours in (2, 0, 1, 3):
        history.record(make_event(hours, AT + timedelta(hours=hours)))
    part = history.read(AT + timedelta(hours=1), AT + timedelta(hours=3))
    assert list_ids(part.events) == ["1", "2"]
    assert part.unreadable_count == 0
    assert (tmp_path / HISTORY_NAME).stat().st_mode & 0o777 == 0o600


def test_several_processes_lose_no_line_also_at_the_turn_of_a_year(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), str(number), str(LINES)])
        for number in range(WRITERS)
    ]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    part = History(tmp_path).read()
    assert part.unreadable_count == 0
    assert len(set(list_ids(part.events))) == len(part.events) == WRITERS * LINES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history-2026.jsonl", HISTORY_NAME]


def test_a_torn_last_line_costs_no_other(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(make_event(0))
    with (tmp_path / HISTORY_NAME).open("ab") as file:
        file.write(b'{"event":"run started","at":"2026-11-3')
    history.record(make_event(1))
    part = history.read()
    assert list_ids(part.events) == ["0", "1"]
    assert part.unreadable_count == 1


def test_an_event_of_a_newer_version_is_counted_and_hides_nothing(tmp_path: Path) -> None:
    history = History(tmp_path)
    (tmp_path / HISTORY_NAME).write_text(json.dumps({"event": "flown", "at": AT.isoformat()}) + "\n\n")
    history.record(make_event(1))
    assert (list_ids(history.read().events), history.read().unreadable_count) == (["1"], 1)


def test_a_new_year_begins_a_new_file(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(make_event(0))
    history.record(make_event(1, AT + timedelta(days=100)))
    assert (tmp_path / "history-2026.jsonl").is_file()
    assert list_ids(history.read().events) == ["0", "1"]
    assert list_ids(history.read(AT + timedelta(days=50)).events) == ["1"]
    assert list_ids(history.read(end=AT + timedelta(days=50)).events) == ["0"]


def test_a_clock_that_was_ahead_for_a_while_overwrites_no_year(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number, year in enumerate((2026, 2031, 2026, 2027)):
        history.record(make_event(number, AT.replace(year=year)))
    # The file begins with 2026 again after 2031 was put aside.
    (tmp_path / HISTORY_NAME).rename(tmp_path / "later")
    history.record(make_event(4, AT))
    history.record(make_event(5, AT.replace(year=2028)))
    assert list_ids(History(tmp_path).read().events).count("0") == 1
    (tmp_path / "later").rename(tmp_path / "history-2030.jsonl")
    assert sorted(list_ids(history.read().events)) == list("012345")


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    History(tmp_path / "none").record(make_event(0))
    assert not (tmp_path / "none").exists()
    assert History(tmp_path / "none").read().events == ()


def test_a_history_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / HISTORY_NAME).mkdir()
    History(tmp_path).record(make_event(0))
    assert "cannot be written" in caplog.text
    with pytest.raises(StorageError, match="cannot be read"):
        History(tmp_path).read()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(disk := tmp_path / "disk", "16k"):
        yield disk


def test_on_a_full_disk_no_line_is_torn(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(small_disk)
    for _ in range(8):
        history.record(CopyFailed(at=AT, store="b2", problem="x" * 3000))
    assert "No space left" in caplog.text
    part = history.read()
    assert part.unreadable_count == 0
    assert 1 < len(part.events) < 8


def test_a_file_that_root_makes_can_be_appended_to_by_the_owner_of_the_directory(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to give a directory away")
    os.chown(tmp_path, 1234, 1234)
    History(tmp_path).record(AlertDelivered(at=AT, channel="mail", title="t", is_accepted=True))
    status = (tmp_path / HISTORY_NAME).stat()
    assert (status.st_uid, status.st_gid) == (1234, 1234)
