"""A point of an older version is drilled like any other: both halves are restored equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings
from schedgen_backups_tests.support.artifacts import get_status, make_transfer
from schedgen_backups_tests.support.paths import FORMAT1

pytestmark = pytest.mark.integration


def test_both_halves_are_equal(database: DatabaseSettings, tmp_path: Path) -> None:
    catalog = Catalog(Path(shutil.copytree(FORMAT1, tmp_path / "backups")))
    report = drill_point(
        catalog,
        None,
        make_transfer(),
        DrillSettings(tmp_path / "scratch"),
        source=database,
        drilled_by="a test",
    )
    for check in (
        Check.DATABASE_IS_RESTORED,
        Check.BUCKET_IS_RESTORED,
        Check.DATABASE_IS_EQUAL,
        Check.BUCKET_IS_EQUAL,
    ):
        assert get_status(report.results, check) is CheckStatus.PASSED, report.results
