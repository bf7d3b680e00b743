"""What was proven of a recovery point: checks, the levels they add up to, and when each was seen to hold.

Add a check when a new proof exists, with the level it belongs to. A result is bound to the digests of the
files it was found on, so that it says nothing of other files. Values only: `verify` and `restore` find the
results, `catalog` keeps them. Unknown is never success.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import AliasChoices, AwareDatetime, Field

from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, FrozenModel

Figure = int | float | str | bool


class VerificationLevel(str, Enum):
    """How far a recovery point is verified, lowest first."""

    STORED = "stored"
    PARSED = "parsed"
    COHERENT = "coherent"
    RESTORED = "restored"
    EQUAL = "equal"


class CheckStatus(str, Enum):
    """What is known of a check. Only PASSED is success."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "missing in the live system"
    """The backup has all there is; the live system lacks objects that it had."""
    NOT_CONFIGURED = "not configured"
    UNKNOWN = "unknown"


class Check(str, Enum):
    """A sentence about a recovery point that is either seen to hold or not."""

    DUMP_IS_STORED = "dump_is_stored"
    DUMP_IS_COMPLETE = "dump_is_complete"
    DUMP_MATCHES_SNAPSHOT = "dump_matches_snapshot"
    ARCHIVE_IS_STORED = "archive_is_stored"
    ARCHIVE_IS_READABLE = "archive_is_readable"
    EVERY_OBJECT_IS_ARCHIVED = "every_object_is_archived"
    REFERENCES_RESOLVE = "references_resolve"
    DATABASE_IS_RESTORED = "database_is_restored"
    BUCKET_IS_RESTORED = "bucket_is_restored"
    DATABASE_IS_EQUAL = "database_is_equal"
    BUCKET_IS_EQUAL = "bucket_is_equal"
    REFERENCED_PDFS_OPEN = "referenced_pdfs_open"
    OPERATOR_CHECKS_HOLD = "operator_checks_hold"
    DRILL_IS_IN_TIME = "drill_is_in_time"


CHECKS_BY_LEVEL: dict[VerificationLevel, tuple[Check, ...]] = {
    VerificationLevel.STORED: (Check.DUMP_IS_STORED, Check.ARCHIVE_IS_STORED),
    VerificationLevel.PARSED: (
        Check.DUMP_IS_COMPLETE,
        Check.DUMP_MATCHES_SNAPSHOT,
        Check.ARCHIVE_IS_READABLE,
        Check.EVERY_OBJECT_IS_ARCHIVED,
    ),
    VerificationLevel.COHERENT: (Check.REFERENCES_RESOLVE,),
    VerificationLevel.RESTORED: (Check.DATABASE_IS_RESTORED, Check.BUCKET_IS_RESTORED),
    VerificationLevel.EQUAL: (Check.DATABASE_IS_EQUAL, Check.BUCKET_IS_EQUAL),
}
DATABASE_CHECKS = (Check.DUMP_IS_STORED, Check.DUMP_IS_COMPLETE, Check.DUMP_MATCHES_SNAPSHOT)
BUCKET_CHECKS = (Check.ARCHIVE_IS_STORED, Check.ARCHIVE_IS_READABLE, Check.EVERY_OBJECT_IS_ARCHIVED)
POINT_CHECKS = (Check.REFERENCES_RESOLVE,)
STORED_CHECKS = {ArtifactKind.DATABASE: Check.DUMP_IS_STORED, ArtifactKind.BUCKET: Check.ARCHIVE_IS_STORED}
"""What every byte of a half's file is read for."""
DRILL_ONLY_CHECKS = (Check.REFERENCED_PDFS_OPEN, Check.OPERATOR_CHECKS_HOLD, Check.DRILL_IS_IN_TIME)
"""What a drill finds beside the levels: of the data itself, or of the time it took. A point may be whole
where these fail."""
COMMIT_CHECKS = (*DATABASE_CHECKS, *BUCKET_CHECKS, *POINT_CHECKS)


