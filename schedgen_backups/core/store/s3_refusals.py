"""Translate refusals of S3 and Azure servers, and failures of obstore and the minio SDK, into StoreErrors."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from xml.etree import ElementTree as ET

import urllib3
from minio.error import InvalidResponseError, S3Error, ServerError
from obstore.exceptions import AlreadyExistsError, BaseError

from schedgen_backups.core.errors import KeyExistsError, KeyMissingError, StoreError, StoreUnreachableError
from schedgen_backups.core.s3.refusals import (
    BUSY_CODES,
    BUSY_STATUSES,
    CLOCK_CODES,
    DENIED_CODES,
    GONE_CODES,
    LOGIN_CODES,
    REGION_CODES,
)

_STATUS = re.compile(r"status code: ([0-9]{3})")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_DEBUG_TEXT = "\n\nDebug source:"
"""obstore appends the Rust values of an error after this line."""
_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted"})
"""Another request for the key was in progress (S3 user guide, conditional writes): the outcome is open."""
_FULL_CODES = frozenset(
    {"XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"}
)
_UNSUPPORTED_CODES = frozenset({"NotImplemented", "MethodNotAllowed"})
_MISSING_CODES = frozenset({*GONE_CODES, "BlobNotFound", "ResourceNotFound"})
_NO_CONTAINER_CODES = frozenset({"NoSuchBucket", "ContainerNotFound"})
_LOGIN_CODES = frozenset({*LOGIN_CODES, "AuthenticationFailed", "InvalidAuthenticationInfo"})
_CERTIFICATE_REASONS = {
    "CaUsedAsEndEntity": "its certificate is that of an authority (CA:TRUE), which a server must not use",
    "UnknownIssuer": "its certificate was signed by another authority",
    "NotValidForName": "its certificate is for another host name",
    "Expired": "its certificate has expired",
}
"""By the name of the error in the library webpki, which obstore uses."""
_EXISTS_CODES = frozenset({"PreconditionFailed", "BlobAlreadyExists"})


class UnsupportedRequestError(StoreError):
    """The server does not support the request or one of its headers. Permanent."""


class DeniedError(StoreError):
    """The credential lacks a right. Permanent."""


class RefusedContentError(StoreError):
    """The server received other bytes than announced, or does not accept their checksum."""


@dataclass(frozen=True)
class Refusal:
    """A server's answer other than success."""

    status: int
    code: str
    """As in the S3 API reference, list of error codes; empty if the server names none."""
    message: str

    def explain(self, label: str, key: str) -> StoreError:
        """Return the error for this answer to a request for `key`, or for the whole store if it is empty."""
        about = f" for {key}" if key else ""
        answer = f"{label} answered {self.code or self.status}{about}"
        text = f"{answer}: {self.message}" if self.message else answer
        if self.code in _FULL_CODES or self.status == HTTPStatus.INSUFFICIENT_STORAGE:
            return StoreError(
                text, hint="Free space in the store, raise its quota, or keep fewer points in it."
            )
        if self.code in _UNSUPPORTED_CODES or self.status == HTTPStatus.NOT_IMPLEMENTED:
            return UnsupportedRequestError(
                text,
                hint="Probe the store again: it lacks what it was seen to support, or a proxy removes it.",
            )
        is_broken = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if is_broken or self.status in BUSY_STATUSES or self.code in BUSY_CODES | _CONFLICT_CODES:
            return StoreUnreachableError(
                text, hint="The store is busy or broken. Check its log; the next run tries again."
            )
        return self._explain_access(label, text) or self._explain_object(label, key, text)

    def _explain_access(self, label: str, text: str) -> StoreError | None:
        """Return the error for a refusal that affects every request, or None."""
        if self.code in _NO_CONTAINER_CODES:
            return StoreError(
                f"{label} does not exist: {self.code}",
                hint="Create the bucket or container, or correct the store's URL.",
            )
        if self.code in CLOCK_CODES:
            return StoreError(
                text,
                hint="Set this machine's clock: requests are signed with the time, which may differ by "
                "at most 15 minutes.",
            )
        if self.code in REGION_CODES:
            return StoreError(
                text, hint="Correct the store's region and endpoint: they must be the bucket's."
            )
        if self.code in _LOGIN_CODES or self.status == HTTPStatus.UNAUTHORIZED:
            return DeniedError(text, hint="Correct the store's access key and secret key.")
        return None

    def _explain_object(self, label: str, key: str, text: str) -> StoreError:
        if self.code in _EXISTS_CODES or self.status == HTTPStatus.PRECONDITION_FAILED:
            return KeyExistsError(f"{label} already holds {key}")
        if self.code in _MISSING_CODES or self.status == HTTPStatus.NOT_FOUND:
            return KeyMissingError(f"{label} holds no {key}")
        if self.code in DENIED_CODES or self.status == HTTPStatus.FORBIDDEN:
            return DeniedError(
                text, hint="Give the store's credential the right to do this, if it is meant to have it."
            )
        if self.code in {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "Md5Mismatch"}:
            return RefusedContentError(text, hint="The bytes changed on the way. Check network and memory.")
        return StoreError(text, hint="Check the store's log.")


