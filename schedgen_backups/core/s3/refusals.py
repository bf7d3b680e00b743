"""Translate an S3 server's refusals into our errors: object, login, clock, or a busy server."""

from __future__ import annotations

from http import HTTPStatus

from minio.error import S3Error

from schedgen_backups.core.errors import BucketError, BucketMissingError, BucketUnreachableError, ObjectError
from schedgen_backups.core.settings import BucketSettings

GONE_CODES = frozenset({"NoSuchKey", "NoSuchVersion"})
LOGIN_CODES = frozenset(
    {
        *(
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "TokenRefreshRequired",
            "CredentialsNotSupported",
        ),
        *("AccountProblem", "NotSignedUp", "InvalidPayer", "InvalidSecurity"),
    }
)
"""Errors that affect every object (S3 API reference, list of error codes)."""
DENIED_CODES = frozenset({"AccessDenied", "AllAccessDisabled"})
"""Errors that may affect a single object."""
_KEYS_HINT = (
    "Check MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or RESTORE_MINIO_ACCESS_KEY and "
    "RESTORE_MINIO_SECRET_KEY: s3:ListBucket, s3:GetObject and "
    "s3:GetObjectTagging are needed to read, and s3:PutObject, s3:PutObjectTagging and s3:DeleteObject to "
    "restore into a bucket."
)
CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestNotYetValid"})
REGION_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "TemporaryRedirect",
        "IllegalLocationConstraintException",
    }
)
BUSY_CODES = frozenset(
    {
        *(
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "RequestTimeout",
            "TooManyRequests",
            "Throttling",
            "ThrottlingException",
            "RequestLimitExceeded",
        ),
        *("BandwidthLimitExceeded", "ServiceUnavailable", "InternalError", "OperationAborted"),
    }
)
BUSY_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class BucketStalledError(BucketUnreachableError):
    """The server stalled or was too slow. Each further try takes the whole limit again."""


class ObjectGoneError(ObjectError):
    """The object does not exist, or no longer. Not retryable: another request gets the same answer."""

    is_retryable = False


class ObjectChangedError(ObjectError):
    """The object no longer has the requested ETag."""


class ObjectRefusedError(ObjectError):
    """The object may not be read, or has a key that the SDK does not send. Permanent."""

    is_retryable = False


def explain_refusal(settings: BucketSettings, key: str, error: S3Error) -> BucketError:
    """Return the error for a refused request; `key` is empty for requests to the bucket."""
    code = error.code or ""
    status = error.response.status if error.response else 0
    server = f"the S3 server at {settings.endpoint}"
    message = f"{server} answered {code or status}{name_object(key)}: {error.message or ''}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in BUSY_STATUSES or code in BUSY_CODES:
        return BucketUnreachableError(message, hint="Check the server's log; run the backup again.")
    return _explain_login(settings, code) or _explain_object(settings, key, code, status, message)


def make_missing_bucket_error(settings: BucketSettings) -> BucketMissingError:
    """Return the error for a missing bucket."""
    return BucketMissingError(
        f"the S3 server at {settings.endpoint} has no bucket {settings.bucket}",
        hint="Check MINIO_BUCKET, or create the bucket.",
    )


def name_object(key: str) -> str:
    """Return the part of a message that names the object; empty for the bucket."""
    return f" for object {key!r}" if key else ""


def _explain_login(settings: BucketSettings, code: str) -> BucketError | None:
    """Return the error for a refusal that affects every request, or None."""
    server = f"the S3 server at {settings.endpoint}"
    if code == "NoSuchBucket":
        return make_missing_bucket_error(settings)
    if code in CLOCK_CODES:
        hint = (
            "Set the clock of this machine, or that of the S3 server: requests are signed with the "
            "time, which may differ by at most 15 minutes."
        )
        return BucketError(f"{server} refuses requests because the clocks differ: {code}", hint=hint)
    if code in REGION_CODES:
        hint = "Check MINIO_REGION and MINIO_ENDPOINT: they must be those of the bucket."
        return BucketError(f"{server} refuses requests for the region {settings.region}: {code}", hint=hint)
    if code in LOGIN_CODES:
        return BucketError(
            f"{server} refuses access to the bucket {settings.bucket}: {code}", hint=_KEYS_HINT
        )
    return None


def _explain_object(settings: BucketSettings, key: str, code: str, status: int, message: str) -> BucketError:
    if code in GONE_CODES:
        return ObjectGoneError(f"object {key!r} is not in the bucket")
    if code == "PreconditionFailed":
        return ObjectChangedError(f"object {key!r} was replaced in the meantime")
    kind = (
        BucketError
        if not key
        else ObjectRefusedError
        if status == HTTPStatus.FORBIDDEN or code in DENIED_CODES
        else ObjectError
    )
    if code in DENIED_CODES:
        what = f"the object {key!r}" if key else f"the bucket {settings.bucket}"
        return kind(f"the S3 server at {settings.endpoint} refuses access to {what}: {code}", hint=_KEYS_HINT)
    if key and code == "InvalidObjectState":
        return ObjectRefusedError(
            message,
            hint="The object is in cold storage: restore it on the S3 server, or move it to another storage "
            "class.",
        )
    return kind(message, hint="Check the server's log.")
