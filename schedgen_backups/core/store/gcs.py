"""A bucket of Google Cloud Storage as a store, by google-cloud-storage (the extra `gcs`)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from google.api_core import exceptions as google_errors
from google.auth import exceptions as login_errors
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # pyright: ignore[reportMissingTypeStubs]
from google.cloud.storage.exceptions import DataCorruption  # pyright: ignore[reportMissingTypeStubs]
from google.oauth2 import service_account

from schedgen_backups.core.errors import (
    ConfigurationError,
    KeyExistsError,
    KeyMissingError,
    LockedError,
    StoreError,
    StoreUnreachableError,
)
from schedgen_backups.core.store.keys import KeyPrefix
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.probing import refuses_taken_keys
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, StoredObject
from schedgen_backups.core.store.retry import retry, retry_put

_CONNECT_TIMEOUT_SECONDS = 10
_SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
"""Locks can only be set with full control (Cloud Storage documentation, OAuth scopes)."""
_LOCK_WORDS = ("retention", "retain", "hold")


class GcsStore:
    """Objects of a bucket below a prefix; see `Store`. Generations are versions.

    The bucket has no deletion markers: where the newest generation was deleted, `list` yields a marker
    without a version id, which nothing can delete.
    """

    def __init__(self, location: StoreLocation, capabilities: Capabilities = UNPROBED) -> None:
        url = urlsplit(location.url)
        if not url.netloc:
            raise ConfigurationError(f"{location.url} names no bucket", hint="Use gs://BUCKET/PREFIX.")
        self._location = location
        self._capabilities = capabilities
        self._prefix = KeyPrefix(url.path)
        self._is_seen = False
        client: Any = storage.Client(
            project="unused",
            credentials=_load_credentials(location),
            client_options={"api_endpoint": location.endpoint} if location.endpoint else None,
        )
        if location.certificates_path is not None:
            client._http.verify = str(location.certificates_path)  # noqa: SLF001 - the library has no setting
        self._client = client
        self._bucket: Any = client.bucket(url.netloc)
        # The retries are ours: only we know whether an upload was repeated.
        self._options: dict[str, Any] = {
            "timeout": (_CONNECT_TIMEOUT_SECONDS, location.timeout_seconds),
            "retry": None,
        }

    @property
    def label(self) -> str:
        """URL of the bucket, with the endpoint if it is not Google's."""
        return f"{self._location.url} at {self._location.endpoint}".removesuffix(" at ")

    def put_new(self, key: str, data: bytes) -> None:
        """Upload the bytes; the server compares their CRC32C."""
        name = self._prefix.add(key)
        is_conditional = self._capabilities.has_conditional_put
        if not is_conditional and self.head(key) is not None:
            raise KeyExistsError(f"{self.label} already holds {key}")
        retry_put(self, key, data, lambda: self._put(name, key, data, is_conditional=is_conditional))

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Download a range."""
        blob = self._find_blob(key, version_id)

        def get() -> bytes | None:
            with self._translate_errors(key):
                try:
                    return blob.download_as_bytes(
                        start=offset,
                        end=offset + length - 1,
                        raw_download=True,
                        checksum=None,
                        **self._options,
                    )
                except google_errors.RequestRangeNotSatisfiable:
                    return None

        try:
            data = retry(get) if length > 0 else None
        except KeyMissingError:
            self._check_bucket()
            raise
        if data is None and self.head(key, version_id=version_id) is None:
            raise KeyMissingError(f"{self.label} holds no {key}")
        return data or b""

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size, time and retention of the object."""
        blob = self._find_blob(key, version_id)

        def ask() -> StoredObject:
            with self._translate_errors(key):
                blob.reload(**self._options)
            return self._describe(blob)

        try:
            stored = retry(ask)
        except KeyMissingError:
            self._check_bucket()
            return None
        self._is_seen = True
        return stored

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects, or all generations with markers. The whole listing is held in memory."""
        found = retry(lambda: self._list(self._prefix.add_to_prefix(prefix)))
        found.sort(key=lambda blob: (blob.name, -int(blob.generation)))
        name = None
        for blob in found:
            is_newest = blob.name != name
            name = blob.name
            if self._capabilities.has_versions and is_newest and blob.time_deleted is not None:
                yield StoredObject(
                    self._prefix.remove(blob.name),
                    0,
                    blob.time_deleted.astimezone(timezone.utc),
                    is_marker=True,
                )
                is_newest = False
            yield self._describe(blob, is_newest=is_newest, is_listed=True)

    def delete(self, stored: StoredObject) -> None:
        """Delete the object, or this generation; do nothing with a marker."""
        if stored.is_marker:
            return
        blob = self._find_blob(stored.key, stored.version_id)

        def delete() -> None:
            with self._translate_errors(stored.key):
                blob.delete(**self._options)

        try:
            retry(delete)
        except KeyMissingError:
            self._check_bucket()
        except StoreUnreachableError:
            raise
        except StoreError as error:
            if any(word in error.message.lower() for word in _LOCK_WORDS):
                found = self.head(stored.key, version_id=stored.version_id)
                until = found.locked_until if found is not None else None
                text = f" until {until.isoformat()}" if until is not None else ""
                raise LockedError(f"{self.label} keeps {stored.key} locked{text}", until=until) from error
            raise

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Set the retention of the object; the bucket must have been created with object retention."""
        blob = self._find_blob(stored.key, stored.version_id)
        with self._translate_errors(stored.key):
            blob.reload(**self._options)
            before = self._describe(blob).locked_until
            if before is not None and before > until:
                raise StoreError(
                    f"{self.label} keeps {stored.key} locked until {before.isoformat()}",
                    hint="Ask for a later time: locks are only extended.",
                )
            if before is None and not self._capabilities.has_lock:
                raise StoreError(
                    f"{self.label} was not seen to lock objects",
                    hint="Create the bucket with object retention and a default, and probe the store again.",
                )
            blob.retention.mode = blob.retention.mode or "Locked"
            blob.retention.retain_until_time = until
            blob.patch(**self._options)

    def probe(self, key: str) -> Capabilities:
        """Find out whether a name that is taken is refused, and what the bucket says about itself."""

        def put(key: str, data: bytes) -> None:
            self._put(self._prefix.add(key), key, data, is_conditional=True)

        retry_put(self, key, b"first", lambda: put(key, b"first"))
        has_conditional_put = refuses_taken_keys(put, key)
        stored = self.head(key)
        return Capabilities(
            has_conditional_put=has_conditional_put,
            has_checksums=False,
            has_versions=self._is_versioned(),
            has_lock=stored is not None and stored.locked_until is not None,
        )

    def _is_versioned(self) -> bool:
        def ask() -> bool:
            with self._translate_errors(""):
                self._bucket.reload(**self._options)
            return bool(self._bucket.versioning_enabled)

        try:
            return retry(ask)
        except StoreUnreachableError:
            raise
        except StoreError:
            # The right to read the bucket's settings is not needed for anything else.
            return False

    def _put(self, name: str, key: str, data: bytes, *, is_conditional: bool) -> None:
        blob = self._bucket.blob(name)
        try:
            with self._translate_errors(key):
                blob.upload_from_string(
                    data,
                    content_type="application/octet-stream",
                    if_generation_match=0 if is_conditional else None,
                    checksum="crc32c",
                    **self._options,
                )
        except KeyMissingError as error:
            raise self._make_missing_error() from error
        self._is_seen = True

    def _check_bucket(self) -> None:
        """Raise StoreError if the bucket does not exist: a missing object gets the same answer."""
        if not self._is_seen:
            retry(lambda: self._list("", max_results=1))

    def _make_missing_error(self) -> StoreError:
        return StoreError(
            f"{self.label} does not exist", hint="Create the bucket, or correct the store's URL."
        )

    def _find_blob(self, key: str, version_id: str) -> Any:
        return self._bucket.blob(self._prefix.add(key), generation=int(version_id) if version_id else None)

    def _list(self, start: str, max_results: int | None = None) -> list[Any]:
        with self._translate_errors(""):
            found: list[Any] = [
                *self._client.list_blobs(
                    self._bucket,
                    prefix=start,
                    # fake-gcs-server 1.56 does not know the library's "True".
                    versions="true" if self._capabilities.has_versions else None,
                    max_results=max_results,
                    **self._options,
                )
            ]
        self._is_seen = True
        return found

    def _describe(self, blob: Any, *, is_newest: bool = True, is_listed: bool = False) -> StoredObject:
        locks: list[datetime] = [
            time.astimezone(timezone.utc)
            for time in (blob.retention_expiration_time, blob.retention.retain_until_time)
            if time is not None
        ]
        return StoredObject(
            self._prefix.remove(blob.name),
            int(blob.size),
            blob.time_created.astimezone(timezone.utc),
            version_id=str(blob.generation) if self._capabilities.has_versions else "",
            is_newest=is_newest,
            locked_until=max(locks) if locks and not is_listed else None,
        )

    @contextmanager
    def _translate_errors(self, key: str) -> Generator[None, None, None]:
        about = f" for {key}" if key else ""
        try:
            yield
        except google_errors.GoogleAPICallError as error:
            raise self._explain_answer(error, key, about) from error
        except login_errors.TransportError as error:
            raise self._explain_network("Google's login does not answer") from error
        except login_errors.GoogleAuthError as error:
            raise StoreError(
                f"{self.label} cannot be used: Google refuses the service account",
                hint="Correct the store's key file, and this machine's clock.",
            ) from error
        except DataCorruption as error:
            raise StoreUnreachableError(
                f"{self.label} received other bytes{about}", hint="Check network and memory."
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._explain_network(f"{type(error).__name__}{about}") from error

    def _explain_answer(self, error: google_errors.GoogleAPICallError, key: str, about: str) -> StoreError:
        if isinstance(error, google_errors.PreconditionFailed):
            return KeyExistsError(f"{self.label} already holds {key}")
        if isinstance(error, google_errors.NotFound):
            if key:
                return KeyMissingError(f"{self.label} holds no {key}")
            return self._make_missing_error()
        text = f"{self.label} answered {error.code}{about}: {error.message}"
        if isinstance(error, (google_errors.ServerError, google_errors.TooManyRequests)):
            return StoreUnreachableError(text, hint="The store is busy or broken. The next run tries again.")
        if isinstance(error, (google_errors.Unauthorized, google_errors.Forbidden)):
            return StoreError(
                text,
                hint="Correct the service account in the store's key file, or give it the right to do this.",
            )
        return StoreError(text, hint="Check the store's URL and the bucket's settings.")

    def _explain_network(self, reason: str) -> StoreUnreachableError:
        return StoreUnreachableError(
            f"{self.label} cannot be reached: {reason}",
            hint="Check the store's endpoint, its certificate, and the network between.",
        )


def _load_credentials(location: StoreLocation) -> Any:
    if location.key_file is None:
        if not location.endpoint:
            raise ConfigurationError(
                f"{location.url} needs a service account", hint="Set the store's key file (JSON)."
            )
        return AnonymousCredentials()
    try:
        # Its types are not complete.
        credentials: Any = service_account.Credentials
        return credentials.from_service_account_file(str(location.key_file), scopes=[_SCOPE])
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the key file of {location.url} is not a readable service account",
            hint="Download the account's key as JSON, and set its path.",
        ) from error
