"""Turns the variables of alerts into settings: who is told, by what, and when silence is too long.

Apart from `environment`, since most commands tell nobody, and the libraries of the channels are large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from schedgen_backups.config.cron import find_longest_gap
from schedgen_backups.config.environment import load_environment, read_schedule
from schedgen_backups.config.reader import Reader
from schedgen_backups.config.variables import DEFAULT_SCHEDULE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.notify.channels import Channel, MailSettings, make_channel, make_mail_channel
from schedgen_backups.core.settings import LOOPBACK_HOSTS

_GRACE = timedelta(hours=2)


@dataclass(frozen=True)
class AlertSettings:
    """Who is told, by what, and when silence is too long."""

    webhook_urls: tuple[str, ...] = field(repr=False)
    mail_recipients: tuple[str, ...]
    mail: MailSettings | None
    is_success_told: bool
    heartbeat_url: str = field(repr=False)
    webserver_url: str
    max_age: timedelta
    """Without a verified recovery point younger than this, something is wrong."""

    def make_channels(self) -> tuple[Channel, ...]:
        """Every configured channel; ConfigurationError names what cannot be one."""
        channels = [make_channel(url) for url in self.webhook_urls]
        if self.mail is not None:
            channels.append(make_mail_channel(self.mail_recipients, self.mail))
        return tuple(channels)


def read_alert_settings(environment: Mapping[str, str]) -> AlertSettings:
    """Who is told of failures; ConfigurationError names every variable that is wrong. No channel at all is allowed."""
    reader = Reader(environment)
    recipients = tuple(part.strip() for part in reader.text("BACKUP_ALERT_EMAIL").split(",") if part.strip())
    mail = None
    if recipients:
        mail = MailSettings(
            host=reader.required("SMTP_HOST"),
            port=reader.number("SMTP_PORT", 1, 65535),
            user=reader.text("SMTP_USER"),
            password=reader.text("SMTP_PASSWORD"),
            sender=reader.text("SMTP_FROM") or reader.text("SMTP_USER") or recipients[0],
            security=reader.parsed("SMTP_SECURITY", _parse_mail_security, "starttls, ssl or insecure", "starttls"),
        )
    hours = reader.number("BACKUP_MAX_AGE_HOURS", 1, 24 * 366) if reader.text("BACKUP_MAX_AGE_HOURS") else None
    settings = AlertSettings(
        webhook_urls=tuple(reader.text("BACKUP_ALERT_WEBHOOK_URL").split()),
        mail_recipients=recipients,
        mail=mail,
        is_success_told=reader.yes_or_no("BACKUP_ALERT_ON_SUCCESS"),
        heartbeat_url=reader.parsed("BACKUP_HEARTBEAT_URL", _parse_heartbeat_url, "an https address", ""),
        webserver_url=reader.text("DAGSTER_WEBSERVER_URL").rstrip("/"),
        max_age=timedelta(hours=hours) if hours else _derive_max_age(environment),
    )
    reader.check()
    settings.make_channels()
    return settings


def read_max_age() -> timedelta:
    """How old the newest verified point may be, for definitions: a value that cannot be used leaves the default, and the run tells what is wrong."""
    environment = load_environment()
    try:
        return read_alert_settings(environment).max_age
    except ConfigurationError:
        return _derive_max_age(environment)


def _derive_max_age(environment: Mapping[str, str]) -> timedelta:
    # A schedule that cannot be used must not silence the alerts that tell of it.
    try:
        return find_longest_gap(*read_schedule(environment)) + _GRACE
    except ConfigurationError:
        return find_longest_gap(DEFAULT_SCHEDULE, ZoneInfo("UTC")) + _GRACE


def _parse_mail_security(text: str) -> str:
    if text not in {"starttls", "ssl", "insecure"}:
        raise ValueError(text)
    return text


def _parse_heartbeat_url(text: str) -> str:
    parts = urlsplit(text)
    if text and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS):
        raise ValueError(text)
    return text.rstrip("/")
