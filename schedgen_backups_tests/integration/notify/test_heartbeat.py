"""The heartbeat pings the expected paths, retries briefly, and never raises, hangs or reveals its address.

The service is a local HTTP server. The edge tests cover when a ping is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups_tests.support.alerts import (
    SECRET,
    Answer,
    RecordingServer,
    closed_port,
    recording_server,
    silent_server,
)

CHECK = "/ping/3f1c-canary-uuid"


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


@pytest.mark.parametrize(
    ("signal", "path"),
    [(Signal.START, f"{CHECK}/start"), (Signal.SUCCESS, CHECK), (Signal.FAIL, f"{CHECK}/fail")],
)
def test_each_signal_has_its_path_and_carries_a_text(
    server: RecordingServer, signal: Signal, path: str
) -> None:
    assert ping_heartbeat(server.url(CHECK), signal, "20260301_020000 is verified: ü")
    assert [(received.path, received.body.decode()) for received in server.received] == [
        (path, "20260301_020000 is verified: ü")
    ]


def test_without_an_address_nothing_is_pinged() -> None:
    assert ping_heartbeat("", Signal.SUCCESS, "text") is False


def test_a_long_text_keeps_its_beginning_and_end(server: RecordingServer) -> None:
    assert ping_heartbeat(server.url(CHECK), Signal.FAIL, f"HEAD{'x' * 50_000}TAIL")
    body = server.received[0].body.decode()
    assert len(body) == 10_000
    assert body.startswith("HEAD")
    assert body.endswith("TAIL")


def test_a_server_error_is_retried(server: RecordingServer) -> None:
    server.answers = [Answer(500), Answer(503)]
    assert ping_heartbeat(server.url(CHECK), Signal.SUCCESS, "text")
    assert len(server.received) == 3


def test_a_server_that_keeps_failing_is_given_up(
    server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = Answer(500)
    assert not ping_heartbeat(server.url(CHECK), Signal.FAIL, "text")
    assert len(server.received) == 3
    assert caplog.messages == ["the heartbeat service answered 500 to FAIL"]


@pytest.mark.parametrize("status", [302, 400, 404])
def test_a_refusal_is_reported_and_not_retried(
    server: RecordingServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A redirect too: the page behind it is not the service."""
    server.default = Answer(status, "", {"Location": "/elsewhere"})
    assert not ping_heartbeat(server.url(CHECK), Signal.SUCCESS, "text")
    assert len(server.received) == 1
    assert caplog.messages == [f"the heartbeat service answered {status} to SUCCESS"]


@pytest.mark.timeout(60)
def test_a_long_retry_after_does_not_delay_a_backup(server: RecordingServer) -> None:
    server.default = Answer(503, "later", {"Retry-After": "3600"})
    assert not ping_heartbeat(server.url(CHECK), Signal.START, "text")


@pytest.mark.timeout(60)
def test_a_hung_service_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "READ_TIMEOUT_SECONDS", 0.2)
    with silent_server() as port:
        assert not ping_heartbeat(f"http://127.0.0.1:{port}{CHECK}", Signal.START, "text")


@pytest.mark.timeout(60)
def test_an_answer_sent_byte_by_byte_is_given_up(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "EXCHANGE_TIMEOUT_SECONDS", 0.5)
    server.default = Answer(200, "ok" * 100, seconds_per_byte=0.1)
    started_at = time.monotonic()
    assert not ping_heartbeat(server.url(CHECK), Signal.START, "text")
    assert time.monotonic() - started_at < 3
    server.is_stopping.set()


@pytest.mark.parametrize(
    "address",
    ["http://", "https://[", "http://exa mple/x", "http://host:notaport/x", "http://\u2100.example/x"],
)
def test_an_invalid_address_never_raises(address: str) -> None:
    assert not ping_heartbeat(address, Signal.START, "text")


def test_the_address_is_in_no_log(server: RecordingServer, caplog: pytest.LogCaptureFixture) -> None:
    """Anyone who knows it can silence the heartbeat. urllib3 would log it at each retry, as a warning."""
    caplog.set_level(logging.DEBUG)
    path = f"/{SECRET}"
    server.answers = [Answer(200), Answer(500), Answer(404)]
    for _ in range(2):
        ping_heartbeat(server.url(path), Signal.SUCCESS, "text")
    assert not ping_heartbeat(f"http://127.0.0.1:{closed_port()}{path}", Signal.FAIL, "text")
    assert "the heartbeat service did not accept FAIL: MaxRetryError" in caplog.messages
    assert not any(secret in caplog.text for secret in SECRET.split("/"))
