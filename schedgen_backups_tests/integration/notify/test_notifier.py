"""The notifier: one alert per incident, rare reminders, one recovery, and nothing lost or sent twice.

Channels are real ones to local servers. When a reminder is due is tested in `test_incidents`, what a channel
sends in `test_channels`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.channels import Channel, make_channel
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.notify.notifier import Notifier, Outcome
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups_tests.support.alerts import (
    KEY,
    RAISED_AT,
    SECRET,
    Answer,
    RecordingServer,
    closed_port,
    make_alert,
    recording_server,
    silent_server,
)

HOUR = timedelta(hours=1)
DOWN = Answer(404, "down")
OTHER = IncidentKey(area="run", subject="bucket_archive failed")
EVERY_KEY = frozenset({KEY, OTHER})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "READ_TIMEOUT_SECONDS", 2)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


@pytest.fixture
def other_server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


def make_webhook(server: RecordingServer) -> Channel:
    return make_channel(server.url(f"/hook/{SECRET}"))


def key_of(subject: str) -> IncidentKey:
    return IncidentKey(area="run", subject=subject)


def list_first_lines(server: RecordingServer) -> list[str]:
    """Return the first line of each message."""
    return [received.json["text"].splitlines()[0] for received in server.received]


def list_spool(folder: Path) -> list[Path]:
    return sorted((folder / ".alerts" / "spool").glob("*"))


def test_an_incident_is_reported_once_and_again_after_an_hour(
    server: RecordingServer, tmp_path: Path
) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    outcomes = [
        notifier.report_trouble(KEY, make_alert(raised_at=RAISED_AT + timedelta(minutes=minutes)))
        for minutes in (0, 1, 30, 59, 60, 61)
    ]
    assert outcomes == [
        Outcome.ACCEPTED,
        Outcome.SUPPRESSED,
        Outcome.SUPPRESSED,
        Outcome.SUPPRESSED,
        Outcome.ACCEPTED,
        Outcome.SUPPRESSED,
    ]
    assert list_first_lines(server) == ["[CRITICAL] Backup failed: database_dump"] * 2
    assert "incident: since 2026-03-01 02:10 UTC, 1.0 h, seen 4 times" in server.received[1].json["text"]
    assert notifier.read_incidents()[0].occurrence_count == 6


def test_incidents_of_two_kinds_are_both_reported(server: RecordingServer, tmp_path: Path) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    for kind in ("database_dump failed", "bucket_archive failed"):
        assert notifier.report_trouble(key_of(kind), make_alert(title=kind)) is Outcome.ACCEPTED
    assert list_first_lines(server) == ["[CRITICAL] database_dump failed", "[CRITICAL] bucket_archive failed"]


def test_another_process_knows_the_incident(server: RecordingServer, tmp_path: Path) -> None:
    """Hook, sensor and command line have a notifier each."""
    assert Notifier([make_webhook(server)], tmp_path).report_trouble(KEY, make_alert()) is Outcome.ACCEPTED
    assert Notifier([make_webhook(server)], tmp_path).report_trouble(KEY, make_alert()) is Outcome.SUPPRESSED
    assert len(server.received) == 1


def test_two_concurrent_reporters_send_one_alert(server: RecordingServer, tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    barrier = threading.Barrier(4)

    def report() -> None:
        notifier = Notifier([make_webhook(server)], tmp_path)
        barrier.wait()
        outcomes.append(notifier.report_trouble(KEY, make_alert()))

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [Outcome.ACCEPTED, *[Outcome.SUPPRESSED] * 3]
    assert len(server.received) == 1


def test_recovery_is_reported_once_and_closes_the_incident(server: RecordingServer, tmp_path: Path) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    for kind in ("database_dump failed", "bucket_archive failed"):
        notifier.report_trouble(key_of(kind), make_alert())
    resolved = [
        notifier.report_resolved(EVERY_KEY, facts={"newest": "20260301_050000"}, now=RAISED_AT + 3 * HOUR)
        for _ in range(2)
    ]
    assert resolved == [Outcome.ACCEPTED, Outcome.SUPPRESSED]
    assert list_first_lines(server)[2:] == ["[INFO] Backups work again"]
    text = server.received[2].json["text"]
    assert "database_dump failed (since 2026-03-01 02:10 UTC, 3.0 h, seen 1 time)" in text
    assert "bucket_archive failed" in text
    assert "newest: 20260301_050000" in text
    assert notifier.read_incidents() == ()
    assert notifier.report_trouble(KEY, make_alert(raised_at=RAISED_AT + 4 * HOUR)) is Outcome.ACCEPTED


def test_recovery_of_some_kinds_leaves_the_others_open(server: RecordingServer, tmp_path: Path) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    for kind in ("database_dump failed", "bucket_archive failed"):
        notifier.report_trouble(key_of(kind), make_alert())
    assert (
        notifier.report_resolved(frozenset({key_of("unheard of")}), facts={}, now=RAISED_AT)
        is Outcome.SUPPRESSED
    )
    assert notifier.report_resolved(frozenset({KEY}), facts={}, now=RAISED_AT) is Outcome.ACCEPTED
    assert [incident.key.subject for incident in notifier.read_incidents()] == ["bucket_archive failed"]


def test_an_undelivered_recovery_is_retried(server: RecordingServer, tmp_path: Path) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    notifier.report_trouble(KEY, make_alert())
    server.answers = [DOWN]
    outcomes = [notifier.report_resolved(EVERY_KEY, facts={}, now=RAISED_AT + HOUR) for _ in range(3)]
    assert outcomes == [Outcome.REFUSED, Outcome.ACCEPTED, Outcome.SUPPRESSED]


def test_no_open_incident_means_no_recovery(server: RecordingServer, tmp_path: Path) -> None:
    assert (
        Notifier([make_webhook(server)], tmp_path).report_resolved(EVERY_KEY, facts={}, now=RAISED_AT)
        is Outcome.SUPPRESSED
    )
    assert server.received == []


def test_an_undelivered_alert_is_sent_when_the_channel_is_back(
    server: RecordingServer, tmp_path: Path
) -> None:
    """It is late and sent once: the outbox raises it again."""
    notifier = Notifier([make_webhook(server)], tmp_path)
    server.answers = [DOWN, DOWN]
    outcomes = [notifier.report_trouble(KEY, make_alert()) for _ in range(4)]
    assert outcomes == [Outcome.REFUSED, Outcome.REFUSED, Outcome.ACCEPTED, Outcome.SUPPRESSED]
    assert [outcome.is_settled for outcome in outcomes] == [False, False, True, True]
    assert notifier.flush_spool() == 0
    assert len(server.received) == 3


def test_a_channel_that_was_down_gets_the_alert_later_exactly_once(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    raised_at = datetime.now(timezone.utc)
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    other_server.answers = [DOWN, DOWN]
    assert notifier.report_trouble(KEY, make_alert(raised_at=raised_at)) is Outcome.ACCEPTED
    assert [notifier.flush_spool() for _ in range(4)] == [1, 0, 0, 0]
    assert len(server.received) == 1
    assert len(other_server.received) == 3
    assert other_server.received[-1] == server.received[0]
    assert list_spool(tmp_path) == []


def test_alerts_of_the_same_moment_are_all_kept(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    """Two steps may fail in the same run, or one moment may cause three alerts."""
    raised_at = datetime.now(timezone.utc)
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    other_server.answers = [DOWN, DOWN]
    for kind in ("database_dump failed", "bucket_archive failed"):
        notifier.report_trouble(key_of(kind), make_alert(title=kind, raised_at=raised_at))
    assert notifier.flush_spool() == 0
    assert sorted(list_first_lines(other_server)[2:]) == [
        "[CRITICAL] bucket_archive failed",
        "[CRITICAL] database_dump failed",
    ]


def test_the_spool_is_flushed_by_one_process_at_a_time(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    raised_at = datetime.now(timezone.utc)
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    other_server.answers = [DOWN] * 5
    for number in range(5):
        notifier.report_trouble(key_of(f"kind {number}"), make_alert(raised_at=raised_at))
    barrier = threading.Barrier(3)

    def flush() -> None:
        own = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
        barrier.wait()
        own.flush_spool()

    threads = [threading.Thread(target=flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(other_server.received) == 10


def test_spooled_alerts_are_private_and_do_not_hold_the_address(
    server: RecordingServer, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        down = make_channel(f"http://127.0.0.1:{closed_port()}/hook/{SECRET}")
        Notifier([make_webhook(server), down], tmp_path).report_trouble(KEY, make_alert())
    finally:
        os.umask(before)
    (path,) = list_spool(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for text in (path.name, *(found.read_text() for found in (tmp_path / ".alerts").rglob("*.json"))):
        assert not any(secret in text for secret in SECRET.split("/"))


def test_a_spooled_alert_for_a_removed_channel_waits(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    other_server.answers = [DOWN]
    raised_at = datetime.now(timezone.utc)
    Notifier([make_webhook(server), make_webhook(other_server)], tmp_path).report_trouble(
        KEY, make_alert(raised_at=raised_at)
    )
    assert Notifier([make_webhook(server)], tmp_path).flush_spool() == 1
    assert Notifier([make_webhook(other_server)], tmp_path).flush_spool() == 0
    assert (len(server.received), len(other_server.received)) == (1, 2)


def test_spooled_alerts_older_than_a_week_are_dropped(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    now = datetime.now(timezone.utc)
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    other_server.answers = [DOWN, DOWN]
    for kind, age in (("old", timedelta(days=7, minutes=1)), ("young", timedelta(days=6, hours=23))):
        notifier.report_trouble(key_of(kind), make_alert(title=kind, raised_at=now - age))
    assert notifier.flush_spool() == 0
    assert list_first_lines(other_server)[2:] == ["[CRITICAL] young"]
    assert list_spool(tmp_path) == []


def test_a_damaged_spooled_alert_stops_no_other(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    other_server.answers = [DOWN]
    notifier.report_trouble(KEY, make_alert(raised_at=datetime.now(timezone.utc)))
    (tmp_path / ".alerts" / "spool" / "00-damaged.json").write_text('{"fingerprint": ')
    assert notifier.flush_spool() == 0
    assert len(other_server.received) == 2
    assert "00-damaged.json is damaged and will be removed" in caplog.text
    assert list_spool(tmp_path) == []


def test_an_alert_is_sent_although_the_folder_is_not_writable(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk itself may be the fault: then each occurrence is reported.

    Even root cannot make a folder in a file.
    """
    (tmp_path / "backups").write_bytes(b"")
    other_server.default = DOWN
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path / "backups")
    assert [notifier.report_trouble(KEY, make_alert()) for _ in range(2)] == [Outcome.ACCEPTED] * 2
    assert len(server.received) == 2
    assert notifier.flush_spool() == 0
    assert "incidents cannot be stored" in caplog.text


