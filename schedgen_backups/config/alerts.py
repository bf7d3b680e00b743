"""Where the operators learn of a site: recipients and channels of alerts, and the file of metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from schedgen_backups.config.reader import Reader
from schedgen_backups.config.schedules import read_max_age
from schedgen_backups.config.variables import METRICS_VARIABLE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import LOOPBACK_HOSTS, MailSettings


@dataclass(frozen=True)
class AlertSettings:
    """Recipients and channels of alerts, and the age limit of recovery points."""

    name: str
    """Name of this installation; may be empty."""
    webhook_urls: tuple[str, ...] = field(repr=False)
    mail_recipients: tuple[str, ...]
    mail: MailSettings | None
    is_success_reported: bool
    heartbeat_url: str = field(repr=False)
    daemon_heartbeat_url: str = field(repr=False)
    webserver_url: str
    documentation_url: str
    """Address at which docs/ is published; empty when it is not."""
    max_age: timedelta
    """Maximum age of the newest verified recovery point."""


def read_alerts(reader: Reader) -> AlertSettings:
    """Return the settings of alerts; they may contain no channel."""
    recipients = tuple(part.strip() for part in reader.text("BACKUP_ALERT_EMAIL").split(",") if part.strip())
    mail = None
    if recipients:
        mail = MailSettings(
            host=reader.required("SMTP_HOST") and reader.host("SMTP_HOST"),
            port=reader.number("SMTP_PORT", 1, 65535),
            user=reader.text("SMTP_USER"),
            password=reader.text("SMTP_PASSWORD"),
            sender=reader.text("SMTP_FROM") or reader.text("SMTP_USER") or recipients[0],
            security=reader.parsed(
                "SMTP_SECURITY", _parse_mail_security, "starttls, ssl or insecure", "starttls"
            ),
        )
    return AlertSettings(
        name=reader.text("BACKUP_NAME"),
        webhook_urls=tuple(reader.text("BACKUP_ALERT_WEBHOOK_URL").split()),
        mail_recipients=recipients,
        mail=mail,
        is_success_reported=reader.yes_or_no("BACKUP_ALERT_ON_SUCCESS"),
        heartbeat_url=reader.parsed("BACKUP_HEARTBEAT_URL", _parse_heartbeat_url, "an https address", ""),
        daemon_heartbeat_url=reader.parsed(
            "BACKUP_DAEMON_HEARTBEAT_URL", _parse_heartbeat_url, "an https address", ""
        ),
        webserver_url=reader.parsed(
            "DAGSTER_WEBSERVER_URL", _parse_public_url, "an address without a login", ""
        ),
        documentation_url=reader.parsed(
            "BACKUP_DOCUMENTATION_URL", _parse_public_url, "an address without a login", ""
        ),
        max_age=read_max_age(reader),
    )


def _parse_mail_security(text: str) -> str:
    if text not in {"starttls", "ssl", "insecure"}:
        raise ValueError(text)
    return text


def _parse_public_url(text: str) -> str:
    if "@" in urlsplit(text).netloc:  # it is sent with every alert
        raise ValueError
    return text.rstrip("/")


def _parse_heartbeat_url(text: str) -> str:
    parts = urlsplit(text)
    if text and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS):
        raise ValueError(text)
    return text.rstrip("/")


def read_metrics_file(reader: Reader, directory: Path) -> Path | None:
    """Return the file into which metrics are written; None if there is none.

    ConfigurationError if it lies in the backup directory, which other users cannot read.
    """
    path = reader.path(METRICS_VARIABLE)
    reader.check()
    if path is not None and path.suffix != ".prom":
        raise ConfigurationError(
            f"{METRICS_VARIABLE} {path} does not end with .prom",
            hint="The textfile collector reads only such files.",
        )
    if path is not None and directory in path.parents:
        raise ConfigurationError(
            f"{METRICS_VARIABLE} {path} is inside BACKUP_DIR, which other users cannot read",
            hint="Use a directory of its own, such as /var/lib/node_exporter/schedgen.prom.",
        )
    return path
