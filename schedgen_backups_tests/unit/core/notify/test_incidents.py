"""Incidents: when an occurrence causes an alert, and a state file that survives damage and concurrency.

What is sent, and what happens when no channel accepts it, is tested in `test_notifier`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest

from schedgen_backups.core.notify.incidents import IncidentKey, IncidentState, IncidentStore

BEGAN = datetime(2026, 3, 1, 2, 10, tzinfo=timezone.utc)
KEY = IncidentKey(area="run", subject="database_dump failed")
OTHER = IncidentKey(area="run", subject="bucket_archive failed")
ADD_OCCURRENCES = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from schedgen_backups.core.notify.incidents import IncidentKey, IncidentStore
store = IncidentStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    with store.locked():
        state = store.read().with_occurrence(IncidentKey("run", "both"), datetime.now(timezone.utc),
            is_announced=False)
        store.write(state.with_occurrence(IncidentKey("run", f"{sys.argv[2]} {number}"),
            datetime.now(timezone.utc), is_announced=True))
"""


def announce_when_due(*times: timedelta) -> list[timedelta]:
    """Return the times, from the first occurrence on, at which an alert was sent."""
    state = IncidentState()
    announced: list[timedelta] = []
    for since in times:
        is_due = state.is_due(KEY, BEGAN + since)
        state = state.with_occurrence(KEY, BEGAN + since, is_announced=is_due)
        announced += [since] if is_due else []
    return announced


def test_alerts_are_sent_at_once_after_1_6_and_24_hours_and_then_daily() -> None:
    """A failure that is seen every ten minutes for five days."""
    announced = announce_when_due(*(timedelta(minutes=10 * number) for number in range(5 * 24 * 6)))
    first_day = [timedelta(0), timedelta(hours=1), timedelta(hours=6), timedelta(hours=24)]
    assert announced[:4] == first_day
    later = [after - before for before, after in pairwise(announced[3:])]
    assert len(later) in {3, 4}
    assert all(timedelta(hours=23) <= gap <= timedelta(hours=24) for gap in later)


def test_a_nightly_failure_is_reported_every_night_despite_varying_duration() -> None:
    """The sixth night fails some seconds sooner than the fifth: still another night without a backup."""
    nights = [
        timedelta(days=night, seconds=seconds)
        for night, seconds in enumerate((0, -3, 40, -20, 30, 5, 0, -60))
    ]
    assert announce_when_due(*nights) == nights


@pytest.mark.parametrize(("since", "is_due"), [(0, False), (3599, False), (3600, True)])
def test_the_first_reminder_is_due_after_exactly_one_hour(since: int, is_due: bool) -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    assert state.is_due(KEY, BEGAN + timedelta(seconds=since)) is is_due


@pytest.mark.parametrize(("since", "is_due"), [(-1, False), (0, True)])
def test_after_a_day_an_alert_is_due_every_23_hours_exactly(since: int, is_due: bool) -> None:
    state = IncidentState()
    for hours in (0, 1, 6, 24):
        state = state.with_occurrence(KEY, BEGAN + timedelta(hours=hours), is_announced=True)
    assert state.is_due(KEY, BEGAN + timedelta(hours=24 + 23, seconds=since)) is is_due


def test_a_late_reminder_is_not_followed_by_the_next_at_once() -> None:
    late = BEGAN + timedelta(hours=6)
    state = (
        IncidentState()
        .with_occurrence(KEY, BEGAN, is_announced=True)
        .with_occurrence(KEY, late, is_announced=True)
    )
    assert not state.is_due(KEY, late)
    assert state.is_due(KEY, late + timedelta(seconds=1))


def test_a_clock_that_was_set_back_makes_no_alert_due() -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    assert not state.is_due(KEY, BEGAN - timedelta(days=1))


def test_an_undelivered_alert_opens_no_incident_and_stays_due() -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=False)
    assert state == IncidentState()
    assert state.is_due(KEY, BEGAN)


