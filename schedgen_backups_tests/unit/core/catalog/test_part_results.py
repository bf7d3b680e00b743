"""Check results of a point of several databases and buckets: never better than those of its parts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import (
    BOTH_KINDS,
    CHECKS_BY_LEVEL,
    COMMIT_CHECKS,
    KINDS_BY_CHECK,
    Check,
    CheckStatus,
    Verification,
    VerificationLevel,
)
from schedgen_backups.core.catalog.part_results import (
    combine_parts,
    label_results,
    name_source,
    select_part_results,
)
from schedgen_backups.core.model import ArtifactKind, PartName
from schedgen_backups_tests.support.artifacts import TAKEN_AT, make_result

MAIN, REPORTS, IMAGES = PartName("main", "pdfs"), PartName("reports", ""), PartName("", "images")
SHARED = PartName("archive", "pdfs")
PARTS = (MAIN, REPORTS, IMAGES)
ALL_CHECKS = tuple(check for checks in CHECKS_BY_LEVEL.values() for check in checks)


def list_checks(part: PartName) -> list[Check]:
    return [check for check in ALL_CHECKS if KINDS_BY_CHECK.get(check, BOTH_KINDS) <= part.kinds]


def make_complete() -> Verification:
    """Return results of every check on every part that passed."""
    results = [
        result
        for part in PARTS
        for result in label_results([make_result(check) for check in list_checks(part)], part)
    ]
    return Verification(point_id="p").with_results(tuple(results))


def test_a_point_is_verified_if_all_parts_are() -> None:
    combined = combine_parts(make_complete(), PARTS)
    assert combined.is_verified
    assert [level.status for level in combined.levels()] == [CheckStatus.PASSED] * 5


@given(st.data())
def test_one_result_less_or_worse_is_never_hidden(data: st.DataObject) -> None:
    complete = make_complete()
    number = data.draw(st.integers(0, len(complete.results) - 1))
    status = data.draw(st.sampled_from([*CheckStatus, None]))
    chosen = complete.results[number]
    rest = [*complete.results[:number], *complete.results[number + 1 :]]
    results = (
        rest if status is None else [*rest, chosen.model_copy(update={"status": status, "summary": "this"})]
    )
    combined = combine_parts(complete.model_copy(update={"results": tuple(results)}), PARTS)
    found = combined.result(chosen.check)
    if status is CheckStatus.PASSED:
        assert found is not None
        assert found.is_passed
        return
    if status is None and not any(result.check is chosen.check for result in rest):
        assert found is None or found.status is CheckStatus.NOT_CONFIGURED
        return
    assert found is not None
    assert found.status is (CheckStatus.UNKNOWN if status is None else status)
    assert chosen.source in found.summary


def test_results_without_a_source_or_of_another_part_do_not_count() -> None:
    stray = [make_result(check) for check in ALL_CHECKS]
    other = label_results(stray, PartName("old", "gone"))
    combined = combine_parts(Verification(point_id="p").with_results((*stray, *other)), PARTS)
    assert {level.status for level in combined.levels()} == {CheckStatus.UNKNOWN}


def test_a_bucket_of_two_databases_is_checked_once_and_its_references_twice() -> None:
    names = [
        name_source(check, part)
        for check in (Check.ARCHIVE_IS_STORED, Check.REFERENCES_RESOLVE)
        for part in (MAIN, SHARED)
    ]
    assert names == ["pdfs", "pdfs", "main and pdfs", "archive and pdfs"]
    first = label_results([make_result(check) for check in COMMIT_CHECKS], MAIN)
    second = label_results(
        [make_result(check) for check in COMMIT_CHECKS if check is not Check.REFERENCES_RESOLVE], SHARED
    )
    combined = combine_parts(Verification(point_id="p").with_results((*first, *second)), (MAIN, SHARED))
    assert combined.level(VerificationLevel.PARSED).status is CheckStatus.PASSED
    assert combined.level(VerificationLevel.COHERENT).status is CheckStatus.UNKNOWN
    assert not combined.is_verified


def test_the_oldest_time_is_that_of_the_point() -> None:
    old = make_result(Check.DUMP_IS_STORED, checked_at=TAKEN_AT - timedelta(days=3))
    results = (
        *label_results([old], MAIN),
        *label_results([make_result(Check.DUMP_IS_STORED, checked_at=TAKEN_AT)], REPORTS),
    )
    combined = combine_parts(Verification(point_id="p").with_results(results), (MAIN, REPORTS))
    found = combined.result(Check.DUMP_IS_STORED)
    assert found is not None
    assert found.checked_at == TAKEN_AT - timedelta(days=3)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_judged_by_what_it_has(part: PartName) -> None:
    own = select_part_results(make_complete(), part)
    assert own.kinds == part.kinds
    assert own.is_verified
    assert {result.source for result in own.results} == {""}
    expected = CheckStatus.PASSED if len(part.kinds) == len(ArtifactKind) else CheckStatus.NOT_CONFIGURED
    assert own.level(VerificationLevel.COHERENT).status is expected
