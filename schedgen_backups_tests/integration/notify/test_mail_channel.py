"""Mail against a real local SMTP server: recipients, and no password sent unencrypted to another machine.

Other channels are in `test_channels`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.channels import Delivery, MailSettings, make_mail_channel
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups_tests.support.alerts import closed_port, make_alert

PASSWORD = "sm7pCanaryPassword"
NASTY = "a <!channel> & <https://evil.example|click> *b* `c`"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the cost of hung servers to tenths of seconds."""
    monkeypatch.setattr(exchange, "READ_TIMEOUT_SECONDS", 0.3)


class MailBox:
    """The mails that an SMTP server accepted: sender, recipients and message of each."""

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

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: LoginPassword
    ) -> AuthResult:
        self.logins.append((login.login.decode(), login.password.decode()))
        return AuthResult(success=login.password.decode() == PASSWORD)


@pytest.fixture
def mail_box() -> MailBox:
    return MailBox()


@pytest.fixture
def mail_server(mail_box: MailBox) -> Iterator[MailSettings]:
    """Yield an SMTP server that knows one login."""
    port = closed_port()
    controller = Controller(
        mail_box, hostname=LOOPBACK, port=port, authenticator=mail_box.authenticate, auth_require_tls=False
    )
    controller.start()
    yield MailSettings(LOOPBACK, port, "backup", PASSWORD, "backup@example.com", "insecure")
    controller.stop()


def test_mail_goes_to_all_recipients_as_plain_text(mail_box: MailBox, mail_server: MailSettings) -> None:
    channel = make_mail_channel(("a@example.com", "b@example.com"), mail_server)
    alert = make_alert(cause=f"first <b>line</b> & ü\nsecond {NASTY}")
    assert channel.send(alert) == Delivery("E-Mail", is_accepted=True, answer="accepted")
    assert sorted(address for _sender, addresses, _message in mail_box.mails for address in addresses) == [
        "a@example.com",
        "b@example.com",
    ]
    for sender, _addresses, message in mail_box.mails:
        assert sender == "backup@example.com"
        assert message["Subject"] == "[CRITICAL] Backup failed: database_dump"
        assert message.get_content_type() == "text/plain"
        lines = message.get_content().splitlines()
        assert lines[:3] == ["first <b>line</b> & ü", f"second {NASTY}", "What to do: Is the server up?"]
        assert "https://dagster.example.com/runs/abc" in lines
    assert set(mail_box.logins) == {("backup", PASSWORD)}


def test_a_title_of_two_lines_adds_no_header_to_a_mail(mail_box: MailBox, mail_server: MailSettings) -> None:
    assert (
        make_mail_channel(("a@example.com",), mail_server)
        .send(make_alert(title="a\r\nBcc: evil@example.com"))
        .is_accepted
    )
    ((_sender, addresses, message),) = mail_box.mails
    assert addresses == ["a@example.com"]
    assert message["Bcc"] is None


def test_a_mail_servers_refusal_is_reported_without_the_password(
    mail_box: MailBox, mail_server: MailSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    mail_box.is_full = True
    assert not make_mail_channel(("a@example.com",), mail_server).send(make_alert()).is_accepted
    wrong = MailSettings(
        LOOPBACK, mail_server.port, "backup", f"wrong{PASSWORD}", "backup@example.com", "insecure"
    )
    delivery = make_mail_channel(("a@example.com",), wrong).send(make_alert())
    assert not delivery.is_accepted
    assert PASSWORD not in delivery.answer + caplog.text


def test_mail_without_encryption_is_refused_except_to_this_machine() -> None:
    with pytest.raises(ConfigurationError, match="would not be encrypted") as caught:
        make_mail_channel(
            ("a@example.com",),
            MailSettings("mail.example.com", 25, "user", PASSWORD, "b@example.com", "insecure"),
        )
    assert PASSWORD not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_mail_with_encryption_is_never_sent_without_it(
    security: str, mail_box: MailBox, mail_server: MailSettings
) -> None:
    """The server here cannot encrypt: the password must not reach it."""
    settings = MailSettings(LOOPBACK, mail_server.port, "backup", PASSWORD, "backup@example.com", security)
    assert not make_mail_channel(("a@example.com",), settings).send(make_alert()).is_accepted
    assert (mail_box.mails, mail_box.logins) == ([], [])
