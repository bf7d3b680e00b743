"""Brings an alert to people: Slack by slack-sdk, a plain JSON endpoint, and everything else by apprise, each within seconds or not at all.

Add a channel only when neither Slack nor apprise can do it. A channel says whether the service accepted; it never raises and never hangs. When
something is sent, and what happens to what was not accepted, is the business of `notifier`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import apprise
import urllib3
from slack_sdk.errors import SlackClientError
from slack_sdk.http_retry import RetryHandler
from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, ServerErrorRetryHandler
from slack_sdk.webhook import WebhookClient

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify.alert import TEXT_LIMIT, Alert, Severity, shorten
from schedgen_backups.core.notify.redaction import hidden_addresses
from schedgen_backups.core.settings import LOOPBACK_HOSTS, MailSettings

SEND_TIMEOUT_SECONDS = 5
_TRIES = 2
_HEADER_LIMIT = 150
_FIELD_LIMIT = 2000
_FIELDS_LIMIT = 10
"""Block Kit reference: header text, field text, fields of a section."""
_LEAST_TEXT = 40
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
        # None for rate limits: it sleeps as long as the server likes.
        handlers: list[RetryHandler] = [ConnectionErrorRetryHandler(max_retry_count=1), ServerErrorRetryHandler(1)]
        client = WebhookClient(self.url, timeout=SEND_TIMEOUT_SECONDS, retry_handlers=handlers, logger=_SILENT)
        try:
            text = _escape(alert.to_text(), TEXT_LIMIT)
            response = client.send(text=text, blocks=make_slack_blocks(alert))
            if response.status_code == _BAD_REQUEST:
                response = client.send(text=text)
        except (OSError, SlackClientError, ValueError) as error:
            return Delivery(self.name, is_accepted=False, answer=_describe(error))
        answer = shorten(_redact(response.body or "", self.url), 200)
        return Delivery(self.name, is_accepted=response.status_code == _OK, answer=f"{response.status_code} {answer}".strip())


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
        body = json.dumps({"text": alert.to_text()})
        with hidden_addresses(), urllib3.PoolManager(timeout=SEND_TIMEOUT_SECONDS, retries=make_retries()) as pool:
            try:
                # A redirect is a refusal: behind it may be a page that takes everything, such as a login.
                response = pool.request("POST", self.url, body=body, headers={"Content-Type": "application/json"}, redirect=False)
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
        title = f"[{alert.severity.value}] {alert.title}"
        # Services refuse a text that is too long, and count the title and every escaped character; apprise cuts what is still too much.
        room = max((self.plugin.body_maxlen - len(title)) * 3 // 4, _LEAST_TEXT)
        body = shorten(alert.to_text().partition("\n")[2], room)
        with hidden_addresses(logging.WARNING), apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:
            is_accepted = bool(self.plugin.notify(body=body, title=title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT))
            answer = shorten(_redact(" ".join(log.getvalue().split()), self.address, self.plugin.password or ""), 300)
        return Delivery(self.name, is_accepted, "accepted" if is_accepted else answer or "refused")


def make_channels(webhook_urls: Iterable[str], recipients: tuple[str, ...], mail: MailSettings | None) -> tuple[Channel, ...]:
    """Return a channel for each address, and one for mail; ConfigurationError names what cannot be one."""
    channels = [make_channel(url) for url in webhook_urls]
    if mail is not None:
        channels.append(make_mail_channel(recipients, mail))
    return tuple(channels)


def make_channel(url: str) -> Channel:
    """The channel that this address means; ConfigurationError (without the address) when it means none or is not encrypted.

    Slack's incoming webhooks, any address that apprise knows (Discord's and Teams' https addresses among them), otherwise a JSON endpoint.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("an address is no address", hint="Is a bracket missing?") from None
    if parts.scheme in {"http", "https"}:
        return _make_web_channel(url, parts)
    plugin = _instantiate(url)
    if plugin is None:
        raise ConfigurationError(f"an address of kind {parts.scheme or 'unknown'!r} is not understood", hint="See the list of apprise's addresses.")
    if not _is_encrypted(plugin, parts):
        raise ConfigurationError(f"the address of kind {parts.scheme!r} is not encrypted", hint=f"Use {plugin.secure_protocol or 'another kind'}.")
    return AppriseChannel(_set_limits(plugin), url)


def _make_web_channel(url: str, parts: SplitResult) -> Channel:
    if not parts.hostname:
        raise ConfigurationError("a webhook's address names no host", hint="Use https://host/path.")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ConfigurationError(f"the webhook at {parts.hostname} is not encrypted", hint="Use https; http is for this machine only.")
    if parts.hostname == _SLACK_HOST or parts.path.startswith(_SLACK_PATH):
        return SlackChannel(url)
    plugin = _instantiate(url)
    return AppriseChannel(_set_limits(plugin), url) if plugin is not None else JsonChannel(url)


def _instantiate(address: str | dict[str, Any]) -> apprise.NotifyBase | None:
    with hidden_addresses():
        return apprise.Apprise.instantiate(address)


def _is_encrypted(plugin: apprise.NotifyBase, parts: SplitResult) -> bool:
    # A mail address may name another server than its host, and `insecure` although it begins with mailtos.
    host = getattr(plugin, "smtp_host", None) or plugin.host or parts.hostname or ""
    if host in LOOPBACK_HOSTS:
        return True
    if getattr(plugin, "secure_mode", None) == "insecure":
        return False
    # Services that are only reached by https have no unencrypted protocol, and call nothing secure.
    plain = plugin.protocol if isinstance(plugin.protocol, (tuple, list, set)) else (plugin.protocol,)
    return plugin.secure or parts.scheme not in plain


def make_mail_channel(recipients: tuple[str, ...], mail: MailSettings) -> Channel:
    """E-mail to these people; ConfigurationError when the server is not encrypted and not on this machine, or an address is wrong."""
    if mail.security == "insecure" and mail.host not in LOOPBACK_HOSTS:
        raise ConfigurationError(f"mail by {mail.host} would not be encrypted", hint="Set SMTP_SECURITY to starttls or ssl.")
    plugin = _instantiate(
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
    return AppriseChannel(_set_limits(plugin), f"mail:{mail.host}:{','.join(recipients)}")


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


def _set_limits(plugin: apprise.NotifyBase) -> apprise.NotifyBase:
    plugin.overflow_mode = apprise.OverflowMode.TRUNCATE
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


def _redact(text: str, address: str, password: str = "") -> str:
    """Servers repeat what they were asked: an error page often holds the path."""
    for secret in (address, urlsplit(address).path.strip("/"), password):
        if secret:
            text = text.replace(secret, "***")
    return text


def make_retries() -> urllib3.Retry:
    """A second and a third try within a second; never as late as the server likes."""
    return urllib3.Retry(
        total=_TRIES,
        backoff_factor=0.2,
        status_forcelist=[500, 502, 503, 504],
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=False,
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: no answer as it should be"
