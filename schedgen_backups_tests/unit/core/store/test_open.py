"""Stores are opened by the scheme of their URL, with the libraries of that kind only."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.errors import ConfigurationError, StoreError, StoreUnreachableError
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store, probe_store, try_delete_probe
from schedgen_backups.core.store.protocol import StoredObject
from schedgen_backups_tests.support.memory_store import MemoryStore

SFTP = StoreLocation("sftp://user@host/folder", secret_key="canary", host_key="ssh-ed25519 AAAA")
_LIST_LIBRARIES = (
    "import sys; from schedgen_backups.core.store.open import open_store;"
    "from schedgen_backups.core.store.location import StoreLocation;"
    "open_store(StoreLocation('file:///nowhere/store'));"
    "print([name for name in ('obstore', 'paramiko', 'google.cloud.storage') if name in sys.modules])"
)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/folder", "unknown scheme 'ftp'"),
        ("/some/folder", "unknown scheme ''"),
        ("", "unknown scheme ''"),
        ("file://host/folder", "not the URL of a folder"),
        ("file:///", "not the URL of a folder"),
        ("file:relative", "not the URL of a folder"),
        ("s3:///prefix", "not an S3 bucket"),
        ("azure:///prefix", "not an Azure container"),
        ("gs:///prefix", "names no bucket"),
        ("gs://bucket/prefix", "service account"),
        ("sftp://host/folder", "not the URL of a folder on a server"),
        ("sftp://user@host", "not the URL of a folder on a server"),
        ("sftp://user@host:port/folder", "not the URL of a folder on a server"),
        ("sftp://user@host/folder", "host key"),
        ("s3://bucket/prefix?canary", "a query or a fragment"),
        ("azure://container/prefix#canary", "a query or a fragment"),
        ("s3://key:canary@bucket/prefix", "contains a password"),
        ("sftp://user:canary@host/folder", "contains a password"),
    ],
)
def test_a_wrong_url_or_a_missing_setting_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refused:
        open_store(StoreLocation(url))
    assert refused.value.hint
    assert "canary" not in refused.value.message


@pytest.mark.parametrize("endpoint", ["host:9000", "ftp://host", "https://"])
@pytest.mark.parametrize("url", ["s3://bucket/prefix", "azure://container/prefix"])
def test_an_endpoint_is_a_url_of_http(url: str, endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an"):
        open_store(StoreLocation(url, endpoint=endpoint, access_key="a", secret_key="canary"))


@pytest.mark.parametrize(
    ("location", "library", "extra"),
    [
        (SFTP, "paramiko", "sftp"),
        (StoreLocation("gs://bucket", endpoint="http://host"), "google.cloud", "gcs"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, location: StoreLocation, library: str, extra: str
) -> None:
    module = {"sftp": "sftp", "gcs": "gcs"}[extra]
    monkeypatch.delitem(sys.modules, f"schedgen_backups.core.store.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=library) as refused:
        open_store(location)
    assert refused.value.hint == f"Install schedgen-backups[{extra}]."


@pytest.mark.takes_seconds
def test_a_folder_loads_no_library_of_another_store() -> None:
    done = subprocess.run([sys.executable, "-c", _LIST_LIBRARIES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_key_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    for text in (None, "not a key: canary"):
        if text:
            key.write_text(text, encoding="ascii")
        for location in (
            replace(SFTP, key_file=key),
            StoreLocation("gs://bucket", key_file=key, endpoint="http://host"),
        ):
            with pytest.raises(ConfigurationError, match="key file") as refused:
                open_store(location)
            assert "canary" not in f"{refused.value!r} {refused.value.hint}"


def test_a_probe_lies_below_the_prefix() -> None:
    store = MemoryStore()
    probe_store(store, "some/site/")
    assert [key.rpartition("/")[0] for key in store.snapshot()] == ["some/site/probes"]


def test_a_store_that_loses_what_was_put_is_not_called_safe() -> None:
    class Lossy(MemoryStore):
        def put_new(self, key: str, data: bytes) -> None:
            """Lose it."""

    with pytest.raises(StoreError, match="does not hold"):
        try_delete_probe(Lossy(), "")


def test_an_unreachable_store_is_not_called_safe() -> None:
    class Unreachable(MemoryStore):
        def delete(self, stored: StoredObject) -> None:
            raise StoreUnreachableError(f"no network: {stored.key}")

    with pytest.raises(StoreUnreachableError):
        try_delete_probe(Unreachable(), "")
