"""An object's metadata, read from the headers of an answer.

Add a header here if a restore must set it again, or if it describes the bytes. `bucket` sends the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache

from schedgen_backups.core.errors import ObjectError
from schedgen_backups.core.s3.object_checksum import has_user_key

_KEPT_HEADERS = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires")
METADATA_PREFIX = "x-amz-meta-"


@dataclass(frozen=True)
class ObjectHead:
    """An object's metadata."""

    key: str
    size_bytes: int
    etag: str
    version_id: str | None
    modified_at: datetime
    answered_at: datetime
    """The server's time, if it sends one; otherwise this machine's."""
    content_type: str
    headers: dict[str, str]
    metadata: dict[str, str]
    tag_count: int | None
    """None if the header is invalid."""
    is_user_encrypted: bool
    """Whether the server encrypts the object with a key of its user; its ETag is then not the MD5 of the
    body."""


def read_head(key: str, headers: Mapping[str, str], offset: int) -> ObjectHead:
    """Return the metadata of the whole object from the headers of a GET, also of a partial one.

    `offset` is the start of the requested range. Invalid headers count as missing; ObjectError if that is the
    length.
    """
    found = {name.lower(): value for name, value in headers.items()}
    etag = found.get("etag", "").strip('"')
    total = found.get("content-range", "").rpartition("/")[2]
    length = found.get("content-length", "0")
    if not total.isdecimal() and not length.isdecimal():
        raise ObjectError(
            f"the S3 server sent a length for object {key!r} that is not a number: {length[:100]!r}"
        )
    tag_count = found.get("x-amz-tagging-count", "0")
    return ObjectHead(
        key=key,
        size_bytes=int(total) if total.isdecimal() else offset + int(length),
        etag=etag,
        version_id=found.get("x-amz-version-id"),
        modified_at=_parse_date(found.get("last-modified", "")) or datetime.fromtimestamp(0, timezone.utc),
        answered_at=_parse_date(found.get("date", "")) or datetime.now(timezone.utc),
        content_type=found.get("content-type", ""),
        headers={name: found[name.lower()] for name in _KEPT_HEADERS if name.lower() in found},
        metadata={
            name.removeprefix(METADATA_PREFIX): value
            for name, value in found.items()
            if name.startswith(METADATA_PREFIX)
        },
        tag_count=int(tag_count) if tag_count.isdecimal() else None,
        is_user_encrypted=has_user_key(found),
    )


@lru_cache(maxsize=64)
def _parse_date(text: str) -> datetime | None:
    # Many answers arrive within one second.
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
