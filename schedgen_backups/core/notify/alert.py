"""An alert: severity, title, cause, next step and facts, within the length limits of services.

Values and their texts only. `incidents` decides when an alert is due, `channels` delivers it. Alerts must not
contain secrets: they are built from the messages of `errors`, which contain none.
"""

from __future__ import annotations

from enum import Enum

from pydantic import AwareDatetime

from schedgen_backups.core.model import FrozenModel

_HEAD_SHARE = 0.6
_CUT = " … "
TEXT_LIMIT = 3000
"""Maximum characters of a Slack section (Block Kit reference, section block). Discord and Teams accept less;
their channels shorten it further."""


class Severity(str, Enum):
    """Severity in the operators' terms (requirements, severities); INFO is good news."""

    CRITICAL = "CRITICAL"
    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"
    INFO = "INFO"


class Alert(FrozenModel):
    """A message to the operators."""

    severity: Severity
    title: str
    cause: str
    next_step: str = ""
    facts: dict[str, str] = {}
    link: str = ""
    """The page with details; empty if the UI's address is not configured."""
    raised_at: AwareDatetime

    def to_text(self) -> str:
        """Return the alert as plain text; the middle of a long cause is cut."""
        lines = [f"[{self.severity.value}] {self.title}", shorten(self.cause, TEXT_LIMIT // 2)]
        if self.next_step:
            lines.append(f"What to do: {shorten(self.next_step, TEXT_LIMIT // 4)}")
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        if self.link:
            lines.append(self.link)
        return shorten("\n".join(line for line in lines if line), TEXT_LIMIT)


def shorten(text: str, limit: int) -> str:
    """Return the text, cut in the middle to at most `limit` characters.

    The reason is at the start, the last lines of pg_dump at the end.
    """
    if len(text) <= limit:
        return text
    head = int((limit - len(_CUT)) * _HEAD_SHARE)
    tail = limit - len(_CUT) - head
    return f"{text[:head]}{_CUT}{text[-tail:]}"
