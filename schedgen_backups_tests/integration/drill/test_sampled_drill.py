"""Drills that restore a sample of the objects: they never count as a restore of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import Check, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillObjects
from schedgen_backups_tests.integration.drill.test_drill import (
    DOCUMENTS,
    Drilled,
    list_scratch,
    servers,  # noqa: F401 - a fixture
)
from schedgen_backups_tests.support.artifacts import POINT, damage, get_status, get_summary
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration
OBJECT_COUNT, REFERENCE_COUNT = 80, 40
BUCKET_CHECKS = (Check.BUCKET_IS_RESTORED, Check.BUCKET_IS_EQUAL)


@pytest.fixture
def drilled(database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path) -> Drilled:
    """Return an application of 80 objects, of which the database refers to the first 40."""
    run(database, "CREATE TABLE documents (key text PRIMARY KEY)")
    for number in range(OBJECT_COUNT):
        put(bucket, f"docs/{number:02}.txt", f"text {number}".encode(), content_type="text/plain")
    run(
        database,
        f"INSERT INTO documents SELECT 'docs/' || lpad(n::text, 2, '0') || '.txt' "
        f"FROM generate_series(0, {REFERENCE_COUNT - 1}) AS n",
    )
    made = Drilled(tmp_path, database, bucket, DOCUMENTS)
    made.commit()
    return made


def levels_of(drilled: Drilled) -> dict[str, CheckStatus]:
    verification = drilled.catalog.get_point(RecoveryPointId(POINT)).verification
    return {level.value: verification.level(level).status for level in VerificationLevel}


def test_a_sample_is_equal_but_the_point_is_not_shown_as_equal(
    drilled: Drilled,
    servers: dict[str, object],  # noqa: F811 - a fixture
) -> None:
    report = drilled.drill(**servers, objects=DrillObjects("sample", 20))
    assert report.is_passed
    # The PDFs that are opened are restored, too.
    assert 20 <= report.object_count <= 40
    for check in BUCKET_CHECKS:
        assert get_status(report.results, check) is CheckStatus.SAMPLED
        summary = get_summary(report.results, check)
        assert f"a sample of {report.object_count} objects, drawn from 80 objects (seed {POINT})" in summary
        assert "a random loss of 10 % of the objects (8 of 80) would be found with 88 %" in summary
    assert get_status(report.results, Check.DATABASE_IS_EQUAL) is CheckStatus.PASSED
    assert get_status(report.results, Check.REFERENCED_PDFS_OPEN) is CheckStatus.PASSED
    assert (levels_of(drilled)["restored"], levels_of(drilled)["equal"]) == (CheckStatus.SAMPLED,) * 2
    assert drilled.state is PointState.VERIFIED
    assert list_scratch(drilled.database, drilled.bucket) == (set(), set())
    again = drilled.drill(**servers, objects=DrillObjects("sample", 20))
    assert again.object_count == report.object_count
    drilled.drill(**servers)
    assert (levels_of(drilled)["restored"], levels_of(drilled)["equal"]) == (CheckStatus.PASSED,) * 2


def test_a_sample_of_every_object_passes(
    drilled: Drilled,
    servers: dict[str, object],  # noqa: F811 - a fixture
) -> None:
    report = drilled.drill(**servers, objects=DrillObjects("sample", 1000))
    assert report.object_count == OBJECT_COUNT
    assert levels_of(drilled)["equal"] is CheckStatus.PASSED


def test_referenced_objects_are_drawn_from_the_restored_database(
    drilled: Drilled,
    servers: dict[str, object],  # noqa: F811 - a fixture
) -> None:
    report = drilled.drill(**servers, objects=DrillObjects("referenced", 1000))
    assert report.object_count == REFERENCE_COUNT
    summary = get_summary(report.results, Check.BUCKET_IS_EQUAL)
    assert "drawn from 40 referenced objects" in summary
    assert "every referenced object was compared" in summary
    assert levels_of(drilled)["equal"] is CheckStatus.SAMPLED
    report = drilled.drill(**servers, objects=DrillObjects("referenced", 30))
    assert 30 <= report.object_count <= REFERENCE_COUNT
    assert "would be found with" in get_summary(report.results, Check.BUCKET_IS_EQUAL)


def test_a_damaged_object_of_the_sample_fails_the_point(
    drilled: Drilled,
    servers: dict[str, object],  # noqa: F811 - a fixture
) -> None:
    point = drilled.catalog.get_point(RecoveryPointId(POINT))
    path = point.get_path(ArtifactKind.BUCKET)
    with open_archive(path) as archive:
        entry = next(archive.read_entries())
    path.write_bytes(damage(path.read_bytes(), (entry.offset + entry.length // 2) * 8))
    with pytest.raises(VerificationError):
        drilled.drill(**servers, objects=DrillObjects("sample", 1000))
    assert drilled.state is PointState.FAILED


def test_referenced_objects_need_a_reference_query(
    database: DatabaseSettings,
    bucket: BucketSettings,
    servers: dict[str, object],  # noqa: F811 - a fixture
    tmp_path: Path,
) -> None:
    run(database, "CREATE TABLE rows AS SELECT 1 AS n")
    put(bucket, "any", b"thing")
    plain = Drilled(tmp_path, database, bucket)
    plain.commit()
    plain.settings.directory.mkdir(exist_ok=True)
    with pytest.raises(ConfigurationError, match="without a reference query"):
        plain.drill(**servers, objects=DrillObjects("referenced", 5))
