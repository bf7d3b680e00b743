"""Check results of recovery points and the verification levels that follow from them.

Add a check together with the level to which it belongs. A result is bound to the digests of the files that
were checked, so it does not apply to other files. Values only: `verify` and `restore` produce the results,
`catalog` stores them. An unknown result never counts as success.
"""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import Annotated

from pydantic import AliasChoices, AwareDatetime, Field

from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, FrozenModel
from schedgen_backups.core.system.files import FileIdentity

Figure = int | float | str | bool


class VerificationLevel(str, Enum):
    """How far a recovery point is verified, lowest first."""

    STORED = "stored"
    PARSED = "parsed"
    COHERENT = "coherent"
    RESTORED = "restored"
    EQUAL = "equal"


class CheckStatus(str, Enum):
    """The result of a check. Only PASSED is success."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "missing in the live system"
    """The backup contains everything that exists; the live system itself lacks referenced objects."""
    SAMPLED = "sample"
    """What was restored is correct, but it is a sample of the objects: the others are unknown."""
    NOT_CONFIGURED = "not configured"
    UNKNOWN = "unknown"


class Check(str, Enum):
    """A statement about a recovery point that a check confirms or refutes."""

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
"""The checks that read every byte of an artifact."""
KINDS_BY_CHECK: dict[Check, frozenset[ArtifactKind]] = {
    **dict.fromkeys(
        (*DATABASE_CHECKS, Check.DATABASE_IS_RESTORED, Check.DATABASE_IS_EQUAL),
        frozenset({ArtifactKind.DATABASE}),
    ),
    **dict.fromkeys(
        (*BUCKET_CHECKS, Check.BUCKET_IS_RESTORED, Check.BUCKET_IS_EQUAL), frozenset({ArtifactKind.BUCKET})
    ),
}
"""Of what a check is; every other check is of a database together with its bucket."""
BOTH_KINDS = frozenset(ArtifactKind)
DRILL_ONLY_CHECKS = (Check.REFERENCED_PDFS_OPEN, Check.OPERATOR_CHECKS_HOLD, Check.DRILL_IS_IN_TIME)
"""Checks of a drill that belong to no level: on the data itself, or on the duration. They may fail for an
intact point."""
COMMIT_CHECKS = (*DATABASE_CHECKS, *BUCKET_CHECKS, *POINT_CHECKS)


class CheckResult(FrozenModel):
    """The result of one check, with the files it was run on and the time."""

    check: Annotated[Check, Field(validation_alias=AliasChoices("check", "claim"))]
    source: str = ""
    """In a point of several databases or buckets, of which of them; empty in any other."""
    status: CheckStatus
    summary: str
    figures: dict[str, Figure] = {}
    checked_at: AwareDatetime
    checked_by: str = ""
    artifacts: dict[ArtifactKind, str] = {}
    """The SHA-256 of each file that was checked."""
    file_modified_ns: int | None = None
    """Modification time of the file when it was read, in nanoseconds since 1970; only for checks that read a
    whole file."""
    file_identity: FileIdentity | None = None
    """The file as it was read: the result applies without reading it again while it has this identity."""
    oldest_reading_at: AwareDatetime | None = None
    """Of an artifact in packs: when the pack was read whose reading is longest ago; None for at the check."""

    @property
    def name(self) -> str:
        """The check, and in a point of several databases or buckets its source."""
        return f"{self.check.value} of {self.source}" if self.source else self.check.value

    @property
    def is_passed(self) -> bool:
        """Whether the check passed; false for unknown and not configured."""
        return self.status is CheckStatus.PASSED


class LevelResult(FrozenModel):
    """The status of a recovery point on one level."""

    level: VerificationLevel
    status: CheckStatus
    checked_at: AwareDatetime | None
    """The time of the oldest check in the level."""
    proved_at: AwareDatetime | None
    """The time of the oldest reading of bytes that the level relies on: earlier than the check, if packs were
    read before. It is the age of the level."""


class Verification(FrozenModel):
    """All results of one recovery point so far, the newest per check."""

    format_version: int = FORMAT_VERSION
    point_id: str
    results: tuple[CheckResult, ...] = ()
    kinds: Annotated[frozenset[ArtifactKind], Field(exclude=True)] = BOTH_KINDS
    """What the point has by its manifest: checks of anything else do not concern it."""

    def result(self, check: Check, source: str = "") -> CheckResult | None:
        """Return the newest result of this check on this source, or None when it was never run."""
        found = (result for result in self.results if result.check is check and result.source == source)
        return next(found, None)

    def with_results(self, new_results: tuple[CheckResult, ...]) -> Verification:
        """Return a copy in which these results replace older ones of the same checks and sources."""
        replaced = {(result.check, result.source) for result in new_results}
        kept = tuple(result for result in self.results if (result.check, result.source) not in replaced)
        in_order = sorted((*kept, *new_results), key=lambda result: list(Check).index(result.check))
        return self.model_copy(update={"results": tuple(in_order), "format_version": FORMAT_VERSION})

    def level(self, level: VerificationLevel) -> LevelResult:
        """Return the point's status on this level.

        Failed if any check failed, passed if all passed, otherwise incomplete, sample, not configured or
        unknown.
        """
        results, known = self._known_levels
        if results is not self.results:
            # A copy with other results took it along.
            return self._judge(level)
        if level not in known:
            known[level] = self._judge(level)
        return known[level]

    @cached_property
    def _known_levels(self) -> tuple[tuple[CheckResult, ...], dict[VerificationLevel, LevelResult]]:
        """The levels judged so far, of these results: the same value is asked at each scrape and tick."""
        return self.results, {}

    def _judge(self, level: VerificationLevel) -> LevelResult:
        checks = [
            check for check in CHECKS_BY_LEVEL[level] if KINDS_BY_CHECK.get(check, BOTH_KINDS) <= self.kinds
        ]
        if not checks:
            return LevelResult(
                level=level, status=CheckStatus.NOT_CONFIGURED, checked_at=None, proved_at=None
            )
        found = [self.result(check) for check in checks]
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
        elif CheckStatus.SAMPLED in statuses and statuses <= {CheckStatus.PASSED, CheckStatus.SAMPLED}:
            status = CheckStatus.SAMPLED
        elif statuses == {CheckStatus.NOT_CONFIGURED}:
            status = CheckStatus.NOT_CONFIGURED
        else:
            status = CheckStatus.UNKNOWN
        return LevelResult(
            level=level,
            status=status,
            checked_at=min((result.checked_at for result in results), default=None),
            proved_at=min(
                (result.oldest_reading_at or result.checked_at for result in results), default=None
            ),
        )

    def levels(self) -> tuple[LevelResult, ...]:
        """Return the point's status on every level, lowest first."""
        return tuple(self.level(level) for level in VerificationLevel)

    @property
    def is_failed(self) -> bool:
        """Whether a check that belongs to a level failed."""
        return any(
            result.status is CheckStatus.FAILED
            for result in self.results
            if result.check not in DRILL_ONLY_CHECKS
        )

    @property
    def is_verified(self) -> bool:
        """Whether the bytes are correct, both halves are complete, and no referenced object was lost."""
        return (
            self.level(VerificationLevel.STORED).status is CheckStatus.PASSED
            and self.level(VerificationLevel.PARSED).status is CheckStatus.PASSED
            and self.level(VerificationLevel.COHERENT).status
            in {CheckStatus.PASSED, CheckStatus.NOT_CONFIGURED, CheckStatus.INCOMPLETE}
        )

    @property
    def is_coherent(self) -> bool:
        """Whether the live system had every referenced object, apart from those known to be missing."""
        return self.level(VerificationLevel.COHERENT).status in {
            CheckStatus.PASSED,
            CheckStatus.NOT_CONFIGURED,
        }
