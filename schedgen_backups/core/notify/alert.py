"""What an alert says: how bad it is, what failed, why, what to do next, and facts beside it, within the
lengths that services take.

Values and their texts only. When one is due is decided in `incidents`, how it reaches people in `channels`.
Nothing here may hold a secret: alerts are made of the messages of `errors`, which hold none.
"""

from __future__ import annotations

from enum import Enum

from pydantic import AwareDatetime

from schedgen_backups.core.model import FrozenModel

_HEAD_SHARE = 0.6
_CUT = " … "
TEXT_LIMIT = 3000
"""Characters of a Slack section (Block Kit reference, section block); Discord and Teams take less than their
limits of it."""


class Severity(str, Enum):
    """How bad it is, in the operators' words (requirements, severities); INFO is good news."""

    CRITICAL = "CRITICAL"
    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"
    INFO = "INFO"


class Alert(FrozenModel):
    """One message to people."""

    severity: Severity
    title: str
    cause: str
    next_step: str = ""
    facts: dict[str, str] = {}
    link: str = ""
    """Where to look; empty when nobody said where the UI is."""
    raised_at: AwareDatetime

    def to_text(self) -> str:
        """All of it as plain text: head and tail of a cause that is too long are kept."""
        lines = [f"[{self.severity.value}] {self.title}", shorten(self.cause, TEXT_LIMIT // 2)]
        if self.next_step:
            lines.append(f"What to do: {shorten(self.next_step, TEXT_LIMIT // 4)}")
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        if self.link:
            lines.append(self.link)
        return shorten("\n".join(line for line in lines if line), TEXT_LIMIT)


def shorten(text: str, limit: int) -> str:
    """The text, or its head and its tail within `limit` characters: the reason stands at the start, pg_dump's
    last words at the end.
    """
    if len(text) <= limit:
        return text
    head = int((limit - len(_CUT)) * _HEAD_SHARE)
    tail = limit - len(_CUT) - head
    return f"{text[:head]}{_CUT}{text[-tail:]}"