def test_an_undelivered_reminder_stays_due() -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    later = BEGAN + timedelta(hours=1)
    state = state.with_occurrence(KEY, later, is_announced=False)
    assert state.is_due(KEY, later)
    state = state.with_occurrence(KEY, later, is_announced=True)
    assert not state.is_due(KEY, later + timedelta(hours=1))


def test_occurrences_are_counted_and_the_start_time_stays() -> None:
    state = IncidentState()
    for number in range(4):
        state = state.with_occurrence(KEY, BEGAN + timedelta(minutes=number), is_announced=number in {0, 3})
    incident = state.find(KEY)
    assert incident is not None
    assert (
        incident.began_at,
        incident.announced_at,
        incident.announced_count,
        incident.occurrence_count,
    ) == (
        BEGAN,
        BEGAN + timedelta(minutes=3),
        2,
        4,
    )


def test_each_key_is_a_separate_incident() -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    assert state.is_due(OTHER, BEGAN)
    state = state.with_occurrence(OTHER, BEGAN, is_announced=True)
    assert [incident.key for incident in state.without(frozenset({KEY})).incidents] == [OTHER]


def test_a_recurrence_after_recovery_is_a_new_incident() -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True).without(frozenset({KEY}))
    assert state.find(KEY) is None
    assert state.is_due(KEY, BEGAN + timedelta(seconds=1))


def test_the_state_is_read_back_as_written(tmp_path: Path) -> None:
    store = IncidentStore(tmp_path / ".alerts")
    assert store.read() == IncidentState()
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    with store.locked():
        store.write(state)
        assert IncidentStore(tmp_path / ".alerts").read() == state
    assert sorted(path.name for path in (tmp_path / ".alerts").iterdir()) == [".lock", "incidents.json"]


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff\x00\xff", b'{"incidents": [{"kind": "x"}]}', b"[]"])
def test_a_damaged_state_counts_as_empty_and_is_replaced(tmp_path: Path, damaged: bytes) -> None:
    """One alert too many, never one too few."""
    store = IncidentStore(tmp_path)
    (tmp_path / "incidents.json").write_bytes(damaged)
    with store.locked():
        assert store.read() == IncidentState()
        state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
        store.write(state)
        assert store.read() == state


def test_a_state_of_a_newer_version_is_read(tmp_path: Path) -> None:
    state = IncidentState().with_occurrence(KEY, BEGAN, is_announced=True)
    text = (
        state.model_dump_json()
        .replace('"area"', '"colour": "red", "area"')
        .replace('"key"', '"colour": "red", "key"')
    )
    (tmp_path / "incidents.json").write_text(text)
    assert IncidentStore(tmp_path).read() == state


def test_files_and_folders_are_private_to_their_owner(tmp_path: Path) -> None:
    """The backup directory too, which an alert about a first backup may be the first to create."""
    before = os.umask(0)
    try:
        store = IncidentStore(tmp_path / "backups" / ".alerts")
        with store.locked():
            store.write(IncidentState())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "backups").rglob("*")}
    assert modes == {".alerts": 0o700, ".lock": 0o600, "incidents.json": 0o600}
    assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_created_is_an_os_error(tmp_path: Path) -> None:
    """Even root cannot make a folder in a file."""
    (tmp_path / "backups").write_bytes(b"")
    with pytest.raises(OSError), IncidentStore(tmp_path / "backups" / ".alerts").locked():
        pytest.fail("locked without a folder")


@pytest.mark.takes_seconds
def test_two_concurrent_processes_lose_no_incident(tmp_path: Path) -> None:
    folder = tmp_path / ".alerts"
    with IncidentStore(folder).locked():
        IncidentStore(folder).write(
            IncidentState().with_occurrence(IncidentKey("run", "both"), BEGAN, is_announced=True)
        )
    words = [sys.executable, "-c", ADD_OCCURRENCES, str(folder)]
    processes = [
        subprocess.Popen([*words, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("first", "second")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    found = {incident.key.subject: incident for incident in IncidentStore(folder).read().incidents}
    assert set(found) == {
        "both",
        *(f"{name} {number}" for name in ("first", "second") for number in range(50)),
    }
    assert found["both"].occurrence_count == 101
