"""Check whether every object that the database refers to is in the archive: the level `coherent`.

Reads the references from the dump and the keys from the archive, and gives each missing object a verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.errors import PackKeyError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.tar_member import digest_name
from schedgen_backups.core.model import MissingReference, ReferenceState, ReferenceSummary, ReferenceVerdict
from schedgen_backups.core.patterns import matches_any_key
from schedgen_backups.core.verify.files import make_result, name_some
from schedgen_backups.core.verify.live_system import LiveSystem

NAMED_MISSING = 1000
"""Objects that a summary names."""
_MIN_REFERENCES = 10
"""When none of at least this many objects exists, the bucket is probably the wrong one or not filled yet; an
application has hardly lost all of its objects."""
Baseline = Callable[[Sequence[str]], frozenset[str]]
"""Gets the keys that the live system lacks; returns those whose absence is already known."""


def accept_nothing(_keys: Sequence[str]) -> frozenset[str]:
    """Return no known missing objects."""
    return frozenset()


def verify_references(
    dump_path: Path,
    archive_path: Path,
    keys: PackKeys = NO_KEYS,
    *,
    live: LiveSystem | None,
    baseline: Baseline = accept_nothing,
    known: ReferenceSummary | None = None,
) -> tuple[CheckResult, ReferenceSummary]:
    """Check `references_resolve`: every referenced object is archived, deleted or known to be missing.

    Objects that the archive excludes by its patterns are only counted. Lost and unknown objects fail the
    check. Objects that the live system lacks and `baseline` does not contain make it incomplete.

    `live` judges missing objects, unless the verdicts in `known` are for exactly the same ones. Without
    either, they are unknown, which is a failure. Errors of `live` are raised.
    """
    try:
        with open_dump(dump_path, keys) as dump, open_archive(archive_path, keys) as archive:
            record = dump.record
            if record.point_id != archive.record.point_id:
                raise VerificationError(
                    f"the dump is from point {record.point_id}, but the archive is from "
                    f"{archive.record.point_id}"
                )
            # Compare times of one clock if possible: the database server's may be ahead of this host's.
            if archive.record.listed_at < (record.snapshot_opened_at or record.snapshot_at):
                raise VerificationError(
                    "the bucket was listed before the database's snapshot, so uploads in between may be "
                    "missing"
                )
            if record.reference_state is ReferenceState.NOT_CONFIGURED:
                summary = ReferenceSummary(state=ReferenceState.NOT_CONFIGURED, note=record.reference_note)
                return make_result(
                    Check.REFERENCES_RESOLVE, CheckStatus.NOT_CONFIGURED, record.reference_note, {}
                ), summary
            absent = _find_missing(dump.read_references(), archive.read_keys())
            missing = [key for key in absent if not matches_any_key(archive.record.excluded_patterns, key)]
    except VerificationError as error:
        failed = make_result(Check.REFERENCES_RESOLVE, CheckStatus.FAILED, error.message, {})
        return failed, ReferenceSummary(state=ReferenceState.READ, note=error.message)
    except PackKeyError as error:
        unknown = make_result(Check.REFERENCES_RESOLVE, CheckStatus.UNKNOWN, error.message, {})
        return unknown, ReferenceSummary(state=ReferenceState.READ, note=error.message)
    summary = _judge(record.reference_count, missing, len(absent) - len(missing), live, known, baseline)
    counts = ", ".join(f"{count} {verdict.value}" for verdict, count in summary.verdict_counts.items())
    text = f"{summary.resolved_count} of {summary.reference_count} references are in the archive" + (
        f"; {counts}" if counts else ""
    )
    status = (
        CheckStatus.FAILED
        if not summary.is_coherent
        else CheckStatus.INCOMPLETE
        if summary.newly_missing_count
        else CheckStatus.PASSED
    )
    if (
        summary.reference_count
        and summary.verdict_counts.get(ReferenceVerdict.EXCLUDED) == summary.reference_count
    ):
        # Nothing was proven: every referenced object is excluded.
        status = CheckStatus.NOT_CONFIGURED
    if status is CheckStatus.INCOMPLETE:
        text += f", {summary.newly_missing_count} of them new"
    if status is not CheckStatus.PASSED and summary.missing:
        text += f": {name_some([reference.key for reference in summary.missing])}"
    figures: dict[str, Figure] = {
        "references": summary.reference_count,
        "resolved": summary.resolved_count,
        "missing": len(missing),
    }
    figures["newly_missing"] = summary.newly_missing_count
    return make_result(Check.REFERENCES_RESOLVE, status, text, figures), summary


def _find_missing(references: Iterator[list[str]], archived: Iterator[str]) -> list[str]:
    # 16 bytes per archived object instead of its key.
    have = {digest_name(key) for key in archived}
    return [key for page in references for key in page if digest_name(key) not in have]


def _judge(
    count: int,
    missing: list[str],
    excluded_count: int,
    live: LiveSystem | None,
    known: ReferenceSummary | None,
    baseline: Baseline,
) -> ReferenceSummary:
    fingerprint = hashlib.sha256("\0".join(missing).encode("utf-8", "surrogateescape")).hexdigest()
    if missing and known is not None and known.missing_sha256 == fingerprint:
        return known
    verdicts = live.judge(missing) if live is not None and missing else {}
    judged = [
        MissingReference(key=key, verdict=verdicts.get(key, ReferenceVerdict.UNKNOWN)) for key in missing
    ]
    counts: dict[ReferenceVerdict, int] = (
        {ReferenceVerdict.EXCLUDED: excluded_count} if excluded_count else {}
    )
    for reference in judged:
        counts[reference.verdict] = counts.get(reference.verdict, 0) + 1
    ranked = sorted(
        judged, key=lambda reference: list(ReferenceVerdict).index(reference.verdict), reverse=True
    )
    is_wrong_bucket = len(missing) == count - excluded_count >= _MIN_REFERENCES
    # When verdicts are incomplete or the bucket has none of the objects, the baseline must not be updated.
    is_judged = (
        live is not None
        and not counts.keys() & {ReferenceVerdict.LOST, ReferenceVerdict.UNKNOWN}
        and not is_wrong_bucket
    )
    absent = [reference.key for reference in judged if reference.verdict is ReferenceVerdict.MISSING]
    return ReferenceSummary(
        state=ReferenceState.READ,
        newly_missing_count=len(set(absent) - (baseline(absent) if is_judged else frozenset())),
        reference_count=count,
        resolved_count=count - excluded_count - len(missing),
        verdict_counts=counts,
        missing=tuple(ranked[:NAMED_MISSING]),
        missing_sha256=fingerprint if missing else "",
    )
