"""The operators' checks on a real server: only one row with one true passes, and nothing is written."""

from __future__ import annotations

import pytest

from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.drill.sql_checks import run_sql_checks, split_sql_checks
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration


def test_a_check_passes_only_with_one_row_of_one_true_and_writes_nothing(database: DatabaseSettings) -> None:
    run(database, "CREATE TABLE jobs (id int); INSERT INTO jobs VALUES (1), (2)")
    reasons = {
        "SELECT count(*) = 1 FROM jobs": "returns False",
        "SELECT 1": "returns 1",
        "SELECT true FROM jobs": "several rows",
        "SELECT true WHERE false": "0 rows",
        "SELECT true, true": "2 columns",
        "SELECT NULL::bool": "returns None",
        "DELETE FROM jobs WHERE id = 1 RETURNING true": "read-only transaction",
        "SET LOCAL search_path = public": "no rows",
        "SELECT true FROM nowhere": "does not exist",
        "SELECT 100 % 7 = 3": "returns False",
        "SELECT pg_sleep(60) IS NOT NULL": "statement timeout",
    }
    good = "SELECT count(*) = 2 FROM jobs;\nSELECT 'a%b' LIKE 'a\\%b'"
    for statement, reason in reasons.items():
        result = run_sql_checks(
            split_sql_checks(f"{good};\n-- this one\n{statement};\nSELECT true"), database, timeout_seconds=1
        )
        assert result.status is CheckStatus.FAILED
        assert result.summary.startswith("1 of 4 checks failed: this one (")
        assert reason in result.summary
    held = run_sql_checks(split_sql_checks(good), database, timeout_seconds=60)
    assert (held.status, held.summary) == (CheckStatus.PASSED, "2 of 2 checks passed")
    assert run_sql_checks((), database, timeout_seconds=60).status is CheckStatus.NOT_CONFIGURED
