"""Channels that deliver an alert: Slack (slack-sdk), a JSON endpoint, and apprise for everything else.

Add a channel only if neither Slack nor apprise can do it. A channel reports whether the service accepted the
alert, judged by the body where the service confirms in it: a status of 200 may be a login page. It does not
follow redirects, never raises and never hangs. `notifier` decides what is sent when, and what happens to an
alert that was not accepted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import SplitResult, urlsplit

import apprise
import urllib3
from slack_sdk.models.blocks import (
    Block,
    ContextBlock,
    HeaderBlock,
    MarkdownTextObject,
    PlainTextObject,
    SectionBlock,
)

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.acceptance import is_refusal
from schedgen_backups.core.notify.alert import TEXT_LIMIT, Alert, Severity, shorten
from schedgen_backups.core.notify.exchange import Answer, post, run_exchange
from schedgen_backups.core.notify.redaction import hidden_addresses
from schedgen_backups.core.settings import LOOPBACK_HOSTS, MailSettings

_HEADER_LIMIT = 150
_FIELD_LIMIT = 2000
_FIELDS_LIMIT = 10
"""Limits of header text, field text and fields per section (Block Kit reference)."""
_LEAST_TEXT = 40
_OK = 200
_MULTIPLE_CHOICES = 300
_BAD_REQUEST = 400
_SLACK_ACCEPTED = "ok"
"""The body that an incoming webhook answers (Slack's documentation, incoming webhooks); compatible services
send the same."""
_SLACK_HOST = "hooks.slack.com"
_SLACK_PATH = "/services/"
_COLOURS = {
    Severity.CRITICAL: "🔴",
    Severity.HIGH: "🟠",
    Severity.MEDIUM: "🟡",
    Severity.LOW: "⚪",
    Severity.INFO: "🟢",
}


@dataclass(frozen=True)
class Delivery:
    """The answer of a channel to one alert."""

    channel: str
    is_accepted: bool
    answer: str


class Channel(Protocol):
    """A way to reach the operators."""

    @property
    def name(self) -> str:
        """The channel's name in messages; contains no secret."""
        ...

    @property
    def fingerprint(self) -> str:
        """A stable hash of the address, which is a secret: an incoming webhook's URL grants access."""
        ...

    def send(self, alert: Alert) -> Delivery:
        """Send the alert; return whether the service accepted it. Never raises; ends within seconds."""
        ...


@dataclass(frozen=True)
class SlackChannel:
    """An incoming webhook of Slack or of a compatible service."""

    url: str = field(repr=False)
    name: str = "Slack"

    @property
    def fingerprint(self) -> str:
        """See Channel."""
        return _fingerprint(self.url)

    def send(self, alert: Alert) -> Delivery:
        """Send Block Kit with a plain-text fallback; if the blocks are refused, send the text alone."""
        try:
            text = _escape(alert.to_text(), TEXT_LIMIT)
            response = _post_json(self.url, {"text": text, "blocks": make_slack_blocks(alert)})
            if response.status == _BAD_REQUEST:
                response = _post_json(self.url, {"text": text})
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            return Delivery(self.name, is_accepted=False, answer=_describe(error))
        is_accepted = response.status == _OK and response.body.strip() == _SLACK_ACCEPTED
        answer = shorten(_redact(response.body, self.url), 200)
        return Delivery(self.name, is_accepted, answer=f"{response.status} {answer}".strip())


@dataclass(frozen=True)
class JsonChannel:
    """Any endpoint that accepts `{"text": …}`."""

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
        """Post the text."""
        try:
            response = _post_json(self.url, {"text": alert.to_text()})
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            return Delivery(self.name, is_accepted=False, answer=_describe(error))
        is_success = _OK <= response.status < _MULTIPLE_CHOICES
        answer = f"{response.status} {response.reason}".strip()
        if is_success and is_refusal(response):
            return Delivery(
                self.name,
                is_accepted=False,
                answer=f"{answer}, {shorten(_redact(response.body, self.url), 200)}",
            )
        return Delivery(self.name, is_accepted=is_success, answer=answer)


@dataclass(frozen=True)
class AppriseChannel:
    """Any service that apprise supports: e-mail, Discord, Teams, ntfy, PagerDuty and a hundred more."""

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
        """Send title and text to the service; if it refuses, the answer is apprise's log."""
        kind = apprise.NotifyType.SUCCESS if alert.severity is Severity.INFO else apprise.NotifyType.FAILURE
        title = f"[{alert.severity.value}] {alert.title}"
        # Services refuse text that is too long, and count the title and every escaped character. apprise cuts
        # what still exceeds the limit.
        room = max((self.plugin.body_maxlen - len(title)) * 3 // 4, _LEAST_TEXT)
        return self._notify(title, shorten(alert.to_text().partition("\n")[2], room), kind)

    def send_file(self, title: str, text: str, path: Path) -> Delivery:
        """Send a text with this file attached; the service must be able to carry one, as mail is."""
        return self._notify(title, text, apprise.NotifyType.INFO, attachment=str(path))

    def _notify(
        self, title: str, body: str, kind: apprise.NotifyType, *, attachment: str | None = None
    ) -> Delivery:
        def notify() -> Delivery:
            with (
                hidden_addresses(logging.WARNING),
                apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log,
            ):
                is_accepted = bool(
                    self.plugin.notify(
                        body=body,
                        title=title,
                        notify_type=kind,
                        body_format=apprise.NotifyFormat.TEXT,
                        attach=attachment,
                    )
                )
                answer = shorten(
                    _redact(" ".join(log.getvalue().split()), self.address, self.plugin.password or ""), 300
                )
            return Delivery(self.name, is_accepted, "accepted" if is_accepted else answer or "refused")

        try:
            return run_exchange(notify)
        except TimeoutError as error:
            return Delivery(self.name, is_accepted=False, answer=_describe(error))


def make_channels(
    webhook_urls: Iterable[str], recipients: tuple[str, ...], mail: MailSettings | None
) -> tuple[Channel, ...]:
    """Return a channel for each address, and one for mail; ConfigurationError names an invalid one."""
    channels = [make_channel(url) for url in webhook_urls]
    if mail is not None:
        channels.append(make_mail_channel(recipients, mail))
    return tuple(channels)


def make_channel(url: str) -> Channel:
    """Return the channel for this address.

    The address is a Slack incoming webhook, any address that apprise supports (including the https addresses
    of Discord and Teams), or a JSON endpoint. ConfigurationError, without the address, if it is not supported
    or not encrypted.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(
            "an alert address is not a valid URL", hint="Is a bracket missing?"
        ) from None
    if parts.scheme in {"http", "https"}:
        return _make_web_channel(url, parts)
    plugin = _instantiate(url)
    if plugin is None:
        raise ConfigurationError(
            f"an alert address of type {parts.scheme or 'unknown'!r} is not supported",
            hint="See apprise's list of supported addresses.",
        )
    if not _is_encrypted(plugin, parts):
        secure = " or ".join(_list_schemes(type(plugin).secure_protocol))
        raise ConfigurationError(
            f"the alert address of type {parts.scheme!r} is not encrypted",
            hint=f"Use {secure or 'another kind'}.",
        )
    return AppriseChannel(_set_limits(plugin), url)


def _make_web_channel(url: str, parts: SplitResult) -> Channel:
    if not parts.hostname:
        raise ConfigurationError("a webhook address has no host", hint="Use https://host/path.")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ConfigurationError(
            f"the webhook at {parts.hostname} is not encrypted",
            hint="Use https; http is allowed for this machine only.",
        )
    if parts.hostname == _SLACK_HOST or parts.path.startswith(_SLACK_PATH):
        return SlackChannel(url)
    plugin = _instantiate(url)
    return AppriseChannel(_set_limits(plugin), url) if plugin is not None else JsonChannel(url)


def _instantiate(address: str | dict[str, Any]) -> apprise.NotifyBase | None:
    with hidden_addresses():
        return apprise.Apprise.instantiate(address)


def _is_encrypted(plugin: apprise.NotifyBase, parts: SplitResult) -> bool:
    # A mail address may name another server than its host, and `insecure` although it starts with mailtos.
    host = getattr(plugin, "smtp_host", None) or plugin.host or parts.hostname or ""
    if host in LOOPBACK_HOSTS:
        return True
    if getattr(plugin, "secure_mode", None) == "insecure":
        return False
    # Services that are reached by https only have no unencrypted protocol and declare none as secure. Read
    # the attributes of the class: an instance may use the name for something else, as Kodi's does.
    return plugin.secure or parts.scheme not in _list_schemes(type(plugin).protocol)


def _list_schemes(value: object) -> tuple[str, ...]:
    return (
        tuple(map(str, cast("Iterable[object]", value)))
        if isinstance(value, (tuple, list, set))
        else (str(value),)
        if value
        else ()
    )


def make_mail_channel(recipients: tuple[str, ...], mail: MailSettings) -> AppriseChannel:
    """Return the channel for e-mail to these recipients.

    ConfigurationError if the server is neither encrypted nor on this machine, or an address is invalid.
    """
    if mail.security == "insecure" and mail.host not in LOOPBACK_HOSTS:
        raise ConfigurationError(
            f"mail through {mail.host} would not be encrypted", hint="Set SMTP_SECURITY to starttls or ssl."
        )
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
        raise ConfigurationError(
            "BACKUP_ALERT_EMAIL or SMTP_FROM is not a mail address",
            hint="Use name@example.com; separate several addresses with commas.",
        )
    return AppriseChannel(_set_limits(plugin), f"mail:{mail.host}:{','.join(recipients)}")


def make_slack_blocks(alert: Alert) -> list[dict[str, Any]]:
    """Return the alert as Block Kit, within its limits; slack-sdk's models enforce Slack's rules."""
    made: list[Block] = [
        HeaderBlock(
            text=PlainTextObject(text=shorten(f"{_COLOURS[alert.severity]} {alert.title}", _HEADER_LIMIT))
        ),
        SectionBlock(
            text=MarkdownTextObject(text=_escape(f"*{alert.severity.value}*  {alert.cause}", TEXT_LIMIT))
        ),
    ]
    if alert.next_step:
        made.append(
            SectionBlock(
                text=MarkdownTextObject(text=_escape(f"*What to do:* {alert.next_step}", TEXT_LIMIT))
            )
        )
    if alert.facts:
        facts = list(alert.facts.items())[:_FIELDS_LIMIT]
        made.append(
            SectionBlock(
                fields=[
                    MarkdownTextObject(text=_escape(f"*{name}*\n{value}", _FIELD_LIMIT))
                    for name, value in facts
                ]
            )
        )
    if alert.link:
        made.append(ContextBlock(elements=[MarkdownTextObject(text=f"<{alert.link}|Open the run>")]))
    return [cast("dict[str, Any]", block.to_dict()) for block in made]  # pyright: ignore[reportUnknownMemberType] - untyped in the SDK


def _set_limits(plugin: apprise.NotifyBase) -> apprise.NotifyBase:
    plugin.overflow_mode = apprise.OverflowMode.TRUNCATE
    setattr(plugin, "redirects", False)  # noqa: B010 - not declared in its type; overrides the address
    plugin.socket_connect_timeout = exchange.READ_TIMEOUT_SECONDS
    plugin.socket_read_timeout = exchange.READ_TIMEOUT_SECONDS
    return plugin


def _escape(text: str, limit: int) -> str:
    # The three characters that Slack escapes (formatting reference). Escaping lengthens the text, so it is
    # cut until it fits.
    while len(escaped := text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) > limit:
        text = shorten(text, min(limit, len(text) * 4 // 5))
    return escaped


def _fingerprint(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _redact(text: str, address: str, password: str = "") -> str:
    """Return the text without the secrets: error pages often repeat the requested path."""
    for secret in (address, urlsplit(address).path.strip("/"), password):
        if secret:
            text = text.replace(secret, "***")
    return text


def _post_json(url: str, payload: Mapping[str, object]) -> Answer:
    return post(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: no valid answer"
