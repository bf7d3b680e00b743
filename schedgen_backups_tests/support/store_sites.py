"""Places for stores that tests write to: one class per kind, with a client independent of the product's.

`SITES` names what the contract test runs on. A site is for one test; servers live as long as the session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import quote
from uuid import uuid4

import pytest
import urllib3
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.retention import COMPLIANCE
from minio.versioningconfig import ENABLED, VersioningConfig
from obstore.store import AzureStore as AzureClient

from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, ProbedStore
from schedgen_backups_tests.support.memory_store import MemoryStore
from schedgen_backups_tests.support.s3_programs import (
    INSTALLED,
    PROGRAM_SERVERS,
    ProgramServer,
    read_versions,
)
from schedgen_backups_tests.support.servers import S3Server, SharedS3, client_of
from schedgen_backups_tests.support.store_programs import Azurite, FakeGcsServer, SshServer

LOCK_DAYS = 2
PREFIX = "some/site"
SITE_FILTER = "allows_site"
_Server = TypeVar("_Server")
_Test = TypeVar("_Test", bound=Callable[..., object])


@dataclass
class Servers:
    """Servers of this session, started when a test first needs them."""

    make_directory: Callable[[str], Path]
    shared_s3: dict[str, dict[str, str]] | None = None
    """Keys of the server that another process started."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _started: dict[str, object] = field(default_factory=dict)

    def find(self, name: str, start: Callable[[Path, ExitStack], _Server]) -> _Server:
        """Return the server of this name."""
        if name not in self._started:
            self._started[name] = start(self.make_directory(name), self._stack)
        return self._started[name]  # type: ignore[return-value]

    def find_s3(self, name: str) -> S3Server:
        """Return the S3 server of this make."""
        if name == "seaweedfs" and self.shared_s3:
            keys = self.shared_s3
            return SharedS3(BucketSettings(**keys["admin"]), BucketSettings(**keys["reader"]))
        kind: type[EmbeddedS3 | ProgramServer] = PROGRAM_SERVERS.get(name, EmbeddedS3)
        if issubclass(kind, ProgramServer) and kind.find() is None:
            pytest.skip(f"{name} is not installed: make servers")
        return self.find(name, lambda directory, stack: stack.enter_context(kind(directory)))

    def close(self) -> None:
        """Stop all."""
        self._stack.close()


class StoreSite(ABC):
    """A fresh place for a store."""

    capabilities: ClassVar[Capabilities]
    """What the place is known to do; the probe must find it out."""
    has_credentials: ClassVar[bool] = True
    can_be_missing: ClassVar[bool] = True
    can_unhide: ClassVar[bool] = True
    """Whether deleting the deletion marker makes the version below it the newest again."""
    location: StoreLocation
    """Not for a store in memory."""
    secrets: tuple[str, ...] = ()

    @abstractmethod
    def open(self) -> ProbedStore:
        """Return the store, as after a probe."""

    @abstractmethod
    def overwrite(self, key: str, data: bytes) -> None:
        """Put an object with another client, whatever is there."""

    @abstractmethod
    def hide(self, key: str) -> None:
        """Delete an object with another client, without naming a version."""

    def break_credentials(self) -> ProbedStore:
        """Return the store with credentials that do not exist, if it has any."""
        raise NotImplementedError

    def remove(self) -> ProbedStore:
        """Return a store at a place that does not exist, if that is possible."""
        raise NotImplementedError


def for_sites(allows: Callable[[type[StoreSite]], bool]) -> Callable[[_Test], _Test]:
    """Run a test on these sites only; nothing is skipped."""

    def mark(test: _Test) -> _Test:
        setattr(test, SITE_FILTER, allows)
        return test

    return mark


class MemorySite(StoreSite):
    """A `MemoryStore`."""

    has_credentials = False
    can_be_missing = False
    capabilities = Capabilities(
        has_conditional_put=True, has_checksums=True, has_versions=False, has_lock=False
    )

    def __init__(self, _servers: Servers) -> None:
        self._store = MemoryStore()

    def open(self) -> ProbedStore:
        return self._store

    def overwrite(self, key: str, data: bytes) -> None:
        self._store.overwrite(key, data)

    def hide(self, key: str) -> None:
        self._store.hide(key)


