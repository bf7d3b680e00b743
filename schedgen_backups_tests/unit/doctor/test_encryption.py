"""The doctor warns if a connection that leaves private networks may be in plaintext."""

from __future__ import annotations

import pytest

from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.doctor.checks import examine_database
from schedgen_backups.doctor.results import Verdict
from schedgen_backups_tests.support.artifacts import make_capture


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
@pytest.mark.parametrize("host", ["8.8.8.8", "2001:4860:4860::8888"])
def test_plaintext_to_a_public_address_is_reported(host: str, mode: str) -> None:
    result = next(
        examine_database(DatabaseSettings(host, 5432, "me", "secret", "name", mode), make_capture())
    )
    assert (result.subject, result.verdict) == ("encryption", Verdict.NOTE)
    assert "PGSSLMODE=require" in result.fix


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "/nowhere"])
def test_a_local_server_is_not_reported(host: str) -> None:
    results = list(examine_database(DatabaseSettings(host, 1, "me", "secret", "name"), make_capture()))
    assert [result for result in results if result.subject == "encryption"] == []
