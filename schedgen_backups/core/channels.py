"""Brings an alert to people: Slack by slack-sdk, a plain JSON endpoint, and everything else by apprise, each within seconds or not at all.

Add a channel only when neither Slack nor apprise can do it. A channel says whether the service accepted; it never raises and never hangs. When
something is sent, and what happens to what was not accepted, is the business of `notifier`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import apprise
import urllib3
from slack_sdk.errors import SlackClientError
from slack_sdk.http_retry import RetryHandler
from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, RateLimitErrorRetryHandler, ServerErrorRetryHandler
from slack_sdk.webhook import WebhookClient

from schedgen_backups.core.alerts import TEXT_LIMIT, Alert, Severity, shorten
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import LOOPBACK_HOSTS

SEND_TIMEOUT_SECONDS = 5
_TRIES = 2
_HEADER_LIMIT = 150
_FIELD_LIMIT = 2000
_FIELDS_LIMIT = 10
"""Block Kit reference: header text, field text, fields of a section."""
_OK = 200
_MULTIPLE_CHOICES = 300
_BAD_REQUEST = 400
_SILENT = logging.getLogger("schedgen_backups.slack")
_SILENT.setLevel(logging.CRITICAL)  # the SDK's debug log holds the webhook's address
_SLACK_HOST = "hooks.slack.com"
_SLACK_PATH = "/services/"
_COLOURS = {Severity.CRITICAL: "🔴", Severity.HIGH: "🟠", Severity.MEDIUM: "🟡", Severity.LOW: "⚪", Severity.INFO: "🟢"}


@dataclass(frozen=True)
class Delivery:
    """What a channel said of one alert."""

    channel: str
    is_accepted: bool
    answer: str


class Channel(Protocol):
    """A way to reach people."""

    @property
    def name(self) -> str:
        """What messages call it; without anything secret."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same address, and not the address: an incoming webhook's URL is a secret."""
        ...

    def send(self, alert: Alert) -> Delivery:
        """Whether the service accepted the alert; never raises, ends within seconds."""
        ...


@dataclass(frozen=True)
class SlackChannel:
    """An incoming webhook of Slack, or of something that speaks its language."""

    url: str = field(repr=False)
    name: str = "Slack"

    @property
    def fingerprint(self) -> str:
        """See Channel."""
        return _fingerprint(self.url)

    def send(self, alert: Alert) -> Delivery:
        """Sends Block Kit with a text beside it; when the blocks are refused, the text alone."""
        handlers: list[RetryHandler] = [
            ConnectionErrorRetryHandler(max_retry_count=1),
            RateLimitErrorRetryHandler(max_retry_count=1),
            ServerErrorRetryHandler(1),
        ]
        client = WebhookClient(self.url, timeout=SEND_TIMEOUT_SECONDS, retry_handlers=handlers, logger=_SILENT)
        try:
            response = client.send(text=alert.to_text(), blocks=make_slack_blocks(alert))
            if response.status_code == _BAD_REQUEST:
                response = client.send(text=alert.to_text())
        except (OSError, SlackClientError, ValueError) as error:
            return Delivery(self.name, is_accepted=False, answer=_describe(error))
        return Delivery(
            self.name, is_accepted=response.status_code == _OK, answer=f"{response.status_code} {shorten(response.body or '', 200)}".strip()
        )


@dataclass(frozen=True)
class JsonChannel:
    """Any endpoint that takes `{"text": …}`."""

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """The endpoint's host."""
        return f"webhook at {urlsplit(self.url).hostname}"

    @property
    def fingerprint(self) -> str:
        """See Channel."""
        return _fingerprint(self.url)

    def send(self, alert: Alert) -> Delivery:
        """Posts the text."""
        retries = urllib3.Retry(total=_TRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504], allowed_methods=None, raise_on_status=False)
        with urllib3.PoolManager(timeout=SEND_TIMEOUT_SECONDS, retries=retries) as pool:
            try:
                response = pool.request("POST", self.url, body=json.dumps({"text": alert.to_text()}), headers={"Content-Type": "application/json"})
            except urllib3.exceptions.HTTPError as error:
                return Delivery(self.name, is_accepted=False, answer=_describe(error))
        is_accepted = _OK <= response.status < _MULTIPLE_CHOICES
        return Delivery(self.name, is_accepted=is_accepted, answer=f"{response.status} {response.reason or ''}".strip())