class LockedMemorySite(MemorySite):
    """The same with versions and a default lock."""

    capabilities = Capabilities(
        has_conditional_put=True, has_checksums=True, has_versions=True, has_lock=True
    )

    def __init__(self, _servers: Servers) -> None:
        self._store = MemoryStore(lock_duration=timedelta(days=LOCK_DAYS))


class FolderSite(StoreSite):
    """A folder on this machine's disk."""

    has_credentials = False
    capabilities = Capabilities(
        has_conditional_put=True, has_checksums=False, has_versions=False, has_lock=False
    )

    def __init__(self, servers: Servers) -> None:
        self.folder = servers.make_directory("folder") / "store"
        self.location = StoreLocation(f"file://{self.folder}")
        open_store(self.location).prepare()  # type: ignore[attr-defined]

    def open(self) -> ProbedStore:
        return open_store(self.location, self.capabilities)

    def overwrite(self, key: str, data: bytes) -> None:
        (self.folder / key).write_bytes(data)

    def hide(self, key: str) -> None:
        (self.folder / key).unlink()

    def remove(self) -> ProbedStore:
        return open_store(StoreLocation(f"file://{self.folder.parent}/not-mounted"), self.capabilities)


class S3Site(StoreSite):
    """A bucket of an S3 server, without versions."""

    server = "seaweedfs"
    capabilities = Capabilities(
        has_conditional_put=True, has_checksums=True, has_versions=False, has_lock=False
    )

    def __init__(self, servers: Servers) -> None:
        self.settings = self.find_settings(servers, f"store-{uuid4().hex}")
        self.client = client_of(self.settings)
        self._make_bucket()
        self.location = locate_bucket(self.settings)
        self.secrets = (self.settings.secret_key,)

    def find_settings(self, servers: Servers, bucket: str) -> BucketSettings:
        """Return this bucket of the server, with unrestricted keys."""
        return servers.find_s3(self.server).settings(bucket)

    def _make_bucket(self) -> None:
        self.client.make_bucket(self.settings.bucket)

    def open(self) -> ProbedStore:
        return open_store(self.location, self.capabilities)

    def overwrite(self, key: str, data: bytes) -> None:
        self.client.put_object(self.settings.bucket, f"{PREFIX}/{key}", io.BytesIO(data), len(data))

    def hide(self, key: str) -> None:
        self.client.remove_object(self.settings.bucket, f"{PREFIX}/{key}")

    def break_credentials(self) -> ProbedStore:
        return open_store(replace(self.location, secret_key="wrong-key-canary"), self.capabilities)

    def remove(self) -> ProbedStore:
        missing = replace(self.location, url=f"s3://store-{uuid4().hex}/{PREFIX}")
        return open_store(missing, self.capabilities)


class VersionedS3Site(S3Site):
    """A bucket with versions."""

    capabilities = replace(S3Site.capabilities, has_versions=True)

    def _make_bucket(self) -> None:
        self.client.make_bucket(self.settings.bucket)
        self.client.set_bucket_versioning(self.settings.bucket, VersioningConfig(ENABLED))


class LockedS3Site(S3Site):
    """A bucket with object lock and a default retention."""

    capabilities = replace(VersionedS3Site.capabilities, has_lock=True)

    def _make_bucket(self) -> None:
        self.client.make_bucket(self.settings.bucket, object_lock=True)
        self.client.set_object_lock_config(
            self.settings.bucket, ObjectLockConfig(COMPLIANCE, LOCK_DAYS, DAYS)
        )


class VersitySite(S3Site):
    """A bucket of versitygw."""

    server = "versitygw"


class VersionedVersitySite(VersionedS3Site):
    """A bucket of versitygw with versions."""

    server = "versitygw"


