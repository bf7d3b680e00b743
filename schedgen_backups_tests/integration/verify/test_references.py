"""Every object that the database refers to is in the archive, or its verdict is recorded.

The verdicts: deleted during the backup, already missing in the live system, lost by us. Lost or unknown
objects prevent the commit.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from psycopg import sql

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.missing_objects import accept_missing, settle_baseline
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import (
    AcceptedObject,
    Manifest,
    Origin,
    RecoveryPointId,
    ReferenceState,
    ReferenceVerdict,
)
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point, verify_point
from schedgen_backups.core.verify.references import verify_references
from schedgen_backups_tests.support.artifacts import (
    POINT,
    TAKEN_AT,
    get_status,
    get_summary,
    make_live,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration

ID = RecoveryPointId(POINT)
KEYS = ("uploads/1.pdf", "uploads/zwei ä.pdf", "100%.pdf", "a b")


class System:
    """An application with a database, a bucket and a backup directory."""

    def __init__(self, database: DatabaseSettings, bucket: BucketSettings, catalog: Catalog) -> None:
        self.database = database
        self.bucket = bucket
        self.catalog = catalog
        self.live = make_live(database, bucket)

    def put(self, key: str) -> None:
        client_of(self.bucket).put_object(
            self.bucket.bucket, key, io.BytesIO(key.encode()), len(key.encode())
        )

    def remove(self, key: str) -> None:
        client_of(self.bucket).remove_object(self.bucket.bucket, key)

    def refer_to(self, key: str) -> None:
        run(self.database, f"INSERT INTO jobs VALUES ('{key}')")

    def forget(self, key: str) -> None:
        run(self.database, f"DELETE FROM jobs WHERE s3_key = '{key}'")

    def capture(self) -> tuple[Path, Path]:
        return publish_dump(self.catalog, self.database), publish_archive(self.catalog, self.bucket)

    def commit(self) -> Manifest:
        return commit_point(self.catalog, ID, origin=Origin(run_id="run"), live=self.live)[0]


@pytest.fixture
def system(database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path) -> System:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    system = System(database, bucket, catalog)
    run(database, "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES (NULL)")
    for key in KEYS:
        system.put(key)
        system.refer_to(key)
    return system


def test_when_every_object_is_there_the_check_passes_and_the_point_is_committed(system: System) -> None:
    system.put("an object that no row refers to")
    dump, archive = system.capture()
    result, summary = verify_references(dump, archive, live=None)
    assert (result.status, summary.reference_count, summary.resolved_count) == (CheckStatus.PASSED, 4, 4)
    manifest = system.commit()
    assert manifest.references == summary
    assert system.catalog.get_point(ID).state is PointState.VERIFIED


def test_an_object_missing_everywhere_was_missing_before_and_is_named(system: System) -> None:
    system.refer_to("gone long ago.pdf")
    dump, archive = system.capture()
    result, summary = verify_references(
        dump, archive, live=system.live, baseline=partial(settle_baseline, system.catalog)
    )
    assert result.status is CheckStatus.PASSED
    assert "1 already missing in the live system" in result.summary
    assert [(missing.key, missing.verdict) for missing in summary.missing] == [
        ("gone long ago.pdf", ReferenceVerdict.MISSING)
    ]
    assert system.commit().references.verdict_counts == {ReferenceVerdict.MISSING: 1}


def test_an_object_deleted_with_its_row_during_the_backup_was_not_lost(system: System) -> None:
    dump = publish_dump(system.catalog, system.database)
    system.remove("a b")
    system.forget("a b")
    archive = publish_archive(system.catalog, system.bucket)
    result, summary = verify_references(dump, archive, live=system.live)
    assert result.status is CheckStatus.PASSED
    assert summary.verdict_counts == {ReferenceVerdict.DELETED: 1}


def test_an_object_that_we_lost_fails_the_check_and_is_never_committed(system: System) -> None:
    """The listing left it out, and the live bucket has it."""
    dump = publish_dump(system.catalog, system.database)
    system.remove("a b")
    archive = publish_archive(system.catalog, system.bucket)
    system.put("a b")
    result, summary = verify_references(dump, archive, live=system.live)
    assert result.status is CheckStatus.FAILED
    assert summary.verdict_counts == {ReferenceVerdict.LOST: 1}
    assert "a b" in result.summary
    with pytest.raises(VerificationError, match=r"is not committed: references_resolve: .*1 lost by us"):
        system.commit()
    point = system.catalog.get_point(ID)
    assert (point.manifest, point.state) == (None, PointState.FAILED)
    assert dump.exists()
    assert archive.exists()


def test_an_unreadable_object_is_a_loss_and_not_a_deletion(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedgen_backups.core.capture.object_reader._FIRST_PAUSE_SECONDS", 0.01)
    dump = publish_dump(system.catalog, system.database)
    with FaultyS3Proxy(system.bucket) as proxy:
        proxy.fail_next(None, status=403, matching=r"/uploads/1\.pdf", method="GET")
        archive = publish_archive(system.catalog, proxy.settings(system.bucket))
    _result, summary = verify_references(dump, archive, live=system.live)
    assert [(missing.key, missing.verdict) for missing in summary.missing] == [
        ("uploads/1.pdf", ReferenceVerdict.LOST)
    ]
    with pytest.raises(VerificationError, match="every_object_is_archived"):
        system.commit()


def test_a_missing_object_without_a_verdict_is_unknown_and_no_success(system: System) -> None:
    system.refer_to("gone long ago.pdf")
    dump, archive = system.capture()
    result, summary = verify_references(dump, archive, live=None)
    assert (result.status, summary.verdict_counts) == (CheckStatus.FAILED, {ReferenceVerdict.UNKNOWN: 1})


def test_the_worst_verdict_is_named_first(system: System) -> None:
    for number in range(20):
        system.refer_to(f"missing {number:02}")
    dump = publish_dump(system.catalog, system.database)
    system.remove("uploads/1.pdf")
    archive = publish_archive(system.catalog, system.bucket)
    system.put("uploads/1.pdf")
    result, summary = verify_references(dump, archive, live=system.live)
    assert summary.missing[0].verdict is ReferenceVerdict.LOST
    assert "uploads/1.pdf" in result.summary
    assert "and 11 more" in result.summary


def test_a_bucket_listed_before_the_snapshot_is_refused(system: System) -> None:
    """An object uploaded in between would be in the database and not in the archive."""
    archive = publish_archive(system.catalog, system.bucket)
    dump = publish_dump(system.catalog, system.database)
    result, _summary = verify_references(dump, archive, live=system.live)
    assert result.status is CheckStatus.FAILED
    assert "listed before the database's snapshot" in result.summary
    with pytest.raises(VerificationError, match="is not committed"):
        system.commit()


def test_halves_of_two_points_are_refused(system: System) -> None:
    dump = publish_dump(system.catalog, system.database, "20261121_020000")
    archive = publish_archive(system.catalog, system.bucket)
    result, _summary = verify_references(dump, archive, live=system.live)
    assert result.status is CheckStatus.FAILED
    assert "the dump is from point 20261121_020000" in result.summary


def test_without_a_query_the_check_is_not_configured_and_the_point_is_committed(system: System) -> None:
    run(system.database, "ALTER TABLE jobs RENAME TO tasks")
    dump, archive = system.capture()
    result, summary = verify_references(dump, archive, live=system.live)
    assert (result.status, summary.state) == (CheckStatus.NOT_CONFIGURED, ReferenceState.NOT_CONFIGURED)
    assert system.commit().references.state is ReferenceState.NOT_CONFIGURED
    verification = system.catalog.read_verification(ID)
    assert verification.level(VerificationLevel.COHERENT).status is CheckStatus.NOT_CONFIGURED
    assert verification.is_verified


def test_recorded_verdicts_allow_a_later_check_without_the_live_system(system: System) -> None:
    system.refer_to("gone long ago.pdf")
    system.capture()
    manifest = system.commit()
    verification, summary = verify_point(
        system.catalog, system.catalog.get_point(ID), checked_by="later", live=None
    )
    assert summary == manifest.references
    assert get_status(verification.results, Check.REFERENCES_RESOLVE) is CheckStatus.PASSED


def test_verdicts_about_other_objects_are_not_used(system: System) -> None:
    system.refer_to("gone long ago.pdf")
    dump, archive = system.capture()
    known = system.commit().references
    for changed in (
        known.model_copy(update={"missing_sha256": "0" * 64}),
        known.model_copy(update={"missing_sha256": ""}),
    ):
        result, _summary = verify_references(dump, archive, live=None, known=changed)
        assert result.status is CheckStatus.FAILED


def test_recommitting_a_committed_point_keeps_its_manifest(system: System) -> None:
    system.capture()
    first = system.commit()
    assert system.commit() == first


def test_a_point_with_one_half_is_not_committed(system: System) -> None:
    publish_dump(system.catalog, system.database)
    with pytest.raises(VerificationError, match="has no bucket file"):
        system.commit()
    assert system.catalog.get_point(ID).state is PointState.PARTIAL


def test_a_restores_result_does_not_replace_reading_the_files(system: System) -> None:
    """A result of this run on another check must not skip the checks that a commit needs."""
    system.capture()
    point = system.catalog.get_point(ID)
    results = verify_point(system.catalog, point, checked_by="run", live=system.live)[0].results
    kept = next(result for result in results if result.check is Check.DUMP_IS_STORED)
    other = kept.model_copy(update={"check": Check.DATABASE_IS_EQUAL})
    (system.catalog.directory / f"verification_{ID}.json").unlink()
    system.catalog.record_results(ID, (other,))
    assert system.commit().artifacts
    assert get_summary(system.catalog.read_verification(ID).results, Check.ARCHIVE_IS_READABLE)


def test_objects_missing_at_the_sites_first_point_are_not_news(system: System) -> None:
    system.refer_to("gone long ago.pdf")
    system.capture()
    manifest = system.commit()
    assert manifest.references.newly_missing_count == 0
    assert system.catalog.get_point(ID).verification.is_coherent


def test_objects_lost_later_are_committed_as_not_coherent(system: System) -> None:
    """The backup holds all there is; the live system has lost something, which retention must know."""
    settle_baseline(system.catalog, ())
    system.refer_to("lost since.pdf")
    system.capture()
    manifest = system.commit()
    assert manifest.references.newly_missing_count == 1
    point = system.catalog.get_point(ID)
    assert point.state is PointState.VERIFIED
    assert not point.verification.is_coherent
    assert point.verification.level(VerificationLevel.COHERENT).status is CheckStatus.INCOMPLETE


def test_an_accepted_object_is_no_longer_news(system: System) -> None:
    settle_baseline(system.catalog, ())
    accept_missing(
        system.catalog,
        [AcceptedObject(key="lost since.pdf", reason="deleted on purpose", accepted_at=TAKEN_AT)],
    )
    system.refer_to("lost since.pdf")
    system.capture()
    assert system.commit().references.newly_missing_count == 0
    assert system.catalog.get_point(ID).verification.is_coherent


ODD_VALUES = (
    "",
    " ",
    ".",
    "..",
    "a/../b",
    "./x",
    "/x",
    "a//b",
    "x" * 1100,
    "a\x01b",
    "a\nb",
    "\ufffe",
    "https://host/b/k1.pdf",
    "a?b",
    "100%",
)


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: ascii(value)[:20])
def test_an_odd_value_in_one_row_does_not_prevent_the_commit(system: System, value: str) -> None:
    """It names no object, and is one that the live system lacks; the SDK refuses to request some of them."""
    system.put("k1")
    system.refer_to("k1")
    run(system.database, "INSERT INTO jobs VALUES (" + sql.Literal(value).as_string() + ")")
    system.capture()
    manifest, _verification = commit_point(
        system.catalog, ID, origin=Origin(run_id="a run"), live=system.live
    )
    assert manifest.references.verdict_counts == {ReferenceVerdict.MISSING: 1}
    assert [each.key for each in manifest.references.missing] == [value]


def test_an_object_that_may_not_be_requested_is_searched_in_the_listing(system: System) -> None:
    """A server answers 403 for a missing object if listing the key's prefix is not allowed."""
    system.put("k1")
    for key in ("k1", "gone"):
        system.refer_to(key)
    system.capture()
    with FaultyS3Proxy(system.bucket) as proxy:
        proxy.fail_next(None, status=403, matching="/gone")
        manifest, _verification = commit_point(
            system.catalog,
            ID,
            origin=Origin(run_id="a run"),
            live=make_live(system.database, proxy.settings(system.bucket)),
        )
    assert manifest.references.verdict_counts == {ReferenceVerdict.MISSING: 1}


