"""One page of a bucket's listing, parsed.

The SDK's parser rejects a whole page for a single date that it cannot parse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

_ROOTS = frozenset({"ListBucketResult", "ListVersionsResult"})
_FRACTION = re.compile(r".{19}\.([0-9]+)")
_LINES = frozenset({"Contents", "Version", "DeleteMarker"})


@dataclass(frozen=True)
class ListedObject:
    """One entry of the bucket's listing."""

    key: str
    size_bytes: int
    etag: str
    version_id: str | None
    modified_at: datetime | None
    """None if the server sends none or an invalid one. Servers differ in the number of fractional digits."""
    is_marker: bool = False
    """Whether this is a delete marker."""
    is_latest: bool = True
    """Whether a reader of the key without a version gets this one."""


@dataclass(frozen=True)
class ListingPage:
    """Objects in the server's order."""

    objects: tuple[ListedObject, ...]
    """In a listing of versions: all versions and delete markers."""
    next_query: dict[str, str] | None
    """The query of the next page; None on the last page. Its values are empty if there are more pages but the
    server does not say where they start."""


def read_page(data: bytes) -> ListingPage:
    """Return the page. ValueError if the data is not one.

    Source: S3 API reference, ListObjectsV2 and ListObjectVersions.
    """
    try:
        root = ET.fromstring(data)  # noqa: S314 - expat of these Pythons limits entities, and the answer's length is limited
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
    if _strip_namespace(root.tag) not in _ROOTS:
        raise ValueError(f"not a listing: {root.tag}")
    top = {_strip_namespace(child.tag): child.text or "" for child in root}
    is_escaped = top.get("EncodingType") == "url"
    objects = tuple(
        _read_object(child, is_escaped=is_escaped) for child in root if _strip_namespace(child.tag) in _LINES
    )
    if top.get("IsTruncated", "").strip().lower() != "true":
        return ListingPage(objects, None)
    if _strip_namespace(root.tag) == "ListVersionsResult":
        marker = top.get("NextKeyMarker", "")
        query = {
            "key-marker": unquote_plus(marker) if is_escaped else marker,
            "version-id-marker": top.get("NextVersionIdMarker", ""),
        }
        return ListingPage(objects, query)
    token = top.get("NextContinuationToken", "")
    # Without start-after, which the SDK also sends: s3proxy refuses both together.
    return ListingPage(objects, {"continuation-token": token})


def _read_object(element: ET.Element, *, is_escaped: bool) -> ListedObject:
    found = {_strip_namespace(child.tag): child.text or "" for child in element}
    key = unquote_plus(found.get("Key", "")) if is_escaped else found.get("Key", "")
    is_marker = _strip_namespace(element.tag) == "DeleteMarker"
    size = "0" if is_marker else found.get("Size", "").strip()
    if not key or not (size.isascii() and size.isdecimal()):
        raise ValueError(f"not a valid object entry: {key!r} of {size!r} bytes")
    return ListedObject(
        key,
        int(size),
        found.get("ETag", "").strip('"'),
        found.get("VersionId"),
        _read_time(found.get("LastModified", "")),
        is_marker=is_marker,
        is_latest=found.get("IsLatest", "true").strip().lower() == "true",
    )


def _read_time(text: str) -> datetime | None:
    seconds, fraction = text[: len("2026-11-22T02:00:00")], _FRACTION.match(text)
    try:
        return datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(
            microsecond=int(fraction[1][:6].ljust(6, "0")) if fraction else 0, tzinfo=timezone.utc
        )
    except ValueError:
        return None


def _strip_namespace(tag: str) -> str:
    return tag.rpartition("}")[2]
