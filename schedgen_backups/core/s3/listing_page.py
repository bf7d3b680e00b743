"""One page of a bucket's listing, parsed.

The SDK's parser rejects a whole page for a single date that it cannot parse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

_ROOTS = frozenset({"ListBucketResult", "ListVersionsResult"})
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?", re.ASCII
)
_LINES = frozenset({"Contents", "Version", "DeleteMarker"})


class ListedObject(NamedTuple):
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
    kind = _strip_namespace(root.tag)
    if kind not in _ROOTS:
        raise ValueError(f"not a listing: {root.tag}")
    # Stripped once for each name instead of once for each element.
    names = _Names()
    top: dict[str, str] = {}
    elements: list[tuple[str, ET.Element]] = []
    for child in root:
        name = names[child.tag]
        if name in _LINES:
            elements.append((name, child))
        else:
            top[name] = child.text or ""
    is_escaped = top.get("EncodingType") == "url"
    objects = tuple(
        _read_object(name, {names[field.tag]: field.text or "" for field in element}, is_escaped=is_escaped)
        for name, element in elements
    )
    if top.get("IsTruncated", "").strip().lower() != "true":
        return ListingPage(objects, None)
    if kind == "ListVersionsResult":
        marker = top.get("NextKeyMarker", "")
        query = {
            "key-marker": unquote_plus(marker) if is_escaped else marker,
            "version-id-marker": top.get("NextVersionIdMarker", ""),
        }
        return ListingPage(objects, query)
    token = top.get("NextContinuationToken", "")
    # Without start-after, which the SDK also sends: s3proxy refuses both together.
    return ListingPage(objects, {"continuation-token": token})


def _read_object(name: str, found: dict[str, str], *, is_escaped: bool) -> ListedObject:
    key = found.get("Key", "")
    if is_escaped and ("%" in key or "+" in key):
        key = unquote_plus(key)
    is_marker = name == "DeleteMarker"
    size = "0" if is_marker else found.get("Size", "").strip()
    if not key or not (size.isascii() and size.isdecimal()):
        raise ValueError(f"not a valid object entry: {key!r} of {size!r} bytes")
    return ListedObject(
        key,
        int(size),
        found.get("ETag", "").strip('"'),
        found.get("VersionId"),
        _read_time(found.get("LastModified", "")),
        is_marker,
        found.get("IsLatest", "true").strip().lower() == "true",
    )


def _read_time(text: str) -> datetime | None:
    match = _TIME.match(text)
    if match is None:
        return None
    # strptime would take a third of the time of a page.
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    microseconds = int(match[7][:6].ljust(6, "0")) if match[7] else 0
    try:
        return datetime(year, month, day, hour, minute, second, microseconds, timezone.utc)
    except ValueError:
        return None


class _Names(dict[str, str]):
    """Names of elements without their namespace, by the names with it."""

    def __missing__(self, tag: str) -> str:
        self[tag] = name = _strip_namespace(tag)
        return name


def _strip_namespace(tag: str) -> str:
    return tag.rpartition("}")[2]
