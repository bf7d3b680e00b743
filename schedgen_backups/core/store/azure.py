"""A container of Azure Blob Storage as a store, by obstore."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.store import AzureStore as Container

from schedgen_backups.core.errors import ConfigurationError, KeyExistsError, KeyMissingError, StoreError
from schedgen_backups.core.store.keys import KeyPrefix
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.probing import refuses_taken_keys
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, StoredObject
from schedgen_backups.core.store.retry import retry, retry_put
from schedgen_backups.core.store.s3_refusals import translate_s3_errors
from schedgen_backups.core.store.transfers import NO_RETRIES, Transfers


class AzureStore:
    """Blobs of a container below a prefix; see `Store`. No versions, no locks: obstore knows neither."""

    def __init__(self, location: StoreLocation, capabilities: Capabilities = UNPROBED) -> None:
        url = urlsplit(location.url)
        self._endpoint = location.endpoint or f"https://{location.access_key}.blob.core.windows.net"
        endpoint = urlsplit(self._endpoint)
        if endpoint.scheme not in {"http", "https"} or not endpoint.hostname or not url.netloc:
            raise ConfigurationError(
                f"{location.url} at {location.endpoint!r} is not an Azure container",
                hint="Use azure://CONTAINER/PREFIX, and as endpoint nothing or a URL such as https://HOST.",
            )
        self._location = location
        self._capabilities = capabilities
        self._container = url.netloc
        self._prefix = KeyPrefix(url.path)
        self._is_seen = False
        self._transfers = Transfers(
            self.label, location, is_secure=endpoint.scheme == "https", open_bucket=self._open_container
        )

    @property
    def label(self) -> str:
        """URL of the container, and the account or endpoint."""
        return f"{self._location.url} at {self._endpoint}"

    def put_new(self, key: str, data: bytes) -> None:
        """Upload the bytes in one request."""
        name = self._prefix.add(key)
        is_conditional = self._capabilities.has_conditional_put
        if not is_conditional and self.head(key) is not None:
            raise KeyExistsError(f"{self.label} already holds {key}")
        retry_put(
            self, key, data, lambda: self._transfers.put(name, key, data, is_conditional=is_conditional)
        )

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Download a range."""
        name = self._prefix.add(key)
        data = (
            retry(lambda: self._transfers.get(name, key, offset, length, version_id)) if length > 0 else None
        )
        if data is None and self.head(key) is None:
            raise KeyMissingError(f"{self.label} holds no {key}")
        return data or b""

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size and time of the blob."""
        name = self._prefix.add(key)

        def ask() -> StoredObject:
            with translate_s3_errors(self.label, key):
                found = obstore.head(self._transfers.get_reader(), name)
            return StoredObject(key, found["size"], found["last_modified"].astimezone(timezone.utc))

        try:
            stored = retry(ask)
        except KeyMissingError:
            # The answer to a HEAD has no body that would tell a missing blob from a missing container.
            self._check_container()
            return None
        self._is_seen = True
        return stored

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the blobs. The whole listing is held in memory."""
        # obstore's prefixes are whole directories.
        folder, slash, _ = self._prefix.add_to_prefix(prefix).rpartition("/")
        found = retry(lambda: self._list_below(folder + slash))
        for stored in sorted(found, key=lambda stored: stored.key):
            if stored.key.startswith(prefix):
                yield stored

    def delete(self, stored: StoredObject) -> None:
        """Delete the blob."""
        name = self._prefix.add(stored.key)

        def delete() -> None:
            with translate_s3_errors(self.label, stored.key):
                obstore.delete(self._transfers.get_reader(), name)

        try:
            retry(delete)
        except KeyMissingError:
            self._check_container()

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Refuse: obstore cannot set immutability policies."""
        raise StoreError(
            f"{self.label} is on Azure, whose locks are not extended from here",
            hint="Set a time-based retention policy on the container.",
        )

    def probe(self, key: str) -> Capabilities:
        """Find out whether a name that is taken is refused."""

        def put(key: str, data: bytes) -> None:
            self._transfers.put(self._prefix.add(key), key, data, is_conditional=True)

        retry_put(self, key, b"first", lambda: put(key, b"first"))
        has_conditional_put = refuses_taken_keys(put, key)
        return Capabilities(
            has_conditional_put=has_conditional_put, has_checksums=False, has_versions=False, has_lock=False
        )

    def _check_container(self) -> None:
        """Raise StoreError if the container does not exist or cannot be listed."""
        if not self._is_seen:
            retry(lambda: self._list_below(self._prefix.add_to_prefix("")))

    def _list_below(self, folder: str) -> list[StoredObject]:
        with translate_s3_errors(self.label, ""):
            # Its overloads name a package that is not installed.
            pages: Any = obstore.list(self._transfers.get_reader(), prefix=folder or None)  # pyright: ignore[reportUnknownMemberType]
            found = [
                StoredObject(
                    self._prefix.remove(each["path"]),
                    each["size"],
                    each["last_modified"].astimezone(timezone.utc),
                )
                for page in pages
                for each in page
            ]
        self._is_seen = True
        return found

    def _open_container(self, options: dict[str, Any], _is_checked: bool) -> Container:  # noqa: FBT001 - a callback
        secret_key = self._location.secret_key
        config: dict[str, Any] = {
            "account_name": self._location.access_key,
            "endpoint": self._endpoint,
            "skip_signature": False,
            "use_emulator": False,
        }
        try:
            return Container(
                self._container,
                config=config,  # pyright: ignore[reportArgumentType]
                client_options=options,  # pyright: ignore[reportArgumentType]
                retry_config=NO_RETRIES,  # pyright: ignore[reportArgumentType]
                credential_provider=lambda: {"access_key": secret_key, "expires_at": None},
            )
        except ValueError as error:
            raise ConfigurationError(f"the settings of {self.label} are not valid: {error}") from error
