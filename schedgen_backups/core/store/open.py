"""Open a store by the scheme of its URL, and find out what it is capable of."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schedgen_backups.core.errors import ConfigurationError, StoreError, StoreUnreachableError
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, ProbedStore, Store

PROBES_NAME = "probes"
"""Folder of the objects that were put in order to find out what a store is capable of."""
_MODULES = {
    "s3": ("s3", "S3Store", ""),
    "azure": ("azure", "AzureStore", ""),
    "gs": ("gcs", "GcsStore", "gcs"),
    "sftp": ("sftp", "SftpStore", "sftp"),
}
"""By scheme: module, class, and the extra that brings its library."""


def open_store(location: StoreLocation, capabilities: Capabilities = UNPROBED) -> ProbedStore:
    """Return the store at this location, with the capabilities that were recorded when it was probed.

    Nothing is asked of the store yet. ConfigurationError if the URL, or a setting that such a store needs, is
    missing or wrong, or if its library is not installed, or if the file of certificates cannot be read.
    """
    parts = urlsplit(location.url)
    scheme = parts.scheme
    if parts.query or parts.fragment or parts.password is not None:
        # Not the URL itself: what it contains may be a secret.
        raise ConfigurationError(
            f"the URL of a store ({scheme}://{parts.hostname or ''}) contains a password, a query or "
            "a fragment",
            hint="Leave out `:`, `?` and `#`; credentials are settings of their own.",
        )
    if location.certificates_path is not None:
        _check_certificates(location.url, location.certificates_path)
    if scheme == "file":
        return FolderStore(_read_folder(location.url))
    if scheme not in _MODULES:
        known = ", ".join(f"{each}://" for each in ("file", *_MODULES))
        raise ConfigurationError(
            f"{location.url} is not the URL of a store: unknown scheme {scheme!r}",
            hint=f"Use one of {known}.",
        )
    module, name, extra = _MODULES[scheme]
    try:
        # Only now: the libraries of extras may be missing, and loading any of them takes time.
        opened: Callable[[StoreLocation, Capabilities], ProbedStore] = getattr(
            import_module(f"schedgen_backups.core.store.{module}"), name
        )
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("schedgen_backups"):
            raise
        raise ConfigurationError(
            f"the store {location.url} needs a library that is not installed: {error.name}",
            hint=f"Install schedgen-backups[{extra}].",
        ) from error
    return opened(location, capabilities)


def probe_store(store: ProbedStore, prefix: str) -> Capabilities:
    """Put random keys below `PREFIX/probes/` and return what the store was seen to do.

    Nothing is deleted, and nothing but an own probe is overwritten: in a store with locks the probes stay.
    """
    return store.probe(_make_key(prefix))


def try_delete_probe(store: Store, prefix: str) -> bool:
    """Put a probe and try to delete exactly it; return whether the store let this credential do so.

    StoreError if the probe cannot be put.
    """
    key = _make_key(prefix)
    store.put_new(key, b"deletable?")
    stored = store.head(key)
    if stored is None:
        raise StoreError(f"{store.label} does not hold {key}, which was just put")
    try:
        store.delete(stored)
    except StoreUnreachableError:
        raise
    except StoreError:
        return False
    return store.head(key, version_id=stored.version_id) is None


def _check_certificates(url: str, path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        raise ConfigurationError(
            f"the certificates file of {url}, {path}, cannot be used: {error.strerror or error}",
            hint="Set certificates_file to a PEM file with the certificate of an authority.",
        ) from error


def check_reading(store: Store, prefix: str) -> None:
    """Put a probe, read it back, and delete it where the store lets this credential do so.

    StoreError if what is read is not what was put.
    """
    key, data = _make_key(prefix), secrets.token_bytes(1 << 10)
    store.put_new(key, data)
    if store.get_range(key, 0, len(data) + 1) != data:
        raise StoreError(
            f"{store.label} returned other bytes than were put", hint="Do not rely on this store."
        )
    stored = store.head(key)
    if stored is not None:
        with suppress(StoreError):
            store.delete(stored)


def _make_key(prefix: str) -> str:
    start = prefix.strip("/")
    return (
        f"{start}/{PROBES_NAME}/{secrets.token_hex(16)}"
        if start
        else f"{PROBES_NAME}/{secrets.token_hex(16)}"
    )


def _read_folder(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc or parts.query or parts.fragment or not path.is_absolute() or path == Path("/"):
        raise ConfigurationError(f"{url} is not the URL of a folder", hint="Use file:///PATH.")
    return path
