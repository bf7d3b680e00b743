"""Talks to one S3 bucket: lists, reads and writes objects with everything S3 knows of them, in plain S3 calls
that any server has.

Here lives how S3 is asked and how its refusals become our errors. Which objects are asked for, in what order
and how often, is the business of `archive` (capture) and `bucket_restore`. Bodies are taken as they are
stored: a Content-Encoding is kept, never undone.
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
"""Objects up to this are read and written whole; larger ones are streamed."""
PART_BYTES = 8 << 20
PARALLEL_PARTS = 3
_MOST_PARTS = 10_000
"""S3's limit for one upload (S3 user guide, multipart upload limits)."""
CONNECT_TIMEOUT_SECONDS = 10
_WHOLE_LISTING = {"delimiter": "", "max-keys": "1000", "encoding-type": "url"}
"""S3's limit for one page, and keys as in a URL: XML cannot name all of them, and servers write another
character for those that it cannot (S3 API reference, ListObjectsV2)."""
_MOST_EMPTY_PAGES = 10
"""In a row. S3 may give pages with fewer objects than were asked for; many without any are a server that does
not advance."""
_MOST_PAGES = 1_000_000
"""A thousand million objects: the key names alone would not fit into memory."""
LISTING_HINT = "Look at the S3 server's log, and for a proxy that answers in its place; run the backup again."
_UNSUPPORTED_CODES = frozenset({"NotImplemented", "MethodNotAllowed"})
_PARTIAL_CONTENT = 206


@dataclass(frozen=True)
class StoredObject:
    """What the server said of an object that it has taken."""

    etag: str
    version_id: str | None
    """None where the bucket keeps no versions."""


@dataclass(frozen=True)
class WholeObject:
    """An object that was read in one go."""

    head: ObjectHead
    data: bytes | bytearray | None
    """As it is stored, not yet compared with the head's length and ETag; None where it is larger than
    `IN_MEMORY_BYTES`."""


class OpenObject:
    """An object whose body is being read."""

    def __init__(self, head: ObjectHead, response: urllib3.BaseHTTPResponse, rate_limit: RateLimit) -> None:
        self.head = head
        self._response = response
        self._rate_limit = rate_limit

    def read_blocks(self) -> Iterator[bytes]:
        """Yields the body as it is stored; ends early without an error when the server cuts it short: compare
        the length.

        ObjectError when more comes than was announced.
        """
        left = self.head.size_bytes
        for block in self._response.stream(READ_BYTES, decode_content=False):
            left -= len(block)
            if left < 0:
                raise ObjectError(
                    f"object {self.head.key!r} came with more than the {self.head.size_bytes} bytes that "
                    "were announced"
                )
            self._rate_limit.wait_for(len(block))
            yield block


