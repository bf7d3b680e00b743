"""Channel exchanges with short pauses."""

from __future__ import annotations

import pytest

from schedgen_backups.core.notify import exchange


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry a failing server at once."""
    monkeypatch.setattr(exchange, "_BACKOFF_SECONDS", 0.01)
