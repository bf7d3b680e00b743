"""Claims and the rungs they add up to: a rung is passed when every claim of it was seen to hold, and never otherwise.

All combinations of what is known are tried; how the results are found is tested beside `verify` and the restore.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import CLAIMS_BY_RUNG, DRILL_CLAIMS, SEALING_CLAIMS, Claim, ClaimStatus, Rung, Verification
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups_tests.core_support import POINT, TAKEN_AT, make_result

statuses_strategy = st.dictionaries(st.sampled_from(Claim), st.sampled_from(ClaimStatus))
BELOW_PASSED = (ClaimStatus.FAILED, ClaimStatus.NOT_CONFIGURED, ClaimStatus.UNKNOWN)


def make_verification(statuses: dict[Claim, ClaimStatus]) -> Verification:
    return Verification(point_id=POINT, results=tuple(make_result(claim, status) for claim, status in statuses.items()))


@given(statuses_strategy)
def test_a_rung_is_passed_when_all_its_claims_were_seen_to_hold_and_only_then(statuses: dict[Claim, ClaimStatus]) -> None:
    verification = make_verification(statuses)
    for rung, claims in CLAIMS_BY_RUNG.items():
        is_passed = all(statuses.get(claim) is ClaimStatus.PASSED for claim in claims)
        assert (verification.rung(rung).status is ClaimStatus.PASSED) == is_passed


@given(statuses_strategy)
def test_one_failed_claim_fails_its_rung(statuses: dict[Claim, ClaimStatus]) -> None:
    verification = make_verification(statuses)
    for rung, claims in CLAIMS_BY_RUNG.items():
        has_failed = any(statuses.get(claim) is ClaimStatus.FAILED for claim in claims)
        assert (verification.rung(rung).status is ClaimStatus.FAILED) == has_failed


@given(statuses_strategy)
def test_verified_needs_every_claim_of_the_files(statuses: dict[Claim, ClaimStatus]) -> None:
    if make_verification(statuses).is_verified:
        found = {statuses.get(claim) for claim in SEALING_CLAIMS if claim is not Claim.REFERENCES_RESOLVE}
        assert found == {ClaimStatus.PASSED}
        assert statuses[Claim.REFERENCES_RESOLVE] in {ClaimStatus.PASSED, ClaimStatus.NOT_CONFIGURED}


@pytest.mark.parametrize("claim", SEALING_CLAIMS)
@pytest.mark.parametrize("status", [*BELOW_PASSED, None])
def test_one_claim_that_was_not_seen_to_hold_is_enough_not_to_be_verified(claim: Claim, status: ClaimStatus | None) -> None:
    statuses = dict.fromkeys(SEALING_CLAIMS, ClaimStatus.PASSED)
    assert make_verification(statuses).is_verified
    if status is None:
        del statuses[claim]
    else:
        statuses[claim] = status
    is_allowed = claim is Claim.REFERENCES_RESOLVE and status is ClaimStatus.NOT_CONFIGURED
    assert make_verification(statuses).is_verified is is_allowed


@pytest.mark.parametrize("status", BELOW_PASSED)
def test_only_passed_is_success(status: ClaimStatus) -> None:
    assert make_result(Claim.DUMP_IS_STORED, ClaimStatus.PASSED).is_passed
    assert not make_result(Claim.DUMP_IS_STORED, status).is_passed


def test_a_point_nobody_looked_at_stands_on_no_rung() -> None:
    verification = Verification(point_id=POINT)
    assert [rung.status for rung in verification.rungs()] == [ClaimStatus.UNKNOWN] * 5
    assert not verification.is_verified


def test_not_configured_is_a_status_of_its_own_and_no_success() -> None:
    verification = make_verification({Claim.REFERENCES_RESOLVE: ClaimStatus.NOT_CONFIGURED})
    assert verification.rung(Rung.COHERENT).status is ClaimStatus.NOT_CONFIGURED


def test_the_rungs_are_told_lowest_first() -> None:
    names = [rung.rung.value for rung in Verification(point_id=POINT).rungs()]
    assert names == ["stored", "parsed", "coherent", "restored", "equal"]


def test_every_claim_belongs_to_one_rung_or_is_a_drills_alone() -> None:
    assert sorted([*(claim for claims in CLAIMS_BY_RUNG.values() for claim in claims), *DRILL_CLAIMS]) == sorted(Claim)


@pytest.mark.parametrize("claim", list(Claim))
def test_a_claim_of_a_rung_that_fails_condemns_the_point_and_a_drills_own_does_not(claim: Claim) -> None:
    """A late drill, or a PDF that the application stored broken, must not make retention forget the point."""
    assert make_verification({claim: ClaimStatus.FAILED}).is_failed == (claim not in DRILL_CLAIMS)


def test_a_newer_result_takes_the_place_of_the_older_one_of_its_claim_alone() -> None:
    verification = make_verification({Claim.DUMP_IS_STORED: ClaimStatus.PASSED, Claim.ARCHIVE_IS_STORED: ClaimStatus.PASSED})
    newer = verification.with_results((make_result(Claim.DUMP_IS_STORED, ClaimStatus.FAILED),))
    assert newer.result(Claim.DUMP_IS_STORED) == make_result(Claim.DUMP_IS_STORED, ClaimStatus.FAILED)
    assert newer.result(Claim.ARCHIVE_IS_STORED) == make_result(Claim.ARCHIVE_IS_STORED)
    assert len(newer.results) == 2
    assert newer.rung(Rung.STORED).status is ClaimStatus.FAILED


def test_a_rung_is_as_old_as_its_oldest_claim() -> None:
    older = TAKEN_AT - timedelta(days=3)
    results = (make_result(Claim.DUMP_IS_STORED), make_result(Claim.ARCHIVE_IS_STORED, checked_at=older))
    assert Verification(point_id=POINT, results=results).rung(Rung.STORED).checked_at == older
    assert Verification(point_id=POINT).rung(Rung.STORED).checked_at is None


def test_a_result_names_the_files_that_it_was_found_on() -> None:
    result = make_result(Claim.DUMP_IS_STORED, artifacts={ArtifactKind.DATABASE: "ab"})
    assert type(result).model_validate_json(result.model_dump_json()).artifacts == {ArtifactKind.DATABASE: "ab"}
