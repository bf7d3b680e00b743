"""What the service does without a server: places for files, the log, and expiry of safety backups."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.restore.objects import prepare_files
from schedgen_backups.core.restore.point import RestoreReport
from schedgen_backups.core.restore.safety_backup import SAFETY_DAYS, remove_old
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService, describe_rest
from schedgen_backups_tests.support.artifacts import POINT, make_capture, make_result
from schedgen_backups_tests.support.histories import add_point

ID = RecoveryPointId(POINT)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@pytest.fixture
def service(catalog: Catalog) -> RestoreService:
    return RestoreService(catalog, make_capture(), RestoreOptions("me", "a look"), report=lambda _text: None)


@pytest.mark.parametrize(
    ("text", "folder"), [("jobs", "jobs"), ("a/../b", "b"), ("", ""), ("deep/er", "deep/er")]
)
def test_files_are_written_below_the_folder_for_restored_ones(
    service: RestoreService, text: str, folder: str
) -> None:
    assert service.find_folder(text) == service.catalog.directory / "restored" / folder


@pytest.mark.parametrize("text", ["..", "../restored2", "/etc", "a/../../b", "link"])
def test_no_folder_elsewhere_is_accepted(service: RestoreService, text: str) -> None:
    root = service.catalog.directory / "restored"
    root.mkdir()
    (root / "link").symlink_to(root.parent)
    with pytest.raises(RestoreError, match="nothing was written"):
        service.find_folder(text)


def test_restored_files_are_logged_and_no_pin_stays(service: RestoreService, tmp_path: Path) -> None:
    add_point(service.catalog, ID)
    with prepare_files(service.catalog.get_point(ID), ("a",), tmp_path / "out") as files:
        assert service.write_files(files, overwrite=False) == (tmp_path / "out" / "a",)
    [entry] = read_restore_log(service.catalog.directory)
    assert (entry.point_id, entry.subject, entry.target) == (POINT, "objects a", str(tmp_path / "out"))
    assert (entry.reason, entry.result) == ("a look", "done: 1 file")
    assert read_pin(service.catalog, ID) is None


def test_checks_that_did_not_pass_are_named_in_the_log() -> None:
    checks = (
        (Check.DATABASE_IS_RESTORED, CheckStatus.PASSED),
        (Check.DATABASE_IS_EQUAL, CheckStatus.UNKNOWN),
        (Check.BUCKET_IS_EQUAL, CheckStatus.FAILED),
    )
    report = RestoreReport(tuple(make_result(check, status) for check, status in checks), {}, 0, ())
    assert describe_rest(report) == "database_is_equal unknown; bucket_is_equal failed"


def test_safety_backups_are_removed_after_their_retention_days(catalog: Catalog) -> None:
    now = datetime.now(timezone.utc)
    ages = [timedelta(days=SAFETY_DAYS, hours=1), timedelta(days=SAFETY_DAYS, hours=-1), timedelta(0)]
    points = [RecoveryPointId.from_time(now - age) for age in ages]
    for point_id in points:
        add_point(catalog, point_id)
    remove_old(catalog)
    left = {artifact.name.point_id for point in catalog.list_points() for artifact in point.artifacts}
    assert left == set(points[1:])
    assert sum(len(point.artifacts) for point in catalog.list_points()) == 4