def test_a_listed_object_that_may_not_be_read_was_lost(system: System) -> None:
    for key in ("k1", "kept"):
        system.put(key)
        system.refer_to(key)
    dump, archive = system.capture()
    archive.unlink()
    system.remove("kept")
    archive = publish_archive(system.catalog, system.bucket)
    system.put("kept")
    with FaultyS3Proxy(system.bucket) as proxy:
        proxy.fail_next(None, status=403, matching="/kept")
        result, summary = verify_references(
            dump, archive, live=make_live(system.database, proxy.settings(system.bucket))
        )
    assert result.status is CheckStatus.FAILED
    assert summary.verdict_counts == {ReferenceVerdict.LOST: 1}


class Says:
    """A live system with a fixed verdict."""

    def __init__(self, verdict: ReferenceVerdict) -> None:
        self.verdict = verdict

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        return dict.fromkeys(keys, self.verdict)


@pytest.mark.parametrize(
    "first",
    [Says(ReferenceVerdict.UNKNOWN), Says(ReferenceVerdict.LOST), None],
    ids=["unknown", "lost", "not asked"],
)
def test_objects_that_could_not_be_checked_make_no_baseline(system: System, first: Says | None) -> None:
    """Otherwise the first committed point would report as news what was always missing."""
    system.put("k1")
    for key in ("k1", "always gone"):
        system.refer_to(key)
    dump, archive = system.capture()
    result, _summary = verify_references(
        dump, archive, live=first, baseline=partial(settle_baseline, system.catalog)
    )
    assert result.status is CheckStatus.FAILED
    result, _summary = verify_references(
        dump, archive, live=Says(ReferenceVerdict.MISSING), baseline=partial(settle_baseline, system.catalog)
    )
    assert result.is_passed


def test_objects_accepted_early_leave_the_others_to_the_first_points_baseline(system: System) -> None:
    system.put("k1")
    for key in ("k1", "always gone", "accepted"):
        system.refer_to(key)
    dump, archive = system.capture()
    accept_missing(system.catalog, [AcceptedObject(key="accepted", accepted_at=TAKEN_AT, reason="known")])
    live = Says(ReferenceVerdict.MISSING)
    result, _summary = verify_references(
        dump, archive, live=live, baseline=partial(settle_baseline, system.catalog)
    )
    assert result.is_passed
    system.refer_to("new")
    for path in (dump, archive):
        path.unlink()
    dump, archive = system.capture()
    result, summary = verify_references(
        dump, archive, live=live, baseline=partial(settle_baseline, system.catalog)
    )
    assert (result.status, summary.newly_missing_count) == (CheckStatus.INCOMPLETE, 1)