def test_an_alert_is_sent_although_the_state_cannot_be_read(server: RecordingServer, tmp_path: Path) -> None:
    (tmp_path / ".alerts" / "incidents.json").mkdir(parents=True)
    assert Notifier([make_webhook(server)], tmp_path).report_trouble(KEY, make_alert()) is Outcome.ACCEPTED
    assert len(server.received) == 1


def test_a_damaged_state_causes_one_extra_alert_and_loses_none(
    server: RecordingServer, tmp_path: Path
) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path)
    notifier.report_trouble(KEY, make_alert())
    (tmp_path / ".alerts" / "incidents.json").write_text("{")
    assert [notifier.report_trouble(KEY, make_alert()) for _ in range(2)] == [
        Outcome.ACCEPTED,
        Outcome.SUPPRESSED,
    ]


def test_without_any_channel_incidents_are_kept_and_nothing_fails(tmp_path: Path) -> None:
    """`status` shows them; raising them again would change nothing."""
    notifier = Notifier([], tmp_path)
    outcome = notifier.report_trouble(KEY, make_alert())
    assert outcome is Outcome.UNCONFIGURED
    assert outcome.is_settled
    assert [incident.key.subject for incident in notifier.read_incidents()] == ["database_dump failed"]
    assert notifier.report_resolved(EVERY_KEY, facts={}, now=RAISED_AT) is Outcome.UNCONFIGURED
    assert notifier.read_incidents() == ()
    assert (notifier.send(make_alert()), notifier.flush_spool()) == ((), 0)


