"""Checks and verification levels: a level is passed only when every check of it has passed.

All combinations of results are tried. `verify` and the restore have their own tests of how results are found.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import (
    CHECKS_BY_LEVEL,
    COMMIT_CHECKS,
    DRILL_ONLY_CHECKS,
    Check,
    CheckStatus,
    Verification,
    VerificationLevel,
)
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups_tests.support.artifacts import POINT, TAKEN_AT, make_result

statuses_strategy = st.dictionaries(st.sampled_from(Check), st.sampled_from(CheckStatus))
BELOW_PASSED = (CheckStatus.FAILED, CheckStatus.NOT_CONFIGURED, CheckStatus.UNKNOWN)


def make_verification(statuses: dict[Check, CheckStatus]) -> Verification:
    return Verification(
        point_id=POINT, results=tuple(make_result(check, status) for check, status in statuses.items())
    )


@given(statuses_strategy)
def test_a_level_is_passed_only_when_all_its_checks_passed(
    statuses: dict[Check, CheckStatus],
) -> None:
    verification = make_verification(statuses)
    for level, checks in CHECKS_BY_LEVEL.items():
        is_passed = all(statuses.get(check) is CheckStatus.PASSED for check in checks)
        assert (verification.level(level).status is CheckStatus.PASSED) == is_passed


@given(statuses_strategy)
def test_one_failed_check_fails_its_level(statuses: dict[Check, CheckStatus]) -> None:
    verification = make_verification(statuses)
    for level, checks in CHECKS_BY_LEVEL.items():
        has_failed = any(statuses.get(check) is CheckStatus.FAILED for check in checks)
        assert (verification.level(level).status is CheckStatus.FAILED) == has_failed


@given(statuses_strategy)
def test_verified_needs_every_check_of_the_files(statuses: dict[Check, CheckStatus]) -> None:
    if make_verification(statuses).is_verified:
        found = {statuses.get(check) for check in COMMIT_CHECKS if check is not Check.REFERENCES_RESOLVE}
        assert found == {CheckStatus.PASSED}
        assert statuses[Check.REFERENCES_RESOLVE] in {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED}


@pytest.mark.parametrize("check", COMMIT_CHECKS)
@pytest.mark.parametrize("status", [*BELOW_PASSED, None])
def test_one_check_that_did_not_pass_prevents_verified(check: Check, status: CheckStatus | None) -> None:
    statuses = dict.fromkeys(COMMIT_CHECKS, CheckStatus.PASSED)
    assert make_verification(statuses).is_verified
    if status is None:
        del statuses[check]
    else:
        statuses[check] = status
    is_allowed = check is Check.REFERENCES_RESOLVE and status is CheckStatus.NOT_CONFIGURED
    assert make_verification(statuses).is_verified is is_allowed


@pytest.mark.parametrize("status", BELOW_PASSED)
def test_only_passed_is_success(status: CheckStatus) -> None:
    assert make_result(Check.DUMP_IS_STORED, CheckStatus.PASSED).is_passed
    assert not make_result(Check.DUMP_IS_STORED, status).is_passed


def test_a_point_without_results_has_no_level() -> None:
    verification = Verification(point_id=POINT)
    assert [level.status for level in verification.levels()] == [CheckStatus.UNKNOWN] * 5
    assert not verification.is_verified


def test_not_configured_is_a_separate_status_and_no_success() -> None:
    verification = make_verification({Check.REFERENCES_RESOLVE: CheckStatus.NOT_CONFIGURED})
    assert verification.level(VerificationLevel.COHERENT).status is CheckStatus.NOT_CONFIGURED


def test_levels_are_listed_lowest_first() -> None:
    names = [level.level.value for level in Verification(point_id=POINT).levels()]
    assert names == ["stored", "parsed", "coherent", "restored", "equal"]


def test_every_check_belongs_to_one_level_or_only_to_drills() -> None:
    assert sorted(
        [*(check for checks in CHECKS_BY_LEVEL.values() for check in checks), *DRILL_ONLY_CHECKS]
    ) == sorted(Check)


@pytest.mark.parametrize("check", list(Check))
def test_a_failed_check_of_a_level_fails_the_point_and_a_drills_own_does_not(check: Check) -> None:
    """A late drill, or a PDF that the application stored broken, must not make retention ignore the point."""
    assert make_verification({check: CheckStatus.FAILED}).is_failed == (check not in DRILL_ONLY_CHECKS)


def test_a_newer_result_replaces_only_the_older_one_of_its_check() -> None:
    verification = make_verification(
        {Check.DUMP_IS_STORED: CheckStatus.PASSED, Check.ARCHIVE_IS_STORED: CheckStatus.PASSED}
    )
    newer = verification.with_results((make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED),))
    assert newer.result(Check.DUMP_IS_STORED) == make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED)
    assert newer.result(Check.ARCHIVE_IS_STORED) == make_result(Check.ARCHIVE_IS_STORED)
    assert len(newer.results) == 2
    assert newer.level(VerificationLevel.STORED).status is CheckStatus.FAILED


def test_a_level_is_as_old_as_its_oldest_check() -> None:
    older = TAKEN_AT - timedelta(days=3)
    results = (make_result(Check.DUMP_IS_STORED), make_result(Check.ARCHIVE_IS_STORED, checked_at=older))
    assert Verification(point_id=POINT, results=results).level(VerificationLevel.STORED).checked_at == older
    assert Verification(point_id=POINT).level(VerificationLevel.STORED).checked_at is None


def test_a_result_names_the_files_that_were_checked() -> None:
    result = make_result(Check.DUMP_IS_STORED, artifacts={ArtifactKind.DATABASE: "ab"})
    assert type(result).model_validate_json(result.model_dump_json()).artifacts == {
        ArtifactKind.DATABASE: "ab"
    }


@pytest.mark.parametrize("status", CheckStatus)
def test_a_point_is_coherent_when_nothing_is_newly_missing_or_not_configured(status: CheckStatus) -> None:
    coherent = {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED}
    assert make_verification({Check.REFERENCES_RESOLVE: status}).is_coherent is (status in coherent)
    assert not make_verification({}).is_coherent