@contextmanager
def translate_s3_errors(label: str, key: str) -> Generator[None, None, None]:
    """Convert errors of the minio SDK, of its HTTP layer and of obstore into StoreErrors.

    `key` is empty for requests that concern the whole store.
    """
    try:
        yield
    except S3Error as error:
        status = error.response.status if error.response else 0
        raise Refusal(status, error.code or "", error.message or "").explain(label, key) from error
    except ServerError as error:
        raise Refusal(error.status_code, "", "").explain(label, key) from error
    except urllib3.exceptions.HTTPError as error:
        raise _explain_network(label, _get_reason(error)) from error
    except (InvalidResponseError, ET.ParseError) as error:
        raise StoreUnreachableError(
            f"{label} sent an answer that is not of S3",
            hint="Check the store's endpoint: a proxy may answer.",
        ) from error
    except (FileNotFoundError, PermissionError, BaseError) as error:
        raise _explain_obstore(label, key, error) from error
    except ValueError as error:
        raise StoreError(f"{label} cannot be asked for {key!r}: {error}") from error


def is_past_end(error: BaseError) -> bool:
    """Return whether a range starts at or after the object's end.

    Servers refuse it. Azurite 3.37 sends something, which obstore refuses.
    """
    text, _, details = str(error).partition(_DEBUG_TEXT)
    found = _STATUS.search(text)
    return "StartTooLarge" in details or (
        found is not None and int(found[1]) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    )


def _explain_obstore(label: str, key: str, error: Exception) -> StoreError:
    text, _, details = str(error).partition(_DEBUG_TEXT)
    status = _STATUS.search(text)
    if status is not None:
        code, message = _CODE.search(text), _MESSAGE.search(text)
        refusal = Refusal(
            int(status[1]), code[1] if code else "", " ".join(message[1].split()) if message else ""
        )
        return refusal.explain(label, key)
    if isinstance(error, AlreadyExistsError):
        return KeyExistsError(f"{label} already holds {key}")
    if isinstance(error, FileNotFoundError):
        return KeyMissingError(f"{label} holds no {key}")
    if "HTTP error" in text:
        return _explain_network(label, _find_network_reason(details))
    return StoreUnreachableError(
        f"{label} sent an answer that is not of such a store: {text.splitlines()[0][:300]}",
        hint="Check the store's endpoint: a proxy may answer.",
    )


def _explain_network(label: str, reason: str) -> StoreError:
    if "certificate" in reason.lower():
        # Permanent: asking again changes nothing, and another server may answer in the place of the store.
        return StoreError(
            f"{label} is not trusted: {reason}",
            hint="Set the store's certificates_file to the PEM file of the authority that signed the "
            "server's certificate. If it is set, ask the server's administrator.",
        )
    return StoreUnreachableError(
        f"{label} cannot be reached: {reason}", hint="Check the store's endpoint, and the network between."
    )


def _find_network_reason(details: str) -> str:
    """Return what of the Rust values of an error a person can use."""
    for word, reason in _CERTIFICATE_REASONS.items():
        if word in details:
            return reason
    if "certificate" in details.lower():
        return "its certificate is not trusted"
    if "kind: Timeout" in details or "TimedOut" in details:
        return "it did not answer in time"
    if "IncompleteBody" in details or "UnexpectedEof" in details or "IncompleteMessage" in details:
        return "it broke off its answer"
    message = re.search(r'message: "([^"]{1,200})"', details)
    return message[1] if message else "the connection failed"


def _get_reason(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        return " ".join(str(error.reason).split())
    return " ".join(str(error).split())
