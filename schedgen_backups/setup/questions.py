"""The questions of `setup`: names, texts, and what a valid answer is. Add a question here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from schedgen_backups.config.config import Config
from schedgen_backups.config.cron import measure_ticks_per_day, parse_cron
from schedgen_backups.config.drill import parse_objects
from schedgen_backups.config.presets import PRESETS
from schedgen_backups.config.reader import parse_switch
from schedgen_backups.config.sources import parse_endpoint
from schedgen_backups.core.retention.layout_advice import FREQUENT_POINTS_PER_DAY
from schedgen_backups.core.settings import Layout

_HIGHEST_PORT = 65535
_MAIL_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")
"""Whether the mailbox exists is tested by sending the test alert."""
_MAIL_SECURITIES = ("starttls", "ssl", "insecure")


def _parse_mail(text: str) -> None:
    for address in text.split(","):
        if not _MAIL_ADDRESS.fullmatch(address.strip()):
            raise ValueError(address)


@dataclass(frozen=True)
class Question:
    """The question for one variable."""

    name: str
    text: str
    parse: Callable[[str], object] = str
    """Raises ValueError, KeyError or OSError for an invalid value."""
    expected: str = "a value"
    is_hidden: bool = False
    is_required: bool = False
    is_asked: Callable[[Config], bool] = lambda _config: True
    """Whether it is asked after the answers so far. A value that is known is checked and kept anyway."""


def _is_never_asked(_config: Config) -> bool:
    return False


def _is_frequent(config: Config) -> bool:
    planned = config.definitions
    per_day = measure_ticks_per_day(planned.backup_cron, ZoneInfo(planned.backup_timezone))
    return per_day >= FREQUENT_POINTS_PER_DAY


DATABASE = (
    Question("POSTGRES_HOST", "Database server", is_required=True),
    Question(
        "POSTGRES_PORT",
        "Port of the database server",
        lambda text: _parse_number(text, _HIGHEST_PORT),
        f"a port from 1 to {_HIGHEST_PORT}",
    ),
    Question("POSTGRES_USER", "Role that can read the database", is_required=True),
    Question("POSTGRES_DB", "Database", is_required=True),
    Question("POSTGRES_PASSWORD", "Password of the role", is_hidden=True, is_required=True),
)
BUCKET = (
    Question(
        "MINIO_ENDPOINT",
        "S3 server, as host:port",
        parse_endpoint,
        "host:port without http://",
        is_required=True,
    ),
    Question(
        "MINIO_SECURE",
        "Use https (true or false)",
        lambda text: _parse_word(text, ("true", "false")),
        "true or false",
    ),
    Question("MINIO_BUCKET", "Bucket", is_required=True),
    Question("MINIO_ACCESS_KEY", "Access key that can list and read", is_required=True),
    Question("MINIO_SECRET_KEY", "Secret key", is_hidden=True, is_required=True),
)
DIRECTORY = Question(
    "BACKUP_DIR", "Directory for recovery points, preferably on another disk", is_required=True
)
TIMES = (
    Question(
        "BACKUP_SCHEDULE",
        "Schedule of backups, as a cron string",
        parse_cron,
        "a cron string of five fields such as '0 2 * * *'",
    ),
    Question(
        "BACKUP_TIMEZONE", "Time zone of the schedule", ZoneInfo, "a time zone such as Africa/Johannesburg"
    ),
    Question(
        "BACKUP_RETENTION_HOURS",
        "Hours to keep every recovery point, and one a day of the days before",
        lambda text: _parse_number(text, 24 * 366),
        "a number of hours",
        is_asked=_is_frequent,
    ),
    Question(
        "BACKUP_RETENTION_DAYS",
        "Days to keep recovery points",
        lambda text: _parse_number(text, 36500),
        "a number of days",
    ),
)
LAYOUT = Question(
    "BACKUP_LAYOUT", "Layout of recovery points, files or packs (docs/packs.md)", Layout, "files or packs"
)
FLAGS_ONLY = tuple(
    replace(question, is_asked=_is_never_asked)
    for question in (
        LAYOUT,
        Question(
            "BACKUP_PACK_REREAD_DAYS",
            "Days within which each pack is read again",
            lambda text: _parse_number(text, 3650),
            "a number of days",
        ),
        Question(
            "DRILL_AFTER_EACH_POINT",
            "Drill each recovery point (true or false)",
            parse_switch,
            "true or false",
        ),
        Question(
            "DRILL_OBJECTS", "Objects that a drill restores", parse_objects, "all, sample:N or referenced:N"
        ),
    )
)
"""What few sites change: flags answer it, the environment and the environment file."""
REFERENCES = (
    Question(
        "BACKUP_PRESET",
        "Application whose tables refer to the objects",
        PRESETS.__getitem__,
        f"one of {', '.join(PRESETS)}",
    ),
    Question("BACKUP_REFERENCE_QUERY", "Query that returns the keys of the objects"),
)
NAME = Question("BACKUP_NAME", "Name of this installation, such as production; every alert contains it")
CHANNELS = (
    Question("BACKUP_ALERT_WEBHOOK_URL", "Webhook URL for alerts (Slack, Discord, Teams, …)", is_hidden=True),
    Question(
        "BACKUP_ALERT_EMAIL",
        "Recipients of alerts by email, separated by commas",
        _parse_mail,
        "addresses such as ops@example.org",
    ),
)
MAIL = (
    Question("SMTP_HOST", "Mail server", is_required=True),
    Question(
        "SMTP_PORT",
        "Port of the mail server",
        lambda text: _parse_number(text, _HIGHEST_PORT),
        f"a port from 1 to {_HIGHEST_PORT}",
    ),
    Question(
        "SMTP_SECURITY",
        "Encryption: starttls, ssl or insecure",
        lambda text: _parse_word(text, _MAIL_SECURITIES),
        "starttls, ssl or insecure",
    ),
    Question("SMTP_USER", "User name, if the mail server requires a login"),
    Question("SMTP_PASSWORD", "Password of that user", is_hidden=True),
)


def find_problem(question: Question, value: str) -> str:
    """Return why the value does not answer the question; empty if it does."""
    if not value:
        return f"{question.name} is not set" if question.is_required else ""
    try:
        question.parse(value)
    except (ValueError, KeyError, OSError):
        shown = "the value" if question.is_hidden else repr(value)
        return f"{question.name}: {shown} is invalid, expected {question.expected}"
    return ""


def _parse_number(text: str, highest: int) -> int:
    if not 1 <= int(text) <= highest:
        raise ValueError(text)
    return int(text)


def _parse_word(text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise ValueError(text)
    return text
