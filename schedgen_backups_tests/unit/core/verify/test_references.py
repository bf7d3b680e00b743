"""Verdicts on missing objects and the status that they result in, on small files made without a server.

The live system's verdicts are given here; the integration tests check that it gives them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.formats import dump_file
from schedgen_backups.core.model import MissingReference, ReferenceState, ReferenceSummary, ReferenceVerdict
from schedgen_backups.core.verify.references import verify_references
from schedgen_backups_tests.support import artifacts
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    TAKEN_AT,
    TableText,
    make_dump_text,
    make_entry,
    write_archive,
    write_dump,
    write_dump_text,
)

DELETED, MISSING, LOST, UNKNOWN = (
    ReferenceVerdict.DELETED,
    ReferenceVerdict.MISSING,
    ReferenceVerdict.LOST,
    ReferenceVerdict.UNKNOWN,
)


class Witness:
    """A live system that gives these verdicts and records the requests."""

    def __init__(self, **verdicts: ReferenceVerdict) -> None:
        self.verdicts = verdicts
        self.asked: list[list[str]] = []

    def judge(self, keys: Iterable[str]) -> dict[str, ReferenceVerdict]:
        self.asked.append(list(keys))
        return {key: self.verdicts[key] for key in self.asked[-1] if key in self.verdicts}


def write_halves(
    folder: Path, references: Sequence[str], archived: Sequence[str] = ("a",)
) -> tuple[Path, Path]:
    write_dump(folder / DUMP_NAME, [TableText("jobs", (b"1",))], references=references)
    write_archive(folder / ARCHIVE_NAME, [(make_entry(key, key.encode()), key.encode()) for key in archived])
    return folder / DUMP_NAME, folder / ARCHIVE_NAME


def test_the_summary_holds_everything_found(tmp_path: Path) -> None:
    halves = write_halves(tmp_path, ["a", "b", "c", "d"])
    live = Witness(b=DELETED, c=MISSING, d=LOST)
    result, summary = verify_references(*halves, live=live)
    assert live.asked == [["b", "c", "d"]]
    assert summary == ReferenceSummary(
        state=ReferenceState.READ,
        newly_missing_count=1,
        reference_count=4,
        resolved_count=1,
        verdict_counts={DELETED: 1, MISSING: 1, LOST: 1},
        missing=tuple(
            MissingReference(key=key, verdict=verdict)
            for key, verdict in (("d", LOST), ("c", MISSING), ("b", DELETED))
        ),
        missing_sha256=hashlib.sha256(b"b\0c\0d").hexdigest(),
    )
    assert (result.check, result.status) == (Check.REFERENCES_RESOLVE, CheckStatus.FAILED)
    assert result.figures == {"references": 4, "resolved": 1, "missing": 3, "newly_missing": 1}
    assert result.summary == (
        "1 of 4 references are in the archive; 1 deleted during the backup, 1 already missing in the live "
        "system, 1 lost by us: d, c, b"
    )


def test_nothing_is_requested_or_recorded_if_nothing_is_missing(tmp_path: Path) -> None:
    live = Witness()
    result, summary = verify_references(*write_halves(tmp_path, ["a"]), live=live)
    assert (live.asked, result.status, summary.missing_sha256) == ([], CheckStatus.PASSED, "")
    assert result.summary == "1 of 1 references are in the archive"
    assert result.figures == {"references": 1, "resolved": 1, "missing": 0, "newly_missing": 0}


@pytest.mark.parametrize(
    ("verdict", "status", "text"),
    [
        (DELETED, CheckStatus.PASSED, "1 deleted during the backup"),
        (MISSING, CheckStatus.INCOMPLETE, "1 already missing in the live system, 1 of them new: b"),
        (LOST, CheckStatus.FAILED, "1 lost by us: b"),
        (UNKNOWN, CheckStatus.FAILED, "1 unknown: b"),
    ],
)
def test_the_worst_verdict_decides(
    tmp_path: Path, verdict: ReferenceVerdict, status: CheckStatus, text: str
) -> None:
    result, _summary = verify_references(*write_halves(tmp_path, ["a", "b"]), live=Witness(b=verdict))
    assert (result.status, result.summary) == (status, f"1 of 2 references are in the archive; {text}")


def test_verdicts_of_the_same_kind_are_counted(tmp_path: Path) -> None:
    _result, summary = verify_references(
        *write_halves(tmp_path, ["a", "b", "c", "d"]), live=Witness(b=DELETED, c=DELETED, d=DELETED)
    )
    assert summary.verdict_counts == {DELETED: 3}


def test_an_object_without_a_verdict_of_the_live_system_is_unknown(tmp_path: Path) -> None:
    _result, summary = verify_references(*write_halves(tmp_path, ["a", "b", "c"]), live=Witness(b=DELETED))
    assert summary.verdict_counts == {DELETED: 1, UNKNOWN: 1}


def test_only_what_the_baseline_lacks_is_new(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def know(keys: Sequence[str]) -> frozenset[str]:
        asked.append(list(keys))
        return frozenset({"b", "elsewhere"})

    halves = write_halves(tmp_path, ["a", "b", "c", "d"])
    result, summary = verify_references(*halves, live=Witness(b=MISSING, c=MISSING, d=DELETED), baseline=know)
    assert (asked, summary.newly_missing_count, result.status) == ([["b", "c"]], 1, CheckStatus.INCOMPLETE)


@pytest.mark.parametrize(("count", "asked"), [(1, 1), (9, 1), (10, 0), (100, 0)])
def test_a_bucket_without_any_of_many_objects_makes_no_baseline(
    tmp_path: Path, count: int, asked: int
) -> None:
    """Another bucket was configured, or it is not filled yet.

    Otherwise a total loss would never be reported.
    """
    known: list[Sequence[str]] = []

    def know(keys: Sequence[str]) -> frozenset[str]:
        known.append(keys)
        return frozenset(keys)

    keys = [f"key-{number:03}" for number in range(count)]
    halves = write_halves(tmp_path, keys, archived=())
    result, summary = verify_references(*halves, live=Witness(**dict.fromkeys(keys, MISSING)), baseline=know)
    assert (len(known), summary.newly_missing_count) == (asked, 0 if asked else count)
    assert result.status is (CheckStatus.PASSED if asked else CheckStatus.INCOMPLETE)


@pytest.mark.parametrize("verdict", [LOST, UNKNOWN])
def test_a_lost_or_unknown_object_prevents_a_new_baseline(tmp_path: Path, verdict: ReferenceVerdict) -> None:
    asked: list[list[str]] = []

    def know(keys: Sequence[str]) -> frozenset[str]:
        asked.append(list(keys))
        return frozenset(keys)

    _result, summary = verify_references(
        *write_halves(tmp_path, ["a", "b", "c"]), live=Witness(b=MISSING, c=verdict), baseline=know
    )
    assert (asked, summary.newly_missing_count) == ([], 1)


def test_a_thousand_missing_objects_are_named_worst_first(tmp_path: Path) -> None:
    keys = [f"m{number:04}" for number in range(1001)]
    live = Witness(**dict.fromkeys(keys, MISSING))
    live.verdicts[keys[-1]] = LOST
    _result, summary = verify_references(*write_halves(tmp_path, keys), live=live)
    assert len(summary.missing) == 1000
    assert summary.missing[0] == MissingReference(key=keys[-1], verdict=LOST)
    assert summary.verdict_counts == {MISSING: 1000, LOST: 1}


def test_recorded_verdicts_apply_to_the_same_missing_objects_only(tmp_path: Path) -> None:
    halves = write_halves(tmp_path, ["a", "b"])
    _result, known = verify_references(*halves, live=Witness(b=DELETED))
    live = Witness(b=LOST)
    result, summary = verify_references(*halves, live=live, known=known)
    assert (summary, result.status, live.asked) == (known, CheckStatus.PASSED, [])
    result, _summary = verify_references(
        *halves, live=live, known=known.model_copy(update={"missing_sha256": "0" * 64})
    )
    assert result.status is CheckStatus.FAILED


def test_recorded_verdicts_are_not_used_if_nothing_is_missing(tmp_path: Path) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    known = ReferenceSummary(state=ReferenceState.READ, reference_count=7, missing_sha256=empty)
    _result, summary = verify_references(*write_halves(tmp_path, ["a"]), live=None, known=known)
    assert summary.reference_count == 1


def test_halves_of_two_points_fail_with_the_reason_in_both(tmp_path: Path) -> None:
    dump, archive = write_halves(tmp_path, ["a"])
    write_archive(archive, [], point_id="20261121_020000")
    result, summary = verify_references(dump, archive, live=None)
    reason = (
        f"{DUMP_NAME}: {ARCHIVE_NAME}: the dump is from point 20261122_020000, but the archive is "
        "from 20261121_020000"
    )
    assert (result.check, result.status, result.summary, result.figures) == (
        Check.REFERENCES_RESOLVE,
        CheckStatus.FAILED,
        reason,
        {},
    )
    assert summary == ReferenceSummary(state=ReferenceState.READ, note=reason)


@pytest.mark.parametrize(
    ("seconds", "status"), [(1, CheckStatus.FAILED), (0, CheckStatus.PASSED), (-1, CheckStatus.PASSED)]
)
def test_a_bucket_must_not_be_listed_before_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, status: CheckStatus
) -> None:
    taken_at = artifacts.TAKEN_AT
    monkeypatch.setattr(artifacts, "TAKEN_AT", taken_at + timedelta(seconds=seconds))
    write_dump(tmp_path / DUMP_NAME, [TableText("jobs", (b"1",))], references=["a"])
    monkeypatch.setattr(artifacts, "TAKEN_AT", taken_at)
    write_archive(tmp_path / ARCHIVE_NAME, [(make_entry("a", b"1"), b"1")])
    result, _summary = verify_references(tmp_path / DUMP_NAME, tmp_path / ARCHIVE_NAME, live=None)
    assert result.status is status


def test_without_a_query_the_references_are_unknown_and_the_reason_is_kept(tmp_path: Path) -> None:
    dump, archive = write_halves(tmp_path, ["a"])
    text = make_dump_text([TableText("jobs", (b"1",))])
    write_dump_text(
        dump,
        text,
        references=["b"],
        reference_state=ReferenceState.NOT_CONFIGURED,
        reference_note="no table has keys",
    )
    live = Witness()
    result, summary = verify_references(dump, archive, live=live)
    assert (result.check, result.status, result.summary, result.figures) == (
        Check.REFERENCES_RESOLVE,
        CheckStatus.NOT_CONFIGURED,
        "no table has keys",
        {},
    )
    assert summary == ReferenceSummary(state=ReferenceState.NOT_CONFIGURED, note="no table has keys")
    assert live.asked == []


def test_a_key_that_is_not_text_is_missing_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our dumps hold none; a crafted one may, in JSON's own escapes."""
    monkeypatch.setattr(
        dump_file,
        "_to_line",
        lambda name, value: f"{dump_file.LINE_PREFIX}{json.dumps({name: value})}\n".encode(),
    )
    halves = write_halves(tmp_path, ["a", "\udcff"])
    _result, summary = verify_references(*halves, live=None)
    assert summary.missing_sha256 == hashlib.sha256(b"\xff").hexdigest()


@pytest.mark.parametrize(
    ("opened_at", "is_right"),
    [(TAKEN_AT, True), (TAKEN_AT + timedelta(seconds=1), False), (None, False)],
    ids=["listed behind the snapshot", "listed before it", "a file of before that was kept"],
)
def test_the_order_of_snapshot_and_listing_uses_one_clock(
    tmp_path: Path, opened_at: datetime | None, *, is_right: bool
) -> None:
    """The database server's clock may be ahead of that of the host that lists the bucket."""
    dump, archive = tmp_path / "dump.sql.gz", tmp_path / "archive.tar.gz"
    ahead = TAKEN_AT + timedelta(seconds=10)
    write_dump_text(
        dump,
        make_dump_text([TableText("jobs", (b"1",))]),
        {("public", "jobs"): 1},
        snapshot_at=ahead,
        snapshot_opened_at=opened_at,
    )
    write_archive(archive, [])
    result, _summary = verify_references(dump, archive, live=None)
    assert result.is_passed is is_right
