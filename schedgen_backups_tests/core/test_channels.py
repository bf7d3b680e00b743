"""Channels against real local services: what they get, what counts as accepted, how long a dead one holds us up, and that no secret gets out.

Which alert is sent and when is tested in `test_notifier`. Services of the world are only recognised here, never called.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from schedgen_backups.core import channels
from schedgen_backups.core.alerts import Alert, Severity, shorten
from schedgen_backups.core.channels import AppriseChannel, Channel, Delivery, JsonChannel, MailSettings, SlackChannel, make_channel, make_mail_channel
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.loopback import LOOPBACK
from schedgen_backups_tests.alert_support import SECRET, Answer, RecordingServer, closed_port, make_alert, recording_server, silent_server

PASSWORD = "sm7pCanaryPassword"
LONG = "HEAD " + "pg_dump: <error> & so on\n" * 1000 + " TAIL"
NASTY = "a <!channel> & <https://evil.example|click> *b* `c`"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hanging servers cost tenths of seconds."""
    monkeypatch.setattr(channels, "SEND_TIMEOUT_SECONDS", 0.3)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


class MailBox:
    """What an SMTP server took: sender, recipients and message of each mail."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], EmailMessage]] = []
        self.logins: list[tuple[str, str]] = []
        self.is_full = False

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if self.is_full:
            return "552 the box is full"
        message = message_from_bytes(envelope.content, _class=EmailMessage, policy=policy.default)  # type: ignore[arg-type]
        self.mails.append((envelope.mail_from or "", list(envelope.rcpt_tos), message))  # type: ignore[arg-type]
        return "250 OK"

    def authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: LoginPassword) -> AuthResult:
        self.logins.append((login.login.decode(), login.password.decode()))
        return AuthResult(success=login.password.decode() == PASSWORD)


@pytest.fixture
def mail_box() -> MailBox:
    return MailBox()


@pytest.fixture
def mail_server(mail_box: MailBox) -> Iterator[MailSettings]:
    """An SMTP server that wants a login."""
    port = closed_port()
    controller = Controller(mail_box, hostname=LOOPBACK, port=port, authenticator=mail_box.authenticate, auth_required=True, auth_require_tls=False)
    controller.start()
    yield MailSettings(LOOPBACK, port, "backup", PASSWORD, "backup@example.com", "insecure")
    controller.stop()


def make_channels(port: int) -> list[Channel]:
    """One channel of each kind to this port, with secrets."""
    return [
        make_channel(f"http://{LOOPBACK}:{port}/services/{SECRET}"),
        make_channel(f"http://{LOOPBACK}:{port}/hook/{SECRET}"),
        make_channel(f"json://user:{PASSWORD}@{LOOPBACK}:{port}/{SECRET}"),
        make_mail_channel(("a@example.com",), MailSettings(LOOPBACK, port, "user", PASSWORD, "b@example.com", "insecure")),
    ]


def check_blocks(blocks: Any) -> None:
    """What Slack's reference says of the blocks that we use; anything else is a mistake."""
    assert isinstance(blocks, list)
    assert 0 < len(blocks) <= 50
    for block in blocks:
        kind = block["type"]
        if kind == "header":
            assert set(block) == {"type", "text"}
            check_text(block["text"], {"plain_text"}, 150)
        elif kind == "section":
            assert set(block) in ({"type", "text"}, {"type", "fields"})
            if "text" in block:
                check_text(block["text"], {"plain_text", "mrkdwn"}, 3000)
            else:
                assert 1 <= len(block["fields"]) <= 10
                for field in block["fields"]:
                    check_text(field, {"plain_text", "mrkdwn"}, 2000)
        else:
            assert kind == "context"
            assert set(block) == {"type", "elements"}
            assert 1 <= len(block["elements"]) <= 10
            for element in block["elements"]:
                check_text(element, {"plain_text", "mrkdwn"}, 3000)


def check_text(text: dict[str, Any], kinds: set[str], limit: int) -> None:
    assert set(text) == {"type", "text"}
    assert text["type"] in kinds
    assert isinstance(text["text"], str)
    # In UTF-16 as JavaScript counts, the longer of the two ways.
    assert 1 <= len(text["text"].encode("utf-16-le")) // 2 <= limit


ALERTS = {
    "ordinary": make_alert(),
    "bare": make_alert(next_step="", facts={}, link=""),
    "long": make_alert(title="t" * 4000, cause=LONG, next_step=LONG, facts={f"fact {number}": LONG for number in range(30)}),
    "nasty": make_alert(title=NASTY * 100, cause=NASTY * 200, next_step="&" * 9000, facts={NASTY * 50: "<" * 5000}),
    "other scripts": make_alert(title="Sikhoselwe 😀" * 40, cause="日本語 😀\x00\u202e" * 900, severity=Severity.INFO),
    "empty": make_alert(title="", cause="", facts={"": ""}),
}