class CheckResult(FrozenModel):
    """What was found of one check, on which bytes, and when."""

    check: Annotated[Check, Field(validation_alias=AliasChoices("check", "claim"))]
    status: CheckStatus
    summary: str
    figures: dict[str, Figure] = {}
    checked_at: AwareDatetime
    checked_by: str = ""
    artifacts: dict[ArtifactKind, str] = {}
    """The SHA-256 of each file that was looked at."""
    file_modified_ns: int | None = None
    """Of the checks on a file's bytes: when the file was last modified, in nanoseconds since 1970, as it was
    read."""

    @property
    def is_passed(self) -> bool:
        """Whether the check was seen to hold; unknown and not configured are not that."""
        return self.status is CheckStatus.PASSED


class LevelResult(FrozenModel):
    """How a recovery point stands on one level."""

    level: VerificationLevel
    status: CheckStatus
    checked_at: AwareDatetime | None
    """The oldest of the checks' times: the level is no fresher than that."""


class Verification(FrozenModel):
    """All that was found of one recovery point so far, newest result per check."""

    format_version: int = FORMAT_VERSION
    point_id: str
    results: tuple[CheckResult, ...] = ()

    def result(self, check: Check) -> CheckResult | None:
        """The newest result of this check, or None when nobody looked."""
        return next((result for result in self.results if result.check is check), None)

    def with_results(self, new_results: tuple[CheckResult, ...]) -> Verification:
        """The same with these results in place of older ones of the same checks."""
        replaced = {result.check for result in new_results}
        kept = tuple(result for result in self.results if result.check not in replaced)
        in_order = sorted((*kept, *new_results), key=lambda result: list(Check).index(result.check))
        return self.model_copy(update={"results": tuple(in_order), "format_version": FORMAT_VERSION})

    def level(self, level: VerificationLevel) -> LevelResult:
        """How the point stands on this level: failed if any check failed, passed if all passed, otherwise
        unknown.
        """
        found = [self.result(check) for check in CHECKS_BY_LEVEL[level]]
        results = [result for result in found if result is not None]
        statuses = {result.status for result in results}
        if CheckStatus.FAILED in statuses:
            status = CheckStatus.FAILED
        elif len(results) < len(found):
            status = CheckStatus.UNKNOWN
        elif CheckStatus.INCOMPLETE in statuses:
            status = CheckStatus.INCOMPLETE
        elif statuses == {CheckStatus.PASSED}:
            status = CheckStatus.PASSED
        elif statuses == {CheckStatus.NOT_CONFIGURED}:
            status = CheckStatus.NOT_CONFIGURED
        else:
            status = CheckStatus.UNKNOWN
        checked_at = min((result.checked_at for result in results), default=None)
        return LevelResult(level=level, status=status, checked_at=checked_at)

    def levels(self) -> tuple[LevelResult, ...]:
        """How the point stands on every level, lowest first."""
        return tuple(self.level(level) for level in VerificationLevel)

    @property
    def is_failed(self) -> bool:
        """Whether a check that a level stands on was seen to fail."""
        return any(
            result.status is CheckStatus.FAILED
            for result in self.results
            if result.check not in DRILL_ONLY_CHECKS
        )

    @property
    def is_verified(self) -> bool:
        """Whether the bytes are right, both halves are whole, and no referenced object was lost."""
        return (
            self.level(VerificationLevel.STORED).status is CheckStatus.PASSED
            and self.level(VerificationLevel.PARSED).status is CheckStatus.PASSED
            and self.level(VerificationLevel.COHERENT).status
            in {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE}
        )

    @property
    def is_coherent(self) -> bool:
        """Whether the live system had every object that the database referred to, but those known to be
        missing.
        """
        return self.level(VerificationLevel.COHERENT).status in {
            CheckStatus.PASSED,
            CheckStatus.NOT_CONFIGURED,
        }
