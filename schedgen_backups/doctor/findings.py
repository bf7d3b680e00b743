"""What a look at a precondition came to, as a value: what was looked at, how it stands, and what to do about it.

Found in `doctor`, drawn in `console`, asked about in `setup_questions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """What a look came to."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One precondition, how it stands, and what to do about it."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str = ""