@pytest.mark.parametrize("name", ALERTS)
def test_slack_gets_valid_blocks_whatever_the_alert(server: RecordingServer, name: str) -> None:
    assert make_channel(server.url()).send(ALERTS[name]) == Delivery("Slack", is_accepted=True, answer="200 ok")
    (received,) = server.received
    assert received.path == f"/services/{SECRET}"
    check_blocks(received.json["blocks"])
    assert 0 < len(received.json["text"]) <= 3000


def test_slack_gets_what_the_alert_says(server: RecordingServer) -> None:
    make_channel(server.url()).send(make_alert())
    header, cause, step, facts, context = server.received[0].json["blocks"]
    assert header["text"]["text"] == "🔴 Backup failed: database_dump"
    assert cause["text"]["text"] == "*CRITICAL*  pg_dump ended with 1: connection refused"
    assert step["text"]["text"] == "*What to do:* Is the server up?"
    assert [field["text"] for field in facts["fields"]] == ["*newest verified*\n20260228_020000, 24.2 h old", "*run*\nabc"]
    assert context["elements"][0]["text"] == "<https://dagster.example.com/runs/abc|Open the run>"


def test_markup_of_a_cause_wakes_nobody_and_links_nowhere(server: RecordingServer) -> None:
    """Slack makes mentions and links of what stands in angle brackets, in the text beside the blocks too."""
    make_channel(server.url()).send(make_alert(cause=NASTY, facts={NASTY: NASTY}))
    payload = server.received[0].json
    escaped = "a &lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; *b* `c`"
    assert payload["blocks"][1]["text"]["text"] == f"*CRITICAL*  {escaped}"
    assert payload["blocks"][3]["fields"][0]["text"] == f"*{escaped}*\n{escaped}"
    assert "<" not in payload["text"]
    assert escaped in payload["text"]


def test_a_long_cause_keeps_its_head_and_its_tail(server: RecordingServer) -> None:
    for url in (server.url(), server.url("/hook")):
        make_channel(url).send(make_alert(cause=LONG))
    blocks = server.received[0].json["blocks"][1]["text"]["text"]
    for text in (blocks, server.received[0].json["text"], server.received[1].json["text"]):
        assert "HEAD pg_dump" in text
        assert "on\n TAIL" in text
        assert " … " in text


def test_blocks_that_slack_refuses_are_sent_again_as_text(server: RecordingServer) -> None:
    server.answers = [Answer(400, "invalid_blocks")]
    assert make_channel(server.url()).send(make_alert()).is_accepted
    assert ["blocks" in received.json for received in server.received] == [True, False]
    assert "connection refused" in server.received[1].json["text"]


@pytest.mark.parametrize("answer", [Answer(400, "invalid_payload"), Answer(403, "invalid_token"), Answer(404, "no_service"), Answer(410, "gone")])
def test_a_refusal_of_slack_is_told(server: RecordingServer, answer: Answer) -> None:
    server.default = answer
    assert make_channel(server.url()).send(make_alert()) == Delivery("Slack", is_accepted=False, answer=f"{answer.status} {answer.body}")


@pytest.mark.parametrize("path", ["/services/a", "/hook"])
def test_a_server_that_fails_once_is_asked_again(server: RecordingServer, path: str) -> None:
    server.answers = [Answer(503)]
    assert make_channel(server.url(path)).send(make_alert()).is_accepted
    assert len(server.received) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", ["/services/a", "/hook"])
def test_a_server_that_asks_for_patience_does_not_hold_up_a_backup(server: RecordingServer, path: str, status: int) -> None:
    """An hour of sleep within a hook would be a run that hangs; the spool has the patience."""
    server.default = Answer(status, "later", {"Retry-After": "3600"})
    assert not make_channel(server.url(path)).send(make_alert()).is_accepted


def test_a_json_endpoint_gets_a_text(server: RecordingServer) -> None:
    server.default = Answer(204, "")
    assert make_channel(server.url("/hook?token=1")).send(make_alert()).is_accepted
    (received,) = server.received
    assert received.path == "/hook?token=1"
    assert set(received.json) == {"text"}
    assert received.json["text"].splitlines() == [
        "[CRITICAL] Backup failed: database_dump",
        "pg_dump ended with 1: connection refused",
        "What to do: Is the server up?",
        "newest verified: 20260228_020000, 24.2 h old",
        "run: abc",
        "https://dagster.example.com/runs/abc",
    ]


