"""Client of one S3 bucket: lists, reads and writes objects with all their metadata, in plain S3 calls.

This module sends requests and translates refusals into our errors. `archive` (capture) and `bucket_restore`
decide which objects are requested, in what order and how often. Bodies are handled as stored: a
Content-Encoding is kept, never decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from xml.etree import ElementTree as ET

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import Tags
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.helpers import ObjectWriteResult, check_object_name

from schedgen_backups.core.concurrency.limits import RateLimit
from schedgen_backups.core.errors import BucketError, BucketUnreachableError, ObjectError
from schedgen_backups.core.formats.gzip_members import Digest
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.s3.exchange import is_stall, make_pool, make_tls_context
from schedgen_backups.core.s3.fast_get import DirectGets
from schedgen_backups.core.s3.listing_page import ListedObject, ListingPage, read_page
from schedgen_backups.core.s3.object_checksum import (
    CHECKSUM_HEADERS,
    ObjectChecksum,
    Unproven,
    read_stored_checksum,
)
from schedgen_backups.core.s3.object_head import METADATA_PREFIX, ObjectHead, read_head
from schedgen_backups.core.s3.refusals import (
    DENIED_CODES,
    BucketStalledError,
    ObjectChangedError,
    ObjectGoneError,
    ObjectRefusedError,
    explain_refusal,
    name_object,
)
from schedgen_backups.core.settings import BucketSettings

READ_BYTES = 1 << 20
IN_MEMORY_BYTES = 16 << 20
"""Objects up to this size are read and written whole; larger ones are streamed."""
PART_BYTES = 8 << 20
PARALLEL_PARTS = 3
_MOST_PARTS = 10_000
"""S3's limit for one upload (S3 user guide, multipart upload limits)."""
CONNECT_TIMEOUT_SECONDS = 10
_WHOLE_LISTING = {"delimiter": "", "max-keys": "1000", "encoding-type": "url"}
"""S3's limit for one page. Keys are URL-encoded: XML cannot represent all of them, and servers replace the
characters that it cannot (S3 API reference, ListObjectsV2)."""
_MOST_EMPTY_PAGES = 10
"""Consecutive empty pages. S3 may return pages with fewer objects than requested; many empty ones mean that
the server does not advance."""
_MOST_PAGES = 1_000_000
"""A thousand million objects, whose names alone would not fit into memory."""
LISTING_HINT = "Check the S3 server's log, and whether a proxy answers in its place; run the backup again."
_UNSUPPORTED_CODES = frozenset({"NotImplemented", "MethodNotAllowed"})
_PARTIAL_CONTENT = 206


@dataclass(frozen=True)
class StoredObject:
    """The server's answer to an upload."""

    etag: str
    version_id: str | None
    """None if the bucket keeps no versions."""


@dataclass(frozen=True)
class WholeObject:
    """An object read in one request."""

    head: ObjectHead
    data: bytes | bytearray | None
    """The stored bytes, not yet compared with the head's length and ETag; None if larger than
    `IN_MEMORY_BYTES`."""


class OpenObject:
    """An object whose body is being read."""

    def __init__(self, head: ObjectHead, response: urllib3.BaseHTTPResponse, rate_limit: RateLimit) -> None:
        self.head = head
        self._response = response
        self._rate_limit = rate_limit

    def read_blocks(self) -> Iterator[bytes]:
        """Yield the body as stored; a body that the server cuts short raises no error: compare the length.

        ObjectError if the server sends more than it announced.
        """
        left = self.head.size_bytes
        for block in self._response.stream(READ_BYTES, decode_content=False):
            left -= len(block)
            if left < 0:
                raise ObjectError(
                    f"the S3 server sent more than the announced {self.head.size_bytes} bytes of object "
                    f"{self.head.key!r}"
                )
            self._rate_limit.wait_for(len(block))
            yield block


