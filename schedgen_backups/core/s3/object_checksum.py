"""Digests of whole objects that the server provides: the ETag, or a stored checksum.

An ETag is the MD5 of the body for plain objects and those encrypted with the server's own keys (SSE-S3). It
is not after a multipart upload or with SSE-KMS and SSE-C (S3 API reference, Object, ETag). A stored checksum
covers the whole object if its type is FULL_OBJECT (S3 user guide, checking object integrity).
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
"""Request header without which the server does not send its checksums."""
_PREFIX = "x-amz-checksum-"
_FULL_OBJECT = "FULL_OBJECT"
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_SSE = "x-amz-server-side-encryption"
_SSE_CUSTOMER = f"{_SSE}-customer-algorithm"
_SSE_WITH_OWN_KEYS = "AES256"


class RunningDigest(Protocol):
    """A digest that is computed incrementally."""

    def update(self, data: bytes | bytearray, /) -> object:
        """Add bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest of all bytes added."""
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
"""Algorithms by the suffix of the header's name. CRC32C and CRC64NVME would need another library."""


@dataclass(frozen=True)
class ObjectChecksum:
    """A digest of a whole object, as stored by the server."""

    algorithm: str
    """A key of `_ALGORITHMS`."""
    digest: bytes

    def start(self) -> RunningDigest:
        """Return an empty running digest of this algorithm."""
        return _ALGORITHMS[self.algorithm]()


@dataclass(frozen=True)
class Unproven:
    """No digest of the whole object is available."""

    reason: str


def has_user_key(headers: Mapping[str, str]) -> bool:
    """Return whether the server encrypts the object with a key of its user.

    `headers` are those of its answer, with names in lower case.
    """
    return _SSE_CUSTOMER in headers or headers.get(_SSE, _SSE_WITH_OWN_KEYS) != _SSE_WITH_OWN_KEYS


def read_etag(etag: str, *, is_user_encrypted: bool) -> ObjectChecksum | Unproven:
    """Return the MD5 that the ETag contains, or why it is not one."""
    if is_user_encrypted:
        return Unproven("encrypted by the server with a customer key: the ETag is not an MD5")
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
        return Unproven("the server has no checksum of the object")
    # Servers that do not send the type store checksums of the parts only.
    if (kind and kind.upper() != _FULL_OBJECT) or (not kind and is_multipart):
        return Unproven("the server's checksum covers the parts, not the whole object")
    for algorithm, start in _ALGORITHMS.items():
        try:
            digest = base64.b64decode(found.get(algorithm, ""), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == len(start().digest()):
            return ObjectChecksum(algorithm, digest)
    return Unproven(f"the server's checksums are not supported here: {', '.join(sorted(found))[:100]}")
