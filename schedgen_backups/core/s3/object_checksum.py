"""What the server says an object's bytes add up to, where that is a digest of the whole object: its ETag, or
a checksum that it stored.

An ETag is the MD5 of the body for plain objects and those encrypted with the server's own keys (SSE-S3). It
is none after a multipart upload or with SSE-KMS and SSE-C (S3 API reference, Object, ETag). A stored checksum
covers the whole object when its type is FULL_OBJECT (S3 user guide, checking object integrity).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

CHECKSUM_HEADERS = {"x-amz-checksum-mode": "ENABLED"}
"""Without it the server keeps its checksums to itself."""
_PREFIX = "x-amz-checksum-"
_FULL_OBJECT = "FULL_OBJECT"
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_SSE = "x-amz-server-side-encryption"
_SSE_CUSTOMER = f"{_SSE}-customer-algorithm"
_SSE_WITH_OWN_KEYS = "AES256"


class RunningDigest(Protocol):
    """A digest that bytes are added to."""

    def update(self, data: bytes | bytearray, /) -> object:
        """Add bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest of what was added."""
        ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | bytearray, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_ALGORITHMS: dict[str, Callable[[], RunningDigest]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "crc32": _Crc32,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
}
"""By the end of the header's name. CRC32C and CRC64NVME would need a library of their own."""


@dataclass(frozen=True)
class ObjectChecksum:
    """A digest of a whole object, as the server has it."""

    algorithm: str
    """A key of `_ALGORITHMS`."""
    digest: bytes

    def start(self) -> RunningDigest:
        """Return a digest to be fed with the object's bytes."""
        return _ALGORITHMS[self.algorithm]()


@dataclass(frozen=True)
class Unproven:
    """There is no digest of the whole object."""

    reason: str


def has_user_key(headers: Mapping[str, str]) -> bool:
    """Whether an answer with these headers, names in lower case, is of an object that the server encrypts
    with a key of its user.
    """
    return _SSE_CUSTOMER in headers or headers.get(_SSE, _SSE_WITH_OWN_KEYS) != _SSE_WITH_OWN_KEYS


def read_etag(etag: str, *, is_user_encrypted: bool) -> ObjectChecksum | Unproven:
    """Return the MD5 that the ETag is, or why it is none."""
    if is_user_encrypted:
        return Unproven("encrypted by the server with a key of its user: the ETag is not an MD5")
    if not etag:
        return Unproven("no ETag")
    if not _MD5_ETAG.fullmatch(etag):
        return Unproven("the ETag is not an MD5 (multipart upload)")
    return ObjectChecksum("md5", bytes.fromhex(etag))


def read_stored_checksum(headers: Mapping[str, str], *, is_multipart: bool) -> ObjectChecksum | Unproven:
    """Return a checksum of the whole object that the server stored, or why there is none.

    `headers` have names in lower case.
    """
    kind = headers.get(f"{_PREFIX}type", "")
    found = {
        name.removeprefix(_PREFIX): value
        for name, value in headers.items()
        if name.startswith(_PREFIX) and name != f"{_PREFIX}type"
    }
    if not found:
        return Unproven("the server has no checksum of it")
    # Servers that do not say the type keep checksums of the parts only.
    if (kind and kind.upper() != _FULL_OBJECT) or (not kind and is_multipart):
        return Unproven("the server's checksum is one of its parts' checksums")
    for algorithm, start in _ALGORITHMS.items():
        try:
            digest = base64.b64decode(found.get(algorithm, ""), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == len(start().digest()):
            return ObjectChecksum(algorithm, digest)
    return Unproven(f"no checksum of the server can be computed here: {', '.join(sorted(found))[:100]}")
