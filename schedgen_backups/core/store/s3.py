"""An S3 bucket as a store: data by obstore, versions and locks by the minio SDK."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import certifi
from minio import Minio
from minio.commonconfig import COMPLIANCE, GOVERNANCE
from minio.error import S3Error
from minio.retention import Retention
from obstore.store import S3Store as Bucket

from schedgen_backups.core.errors import (
    ConfigurationError,
    KeyExistsError,
    KeyMissingError,
    LockedError,
    StoreError,
    StoreUnreachableError,
)
from schedgen_backups.core.s3.exchange import make_pool, make_tls_context
from schedgen_backups.core.s3.listing_page import ListedObject, ListingPage, read_page
from schedgen_backups.core.s3.object_checksum import CHECKSUM_HEADERS, ObjectChecksum, read_stored_checksum
from schedgen_backups.core.store.keys import KeyPrefix
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.probing import refuses_taken_keys
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, StoredObject
from schedgen_backups.core.store.retry import retry, retry_put
from schedgen_backups.core.store.s3_refusals import (
    RefusedContentError,
    UnsupportedRequestError,
    translate_s3_errors,
)
from schedgen_backups.core.store.transfers import CONNECT_TIMEOUT_SECONDS, NO_RETRIES, Transfers

_DEFAULT_REGION = "us-east-1"
_MAX_THREADS = 16
"""Connections that the SDK keeps; further threads wait."""
_VERSION_HEADER = "x-amz-version-id"
_LOCK_HEADER = "x-amz-object-lock-retain-until-date"
_LOCK_MODE_HEADER = "x-amz-object-lock-mode"
_LISTING = {"prefix": "", "delimiter": "", "max-keys": "1000", "encoding-type": "url"}
_NO_VERSION = "null"
"""Version id of objects in a bucket that keeps none (S3 user guide, versioning-suspended buckets)."""
_LOCK_WORDS = ("lock", "worm", "retention")
"""In the refusals of servers that name their reason: MinIO and AWS do, SeaweedFS and versitygw do not."""


class S3Store:
    """Objects in an S3 bucket below a prefix; see `Store`.

    Without recorded conditional puts, `put_new` asks whether the key exists before it writes.
    """

    def __init__(self, location: StoreLocation, capabilities: Capabilities = UNPROBED) -> None:
        url = urlsplit(location.url)
        region = location.region or _DEFAULT_REGION
        endpoint = urlsplit(location.endpoint or f"https://s3.{region}.amazonaws.com")
        if endpoint.scheme not in {"http", "https"} or not endpoint.hostname or not url.netloc:
            raise ConfigurationError(
                f"{location.url} at {location.endpoint!r} is not an S3 bucket",
                hint="Use s3://BUCKET/PREFIX, and a URL such as https://HOST:PORT as endpoint.",
            )
        self._location = location
        self._capabilities = capabilities
        self._bucket = url.netloc
        self._prefix = KeyPrefix(url.path)
        self._region = region
        self._endpoint = f"{endpoint.scheme}://{endpoint.netloc}"
        self._is_secure = endpoint.scheme == "https"
        certificates = str(location.certificates_path or certifi.where())
        self._transfers = Transfers(
            self.label, location, is_secure=self._is_secure, open_bucket=self._open_bucket
        )
        self._is_seen = False
        try:
            self._client = Minio(
                endpoint.netloc,
                access_key=location.access_key,
                secret_key=location.secret_key,
                secure=self._is_secure,
                region=region,
                http_client=make_pool(
                    threads=_MAX_THREADS,
                    connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
                    stall_timeout_seconds=location.timeout_seconds,
                    tls=make_tls_context(certificates) if self._is_secure else None,
                ),
            )
        except ValueError as error:
            raise ConfigurationError(f"the endpoint of {location.url} is not valid: {error}") from error

    @property
    def label(self) -> str:
        """URL of the bucket, with the endpoint if it is not Amazon's."""
        return f"{self._location.url} at {self._endpoint}" if self._location.endpoint else self._location.url

    def put_new(self, key: str, data: bytes) -> None:
        """Upload the bytes in one request."""
        name = self._prefix.add(key)
        known = self._capabilities
        if not known.has_conditional_put and self.head(key) is not None:
            raise KeyExistsError(f"{self.label} already holds {key}")

        def put() -> None:
            self._put(
                name, key, data, is_conditional=known.has_conditional_put, is_checked=known.has_checksums
            )

        retry_put(self, key, data, put)

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Download a range."""
        name = self._prefix.add(key)
        if length <= 0:
            self._check_holds(key, version_id)
            return b""
        data = retry(lambda: self._transfers.get(name, key, offset, length, version_id))
        if data is None:
            self._check_holds(key, version_id)
        return data or b""

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size, time, digest and lock of the object."""
        try:
            return self._read_head(key, self._stat(key, version_id))
        except KeyMissingError:
            # The answer to a HEAD has no body that would tell a missing object from a missing bucket.
            self._check_bucket()
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects, or all versions and markers.

        The whole listing is held in memory: not every server sends it in the order of the keys (SeaweedFS
        4.48 lists directories).
        """
        start = self._prefix.add_to_prefix(prefix)
        if not self._capabilities.has_versions:
            found = list(self._list_pages({"list-type": "2", **_LISTING, "prefix": start}))
            found.sort(key=lambda listed: listed.key)
        else:
            listing = self._list_pages({"versions": "", **_LISTING, "prefix": start})
            # versitygw 1.8.0 begins a page with the last entry of the one before.
            found = [*{(listed.key, listed.version_id): listed for listed in listing}.values()]
            # Sorting is stable: among versions of one second, the server's order counts.
            found.sort(key=_read_time, reverse=True)
            found.sort(key=lambda listed: (listed.key, not listed.is_latest))
        for listed in found:
            yield StoredObject(
                self._prefix.remove(listed.key),
                listed.size_bytes,
                _read_time(listed),
                version_id=listed.version_id or "" if self._capabilities.has_versions else "",
                is_newest=listed.is_latest,
                is_marker=listed.is_marker,
            )

    def delete(self, stored: StoredObject) -> None:
        """Delete the object, or this version."""
        name = self._prefix.add(stored.key)
        try:
            with translate_s3_errors(self.label, stored.key):
                self._client.remove_object(self._bucket, name, version_id=stored.version_id or None)
        except KeyMissingError:
            return
        except StoreUnreachableError:
            raise
        except StoreError as error:
            until = self._find_lock(stored)
            if until is not None and until > datetime.now(timezone.utc):
                raise LockedError(
                    f"{self.label} keeps {stored.key} locked until {until.isoformat()}", until=until
                ) from error
            if any(word in error.message.lower() for word in _LOCK_WORDS):
                raise LockedError(f"{self.label} keeps {stored.key} locked") from error
            # versitygw 1.8.0 calls the id of a deleted version invalid.
            if self._has_version(stored):
                raise

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Set the object's retention; StoreError if it is locked for longer already.

        An object that was not locked gets the mode COMPLIANCE, in which nobody can delete it before.
        """
        name = self._prefix.add(stored.key)
        headers = self._stat(stored.key, stored.version_id)
        before = _read_lock(headers)
        if before is None and not self._capabilities.has_lock:
            # s3proxy 3.0 takes the request for an upload, and overwrites the object with it.
            raise StoreError(
                f"{self.label} was not seen to lock objects",
                hint="Create the bucket with object lock and a default retention, and probe the store again.",
            )
        if before is not None and before > until:
            raise StoreError(
                f"{self.label} keeps {stored.key} locked until {before.isoformat()}",
                hint="Ask for a later time: locks are only extended.",
            )
        mode = GOVERNANCE if headers.get(_LOCK_MODE_HEADER, "").upper() == GOVERNANCE else COMPLIANCE
        with translate_s3_errors(self.label, stored.key):
            self._client.set_object_retention(
                self._bucket,
                name,
                Retention(mode, until.astimezone(timezone.utc)),
                version_id=stored.version_id or None,
            )

    def probe(self, key: str) -> Capabilities:
        """Find out what the server does with the headers that `put_new` may send."""
        has_conditional_put = self._probe_conditional_put(key)
        has_checksums = self._probe_checksums(f"{key}-sum")
        headers = self._stat(key, "")
        return Capabilities(
            has_conditional_put=has_conditional_put,
            has_checksums=has_checksums,
            has_versions=headers.get(_VERSION_HEADER, _NO_VERSION) not in {"", _NO_VERSION},
            has_lock=_read_lock(headers) is not None,
        )

    def _probe_conditional_put(self, key: str) -> bool:
        def put(name: str, data: bytes) -> None:
            self._put(self._prefix.add(name), name, data, is_conditional=True, is_checked=False)

        try:
            retry_put(self, key, b"first", lambda: put(key, b"first"))
            return refuses_taken_keys(put, key)
        except UnsupportedRequestError:
            name = self._prefix.add(key)
            retry(lambda: self._put(name, key, b"first", is_conditional=False, is_checked=False))
            return False

    def _probe_checksums(self, key: str) -> bool:
        """Return whether the server stores a right SHA-256 and refuses a wrong one."""
        right, wrong = f"{key}-right", f"{key}-wrong"
        try:
            retry(
                lambda: self._put(
                    self._prefix.add(right), right, b"right", is_conditional=False, is_checked=True
                )
            )
        except UnsupportedRequestError:
            return False
        header = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"other").digest()).decode()}
        try:
            with translate_s3_errors(self.label, wrong):
                self._client.put_object(
                    self._bucket, self._prefix.add(wrong), io.BytesIO(b"wrong"), 5, metadata={**header}
                )
        except RefusedContentError:
            return True
        except UnsupportedRequestError:
            return False
        return False

    def _put(self, name: str, key: str, data: bytes, *, is_conditional: bool, is_checked: bool) -> None:
        self._transfers.put(name, key, data, is_conditional=is_conditional, is_checked=is_checked)
        self._is_seen = True

    def _open_bucket(self, options: dict[str, Any], is_checked: bool) -> Bucket:  # noqa: FBT001 - a callback
        access_key, secret_key = self._location.access_key, self._location.secret_key
        config: dict[str, Any] = {
            "aws_endpoint_url_s3": self._endpoint,
            "region": self._region,
            "virtual_hosted_style_request": False,
            "skip_signature": False,
            "unsigned_payload": False,
            "s3_express": False,
            "request_payer": False,
        }
        if is_checked:
            config["checksum_algorithm"] = "SHA256"
        return Bucket(
            self._bucket,
            config=config,  # pyright: ignore[reportArgumentType]
            client_options=options,  # pyright: ignore[reportArgumentType]
            retry_config=NO_RETRIES,  # pyright: ignore[reportArgumentType]
            credential_provider=lambda: {
                "access_key_id": access_key,
                "secret_access_key": secret_key,
                "token": None,
                "expires_at": None,
            },
        )

    def _stat(self, key: str, version_id: str) -> dict[str, str]:
        """Return the headers of a HEAD, with names in lower case."""
        name = self._prefix.add(key)
        with translate_s3_errors(self.label, key):
            try:
                found = self._client.stat_object(
                    self._bucket, name, version_id=version_id or None, extra_headers={**CHECKSUM_HEADERS}
                )
            except S3Error as error:
                # The answer for a delete marker (S3 API reference, HeadObject).
                if version_id and error.response.status == HTTPStatus.METHOD_NOT_ALLOWED:
                    raise KeyMissingError(f"{self.label} has a deletion marker for {key}") from error
                raise
        self._is_seen = True
        headers = {header.lower(): str(value) for header, value in (found.metadata or {}).items()}
        if found.size is None or found.last_modified is None:
            raise StoreUnreachableError(f"{self.label} does not give size and time of {key}")
        return headers | {
            "content-length": str(found.size),
            "last-modified": found.last_modified.astimezone(timezone.utc).isoformat(),
        }

    def _read_head(self, key: str, headers: Mapping[str, str]) -> StoredObject:
        checksum = read_stored_checksum(headers, is_multipart="-" in headers.get("etag", ""))
        version_id = headers.get(_VERSION_HEADER, "")
        return StoredObject(
            key,
            int(headers["content-length"]),
            datetime.fromisoformat(headers["last-modified"]),
            version_id=version_id if self._capabilities.has_versions else "",
            sha256=checksum.digest.hex()
            if isinstance(checksum, ObjectChecksum) and checksum.algorithm == "sha256"
            else "",
            locked_until=_read_lock(headers),
        )

    def _has_version(self, stored: StoredObject) -> bool:
        """Return whether the version is listed; also if that is not known."""
        try:
            found = [(each.key, each.version_id) for each in self.list(stored.key)]
        except StoreError:
            return True
        return not stored.version_id or (stored.key, stored.version_id) in found

    def _find_lock(self, stored: StoredObject) -> datetime | None:
        try:
            return _read_lock(self._stat(stored.key, stored.version_id))
        except StoreError:
            return None

    def _check_holds(self, key: str, version_id: str) -> None:
        if self.head(key, version_id=version_id) is None:
            raise KeyMissingError(f"{self.label} holds no {key}")

    def _check_bucket(self) -> None:
        """Raise StoreError if the bucket does not exist or cannot be listed."""
        if not self._is_seen:
            query = {"list-type": "2", **_LISTING, "max-keys": "1", "prefix": self._prefix.add_to_prefix("")}
            self._list_page(query)
            self._is_seen = True

    def _list_pages(self, query: dict[str, str]) -> Iterator[ListedObject]:
        seen: set[tuple[str, ...]] = set()
        while True:
            page = self._list_page(query)
            yield from page.objects
            if page.next_query is None:
                return
            place = tuple(page.next_query.values())
            if not any(place) or place in seen:
                raise StoreError(
                    f"the listing of {self.label} does not end: the server repeats a page",
                    hint="Check the server's log, and whether a proxy answers in its place.",
                )
            seen.add(place)
            query = query | page.next_query

    def _list_page(self, query: dict[str, str]) -> ListingPage:
        with translate_s3_errors(self.label, ""):
            # The SDK's own loop has no limit, and its parser refuses a page for one date.
            response = self._client._execute("GET", self._bucket, query_params={**query})  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            try:
                return read_page(response.data)
            except ValueError as error:
                raise StoreUnreachableError(
                    f"{self.label} did not answer with a listing: {error}",
                    hint="Check the store's endpoint: a proxy may answer.",
                ) from error


def _read_time(listed: ListedObject) -> datetime:
    # The server's time decides what is old enough to be deleted: an unknown one is the newest possible.
    return listed.modified_at or datetime.max.replace(tzinfo=timezone.utc)


def _read_lock(headers: Mapping[str, str]) -> datetime | None:
    text = headers.get(_LOCK_HEADER, "")
    try:
        # fromisoformat of Python 3.10 knows neither Z nor fractions of other lengths than 3 and 6.
        return datetime.strptime(text[: len("2026-11-22T02:00:00")], "%Y-%m-%dT%H:%M:%S").replace(
            tzinfo=timezone.utc
        )
    except ValueError:
        return None