def test_a_redirect_is_a_refusal(server: RecordingServer) -> None:
    """The page behind it may be a login that answers 200 to everything."""
    server.answers = [Answer(302, "", {"Location": server.url("/login")})]
    assert make_channel(server.url("/hook")).send(make_alert()) == Delivery(f"webhook at {LOOPBACK}", is_accepted=False, answer="302 Found")
    assert [received.path for received in server.received] == ["/hook"]


def test_apprise_gets_title_and_text(server: RecordingServer) -> None:
    assert make_channel(f"json://{server.endpoint}/{SECRET}").send(make_alert()) == Delivery("JSON", is_accepted=True, answer="accepted")
    payload = server.received[0].json
    assert payload["title"] == "[CRITICAL] Backup failed: database_dump"
    assert payload["message"].startswith("pg_dump ended with 1: connection refused\nWhat to do: Is the server up?\n")
    assert payload["type"] == "failure"
    make_channel(f"json://{server.endpoint}/").send(make_alert(severity=Severity.INFO))
    assert server.received[1].json["type"] == "success"


def test_a_refusal_of_apprise_is_told(server: RecordingServer) -> None:
    server.default = Answer(403)
    delivery = make_channel(f"json://{server.endpoint}/{SECRET}").send(make_alert())
    assert not delivery.is_accepted
    assert "403" in delivery.answer


def test_a_service_with_short_texts_gets_head_and_tail_in_one_message(server: RecordingServer) -> None:
    """Rocket.Chat takes 1000 characters, Teams too, Discord 2000; longer ones they refuse, and nobody would be told."""
    server.default = Answer(200, '{"success": true}')
    assert (
        make_channel(f"rocket://Webhook1/Token2@{server.endpoint}/#backups").send(make_alert(cause=LONG, facts={"run": "TAIL"}, link="")).is_accepted
    )
    (received,) = server.received
    text = received.json["text"]
    assert len(text) <= 1000
    assert "HEAD" in text
    assert text.endswith("run: TAIL")


def test_mail_goes_to_all_recipients_as_plain_text(mail_box: MailBox, mail_server: MailSettings) -> None:
    channel = make_mail_channel(("a@example.com", "b@example.com"), mail_server)
    alert = make_alert(cause=f"first <b>line</b> & ü\nsecond {NASTY}")
    assert channel.send(alert) == Delivery("E-Mail", is_accepted=True, answer="accepted")
    assert sorted(address for _sender, addresses, _message in mail_box.mails for address in addresses) == ["a@example.com", "b@example.com"]
    for sender, _addresses, message in mail_box.mails:
        assert sender == "backup@example.com"
        assert message["Subject"] == "[CRITICAL] Backup failed: database_dump"
        assert message.get_content_type() == "text/plain"
        lines = message.get_content().splitlines()
        assert lines[:3] == ["first <b>line</b> & ü", f"second {NASTY}", "What to do: Is the server up?"]
        assert "https://dagster.example.com/runs/abc" in lines
    assert set(mail_box.logins) == {("backup", PASSWORD)}


def test_a_title_of_two_lines_adds_no_header_to_a_mail(mail_box: MailBox, mail_server: MailSettings) -> None:
    assert make_mail_channel(("a@example.com",), mail_server).send(make_alert(title="a\r\nBcc: evil@example.com")).is_accepted
    ((_sender, addresses, message),) = mail_box.mails
    assert addresses == ["a@example.com"]
    assert message["Bcc"] is None


def test_a_mail_server_that_refuses_is_told_without_the_password(
    mail_box: MailBox, mail_server: MailSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    mail_box.is_full = True
    assert not make_mail_channel(("a@example.com",), mail_server).send(make_alert()).is_accepted
    wrong = MailSettings(LOOPBACK, mail_server.port, "backup", f"wrong{PASSWORD}", "backup@example.com", "insecure")
    delivery = make_mail_channel(("a@example.com",), wrong).send(make_alert())
    assert not delivery.is_accepted
    assert PASSWORD not in delivery.answer + caplog.text


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
        f"mailto://user:{SECRET}@example.com",
        f"mailtos://user:{PASSWORD}@example.com?mode=insecure",
        f"mailto://user:{PASSWORD}@localhost?smtp=mail.example.com",
        f"rsyslog://example.com/{SECRET}",
    ],
)
def test_what_is_not_encrypted_is_refused_without_the_address(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match="not encrypted") as caught:
        make_channel(url)
    assert_no_secret(str(caught.value) + repr(caught.value) + caplog.text)


@pytest.mark.parametrize(
    "url", [f"nonsense-{SECRET}", f"xyz://{SECRET}", f"https:///{SECRET}", f"https://[{SECRET}", f"ftp://example.com/{SECRET}", f"discord://{SECRET}"]
)
def test_what_is_no_address_is_a_wrong_setting_without_the_address(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError) as caught:
        make_channel(url)
    assert_no_secret(str(caught.value) + repr(caught.value) + caplog.text)


