"""What only a store behind SSH has: host keys, connections that break, files of unfinished uploads."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.errors import ConfigurationError, StoreError, StoreUnreachableError
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.store.protocol import MadeStore, ProbedStore, SweptStore
from schedgen_backups_tests.support.silent_proxy import SilentProxy
from schedgen_backups_tests.support.store_programs import PasswordSshServer
from schedgen_backups_tests.support.store_sites import Servers, SftpSite, locate_folder

DATA = os.urandom(4 << 20)


@pytest.fixture
def sftp(store_servers: Servers) -> SftpSite:
    return SftpSite(store_servers)


@pytest.fixture
def proxy(sftp: SftpSite) -> Iterator[SilentProxy]:
    proxy = SilentProxy(sftp.server.port, None, cuts=True)
    yield proxy
    proxy.close()


def reach(sftp: SftpSite, proxy: SilentProxy, **changes: object) -> ProbedStore:
    url = sftp.location.url.replace(f":{sftp.server.port}/", f":{proxy.port}/")
    return open_store(replace(sftp.location, url=url, **changes), sftp.capabilities)  # type: ignore[arg-type]


# paramiko's thread that reads ahead ends with an error of its own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_download_that_breaks_off_fails_and_the_next_one_connects_again(
    sftp: SftpSite, proxy: SilentProxy
) -> None:
    store = reach(sftp, proxy)
    store.put_new("packs/one", DATA)
    proxy.limit_bytes = 1 << 20
    with pytest.raises(StoreUnreachableError) as failed:
        store.get_range("packs/one", 0, len(DATA))
    assert failed.value.hint
    proxy.limit_bytes = None
    assert store.get_range("packs/one", 0, len(DATA)) == DATA


def test_an_upload_that_breaks_off_leaves_no_object(sftp: SftpSite, proxy: SilentProxy) -> None:
    store = reach(sftp, proxy)
    store.put_new("packs/other", b"x")
    # A login takes 4 KB of the server; the rest are its acknowledgements.
    proxy.limit_bytes = 7000
    with pytest.raises(StoreUnreachableError):
        store.put_new("packs/one", DATA)
    assert list((sftp.folder / "packs").glob(".one.*")) != []
    proxy.limit_bytes = None
    assert [stored.key for stored in store.list("")] == ["packs/other"]
    assert store.head("packs/one") is None
    assert isinstance(store, SweptStore)
    now = datetime.now(timezone.utc)
    assert store.remove_unfinished("packs/", now - timedelta(days=1)) == ()
    left, *_others = (sftp.folder / "packs").glob(".one.*")
    os.utime(left, (now.timestamp() - 86500, now.timestamp() - 86500))
    (sftp.folder / "other").mkdir()
    foreign = (sftp.folder / "packs" / ".one.tmp", sftp.folder / "other" / left.name)
    for path in foreign:
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    removed = store.remove_unfinished("packs/", now - timedelta(days=1))
    assert [stored.key for stored in removed] == [f"packs/{left.name}"]
    assert not left.exists()
    assert all(path.exists() for path in foreign)
    assert [stored.key for stored in store.list("")] == ["packs/.one.tmp", "packs/other"]
    store.put_new("packs/one", DATA)
    assert store.get_range("packs/one", 0, len(DATA)) == DATA


def test_connections_that_the_server_ended_are_replaced(sftp: SftpSite, proxy: SilentProxy) -> None:
    store = reach(sftp, proxy)
    store.put_new("packs/one", b"x")
    proxy.limit_bytes = 0
    with pytest.raises(StoreUnreachableError):
        store.head("packs/one")
    proxy.limit_bytes = None
    assert store.head("packs/one") is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_silent_server_is_given_up_in_time(sftp: SftpSite) -> None:
    proxy = SilentProxy(sftp.server.port, None)
    store = reach(sftp, proxy, timeout_seconds=1)
    store.put_new("packs/one", DATA)
    proxy.limit_bytes = 1 << 20
    started_at = time.monotonic()
    with pytest.raises(StoreUnreachableError):
        store.get_range("packs/one", 0, len(DATA))
    assert time.monotonic() - started_at < 30
    proxy.close()


def test_no_server_is_unreachable(sftp: SftpSite) -> None:
    (port,) = free_ports(1)
    url = sftp.location.url.replace(f":{sftp.server.port}/", f":{port}/")
    store = open_store(replace(sftp.location, url=url))
    with pytest.raises(StoreUnreachableError) as failed:
        store.head("packs/one")
    assert failed.value.hint


def test_another_host_key_is_refused_before_the_login(sftp: SftpSite) -> None:
    log = sftp.server.directory / "log"
    before = log.read_text(encoding="utf-8")
    store = open_store(replace(sftp.location, host_key=sftp.server.other_key), sftp.capabilities)
    with pytest.raises(StoreError, match="another host key") as refused:
        store.put_new("packs/one", b"x")
    assert not refused.value.is_retryable
    assert refused.value.hint
    assert "Accepted" not in log.read_text(encoding="utf-8").removeprefix(before)


def test_a_host_key_of_another_kind_is_refused(sftp: SftpSite, tmp_path: Path) -> None:
    key = tmp_path / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-C", "", "-f", str(key)], check=True)
    public = " ".join((tmp_path / "rsa.pub").read_text(encoding="ascii").split()[:2])
    store = open_store(replace(sftp.location, host_key=public), sftp.capabilities)
    with pytest.raises(StoreError, match="no host key of the kind ssh-rsa") as refused:
        store.head("packs/one")
    assert not refused.value.is_retryable


@pytest.mark.parametrize("host_key", ["", "ssh-ed25519", "ssh-ed25519 not-base64!"])
def test_without_a_host_key_nothing_is_opened(sftp: SftpSite, host_key: str) -> None:
    with pytest.raises(ConfigurationError, match="host key"):
        open_store(replace(sftp.location, host_key=host_key))


def test_a_key_with_a_passphrase_logs_in(sftp: SftpSite, tmp_path: Path) -> None:
    key = tmp_path / "locked"
    key.write_bytes(sftp.server.key_file.read_bytes())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "canary-phrase", "-f", str(key)], check=True)
    store = open_store(replace(sftp.location, key_file=key, secret_key="canary-phrase"), sftp.capabilities)
    store.put_new("packs/one", b"x")
    with pytest.raises(ConfigurationError) as refused:
        open_store(replace(sftp.location, key_file=key, secret_key="another-canary"))
    assert "canary" not in f"{refused.value!r} {refused.value.hint}"


@pytest.fixture
def password_server(tmp_path: Path) -> Iterator[PasswordSshServer]:
    if os.geteuid() != 0:
        pytest.skip("sshd checks passwords only as root")
    (tmp_path / "sshd").mkdir()
    with PasswordSshServer(tmp_path / "sshd") as server:
        yield server


def locate_with_password(server: PasswordSshServer, folder: Path) -> StoreLocation:
    return replace(locate_folder(server, folder), key_file=None, secret_key=server.password)


def test_a_password_logs_in(password_server: PasswordSshServer, tmp_path: Path) -> None:
    location = locate_with_password(password_server, tmp_path / "store")
    store = open_store(location)
    assert isinstance(store, MadeStore)
    store.prepare()
    store.put_new("packs/one", DATA)
    assert store.get_range("packs/one", 0, len(DATA)) == DATA
    assert (tmp_path / "store" / "packs" / "one").read_bytes() == DATA
    assert "Accepted password" in (password_server.directory / "log").read_text(encoding="utf-8")
    assert password_server.password not in repr(location)


def test_a_wrong_password_is_refused_and_not_shown(
    password_server: PasswordSshServer, tmp_path: Path
) -> None:
    location = locate_with_password(password_server, tmp_path)
    store = open_store(replace(location, secret_key="canary-password"))
    with pytest.raises(StoreError, match="refuses the login") as refused:
        store.head("packs/one")
    assert not refused.value.is_retryable
    assert "password" in refused.value.hint
    assert "canary" not in f"{refused.value!r} {refused.value.hint}"


def test_no_password_is_sent_to_a_server_with_another_host_key(
    password_server: PasswordSshServer, tmp_path: Path
) -> None:
    location = locate_with_password(password_server, tmp_path)
    store = open_store(replace(location, host_key=password_server.other_key))
    with pytest.raises(
        StoreError, match="another host key than the expected one: ssh-ed25519 AAAA"
    ) as refused:
        store.head("packs/one")
    assert not refused.value.is_retryable
    assert "administrator" in refused.value.hint
    log = (password_server.directory / "log").read_text(encoding="utf-8")
    assert not any(word in log for word in ("Accepted", "Failed password"))


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    location = StoreLocation("sftp://user:canary@host/folder", host_key="ssh-ed25519 AAAA")
    with pytest.raises(ConfigurationError) as refused:
        open_store(location)
    assert "canary" not in f"{refused.value!r} {refused.value.hint}"


def test_a_refused_write_is_explained(sftp: SftpSite) -> None:
    (sftp.folder / "packs").write_bytes(b"a file where a folder belongs")
    store = sftp.open()
    with pytest.raises(StoreError) as refused:
        store.put_new("packs/one", b"x")
    assert not refused.value.is_retryable
    assert refused.value.hint


def test_connections_are_few(sftp: SftpSite) -> None:
    store = sftp.open()
    store.put_new("packs/one", b"x")
    log = sftp.server.directory / "log"
    before = log.read_text(encoding="utf-8").count("Accepted publickey")
    for _ in range(20):
        store.get_range("packs/one", 0, 1)
    assert log.read_text(encoding="utf-8").count("Accepted publickey") == before > 0
