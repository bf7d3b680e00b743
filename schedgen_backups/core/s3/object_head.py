"""What S3 says of an object beside its body, read from the headers of an answer.

Add a header here when a restore must put it back, or when it tells what the bytes are. How S3 is asked is `bucket`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache

_KEPT_HEADERS = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires")
METADATA_PREFIX = "x-amz-meta-"
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ObjectHead:
    """Everything S3 says of an object beside its body."""

    key: str
    size_bytes: int
    etag: str
    version_id: str | None
    modified_at: datetime
    answered_at: datetime
    """By the server's clock, where it tells."""
    content_type: str
    headers: dict[str, str]
    metadata: dict[str, str]
    tag_count: int
    is_etag_md5: bool
    """Whether the ETag is the MD5 of the body: not for multipart uploads and not for encrypted objects."""


def read_head(key: str, headers: Mapping[str, str], offset: int) -> ObjectHead:
    """What the headers of an answer to a GET say of the whole object, also where the answer has it from `offset` on or a part of it."""
    found = {name.lower(): value for name, value in headers.items()}
    etag = found.get("etag", "").strip('"')
    is_encrypted = any(name.startswith("x-amz-server-side-encryption") for name in found)
    total = found.get("content-range", "").rpartition("/")[2]
    modified = found.get("last-modified")
    answered = found.get("date")
    return ObjectHead(
        key=key,
        size_bytes=int(total) if total.isdigit() else offset + int(found.get("content-length") or 0),
        etag=etag,
        version_id=found.get("x-amz-version-id"),
        modified_at=_parse_date(modified) if modified else datetime.fromtimestamp(0, timezone.utc),
        answered_at=_parse_date(answered) if answered else datetime.now(timezone.utc),
        content_type=found.get("content-type", ""),
        headers={name: found[name.lower()] for name in _KEPT_HEADERS if name.lower() in found},
        metadata={name.removeprefix(METADATA_PREFIX): value for name, value in found.items() if name.startswith(METADATA_PREFIX)},
        tag_count=int(found.get("x-amz-tagging-count") or 0),
        is_etag_md5=bool(_MD5_ETAG.fullmatch(etag)) and not is_encrypted,
    )


@lru_cache(maxsize=64)
def _parse_date(text: str) -> datetime:
    # Many answers come within one second.
    return parsedate_to_datetime(text)
