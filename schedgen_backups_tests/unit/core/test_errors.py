"""An error that is said again with other words stays the same error."""

from __future__ import annotations

import pytest

from schedgen_backups.core.errors import BackupError, ConfigurationError, LockedError, ReadBackError


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("x", hint="y"),
        ReadBackError("x", keys=["a"]),
        LockedError("x", until=None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_another_message_keeps_class_and_values(error: BackupError) -> None:
    restated = error.restate("reports: x", hint="z")
    assert type(restated) is type(error)
    assert (str(restated), restated.message, restated.hint) == ("reports: x", "reports: x", "z")
    assert {**vars(restated), "message": "x", "hint": error.hint} == vars(error)
    assert error.message == "x"
