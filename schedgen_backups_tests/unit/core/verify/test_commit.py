"""What must pass before a manifest is written, and what it says, on small files made without a server."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    COMMIT_CHECKS,
    STORED_CHECKS,
    Check,
    CheckStatus,
    Verification,
)
from schedgen_backups.core.catalog.missing_objects import settle_baseline
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import TOOL_VERSION, ArtifactKind, Origin, RecoveryPointId, ReferenceVerdict
from schedgen_backups.core.verify.commit import commit_point, verify_point
from schedgen_backups_tests.support import artifacts
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    POINT,
    TAKEN_AT,
    TableText,
    get_status,
    get_summary,
    make_entry,
    make_result,
    write_archive,
    write_dump,
)

ID = RecoveryPointId(POINT)
RUN = Origin(run_id="run", reason="test", user="somebody")


class Witness:
    """A live system that gives the same verdict on each missing object and counts the requests."""

    def __init__(self, verdict: ReferenceVerdict = ReferenceVerdict.MISSING) -> None:
        self.verdict = verdict
        self.times_asked = 0

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        self.times_asked += 1
        return dict.fromkeys(keys, self.verdict)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return a captured, uncommitted point; one object that it refers to is not in the archive."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_dump(catalog.directory / DUMP_NAME, [TableText("jobs", (b"1",))], references=["a", "b"])
    write_archive(catalog.directory / ARCHIVE_NAME, [(make_entry("a", b"1"), b"1")])
    return catalog


def verify(catalog: Catalog, *, checked_by: str = "run", live: Witness | None = None) -> Verification:
    return verify_point(catalog, catalog.get_point(ID), checked_by=checked_by, live=live or Witness())[0]


def overwrite(catalog: Catalog, check: Check, status: CheckStatus, **fields: object) -> None:
    """Replace the newest result of this check."""
    found = catalog.read_verification(ID).result(check) or make_result(check)
    catalog.record_results(ID, (found.model_copy(update={"status": status, **fields}),))


def test_every_check_of_a_commit_is_performed_and_signed(catalog: Catalog) -> None:
    verification = verify(catalog)
    assert {result.check for result in verification.results} == set(COMMIT_CHECKS)
    assert {result.status for result in verification.results} == {CheckStatus.PASSED}
    assert {result.checked_by for result in verification.results} == {"run"}
    assert catalog.read_verification(ID) == verification


def test_progress_is_reported_for_both_files(catalog: Catalog) -> None:
    sizes: list[int] = []
    verify_point(catalog, catalog.get_point(ID), checked_by="run", live=Witness(), on_progress=sizes.append)
    assert sum(sizes) > max((catalog.directory / name).stat().st_size for name in (DUMP_NAME, ARCHIVE_NAME))


def test_the_manifest_holds_the_check_results(catalog: Catalog) -> None:
    before = datetime.now(timezone.utc)
    manifest, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert (manifest.point_id, manifest.tool_version, manifest.snapshot_at, manifest.origin) == (
        POINT,
        TOOL_VERSION,
        TAKEN_AT,
        RUN,
    )
    assert before <= manifest.committed_at <= datetime.now(timezone.utc)
    site = catalog.read_site()
    assert site is not None
    assert manifest.site_id == site.site_id
    stored = [result for result in verification.results if result.check in STORED_CHECKS.values()]
    digests = {kind: sha256 for result in stored for kind, sha256 in result.artifacts.items()}
    assert [
        (each.kind, each.file_name, each.source_name, each.size_bytes, each.sha256)
        for each in manifest.artifacts
    ] == [
        (kind, name, source, (catalog.directory / name).stat().st_size, digests[kind])
        for kind, name, source in (
            (ArtifactKind.DATABASE, DUMP_NAME, "schedgen"),
            (ArtifactKind.BUCKET, ARCHIVE_NAME, "schedgen-pdfs"),
        )
    ]
    assert (manifest.references.reference_count, manifest.references.resolved_count) == (2, 1)
    assert catalog.get_point(ID).manifest == manifest
    assert catalog.get_point(ID).state is PointState.VERIFIED
    assert catalog.read_verification(ID) == verification


def test_the_manifests_digests_are_those_of_the_check_that_read_every_byte(catalog: Catalog) -> None:
    """A later check of the same file also carries a digest, which must not replace it."""
    verify(catalog)
    overwrite(
        catalog, Check.REFERENCES_RESOLVE, CheckStatus.PASSED, artifacts=dict.fromkeys(ArtifactKind, "0" * 64)
    )
    manifest, _verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert "0" * 64 not in {artifact.sha256 for artifact in manifest.artifacts}


@pytest.mark.parametrize("check", COMMIT_CHECKS)
def test_one_failed_check_of_this_run_prevents_the_commit(catalog: Catalog, check: Check) -> None:
    verify(catalog)
    overwrite(catalog, check, CheckStatus.FAILED, summary="seen to fail")
    with pytest.raises(
        VerificationError, match=rf"^recovery point {POINT} is not committed: {check.value}: seen to fail$"
    ):
        commit_point(catalog, ID, origin=RUN, live=Witness())
    assert catalog.get_point(ID).manifest is None


@pytest.mark.parametrize("check", COMMIT_CHECKS)
def test_one_check_that_this_run_skipped_is_performed_at_the_commit(catalog: Catalog, check: Check) -> None:
    kept = tuple(result for result in verify(catalog).results if result.check is not check)
    catalog.write_verification(Verification(point_id=POINT, results=kept))
    _manifest, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert get_status(verification.results, check) is CheckStatus.PASSED


@pytest.mark.parametrize("status", [CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE])
def test_what_is_missing_in_the_live_system_or_not_configured_prevents_no_commit(
    catalog: Catalog, status: CheckStatus
) -> None:
    verify(catalog)
    overwrite(catalog, Check.REFERENCES_RESOLVE, status)
    _manifest, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert get_status(verification.results, Check.REFERENCES_RESOLVE) is status


@pytest.mark.parametrize("verdict", [ReferenceVerdict.LOST, ReferenceVerdict.UNKNOWN])
def test_a_lost_object_prevents_the_commit_although_its_recorded_check_passed(
    catalog: Catalog, verdict: ReferenceVerdict
) -> None:
    verify(catalog)
    with pytest.raises(
        VerificationError, match="references_resolve: objects were lost, or their state is unknown"
    ):
        commit_point(catalog, ID, origin=RUN, live=Witness(verdict))
    assert catalog.get_point(ID).manifest is None


def test_checks_of_this_run_are_not_repeated(catalog: Catalog) -> None:
    before = verify(catalog)
    _manifest, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert verification == before


@pytest.mark.parametrize("origin", [Origin(run_id="another"), Origin()])
def test_checks_of_another_run_are_repeated(catalog: Catalog, origin: Origin) -> None:
    verify(catalog, checked_by="run" if origin.run_id else "")
    overwrite(catalog, Check.DUMP_IS_STORED, CheckStatus.PASSED, summary="of before")
    _manifest, verification = commit_point(catalog, ID, origin=origin, live=Witness())
    assert get_summary(verification.results, Check.DUMP_IS_STORED) != "of before"
    assert {result.checked_by for result in verification.results} == {origin.run_id}


def test_an_unknown_result_of_this_run_is_checked_again(catalog: Catalog) -> None:
    verify(catalog)
    overwrite(catalog, Check.DUMP_IS_COMPLETE, CheckStatus.UNKNOWN)
    _manifest, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert get_status(verification.results, Check.DUMP_IS_COMPLETE) is CheckStatus.PASSED


def test_the_live_system_is_asked_once_per_verification(catalog: Catalog) -> None:
    live = Witness()
    commit_point(catalog, ID, origin=RUN, live=live)
    assert live.times_asked == 1


def test_the_baseline_of_the_directory_decides_what_is_new(catalog: Catalog) -> None:
    settle_baseline(catalog, ())
    manifest, _verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert manifest.references.newly_missing_count == 1


@pytest.mark.parametrize(("known", "newly_missing"), [((), 1), (("b",), 0)])
def test_the_baseline_applies_to_checks_that_were_performed_before(
    catalog: Catalog, known: tuple[str, ...], newly_missing: int
) -> None:
    settle_baseline(catalog, known)
    verify(catalog)
    manifest, _verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert manifest.references.newly_missing_count == newly_missing


def test_a_committed_point_is_reread_and_keeps_its_manifest(catalog: Catalog) -> None:
    first, _verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    overwrite(catalog, Check.DUMP_IS_STORED, CheckStatus.PASSED, summary="of before")
    again, verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    assert again == first
    assert get_summary(verification.results, Check.DUMP_IS_STORED) != "of before"


def test_recorded_verdicts_of_the_manifest_spare_the_live_system(catalog: Catalog) -> None:
    manifest, _verification = commit_point(catalog, ID, origin=RUN, live=Witness())
    _verification, summary = verify_point(catalog, catalog.get_point(ID), checked_by="later")
    assert summary == manifest.references


@pytest.mark.parametrize(
    ("name", "check"), [(DUMP_NAME, Check.DUMP_IS_STORED), (ARCHIVE_NAME, Check.ARCHIVE_IS_STORED)]
)
def test_another_file_in_a_committed_point_fails_its_check(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, name: str, check: Check
) -> None:
    """It is sound in itself, and not the one that was committed."""
    commit_point(catalog, ID, origin=RUN, live=Witness())
    monkeypatch.setattr(artifacts, "TAKEN_AT", datetime(2026, 11, 22, 2, 1, tzinfo=timezone.utc))
    if name == DUMP_NAME:
        write_dump(catalog.directory / name, [TableText("jobs", (b"2",))], references=["a", "b"])
    else:
        write_archive(catalog.directory / name, [(make_entry("a", b"2"), b"2")])
    assert get_status(verify(catalog).results, check) is CheckStatus.FAILED


@pytest.mark.parametrize(
    ("name", "check"), [(DUMP_NAME, Check.DUMP_IS_STORED), (ARCHIVE_NAME, Check.ARCHIVE_IS_STORED)]
)
def test_a_missing_committed_file_fails_its_check_and_the_other_half_is_read(
    catalog: Catalog, name: str, check: Check
) -> None:
    commit_point(catalog, ID, origin=RUN, live=Witness())
    (catalog.directory / name).unlink()
    before = datetime.now(timezone.utc)
    verification, summary = verify_point(catalog, catalog.get_point(ID), checked_by="later", live=Witness())
    assert summary is None
    result = verification.result(check)
    assert result is not None
    assert (result.status, result.summary, result.checked_by) == (
        CheckStatus.FAILED,
        "the file is missing",
        "later",
    )
    assert before <= result.checked_at <= datetime.now(timezone.utc)
    later = {result.check for result in verification.results if result.checked_by == "later"}
    others = (
        {Check.ARCHIVE_IS_STORED, Check.EVERY_OBJECT_IS_ARCHIVED}
        if name == DUMP_NAME
        else {Check.DUMP_IS_STORED, Check.DUMP_MATCHES_SNAPSHOT}
    )
    assert others <= later
    assert Check.REFERENCES_RESOLVE not in later


def test_a_half_of_a_partial_point_is_read(catalog: Catalog) -> None:
    (catalog.directory / ARCHIVE_NAME).unlink()
    verification, summary = verify_point(catalog, catalog.get_point(ID), checked_by="run")
    assert summary is None
    assert {result.check for result in verification.results} == {
        Check.DUMP_IS_STORED,
        Check.DUMP_IS_COMPLETE,
        Check.DUMP_MATCHES_SNAPSHOT,
    }
    with pytest.raises(VerificationError, match="has no bucket file"):
        commit_point(catalog, ID, origin=RUN, live=Witness())


def test_a_point_removed_while_it_is_read_is_not_recorded(catalog: Catalog) -> None:
    point = catalog.get_point(ID)
    for name in (DUMP_NAME, ARCHIVE_NAME):
        (catalog.directory / name).unlink()
    with pytest.raises(VerificationError, match=f"{POINT} was removed while it was being read"):
        verify_point(catalog, point, checked_by="run")
    assert not (catalog.directory / f"verification_{ID}.json").exists()


def test_a_committed_point_that_lost_both_files_fails_as_damaged(
    catalog: Catalog,
) -> None:
    commit_point(catalog, ID, origin=RUN, live=Witness())
    for name in (DUMP_NAME, ARCHIVE_NAME):
        (catalog.directory / name).unlink()
    results = verify(catalog, checked_by="later").results
    assert [get_summary(results, check) for check in STORED_CHECKS.values()] == ["the file is missing"] * 2