class S3ProxySite(S3Site):
    """A bucket of s3proxy, which lacks much."""

    server = "s3proxy"
    capabilities = UNPROBED


class AzureSite(StoreSite):
    """A container of Azurite."""

    capabilities = FolderSite.capabilities

    def __init__(self, servers: Servers) -> None:
        server = servers.find("azurite", lambda directory, stack: stack.enter_context(Azurite(directory)))
        container = f"store-{uuid4().hex}"
        self.endpoint = f"http://{server.endpoint}/{server.account}"
        self.secrets = (server.key,)
        self.location = StoreLocation(
            f"azure://{container}/{PREFIX}",
            endpoint=self.endpoint,
            access_key=server.account,
            secret_key=server.key,
            timeout_seconds=30,
        )
        self.client = AzureClient(
            container,
            account_name=server.account,
            account_key=server.key,
            endpoint=self.endpoint,
            client_options={"allow_http": True},
        )
        make_azure_container(server, container)

    def open(self) -> ProbedStore:
        return open_store(self.location, self.capabilities)

    def overwrite(self, key: str, data: bytes) -> None:
        self.client.put(f"{PREFIX}/{key}", data)

    def hide(self, key: str) -> None:
        self.client.delete(f"{PREFIX}/{key}")

    def break_credentials(self) -> ProbedStore:
        wrong = base64.b64encode(b"wrong-key-canary").decode()
        return open_store(replace(self.location, secret_key=wrong), self.capabilities)

    def remove(self) -> ProbedStore:
        missing = replace(self.location, url=f"azure://store-{uuid4().hex}/{PREFIX}")
        return open_store(missing, self.capabilities)