def test_a_test_alert_goes_to_every_channel_and_opens_no_incident(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path
) -> None:
    other_server.default = DOWN
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    deliveries = notifier.send(make_alert(severity=Severity.INFO, title="Good news"))
    assert [delivery.is_accepted for delivery in deliveries] == [True, False]
    assert list_first_lines(server) == ["[INFO] Good news"]
    assert (notifier.read_incidents(), list_spool(tmp_path)) == ((), [])


def test_a_refusal_is_logged_without_the_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    notifier = Notifier([make_channel(f"http://127.0.0.1:{closed_port()}/hook/{SECRET}")], tmp_path)
    assert notifier.report_trouble(KEY, make_alert()) is Outcome.REFUSED
    assert "was not accepted by webhook at 127.0.0.1" in caplog.text
    assert not any(secret in caplog.text for secret in SECRET.split("/"))


def test_every_alert_begins_with_the_installations_name(server: RecordingServer, tmp_path: Path) -> None:
    notifier = Notifier([make_webhook(server)], tmp_path, name="production")
    notifier.send(make_alert(title="test"))
    notifier.report_trouble(KEY, make_alert(title="failed"))
    notifier.report_resolved(EVERY_KEY, facts={}, now=RAISED_AT + HOUR)
    assert list_first_lines(server) == [
        "[CRITICAL] production: test",
        "[CRITICAL] production: failed",
        "[INFO] production: Backups work again",
    ]


