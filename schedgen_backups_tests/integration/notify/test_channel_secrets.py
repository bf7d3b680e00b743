"""No secret of a channel leaks, whatever its server does: not in answers, reprs, log records or errors.

Servers here are down, hang, or repeat the request. What a working one gets is in `test_channels`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import apprise
import pytest
from apprise.manager_plugins import NotificationManager

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.channels import (
    AppriseChannel,
    Channel,
    MailSettings,
    make_channel,
    make_mail_channel,
)
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups_tests.support.alerts import (
    SECRET,
    Answer,
    RecordingServer,
    closed_port,
    make_alert,
    recording_server,
    silent_server,
)

PASSWORD = "sm7pCanaryPassword"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the cost of hung servers to tenths of seconds."""
    monkeypatch.setattr(exchange, "READ_TIMEOUT_SECONDS", 0.1)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


def make_channels(port: int) -> list[Channel]:
    """Return one channel of each kind to this port, with secrets."""
    return [
        make_channel(f"http://{LOOPBACK}:{port}/services/{SECRET}"),
        make_channel(f"http://{LOOPBACK}:{port}/hook/{SECRET}"),
        make_channel(f"json://user:{PASSWORD}@{LOOPBACK}:{port}/{SECRET}"),
        make_mail_channel(
            ("a@example.com",), MailSettings(LOOPBACK, port, "user", PASSWORD, "b@example.com", "insecure")
        ),
    ]


@pytest.mark.parametrize(
    "url",
    [
        f"http://hooks.example.com/services/{SECRET}",
        f"http://hooks.slack.com/services/{SECRET}",
        f"http://10.0.0.1/{SECRET}",
        f"http://localhost.example.com/{SECRET}",
        f"http://127.0.0.1@example.com/{SECRET}",
        f"json://example.com/{SECRET}",
        f"ntfy://example.com/{SECRET}",
        f"kodi://example.com/{SECRET}",
        f"mastodon://{SECRET.replace('/', '')}@example.com",
        f"mailto://user:{PASSWORD}@example.com",
        f"mailtos://user:{PASSWORD}@example.com?mode=insecure",
        f"mailto://user:{PASSWORD}@localhost?smtp=mail.example.com",
        "rsyslog://example.com",
    ],
)
def test_unencrypted_addresses_are_refused_and_not_quoted(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match="not encrypted") as caught:
        make_channel(url)
    assert_no_secret(str(caught.value) + caught.value.hint + repr(caught.value) + caplog.text)


def test_the_encrypted_kinds_of_a_service_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_channel("kodi://example.com/")
    assert caught.value.hint == "Use kodis or xbmcs."
    assert make_channel("kodis://example.com/").name == "Kodi/XBMC"


@pytest.mark.parametrize(
    "url",
    [
        f"nonsense-{SECRET}",
        f"xyz://{SECRET}",
        f"https:///{SECRET}",
        f"https://[{SECRET}",
        f"ftp://example.com/{SECRET}",
    ],
)
def test_an_invalid_address_is_a_wrong_setting_and_not_quoted(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError) as caught:
        make_channel(url)
    assert_no_secret(str(caught.value) + caught.value.hint + repr(caught.value) + caplog.text)


@pytest.mark.timeout(60)
def test_a_hung_server_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with silent_server() as port:
        for channel in make_channels(port):
            delivery = channel.send(make_alert())
            assert not delivery.is_accepted, channel.name
            assert_no_secret(f"{delivery}{channel!r}{channel.name}{channel.fingerprint}")
    assert_no_secret(caplog.text)


def test_a_server_that_is_down_is_reported_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 would warn with the path at each try, and debugging would show all of it."""
    caplog.set_level(logging.DEBUG)
    for channel in make_channels(closed_port()):
        delivery = channel.send(make_alert())
        assert (delivery.channel, delivery.is_accepted) == (channel.name, False)
        assert_no_secret(f"{delivery}{channel!r}")
    assert_no_secret(caplog.text)


@pytest.mark.parametrize("slash", ["/", ""])
def test_a_server_that_repeats_the_request_leaks_nothing(
    server: RecordingServer, caplog: pytest.LogCaptureFixture, slash: str
) -> None:
    """Error pages often hold the path; some are long enough that truncation would cut through it."""
    caplog.set_level(logging.DEBUG)
    server.default = Answer(404, "x" * 100 + f"The requested URL {slash}services/{SECRET} was not found")
    for channel in make_channels(server.server_address[1])[:3]:
        delivery = channel.send(make_alert())
        assert not delivery.is_accepted
        assert_no_secret(f"{delivery}{channel!r}")
    assert_no_secret(caplog.text)


def test_a_service_that_logs_its_password_leaks_nothing() -> None:
    """Mail servers repeat the login in their refusals; apprise's plugins log what they like."""

    @apprise.decorators.notify(on="leaky")
    def refuse(body: str, title: str, notify_type: str, *_arguments: object, **_more: object) -> bool:
        del body, title, notify_type
        logging.getLogger("apprise").warning("the login user with %s was refused", PASSWORD)
        return False

    try:
        plugin = apprise.Apprise.instantiate(f"leaky://user:{PASSWORD}@example.com")
        assert plugin is not None
        delivery = AppriseChannel(plugin, "leaky://example.com").send(make_alert())
    finally:
        NotificationManager().remove("leaky")
    assert (delivery.is_accepted, delivery.answer) == (
        False,
        "the login user with *** was refused Failed to send Custom - leaky notification.",
    )


def test_an_accepted_alert_leaks_nothing(server: RecordingServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for channel in make_channels(server.server_address[1])[:3]:
        assert_no_secret(f"{channel.send(make_alert())}{channel!r}")
    assert len(server.received) == 3
    assert_no_secret(caplog.text)


def test_other_records_of_the_same_loggers_are_still_written(caplog: pytest.LogCaptureFixture) -> None:
    """Only records made while an alert is sent are hidden: the S3 client uses urllib3 as well."""
    caplog.set_level(logging.DEBUG)
    make_channel(f"http://{LOOPBACK}:{closed_port()}/hook").send(make_alert())
    logging.getLogger("urllib3.connectionpool").warning("of the S3 client")
    assert caplog.messages[-1] == "of the S3 client"


def assert_no_secret(text: str) -> None:
    for secret in (*SECRET.split("/"), PASSWORD):
        assert secret not in text