class GcsSite(StoreSite):
    """A bucket of fake-gcs-server."""

    has_credentials = False
    capabilities = FolderSite.capabilities

    def __init__(self, servers: Servers) -> None:
        server = servers.find(
            "fake-gcs-server", lambda directory, stack: stack.enter_context(FakeGcsServer(directory))
        )
        self.bucket = f"store-{uuid4().hex}"
        self.location = StoreLocation(
            f"gs://{self.bucket}/{PREFIX}", endpoint=f"http://{server.endpoint}", timeout_seconds=30
        )
        body = {"name": self.bucket, "versioning": {"enabled": self.capabilities.has_versions}}
        self._request("POST", "/storage/v1/b?project=test", json.dumps(body).encode())

    def open(self) -> ProbedStore:
        return open_store(self.location, self.capabilities)

    def overwrite(self, key: str, data: bytes) -> None:
        name = quote(f"{PREFIX}/{key}", safe="")
        self._request("POST", f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={name}", data)

    def hide(self, key: str) -> None:
        name = quote(f"{PREFIX}/{key}", safe="")
        self._request("DELETE", f"/storage/v1/b/{self.bucket}/o/{name}", b"")

    def remove(self) -> ProbedStore:
        missing = replace(self.location, url=f"gs://store-{uuid4().hex}/{PREFIX}")
        return open_store(missing, self.capabilities)

    def _request(self, method: str, path: str, body: bytes) -> None:
        answer = urllib3.request(
            method,
            f"{self.location.endpoint}{path}",
            body=body,
            headers={"Content-Type": "application/json"},
            retries=False,
        )
        assert answer.status < 300, answer.data


class VersionedGcsSite(GcsSite):
    """A bucket of fake-gcs-server with versions."""

    can_unhide = False
    capabilities = replace(GcsSite.capabilities, has_versions=True)


class SftpSite(StoreSite):
    """A folder behind Debian's sshd."""

    capabilities = FolderSite.capabilities

    def __init__(self, servers: Servers) -> None:
        self.server = servers.find("sftp", lambda directory, stack: stack.enter_context(SshServer(directory)))
        self.folder = servers.make_directory("sftp") / "a store"
        self.location = locate_folder(self.server, self.folder)
        open_store(self.location).prepare()  # type: ignore[attr-defined]

    def open(self) -> ProbedStore:
        return open_store(self.location, self.capabilities)

    def overwrite(self, key: str, data: bytes) -> None:
        (self.folder / key).write_bytes(data)

    def hide(self, key: str) -> None:
        (self.folder / key).unlink()

    def break_credentials(self) -> ProbedStore:
        wrong = replace(self.location, key_file=self.server.directory / "other")
        return open_store(wrong, self.capabilities)

    def remove(self) -> ProbedStore:
        return open_store(locate_folder(self.server, self.folder.parent / "missing"), self.capabilities)


def locate_folder(server: SshServer, folder: Path) -> StoreLocation:
    """Return where a store in this folder behind the server is."""
    return StoreLocation(
        f"sftp://{server.user}@{server.endpoint}{quote(str(folder))}",
        key_file=server.key_file,
        host_key=server.host_key,
        timeout_seconds=30,
    )


def make_azure_container(server: Azurite, container: str) -> None:
    """Create the container; obstore has no call for that."""
    url = f"http://{server.endpoint}/{server.account}/{container}?restype=container"
    date = datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    # Azure documentation, Authorize with Shared Key: the verb, eleven empty headers, ours, and the resource.
    text = "PUT\n" + "\n" * 11 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
    text += f"/{server.account}/{server.account}/{container}\nrestype:container"
    mac = hmac.new(base64.b64decode(server.key), text.encode(), hashlib.sha256).digest()
    answer = urllib3.request(
        "PUT",
        url,
        headers={
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {server.account}:{base64.b64encode(mac).decode()}",
        },
        retries=False,
    )
    assert answer.status == 201, answer.data


def locate_bucket(settings: BucketSettings) -> StoreLocation:
    """Return where a store in this bucket is."""
    return StoreLocation(
        f"s3://{settings.bucket}/{PREFIX}",
        endpoint=f"http://{settings.endpoint}",
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        timeout_seconds=30,
    )


SITES: dict[str, type[StoreSite]] = {
    "memory": MemorySite,
    "memory-lock": LockedMemorySite,
    "folder": FolderSite,
    "seaweedfs": S3Site,
    "seaweedfs-versions": VersionedS3Site,
    "seaweedfs-lock": LockedS3Site,
    "versitygw": VersitySite,
    "versitygw-versions": VersionedVersitySite,
    "s3proxy": S3ProxySite,
    "azurite": AzureSite,
    "fake-gcs-server": GcsSite,
    "fake-gcs-server-versions": VersionedGcsSite,
    "sftp": SftpSite,
}
QUICK = frozenset(
    {"memory", "memory-lock", "folder", "seaweedfs", "seaweedfs-versions", "seaweedfs-lock", "sftp"}
)
"""What runs without `make servers`; the other sites are for `make exhaustive`."""
_SOMETIMES_RACES = "writers at once overwrite each other sometimes, and the probe may not see it"
SOMETIMES = frozenset({_SOMETIMES_RACES})
"""Differences that do not appear each time."""
DIFFERENCES = {
    ("s3proxy", "test_a_probe_finds_out_what_the_store_does"): _SOMETIMES_RACES,
    (
        "versitygw-versions",
        "test_overwritten_and_hidden_objects_stay_as_versions",
    ): "an overwritten version gets the time of its replacement: nothing can be read as of a time",
}
"""Tests that show what a server lacks, by site and name."""


def read_site_versions() -> dict[str, str]:
    """Return the versions of the servers that are installed, by site."""
    found = read_versions()
    if Azurite.find():
        package = INSTALLED / "azurite" / "node_modules" / "azurite" / "package.json"
        found["azurite"] = json.loads(package.read_text(encoding="utf-8"))["version"]
    if FakeGcsServer.find():
        # Built from the module, it does not know its own version; the Makefile pins it.
        found["fake-gcs-server"] = "1.56.1"
    if program := SshServer.find():
        shown = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr
        found["sftp"] = shown.split(",")[0].strip()
    for site in SITES:
        server = site.removesuffix("-versions").removesuffix("-lock")
        if server in found:
            found[site] = found[server]
    return found