class BucketClient:
    """One bucket on one S3 server.

    May be used from several threads; every method's errors are those of `translate_errors`.

    `on_busy` is called when the server says, at a `read_object`, that it is too much.
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
                "MINIO_ENDPOINT cannot be used: it names no server", hint="It is host:port, no http://."
            ) from error
        self._direct = DirectGets(settings, self._rate_limit, tls=tls, on_busy=on_busy, **timeouts)

    def __enter__(self) -> BucketClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._direct.close()
        self._pool.clear()

    def check_exists(self) -> None:
        """The bucket is there and the keys open it.

        BucketError (permanent) or BucketUnreachableError (retryable) otherwise.
        """
        with self.translate_errors(""):
            is_there = self._client.bucket_exists(self._bucket)
        if not is_there:
            # The answer to a HEAD cannot say why: versitygw 1.8.0 answers 404 to keys that it does not know.
            # That to a listing says it.
            next(self.list_objects(), None)

    def make_bucket(self) -> None:
        """The bucket is there, in the region of the settings.

        BucketError (permanent) where the keys may not make it.
        """
        with self.translate_errors(""):
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code == "BucketAlreadyOwnedByYou":
                    return
                if error.code in DENIED_CODES:
                    raise BucketError(
                        f"the keys may not make the bucket {self.settings.label}: {error.code}",
                        hint="Make it, or set RESTORE_MINIO_ACCESS_KEY and RESTORE_MINIO_SECRET_KEY to "
                        "keys with s3:CreateBucket.",
                    ) from error
                raise

    def remove_bucket(self) -> None:
        """Remove the bucket, which must be empty."""
        with self.translate_errors(""):
            self._client.remove_bucket(self._bucket)

    def is_empty(self) -> bool:
        """Whether the bucket holds no object."""
        return next(self.list_objects(), None) is None

    def is_versioned(self) -> bool | None:
        """Whether the bucket keeps versions; None where the server or the keys' rights do not tell."""
        try:
            with self.translate_errors(""):
                return self._client.get_bucket_versioning(self._bucket).status == "Enabled"
        except BucketError:
            return None

    def list_objects(self, prefix: str = "") -> Iterator[ListedObject]:
        """Yields every object, page by page, in the server's order (which is not everywhere the order of the
        keys).

        BucketError (permanent) when the answers are not a listing, or do not advance.
        """
        yield from self._list({"list-type": "2", "prefix": prefix, **_WHOLE_LISTING})

    def list_versions(self) -> Iterator[ListedObject]:
        """Yields every version of every object, and every delete marker; errors as of `list_objects`."""
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
            # The SDK's own loop has no limit and hides the pages: an empty page with a token makes it ask for
            # ever.
            response = self._client._execute("GET", self._bucket, query_params={**query})  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            try:
                return read_page(response.data)
            except ValueError as error:
                found = _describe_error_page(response.data)
                message = (
                    f"the S3 server at {self.settings.endpoint} answered something else than a "
                    f"listing of {self._bucket}: {found}"
                )
                raise BucketError(message, hint=LISTING_HINT) from error

    @contextmanager
    def open_object(
        self, key: str, *, etag: str | None = None, offset: int = 0, length: int = 0
    ) -> Generator[OpenObject, None, None]:
        """The object's body can be read within the block, from `offset` on, so many bytes where `length` is
        given.

        ObjectGoneError when it is not there, ObjectChangedError when `etag` is given and is not its ETag (any
        more).
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
                        f"the S3 server does not give parts of object {key!r}",
                        hint="Look for a proxy that takes the Range header away.",
                    )
                head = read_head(key, response.headers, offset)
                if etag and head.etag and head.etag != etag:  # a server that does not know If-Match
                    raise ObjectChangedError(f"object {key!r} was replaced meanwhile")
                yield OpenObject(head, response, self._rate_limit)
            finally:
                # A body that was not read to its end makes the connection useless for the next request.
                response.close()
                response.release_conn()

    def read_object(self, key: str, *, etag: str | None = None) -> WholeObject:
        """The object with its body, where that fits into memory; the errors are those of `open_object`."""
        answer = self._direct.get(key, etag=etag, limit_bytes=IN_MEMORY_BYTES)
        if answer is not None:
            return WholeObject(read_head(key, answer.headers, 0), answer.body)
        with self.open_object(key, etag=etag) as opened:
            is_small = opened.head.size_bytes <= IN_MEMORY_BYTES
            return WholeObject(opened.head, b"".join(opened.read_blocks()) if is_small else None)

    def find_head(self, key: str) -> ObjectHead | None:
        """What S3 says of the object, or None when it is not there."""
        try:
            with self.open_object(key) as opened:
                return opened.head
        except ObjectGoneError:
            return None

    def read_checksum(self, key: str, etag: str) -> ObjectChecksum | Unproven:
        """Return the checksum that the server stored of this object, or why there is none."""
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
            return Unproven("the server's checksum is of another version of it")
        return read_stored_checksum(found, is_multipart="-" in etag)

    def read_tags(self, key: str) -> dict[str, str]:
        """The object's tags; none where the server knows no tags.

        ObjectRefusedError when they are none that S3 has.
        """
        with self.translate_errors(key):
            check_object_name(key)
            try:
                # The SDK holds them to the rules for buckets, which take more tags: no upload could set
                # these.
                return dict(_make_tags(self._client.get_object_tags(self._bucket, key) or {}))
            except S3Error as error:
                if error.code in _UNSUPPORTED_CODES:
                    return {}
                raise
            except ValueError as error:
                raise ObjectRefusedError(
                    f"the tags of object {key!r} cannot be read: {error}", hint="Set them anew."
                ) from error

    def put_object(self, entry: ObjectEntry, body: BinaryIO) -> StoredObject:
        """Write the object with its content type, headers, metadata and tags.

        Up to `IN_MEMORY_BYTES` it goes up whole, and its ETag is its MD5; a server without tags gets it
        without them. Larger ones go up in parts.
        """
        # With the prefix, or the SDK takes metadata named `cache-control` for the header.
        metadata = {f"{METADATA_PREFIX}{name}": value for name, value in entry.metadata.items()}
        headers: dict[str, str | list[str] | tuple[str]] = {**entry.headers, **metadata}
        try:
            tags = _make_tags(entry.tags)
        except ValueError as error:
            hint = "Restore it as a file (restore-objects … --to FOLDER), and upload it without these tags."
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
                # The server has no tags: better the object without, which the comparison afterwards reports.
                if not entry.tags or error.code not in _UNSUPPORTED_CODES or not is_small:
                    raise
                body.seek(0)
                stored = put(None)
        return StoredObject((stored.etag or "").strip('"'), stored.version_id)

    def remove_object(self, key: str, *, version_id: str | None = None) -> None:
        """Remove the object, or with `version_id` only that version of it, so that an older one is the newest
        again.
        """
        with self.translate_errors(key):
            self._client.remove_object(self._bucket, key, version_id=version_id)

    @contextmanager
    def translate_errors(self, key: str) -> Generator[None, None, None]:
        """Errors of the SDK and of HTTP within the block leave it as BucketError, BucketUnreachableError or
        ObjectError.
        """
        try:
            yield
        except S3Error as error:
            raise explain_refusal(self.settings, key, error) from error
        except urllib3.exceptions.LocationParseError as error:
            raise BucketError(
                "MINIO_ENDPOINT cannot be used: it names no server", hint="It is host:port, no http://."
            ) from error
        except urllib3.exceptions.HTTPError as error:
            if is_stall(error):
                raise BucketStalledError(
                    f"the S3 server at {self.settings.endpoint} is silent or too slow{name_object(key)}: "
                    f"{_reason(error)}",
                    hint="Look at the server's log and load. BACKUP_STALL_TIMEOUT_SECONDS sets how long to "
                    "wait.",
                ) from error
            raise BucketUnreachableError(
                f"the S3 server at {self.settings.endpoint} does not answer as it "
                f"should{name_object(key)}: {_reason(error)}",
                hint="Is the server up, and is MINIO_ENDPOINT right?",
            ) from error
        except (InvalidResponseError, ServerError, ET.ParseError) as error:
            raise BucketUnreachableError(
                f"the S3 server at {self.settings.endpoint} answered nonsense{name_object(key)}: {error}",
                hint="Does MINIO_ENDPOINT point to the S3 port (9000), not to the console (9001), and is "
                "MINIO_SECURE right?",
            ) from error
        except ValueError as error:  # the SDK's word for names it will not send
            if not key:
                raise BucketError(
                    f"the minio SDK refuses the bucket: {error}", hint="Check MINIO_BUCKET."
                ) from error
            hint = (
                "Copy the object to a key without '.' and '..' parts; the application's rows that refer "
                "to it must follow."
            )
            raise ObjectRefusedError(f"the minio SDK refuses the key {key!r}: {error}", hint=hint) from error


def _make_tags(wanted: Mapping[str, str]) -> Tags:
    """Return tags of an object; ValueError when S3 has no such."""
    tags = Tags.new_object_tags()
    for name, value in wanted.items():
        tags[name] = value
    return tags


def new_md5() -> Digest:
    """A running MD5, which S3 uses as a checksum and not as protection."""
    return hashlib.md5(usedforsecurity=False)


def _describe_error_page(data: bytes) -> str:
    text = " ".join(data[:200].decode("utf-8", "replace").split())
    return repr(text) if text else "nothing"


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        return " ".join(str(error.reason).split())
    return " ".join(str(error).split())
