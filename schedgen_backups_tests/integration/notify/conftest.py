"""Exchanges with channels that do not wait long."""

from __future__ import annotations

import pytest

from schedgen_backups.core.notify import exchange


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing server is asked again at once."""
    monkeypatch.setattr(exchange, "_BACKOFF_SECONDS", 0.01)
