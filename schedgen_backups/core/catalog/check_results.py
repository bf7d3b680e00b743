"""What was proven of a recovery point: claims, the rungs they add up to, and when each was seen to hold.

Add a claim when a new proof exists, with the rung it belongs to. A result is bound to the digests of the files it was found on, so that it
says nothing of other files. Values only: `verify` and `restore` find the results, `catalog` keeps them. Unknown is never success.
"""

from __future__ import annotations

from enum import Enum

from pydantic import AwareDatetime

from schedgen_backups.core.model import FORMAT_VERSION, ArtifactKind, FrozenModel

Figure = int | float | str | bool


class Rung(str, Enum):
    """How far a recovery point is verified, lowest first."""

    STORED = "stored"
    PARSED = "parsed"
    COHERENT = "coherent"
    RESTORED = "restored"
    EQUAL = "equal"


class ClaimStatus(str, Enum):
    """What is known of a claim. Only PASSED is success."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CONFIGURED = "not configured"
    UNKNOWN = "unknown"


class Claim(str, Enum):
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


CLAIMS_BY_RUNG: dict[Rung, tuple[Claim, ...]] = {
    Rung.STORED: (Claim.DUMP_IS_STORED, Claim.ARCHIVE_IS_STORED),
    Rung.PARSED: (
        Claim.DUMP_IS_COMPLETE,
        Claim.DUMP_MATCHES_SNAPSHOT,
        Claim.ARCHIVE_IS_READABLE,
        Claim.EVERY_OBJECT_IS_ARCHIVED,
    ),
    Rung.COHERENT: (Claim.REFERENCES_RESOLVE,),
    Rung.RESTORED: (Claim.DATABASE_IS_RESTORED, Claim.BUCKET_IS_RESTORED),
    Rung.EQUAL: (Claim.DATABASE_IS_EQUAL, Claim.BUCKET_IS_EQUAL),
}
DATABASE_CLAIMS = (Claim.DUMP_IS_STORED, Claim.DUMP_IS_COMPLETE, Claim.DUMP_MATCHES_SNAPSHOT)
BUCKET_CLAIMS = (Claim.ARCHIVE_IS_STORED, Claim.ARCHIVE_IS_READABLE, Claim.EVERY_OBJECT_IS_ARCHIVED)
POINT_CLAIMS = (Claim.REFERENCES_RESOLVE,)
DRILL_CLAIMS = (Claim.REFERENCED_PDFS_OPEN, Claim.OPERATOR_CHECKS_HOLD, Claim.DRILL_IS_IN_TIME)
"""What a drill finds beside the rungs: of the data itself, or of the time it took. A point may be whole where these fail."""
SEALING_CLAIMS = (*DATABASE_CLAIMS, *BUCKET_CLAIMS, *POINT_CLAIMS)


class ClaimResult(FrozenModel):
    """What was found of one claim, on which bytes, and when."""

    claim: Claim
    status: ClaimStatus
    summary: str
    figures: dict[str, Figure] = {}
    checked_at: AwareDatetime
    checked_by: str = ""
    artifacts: dict[ArtifactKind, str] = {}
    """The SHA-256 of each file that was looked at."""

    @property
    def is_passed(self) -> bool:
        """Whether the claim was seen to hold; unknown and not configured are not that."""
        return self.status is ClaimStatus.PASSED


class RungResult(FrozenModel):
    """How a recovery point stands on one rung."""

    rung: Rung
    status: ClaimStatus
    checked_at: AwareDatetime | None
    """The oldest of the claims' times: the rung is no fresher than that."""


class Verification(FrozenModel):
    """All that was found of one recovery point so far, newest result per claim."""

    format_version: int = FORMAT_VERSION
    point_id: str
    results: tuple[ClaimResult, ...] = ()

    def result(self, claim: Claim) -> ClaimResult | None:
        """The newest result of this claim, or None when nobody looked."""
        return next((result for result in self.results if result.claim is claim), None)

    def with_results(self, new_results: tuple[ClaimResult, ...]) -> Verification:
        """The same with these results in place of older ones of the same claims."""
        replaced = {result.claim for result in new_results}
        kept = tuple(result for result in self.results if result.claim not in replaced)
        in_order = sorted((*kept, *new_results), key=lambda result: list(Claim).index(result.claim))
        return self.model_copy(update={"results": tuple(in_order)})

    def rung(self, rung: Rung) -> RungResult:
        """How the point stands on this rung: failed if any claim failed, passed if all passed, otherwise unknown."""
        found = [self.result(claim) for claim in CLAIMS_BY_RUNG[rung]]
        results = [result for result in found if result is not None]
        statuses = {result.status for result in results}
        if ClaimStatus.FAILED in statuses:
            status = ClaimStatus.FAILED
        elif len(results) < len(found):
            status = ClaimStatus.UNKNOWN
        elif statuses == {ClaimStatus.PASSED}:
            status = ClaimStatus.PASSED
        elif statuses == {ClaimStatus.NOT_CONFIGURED}:
            status = ClaimStatus.NOT_CONFIGURED
        else:
            status = ClaimStatus.UNKNOWN
        checked_at = min((result.checked_at for result in results), default=None)
        return RungResult(rung=rung, status=status, checked_at=checked_at)

    def rungs(self) -> tuple[RungResult, ...]:
        """How the point stands on every rung, lowest first."""
        return tuple(self.rung(rung) for rung in Rung)

    @property
    def is_failed(self) -> bool:
        """Whether a claim that a rung stands on was seen to fail."""
        return any(result.status is ClaimStatus.FAILED for result in self.results if result.claim not in DRILL_CLAIMS)

    @property
    def is_verified(self) -> bool:
        """Whether the bytes are right, both halves are whole, and no referenced object was lost."""
        return (
            self.rung(Rung.STORED).status is ClaimStatus.PASSED
            and self.rung(Rung.PARSED).status is ClaimStatus.PASSED
            and self.rung(Rung.COHERENT).status in {ClaimStatus.PASSED, ClaimStatus.NOT_CONFIGURED}
        )