def test_mail_without_encryption_is_refused_but_to_this_machine() -> None:
    with pytest.raises(ConfigurationError, match="would not be encrypted") as caught:
        make_mail_channel(("a@example.com",), MailSettings("mail.example.com", 25, "user", PASSWORD, "b@example.com", "insecure"))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_mail_with_encryption_is_never_sent_without(security: str, mail_box: MailBox, mail_server: MailSettings) -> None:
    """The server here cannot encrypt: the password must not reach it."""
    settings = MailSettings(LOOPBACK, mail_server.port, "backup", PASSWORD, "backup@example.com", security)
    assert not make_mail_channel(("a@example.com",), settings).send(make_alert()).is_accepted
    assert (mail_box.mails, mail_box.logins) == ([], [])


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("https://hooks.slack.com/services/T0/B0/abc", SlackChannel, "Slack"),
        ("https://mattermost.example.com/services/abc", SlackChannel, "Slack"),
        ("https://discord.com/api/webhooks/123456789012345678/abc-DEF_ghi", AppriseChannel, "Discord"),
        ("discord://123456789012345678/abc-DEF_ghi", AppriseChannel, "Discord"),
        (
            "https://prod-1.westus.logic.azure.com:443/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke"
            "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=abcSIG",
            AppriseChannel,
            "Power Automate / Workflows (for MSTeams)",
        ),
        ("ntfys://ntfy.example.com/backups", AppriseChannel, "ntfy"),
        ("https://example.com/hook/abc", JsonChannel, "webhook at example.com"),
    ],
)
def test_addresses_of_the_world_are_recognised(url: str, kind: type[Channel], name: str) -> None:
    channel = make_channel(url)
    assert (type(channel), channel.name) == (kind, name)


@pytest.mark.timeout(60)
def test_a_server_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with silent_server() as port:
        for channel in make_channels(port):
            delivery = channel.send(make_alert())
            assert not delivery.is_accepted, channel.name
            assert_no_secret(f"{delivery}{channel!r}{channel.name}{channel.fingerprint}")
    assert_no_secret(caplog.text)


def test_a_server_that_is_down_is_told_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 would warn with the path at each try, and debugging would show all of it."""
    caplog.set_level(logging.DEBUG)
    for channel in make_channels(closed_port()):
        delivery = channel.send(make_alert())
        assert not delivery.is_accepted, channel.name
        assert_no_secret(f"{delivery}{channel!r}")
    assert_no_secret(caplog.text)


def test_a_server_that_repeats_what_it_was_asked_gives_nothing_away(server: RecordingServer, caplog: pytest.LogCaptureFixture) -> None:
    """Error pages often hold the path; some are so long that the cut would go through it."""
    caplog.set_level(logging.DEBUG)
    server.default = Answer(404, "x" * 100 + f"The requested URL /services/{SECRET} was not found")
    for channel in make_channels(server.server_address[1])[:3]:
        delivery = channel.send(make_alert())
        assert not delivery.is_accepted
        assert_no_secret(f"{delivery}{channel!r}")
    assert_no_secret(caplog.text)


def test_what_is_accepted_gives_nothing_away_either(server: RecordingServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for channel in make_channels(server.server_address[1])[:3]:
        assert_no_secret(f"{channel.send(make_alert())}{channel!r}")
    assert len(server.received) == 3
    assert_no_secret(caplog.text)


def test_other_records_of_the_same_loggers_are_still_written(caplog: pytest.LogCaptureFixture) -> None:
    """Only what is said while an alert is sent is hidden: the S3 client uses urllib3 as well."""
    caplog.set_level(logging.DEBUG)
    make_channel(f"http://{LOOPBACK}:{closed_port()}/hook").send(make_alert())
    logging.getLogger("urllib3.connectionpool").warning("of the S3 client")
    assert caplog.messages[-1] == "of the S3 client"


def test_fingerprints_are_the_same_for_the_same_address_only() -> None:
    first, again, other = (make_channel(f"https://example.com/{name}") for name in ("a", "a", "b"))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_text_is_cut_in_the_middle_to_the_limit() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefghijklmnop", 9) == "abc … nop"
    assert len(shorten(LONG, 100)) == 100


def test_an_alert_comes_back_from_json_as_it_was() -> None:
    assert Alert.model_validate_json(make_alert().model_dump_json()) == make_alert()


def assert_no_secret(text: str) -> None:
    for secret in (*SECRET.split("/"), PASSWORD):
        assert secret not in text