@pytest.mark.timeout(60)
def test_a_silent_channel_is_waited_for_once(
    server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five spooled alerts took 77 s, and a sensor's tick is ended after 60."""
    monkeypatch.setattr(exchange, "EXCHANGE_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr("schedgen_backups.core.notify.notifier._SILENCE_SECONDS", 0.9)
    with silent_server() as port:
        channels = [make_channel(f"http://{LOOPBACK}:{port}/hook"), make_webhook(server)]
        notifier = Notifier(channels, tmp_path)
        started_at = time.monotonic()
        raised_at = datetime.now(timezone.utc)
        outcomes = [
            notifier.report_trouble(key_of(name), make_alert(title=name, raised_at=raised_at))
            for name in "abcde"
        ]
        assert outcomes == [Outcome.ACCEPTED] * 5
        assert notifier.flush_spool() == 5
        assert time.monotonic() - started_at < 3
        assert len(server.received) == 5


@pytest.mark.timeout(60)
def test_hung_channels_are_waited_for_in_parallel(
    server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them in sequence would take most of a tick."""
    monkeypatch.setattr(exchange, "EXCHANGE_TIMEOUT_SECONDS", 1)
    with ExitStack() as stack:
        ports = [stack.enter_context(silent_server()) for _ in range(3)]
        channels = [*(make_channel(f"http://{LOOPBACK}:{port}/hook") for port in ports), make_webhook(server)]
        started_at = time.monotonic()
        assert Notifier(channels, tmp_path).report_trouble(KEY, make_alert()) is Outcome.ACCEPTED
        assert time.monotonic() - started_at < 2.5
    assert len(server.received) == 1
    assert len(list_spool(tmp_path)) == 3


def test_a_spooled_alert_that_cannot_be_read_is_reported_and_left(
    server: RecordingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may become readable again; until then the operator must know of it."""
    (tmp_path / ".alerts" / "spool" / "unreadable.json").mkdir(parents=True)
    assert Notifier([make_webhook(server)], tmp_path).flush_spool() == 1
    assert "spooled alert unreadable.json cannot be read and is kept: not a regular file" in caplog.messages


def test_a_flush_ends_although_more_is_spooled(
    server: RecordingServer, other_server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier([make_webhook(server), make_webhook(other_server)], tmp_path)
    server.default = Answer(400)
    for name in "ab":
        notifier.report_trouble(key_of(name), make_alert(title=name, raised_at=datetime.now(timezone.utc)))
    monkeypatch.setattr("schedgen_backups.core.notify.notifier._FLUSH_SECONDS", 0)
    asked_count = len(server.received)
    assert notifier.flush_spool() == 2
    assert len(server.received) == asked_count


def test_another_users_lock_delays_no_alert(
    server: RecordingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run as root leaves such a lock; here a folder stands in its place, which root cannot open either."""
    (tmp_path / ".alerts" / ".lock").mkdir(parents=True)
    assert Notifier([make_webhook(server)], tmp_path).report_trouble(KEY, make_alert()) is Outcome.ACCEPTED
    assert "incidents cannot be stored in" in caplog.text
