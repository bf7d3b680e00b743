"""An S3 store behind TLS whose certificate is of an authority of the operator's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.errors import ConfigurationError, StoreError
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store, probe_store
from schedgen_backups_tests.support.certificates import make_certificate, sign_certificate
from schedgen_backups_tests.support.store_sites import S3Site, Servers
from schedgen_backups_tests.support.tls_proxy import TlsProxy


class TlsSite:
    """A bucket of SeaweedFS behind a proxy with a certificate."""

    def __init__(self, site: S3Site, certificate: Path, authority: Path) -> None:
        port = int(site.settings.endpoint.rpartition(":")[2])
        self.capabilities = site.capabilities
        self.proxy = TlsProxy(port, certificate)
        self.location: StoreLocation = replace(
            site.location, endpoint=f"https://127.0.0.1:{self.proxy.port}", certificates_path=authority
        )


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_certificate(tmp_path / "authority")


@pytest.fixture
def tls(store_servers: Servers, tmp_path: Path, authority: Path) -> Iterator[TlsSite]:
    site = TlsSite(S3Site(store_servers), sign_certificate(tmp_path / "server", authority), authority)
    yield site
    site.proxy.close()


def assert_refused(location: StoreLocation, site: TlsSite, reason: str = "certificate") -> None:
    store = open_store(location, site.capabilities)
    for call in (
        lambda: store.get_range("packs/one", 0, 1),
        lambda: store.head("packs/one"),
        lambda: store.put_new("packs/two", b"x"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreError, match=f"is not trusted: .*{reason}") as refused:
            call()
        assert not refused.value.is_retryable
        assert "certificates_file" in refused.value.hint


def test_a_store_with_a_certificate_of_an_own_authority_works(tls: TlsSite, authority: Path) -> None:
    # Bundles have comments between their certificates, in any language.
    authority.write_bytes("# Prüfstelle\n".encode() + authority.read_bytes())
    store = open_store(tls.location, tls.capabilities)
    assert probe_store(store, "") == tls.capabilities
    store.put_new("packs/one", b"x" * 100_000)
    assert store.get_range("packs/one", 10, 200_000) == b"x" * 99_990
    assert [stored.key for stored in store.list("packs/")] == ["packs/one"]
    [stored] = store.list("packs/")
    store.delete(stored)
    assert store.head("packs/one") is None


def test_the_public_authorities_do_not_do(tls: TlsSite) -> None:
    assert_refused(replace(tls.location, certificates_path=None), tls)


def test_another_authority_is_refused(tls: TlsSite, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other")
    assert_refused(replace(tls.location, certificates_path=other), tls)


def test_an_expired_certificate_is_refused(store_servers: Servers, tmp_path: Path, authority: Path) -> None:
    expired = sign_certificate(tmp_path / "expired", authority, days=-1)
    site = TlsSite(S3Site(store_servers), expired, authority)
    assert_refused(site.location, site, "expired")
    site.proxy.close()


def test_a_certificate_of_an_authority_is_refused_with_the_reason(
    store_servers: Servers, authority: Path
) -> None:
    site = TlsSite(S3Site(store_servers), authority, authority)
    store = open_store(site.location, site.capabilities)
    with pytest.raises(StoreError, match="CA:TRUE") as refused:
        store.put_new("packs/one", b"x")
    assert not refused.value.is_retryable
    site.proxy.close()


@pytest.mark.parametrize("content", [None, b"", b"not a certificate\n"])
def test_a_file_without_certificates_is_refused_when_the_store_is_opened(
    tls: TlsSite, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "empty.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="certificates file") as refused:
        open_store(replace(tls.location, certificates_path=path))
    assert str(path) in refused.value.message
    assert refused.value.hint
