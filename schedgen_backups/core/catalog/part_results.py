"""Check results of a point that has several databases or buckets, together and for each part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schedgen_backups.core.catalog.check_results import (
    BOTH_KINDS,
    KINDS_BY_CHECK,
    Check,
    CheckResult,
    CheckStatus,
    Verification,
)
from schedgen_backups.core.model import PartName

_WORST_FIRST = (
    CheckStatus.FAILED,
    CheckStatus.UNKNOWN,
    CheckStatus.INCOMPLETE,
    CheckStatus.SAMPLED,
    CheckStatus.NOT_CONFIGURED,
    CheckStatus.PASSED,
)
"""What is true of one part is not true of the point unless it is true of every part."""


def name_source(check: Check, part: PartName) -> str:
    """Return of which database, bucket or both a result of this check is, in this part of a point."""
    kinds = KINDS_BY_CHECK.get(check, BOTH_KINDS)
    return str(part) if len(kinds) > 1 else part.get_source(*kinds)


def label_results(results: Sequence[CheckResult], part: PartName) -> tuple[CheckResult, ...]:
    """Return results of one part as they are stored with the point."""
    return tuple(result.model_copy(update={"source": name_source(result.check, part)}) for result in results)


def keep_worst(results: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """Return one result per check and source: the worst, such as of a bucket that two parts have."""
    worst: dict[tuple[Check, str], CheckResult] = {}
    for result in results:
        other = worst.setdefault((result.check, result.source), result)
        if _WORST_FIRST.index(result.status) < _WORST_FIRST.index(other.status):
            worst[result.check, result.source] = result
    return tuple(worst.values())


def select_part_results(verification: Verification, part: PartName) -> Verification:
    """Return the results of one part, as if it were a point of its own."""
    own = tuple(
        result.model_copy(update={"source": ""})
        for result in verification.results
        if result.source == name_source(result.check, part)
    )
    return verification.model_copy(update={"results": own, "kinds": part.kinds})


def combine_parts(verification: Verification, parts: Sequence[PartName]) -> Verification:
    """Return one result per check for the whole point: passed only if it passed for every part.

    A part without a result makes it unknown. Its times are the oldest.
    """
    combined: list[CheckResult] = []
    for check in Check:
        concerned = [part for part in parts if _is_concerned(check, part)]
        if check is Check.REFERENCED_PDFS_OPEN:
            # A drill says of each part that no rows refer to objects.
            concerned = concerned or [*parts]
        wanted = dict.fromkeys(name_source(check, part) for part in concerned)
        found = {
            result.source: result for result in keep_worst(verification.results) if result.check is check
        }
        known = [found[source] for source in wanted if source in found]
        if known:
            combined.append(_combine(known, [source for source in wanted if source not in found]))
        elif check is Check.REFERENCES_RESOLVE and not wanted and combined:
            combined.append(
                CheckResult(
                    check=check,
                    status=CheckStatus.NOT_CONFIGURED,
                    summary="no database of the point refers to one of its buckets",
                    checked_at=min(result.checked_at for result in combined),
                )
            )
    kinds = frozenset(kind for part in parts for kind in part.kinds)
    return verification.model_copy(update={"results": tuple(combined), "kinds": kinds})


def _is_concerned(check: Check, part: PartName) -> bool:
    kinds = KINDS_BY_CHECK.get(check, BOTH_KINDS)
    if check in {Check.OPERATOR_CHECKS_HOLD, Check.DRILL_IS_IN_TIME}:
        return True
    return kinds <= part.kinds


def _combine(known: Sequence[CheckResult], missing: Sequence[str]) -> CheckResult:
    status = min((result.status for result in known), key=_WORST_FIRST.index)
    texts = [f"{result.source}: {result.summary}" for result in known]
    if missing:
        texts += [f"{source}: was never performed" for source in missing]
        status = CheckStatus.FAILED if status is CheckStatus.FAILED else CheckStatus.UNKNOWN
    readings = [result.oldest_reading_at for result in known if result.oldest_reading_at is not None]
    return CheckResult(
        check=known[0].check,
        status=status,
        summary="; ".join(texts),
        checked_at=min(result.checked_at for result in known),
        checked_by=known[0].checked_by if len({result.checked_by for result in known}) == 1 else "",
        oldest_reading_at=min(readings, default=None),
    )