@dataclass(frozen=True)
class AppriseChannel:
    """Whatever apprise knows: e-mail, Discord, Teams, ntfy, PagerDuty and a hundred more."""

    plugin: apprise.NotifyBase = field(repr=False)
    address: str = field(repr=False)

    @property
    def name(self) -> str:
        """The service's name."""
        return self.plugin.service_name

    @property
    def fingerprint(self) -> str:
        """See Channel."""
        return _fingerprint(self.address)

    def send(self, alert: Alert) -> Delivery:
        """Hands title and text to the service; apprise's own log is the answer when it was refused."""
        kind = apprise.NotifyType.SUCCESS if alert.severity is Severity.INFO else apprise.NotifyType.FAILURE
        body = alert.to_text().partition("\n")[2]
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:
            is_accepted = bool(self.plugin.notify(body=body, title=f"[{alert.severity.value}] {alert.title}", notify_type=kind))
            answer = shorten(" ".join(log.getvalue().split()), 300)
        return Delivery(self.name, is_accepted, "accepted" if is_accepted else self._redact(answer or "refused"))

    def _redact(self, text: str) -> str:
        for secret in (self.address, self.plugin.password):
            if secret:
                text = text.replace(secret, "***")
        return text


@dataclass(frozen=True)
class MailSettings:
    """The SMTP server that takes our mail."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    sender: str
    security: str
    """`starttls`, `ssl` or `insecure`."""


def make_channel(url: str) -> Channel:
    """The channel that this address means; ConfigurationError (without the address) when it means none or is not encrypted.

    Slack's incoming webhooks, any address that apprise knows (Discord's and Teams' https addresses among them), otherwise a JSON endpoint.
    """
    parts = urlsplit(url)
    is_loopback = (parts.hostname or "") in LOOPBACK_HOSTS
    if parts.scheme == "http" and not is_loopback:
        raise ConfigurationError(f"the webhook at {parts.hostname} is not encrypted", hint="Use https; http is for this machine only.")
    if parts.scheme in {"http", "https"}:
        if parts.hostname == _SLACK_HOST or parts.path.startswith(_SLACK_PATH):
            return SlackChannel(url)
        plugin = apprise.Apprise.instantiate(url)
        return AppriseChannel(_set_timeouts(plugin), url) if plugin is not None else JsonChannel(url)
    plugin = apprise.Apprise.instantiate(url)
    if plugin is None:
        raise ConfigurationError(f"an address of kind {parts.scheme or 'unknown'!r} is not understood", hint="See the list of apprise's addresses.")
    if plugin.secure_protocol and not plugin.secure and not is_loopback:
        raise ConfigurationError(f"the address of kind {parts.scheme!r} is not encrypted", hint=f"Use {plugin.secure_protocol}://")
    return AppriseChannel(_set_timeouts(plugin), url)


def make_mail_channel(recipients: tuple[str, ...], mail: MailSettings) -> Channel:
    """E-mail to these people; ConfigurationError when the server is not encrypted and not on this machine, or an address is wrong."""
    if mail.security == "insecure" and mail.host not in LOOPBACK_HOSTS:
        raise ConfigurationError(f"mail by {mail.host} would not be encrypted", hint="Set SMTP_SECURITY to starttls or ssl.")
    plugin = apprise.Apprise.instantiate(
        {
            "schema": "mailto" if mail.security == "insecure" else "mailtos",
            "host": mail.host,
            "port": mail.port,
            "smtp_host": mail.host,
            "user": mail.user or None,
            "password": mail.password or None,
            "from_addr": mail.sender,
            "targets": list(recipients),
            "secure_mode": mail.security,
        }
    )
    if plugin is None:
        raise ConfigurationError("BACKUP_ALERT_EMAIL or SMTP_FROM is no address", hint="Use name@example.com, several separated by commas.")
    return AppriseChannel(_set_timeouts(plugin), f"mail:{mail.host}:{','.join(recipients)}")


def make_slack_blocks(alert: Alert) -> list[dict[str, Any]]:
    """The alert as Block Kit, within its limits."""
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": shorten(f"{_COLOURS[alert.severity]} {alert.title}", _HEADER_LIMIT)}},
        {"type": "section", "text": {"type": "mrkdwn", "text": _escape(f"*{alert.severity.value}*  {alert.cause}", TEXT_LIMIT)}},
    ]
    if alert.next_step:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": _escape(f"*What to do:* {alert.next_step}", TEXT_LIMIT)}})
    if alert.facts:
        fields = [
            {"type": "mrkdwn", "text": _escape(f"*{name}*\n{value}", _FIELD_LIMIT)} for name, value in list(alert.facts.items())[:_FIELDS_LIMIT]
        ]
        blocks.append({"type": "section", "fields": fields})
    if alert.link:
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": f"<{alert.link}|Open the run>"}]})
    return blocks


def _set_timeouts(plugin: apprise.NotifyBase) -> apprise.NotifyBase:
    plugin.socket_connect_timeout = SEND_TIMEOUT_SECONDS
    plugin.socket_read_timeout = SEND_TIMEOUT_SECONDS
    return plugin


def _escape(text: str, limit: int) -> str:
    # Slack's own three (formatting reference). Escaping makes a text longer, so it is cut until it fits.
    while len(escaped := text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) > limit:
        text = shorten(text, min(limit, len(text) * 4 // 5))
    return escaped


def _fingerprint(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: no answer as it should be"
