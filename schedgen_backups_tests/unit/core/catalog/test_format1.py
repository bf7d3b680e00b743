"""A point of version 0.1.0 of 2026-11-26 (c692962) counts and restores like any other after an upgrade.

The files are that version's own, of a database with six rows of `jobs` and a bucket with their six objects.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import COMMIT_CHECKS, Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.selection import find_newest_verified, resolve_point
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, RecoveryPointId
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups_tests.support import histories
from schedgen_backups_tests.support.paths import FORMAT1

ID = RecoveryPointId("20261122_020000")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(Path(shutil.copytree(FORMAT1, tmp_path / "backups")))
    catalog.prepare()
    return catalog


def test_it_is_verified_and_selected_before_and_after_the_next_backup(catalog: Catalog) -> None:
    assert catalog.get_point(ID).state is PointState.VERIFIED
    site = catalog.settle_site()
    assert site.older_points == (ID.text,)
    assert catalog.get_point(ID).state is PointState.VERIFIED
    assert find_newest_verified(catalog) == resolve_point(catalog, "latest") == catalog.get_point(ID)
    histories.add_point(catalog, histories.name_night(1))
    assert catalog.list_points()[0].state is PointState.VERIFIED


def test_it_is_read_again_and_then_described_in_the_current_format(catalog: Catalog) -> None:
    assert len(catalog.get_point(ID).unread_files) == 2
    verification, _summary = verify_point(catalog, catalog.get_point(ID), checked_by="test")
    assert {
        check: result.status for check in COMMIT_CHECKS if (result := verification.result(check))
    } == dict.fromkeys(COMMIT_CHECKS, CheckStatus.PASSED)
    assert catalog.get_point(ID).unread_files == ()
    written = json.loads(catalog.verification_path(ID).read_text())
    assert written["format_version"] == FORMAT_VERSION
    assert {"check", "status"} <= written["results"][0].keys()


def test_what_it_did_not_count_is_reported_as_unknown(catalog: Catalog) -> None:
    verification, _summary = verify_point(catalog, catalog.get_point(ID), checked_by="test")
    result = verification.result(Check.EVERY_OBJECT_IS_ARCHIVED)
    assert result is not None
    assert "did not count" in result.summary
    assert "unproven" not in result.figures
    with open_archive(catalog.get_point(ID).get_path(ArtifactKind.BUCKET)) as archive:
        assert [(entry.is_etag_verified, entry.unproven) for entry in archive.read_entries()] == [
            (True, "")
        ] * 6
        assert "is_etag_verified" not in next(archive.read_entries()).model_dump()