class BucketClient:
    """One bucket on one S3 server.

    Thread-safe; the errors of every method are those of `translate_errors`. `on_busy` is called when the
    server answers a `read_object` with "too busy".
    """

    def __init__(
        self,
        settings: BucketSettings,
        *,
        threads: int,
        stall_timeout_seconds: float,
        max_mb_per_second: int = 0,
        on_busy: Callable[[], object] = lambda: None,
    ) -> None:
        self._rate_limit = RateLimit(max_mb_per_second)
        self.settings = settings
        self._bucket = settings.bucket
        certificates = str(settings.certificates_path or certifi.where())
        tls = make_tls_context(certificates) if settings.is_secure else None
        timeouts = {
            "connect_timeout_seconds": CONNECT_TIMEOUT_SECONDS,
            "stall_timeout_seconds": stall_timeout_seconds,
        }
        self._pool = make_pool(threads=threads, tls=tls, **timeouts)
        try:
            self._client = Minio(
                settings.endpoint,
                access_key=settings.access_key,
                secret_key=settings.secret_key,
                secure=settings.is_secure,
                region=settings.region,
                http_client=self._pool,
            )
        except ValueError as error:
            raise BucketError(
                "MINIO_ENDPOINT has no valid host", hint="Use host:port, without http://."
            ) from error
        self._direct = DirectGets(settings, self._rate_limit, tls=tls, on_busy=on_busy, **timeouts)

    def __enter__(self) -> BucketClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._direct.close()
        self._pool.clear()

    def check_exists(self) -> None:
        """Check that the bucket exists and the keys give access to it.

        BucketError (permanent) or BucketUnreachableError (retryable) otherwise.
        """
        with self.translate_errors(""):
            is_there = self._client.bucket_exists(self._bucket)
        if not is_there:
            # The answer to a HEAD gives no reason: versitygw 1.8.0 answers 404 to unknown keys. The answer to
            # a listing does.
            next(self.list_objects(), None)

    def make_bucket(self) -> None:
        """Create the bucket in the region of the settings; do nothing if the user owns it already.

        BucketError (permanent) if the keys lack the permission.
        """
        with self.translate_errors(""):
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code == "BucketAlreadyOwnedByYou":
                    return
                if error.code in DENIED_CODES:
                    raise BucketError(
                        f"the keys may not create the bucket {self.settings.label}: {error.code}",
                        hint="Create it, or set RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY to "
                        "keys with s3:CreateBucket.",
                    ) from error
                raise

    def remove_bucket(self) -> None:
        """Remove the bucket, which must be empty."""
        with self.translate_errors(""):
            self._client.remove_bucket(self._bucket)

    def is_empty(self) -> bool:
        """Return whether the bucket holds no object."""
        return next(self.list_objects(), None) is None

    def is_versioned(self) -> bool | None:
        """Return whether the bucket keeps versions.

        None if the server does not support the request or the keys lack the permission.
        """
        try:
            with self.translate_errors(""):
                return self._client.get_bucket_versioning(self._bucket).status == "Enabled"
        except BucketError:
            return None

    def list_objects(self, prefix: str = "") -> Iterator[ListedObject]:
        """Yield every object, page by page, in the server's order.

        That order may differ from the order of the keys. BucketError (permanent) if an answer is not a
        listing, or the listing does not advance.
        """
        yield from self._list({"list-type": "2", "prefix": prefix, **_WHOLE_LISTING})

    def list_versions(self) -> Iterator[ListedObject]:
        """Yield every version of every object, and every delete marker; errors like `list_objects`."""
        yield from self._list({"versions": "", "prefix": "", **_WHOLE_LISTING})

    def _list(self, query: dict[str, str]) -> Iterator[ListedObject]:
        asked: set[tuple[str, ...]] = set()
        empty_pages = 0
        for _page in range(_MOST_PAGES):
            page = self._list_page(query)
            yield from page.objects
            if page.next_query is None:
                return
            empty_pages = 0 if page.objects else empty_pages + 1
            place = tuple(page.next_query.values())
            if not any(place) or place in asked or empty_pages > _MOST_EMPTY_PAGES:
                problem = (
                    "gives empty pages"
                    if empty_pages > _MOST_EMPTY_PAGES
                    else "repeats its continuation token"
                )
                raise BucketError(
                    f"the listing of the bucket {self._bucket} does not end: the S3 server {problem}",
                    hint=LISTING_HINT,
                )
            asked.add(place)
            query |= page.next_query
        raise BucketError(
            f"the listing of the bucket {self._bucket} does not end after {_MOST_PAGES} pages",
            hint=LISTING_HINT,
        )

    def _list_page(self, query: dict[str, str]) -> ListingPage:
        """Return one page of the listing."""
        with self.translate_errors(""):
            # The SDK's own loop has no limit and hides the pages: an empty page with a token makes it loop
            # forever.
            response = self._client._execute("GET", self._bucket, query_params={**query})  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            try:
                return read_page(response.data)
            except ValueError as error:
                found = _describe_error_page(response.data)
                message = (
                    f"the S3 server at {self.settings.endpoint} did not answer with a "
                    f"listing of {self._bucket}: {found}"
                )
                raise BucketError(message, hint=LISTING_HINT) from error

    @contextmanager
    def open_object(
        self, key: str, *, etag: str | None = None, offset: int = 0, length: int = 0
    ) -> Generator[OpenObject, None, None]:
        """Open the object's body within the block, from `offset` on; all of it, or `length` bytes if given.

        ObjectGoneError if it does not exist, ObjectChangedError if `etag` is given and is not its current
        ETag.
        """
        with self.translate_errors(key):
            response = self._client.get_object(
                self._bucket,
                key,
                offset=offset,
                length=length,
                request_headers={"If-Match": f'"{etag}"'} if etag else None,
            )
            try:
                if (offset or length) and response.status != _PARTIAL_CONTENT:
                    raise ObjectError(
                        f"the S3 server ignored the requested range of object {key!r}",
                        hint="Look for a proxy that removes the Range header.",
                    )
                head = read_head(key, response.headers, offset)
                if etag and head.etag and head.etag != etag:  # a server that ignores If-Match
                    raise ObjectChangedError(f"object {key!r} was replaced in the meantime")
                yield OpenObject(head, response, self._rate_limit)
            finally:
                # A connection with an unread body cannot serve the next request.
                response.close()
                response.release_conn()

    def read_object(self, key: str, *, etag: str | None = None) -> WholeObject:
        """Return the object, with its body if that fits into memory; errors like `open_object`."""
        answer = self._direct.get(key, etag=etag, limit_bytes=IN_MEMORY_BYTES)
        if answer is not None:
            return WholeObject(read_head(key, answer.headers, 0), answer.body)
        with self.open_object(key, etag=etag) as opened:
            is_small = opened.head.size_bytes <= IN_MEMORY_BYTES
            return WholeObject(opened.head, b"".join(opened.read_blocks()) if is_small else None)

    def find_head(self, key: str) -> ObjectHead | None:
        """Return the object's metadata, or None if it does not exist."""
        try:
            with self.open_object(key) as opened:
                return opened.head
        except ObjectGoneError:
            return None

    def read_checksum(self, key: str, etag: str) -> ObjectChecksum | Unproven:
        """Return the checksum that the server stored for this object, or why there is none."""
        try:
            with self.translate_errors(key):
                headers = (
                    self._client.stat_object(self._bucket, key, extra_headers={**CHECKSUM_HEADERS}).metadata
                    or {}
                )
        except BucketError as error:
            return Unproven(f"the server was asked for a checksum: {error.message}")
        found = {name.lower(): str(value) for name, value in headers.items()}
        if not etag or found.get("etag", "").strip('"') != etag:
            return Unproven("the server's checksum belongs to another version of the object")
        return read_stored_checksum(found, is_multipart="-" in etag)

    def read_tags(self, key: str) -> dict[str, str]:
        """Return the object's tags; empty if the server does not support tags.

        ObjectRefusedError if the server's tags are not valid in S3.
        """
        with self.translate_errors(key):
            check_object_name(key)
            try:
                # The SDK applies the rules for buckets, which allow more tags; no upload could set these.
                return dict(_make_tags(self._client.get_object_tags(self._bucket, key) or {}))
            except S3Error as error:
                if error.code in _UNSUPPORTED_CODES:
                    return {}
                raise
            except ValueError as error:
                raise ObjectRefusedError(
                    f"the tags of object {key!r} cannot be read: {error}", hint="Set the tags again."
                ) from error

    def put_object(self, entry: ObjectEntry, body: BinaryIO) -> StoredObject:
        """Write the object with its content type, headers, metadata and tags.

        Up to `IN_MEMORY_BYTES` it is uploaded whole, and its ETag is its MD5; a server without tags gets it
        without them. Larger objects are uploaded in parts.
        """
        # With the prefix; otherwise the SDK takes metadata named `cache-control` for the header.
        metadata = {f"{METADATA_PREFIX}{name}": value for name, value in entry.metadata.items()}
        headers: dict[str, str | list[str] | tuple[str]] = {**entry.headers, **metadata}
        try:
            tags = _make_tags(entry.tags)
        except ValueError as error:
            hint = (
                "Restore it as a file (restore-objects … --to DIRECTORY), then upload it without these tags."
            )
            raise ObjectRefusedError(
                f"the minio SDK refuses the tags of object {entry.key!r}: {error}", hint=hint
            ) from error
        is_small = entry.size_bytes <= IN_MEMORY_BYTES

        def put(tags: Tags | None) -> ObjectWriteResult:
            return self._client.put_object(
                self._bucket,
                entry.key,
                body,
                entry.size_bytes,
                content_type=entry.content_type or "application/octet-stream",
                metadata=headers or None,
                tags=tags,
                part_size=IN_MEMORY_BYTES
                if is_small
                else max(PART_BYTES, -(-entry.size_bytes // _MOST_PARTS)),
                num_parallel_uploads=1 if is_small else PARALLEL_PARTS,
            )

        with self.translate_errors(entry.key):
            try:
                stored = put(tags if entry.tags else None)
            except S3Error as error:
                # The server does not support tags. Write the object without them; the comparison afterwards
                # reports it.
                if not entry.tags or error.code not in _UNSUPPORTED_CODES or not is_small:
                    raise
                body.seek(0)
                stored = put(None)
        return StoredObject((stored.etag or "").strip('"'), stored.version_id)

    def remove_object(self, key: str, *, version_id: str | None = None) -> None:
        """Remove the object, or only its version `version_id`.

        Removing the newest version makes the previous one current again.
        """
        with self.translate_errors(key):
            self._client.remove_object(self._bucket, key, version_id=version_id)

    @contextmanager
    def translate_errors(self, key: str) -> Generator[None, None, None]:
        """Convert errors of the SDK and of HTTP: BucketError, BucketUnreachableError or ObjectError."""
        try:
            yield
        except S3Error as error:
            raise explain_refusal(self.settings, key, error) from error
        except urllib3.exceptions.LocationParseError as error:
            raise BucketError(
                "MINIO_ENDPOINT has no valid host", hint="Use host:port, without http://."
            ) from error
        except urllib3.exceptions.HTTPError as error:
            if is_stall(error):
                raise BucketStalledError(
                    f"the S3 server at {self.settings.endpoint} stalled or is too slow{name_object(key)}: "
                    f"{_reason(error)}",
                    hint="Check the server's log and load. BACKUP_STALL_TIMEOUT_SECONDS sets how long to "
                    "wait.",
                ) from error
            raise BucketUnreachableError(
                f"the S3 server at {self.settings.endpoint} cannot be "
                f"reached{name_object(key)}: {_reason(error)}",
                hint="Check that the server is up and that MINIO_ENDPOINT is right.",
            ) from error
        except (InvalidResponseError, ServerError, ET.ParseError) as error:
            raise BucketUnreachableError(
                f"the S3 server at {self.settings.endpoint} sent an invalid "
                f"answer{name_object(key)}: {error}",
                hint="Check that MINIO_ENDPOINT points to the S3 port (9000), not to the console (9001), and "
                "that MINIO_SECURE is right.",
            ) from error
        except ValueError as error:  # the SDK rejects names with it
            if not key:
                raise BucketError(
                    f"the minio SDK refuses the bucket: {error}", hint="Check MINIO_BUCKET."
                ) from error
            hint = (
                "Copy the object to a key without '.' and '..' parts, and update the application's rows that "
                "refer to it."
            )
            raise ObjectRefusedError(f"the minio SDK refuses the key {key!r}: {error}", hint=hint) from error


def _make_tags(wanted: Mapping[str, str]) -> Tags:
    """Return an object's tags; ValueError if S3 does not allow them."""
    tags = Tags.new_object_tags()
    for name, value in wanted.items():
        tags[name] = value
    return tags


def new_md5() -> Digest:
    """Return a new MD5 digest, which S3 uses as a checksum, not for security."""
    return hashlib.md5(usedforsecurity=False)


def _describe_error_page(data: bytes) -> str:
    text = " ".join(data[:200].decode("utf-8", "replace").split())
    return repr(text) if text else "nothing"


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        return " ".join(str(error.reason).split())
    return " ".join(str(error).split())
