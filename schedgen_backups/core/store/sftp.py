"""A folder on a server with SFTP as a store, by paramiko (the extra `sftp`)."""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import posixpath
import socket
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import paramiko
from paramiko.sftp import CMD_EXTENDED
from paramiko.ssh_exception import IncompatiblePeer

from schedgen_backups.core.errors import (
    ConfigurationError,
    KeyExistsError,
    KeyMissingError,
    StoreError,
    StoreUnreachableError,
)
from schedgen_backups.core.store.keys import check_key, is_unfinished, make_unfinished_name
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.probing import refuses_taken_keys
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, StoredObject
from schedgen_backups.core.store.retry import retry, retry_put

_DEFAULT_PORT = 22
_CONNECT_TIMEOUT_SECONDS = 10
_KEEPALIVE_SECONDS = 30
_MAX_CONNECTIONS = 4
"""Further threads wait. Hosters allow few: 10 for a Hetzner Storage Box (its manual, connection limits)."""
_PIECE_BYTES = 256 << 10
"""paramiko's reading of one piece takes time with the square of its size (16 MiB: 9 s in one, 0.3 s in these
pieces, 2026-11-30)."""
_FOLDER_MODE = 0o700
_RSA = "ssh-rsa"
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
_Result = TypeVar("_Result")


class _HostKeyError(StoreError):
    """The server has another key than the expected one."""


class SftpStore:
    """Files below a folder of a server; see `Store`. No versions, no locks.

    A file is written under a temporary name and renamed when it is complete. The rename of SFTP fails where
    the name is taken (SSH File Transfer Protocol, draft 02, section 6.5); `probe` finds out whether the
    server keeps to that.
    """

    def __init__(self, location: StoreLocation, capabilities: Capabilities = UNPROBED) -> None:
        url = urlsplit(location.url)
        try:
            port = url.port or _DEFAULT_PORT
        except ValueError:
            port = 0
        if not port or not url.hostname or not url.username or url.password or not url.path.strip("/"):
            raise ConfigurationError(
                f"sftp://{url.hostname or ''}{url.path} is not the URL of a folder on a server with SFTP",
                hint="Use sftp://USER@HOST:PORT/PATH, and give the password on its own.",
            )
        self._location = location
        self._capabilities = capabilities
        self._host, self._port, self._user = url.hostname, port, unquote(url.username)
        self._folder = unquote(url.path).rstrip("/")
        self._host_key = _read_host_key(location)
        self._login_key = _load_login_key(location)
        self._idle: list[paramiko.SFTPClient] = []
        self._mutex = threading.Lock()
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._made_folders: set[str] = set()
        self._is_seen = False

    @property
    def label(self) -> str:
        """URL of the folder."""
        return self._location.url

    def prepare(self) -> None:
        """Create the folder if its parent exists."""
        with self._connect() as client, suppress(FileExistsError):
            if not _is_folder(client, self._folder):
                client.mkdir(self._folder, _FOLDER_MODE)

    def put_new(self, key: str, data: bytes) -> None:
        """Write a temporary file, have the server sync it, and rename it."""
        path = self._find_path(key)
        retry_put(self, key, data, lambda: self._put(path, key, data))

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        """Read a part of the file."""
        path = self._find_path(key)

        def read(client: paramiko.SFTPClient) -> bytes:
            with client.open(path, "rb") as file:
                status = file.stat()
                _check_regular(status)
                end = min(offset + length, status.st_size or 0)
                starts = range(offset, end, _PIECE_BYTES)
                return b"".join(file.readv([(start, min(_PIECE_BYTES, end - start)) for start in starts]))

        try:
            return self._request(read, key)
        except KeyMissingError:
            self._check_folder()
            raise

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        """Return size and time of the file."""
        path = self._find_path(key)

        def ask(client: paramiko.SFTPClient) -> StoredObject:
            status = client.stat(path)
            _check_regular(status)
            return _describe(key, status)

        try:
            return self._request(ask, key)
        except KeyMissingError:
            self._check_folder()
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the files whose path starts with the prefix."""
        self._check_folder()
        yield from self._list_folder("", prefix)

    def delete(self, stored: StoredObject) -> None:
        """Delete the file, and its folder when nothing is left in it."""
        path = self._find_path(stored.key)
        try:
            self._request(lambda client: client.remove(path), stored.key)
        except KeyMissingError:
            self._check_folder()
            return
        folder = posixpath.dirname(path)
        while folder != self._folder:
            try:
                self._request(lambda client, path=folder: client.rmdir(path), stored.key)
            except StoreUnreachableError:
                raise
            except StoreError:
                return  # not empty
            self._made_folders.discard(folder)
            folder = posixpath.dirname(folder)

    def remove_unfinished(self, prefix: str, before: datetime) -> tuple[StoredObject, ...]:
        """Remove what killed or interrupted uploads left."""
        self._check_folder()
        removed: list[StoredObject] = []
        for stored in self._list_folder("", prefix, chooses=is_unfinished):
            if stored.modified_at < before:
                path = f"{self._folder}/{stored.key}"
                with suppress(KeyMissingError):
                    self._request(lambda client, path=path: client.remove(path), stored.key)
                    removed.append(stored)
        return tuple(removed)

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        """Refuse: SFTP has no locks."""
        raise StoreError(f"{self.label} is a folder, which cannot lock files")

    def probe(self, key: str) -> Capabilities:
        """Find out whether the server refuses to rename onto a name that is taken."""
        self.put_new(key, b"first")

        def put(name: str, data: bytes) -> None:
            self._put(self._find_path(name), name, data, is_careful=False)

        is_refused = refuses_taken_keys(put, key)
        return Capabilities(
            has_conditional_put=is_refused, has_checksums=False, has_versions=False, has_lock=False
        )

    def _put(self, path: str, key: str, data: bytes, *, is_careful: bool = True) -> None:
        temporary = f"{posixpath.dirname(path)}/{make_unfinished_name(posixpath.basename(path))}"
        with self._connect(key) as client:
            # Also where the server refuses to rename: the upload of a pack for nothing takes long.
            if is_careful and _exists(client, path):
                raise KeyExistsError(f"{self.label} already holds {key}")
            self._make_folders(client, posixpath.dirname(path))
            try:
                with client.open(temporary, "wx") as file:
                    file.set_pipelined(True)
                    file.write(data)
                    _sync(client, file)
                if client.stat(temporary).st_size != len(data):
                    raise StoreUnreachableError(
                        f"{self.label} did not store all of {key}",
                        hint="Free space in the store, or raise its quota.",
                    )
                try:
                    client.rename(temporary, path)
                except OSError as error:
                    if _exists(client, path):
                        raise KeyExistsError(f"{self.label} already holds {key}") from error
                    raise
            except BaseException:
                with suppress(OSError, EOFError, paramiko.SSHException):
                    client.remove(temporary)
                raise

    def _make_folders(self, client: paramiko.SFTPClient, folder: str) -> None:
        if folder in self._made_folders:
            return
        if not _is_folder(client, self._folder):
            raise self._make_missing_error()
        made = self._folder
        for part in folder[len(self._folder) + 1 :].split("/"):
            made = f"{made}/{part}" if part else made
            if not _is_folder(client, made):
                try:
                    client.mkdir(made, _FOLDER_MODE)
                except OSError:
                    # Another writer was faster.
                    if not _is_folder(client, made):
                        raise
        self._made_folders.add(folder)

    def _list_folder(
        self,
        above: str,
        prefix: str,
        *,
        chooses: Callable[[str], bool] = lambda name: not is_unfinished(name),
    ) -> Iterator[StoredObject]:
        try:
            entries = self._request(lambda client: client.listdir_attr(f"{self._folder}/{above}"), above)
        except KeyMissingError:
            return  # deleted since it was listed
        # Folders sort as keys do: with the slash that follows their name.
        for entry in sorted(entries, key=lambda entry: entry.filename + "/" * _is_directory(entry)):
            key = above + entry.filename
            if _is_directory(entry):
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._list_folder(f"{key}/", prefix, chooses=chooses)
            elif key.startswith(prefix) and chooses(entry.filename):
                yield _describe(key, entry)

    def _find_path(self, key: str) -> str:
        check_key(key)
        if is_unfinished(posixpath.basename(key)):
            raise StoreError(f"{key} is not a key: {self.label} takes such a file for an unfinished one")
        return f"{self._folder}/{key}"

    def _check_folder(self) -> None:
        if not self._is_seen and not self._request(lambda client: _is_folder(client, self._folder), ""):
            raise self._make_missing_error()
        self._is_seen = True

    def _make_missing_error(self) -> StoreError:
        return StoreError(
            f"{self.label} does not exist, or is not a folder",
            hint="Correct the store's URL. For a new store, run `schedgen-backups stores prepare NAME`.",
        )

    def _request(self, act: Callable[[paramiko.SFTPClient], _Result], key: str) -> _Result:
        def connect_and_act() -> _Result:
            with self._connect(key) as client:
                return act(client)

        return retry(connect_and_act)

    @contextmanager
    def _connect(self, key: str = "") -> Generator[paramiko.SFTPClient, None, None]:
        """Lend a connection within the block, and translate errors."""
        with self._places:
            client = None
            try:
                with self._mutex:
                    client = self._idle.pop() if self._idle else None
                if client is None:
                    client = self._log_in()
                yield client
            except StoreError:
                raise
            except Exception as error:
                is_lost = client is None or not _is_alive(client)
                if is_lost and client is not None:
                    client.close()
                    _close(client)
                    client = None
                raise self._explain(error, key, is_lost=is_lost) from error
            finally:
                if client is not None:
                    if _is_alive(client):
                        with self._mutex:
                            self._idle.append(client)
                    else:
                        _close(client)

    def _log_in(self) -> paramiko.SFTPClient:
        timeout = self._location.timeout_seconds
        opened = socket.create_connection((self._host, self._port), _CONNECT_TIMEOUT_SECONDS)
        transport = paramiko.Transport(opened)
        try:
            transport.banner_timeout = transport.auth_timeout = timeout
            kind = self._host_key[0]
            transport.get_security_options().key_types = _RSA_SIGNATURES if kind == _RSA else (kind,)
            transport.start_client(timeout=timeout)
            found = transport.get_remote_server_key()
            # Before the login: another server must not learn the password.
            if not hmac.compare_digest(found.asbytes(), self._host_key[1]):
                raise _HostKeyError(
                    f"{self.label} has another host key than the expected one: {found.get_name()} "
                    f"{found.get_base64()}",
                    hint="Ask the server's administrator for its key before you change the store's host key.",
                )
            if self._login_key is not None:
                transport.auth_publickey(self._user, self._login_key)
            else:
                transport.auth_password(self._user, self._location.secret_key)
            transport.set_keepalive(_KEEPALIVE_SECONDS)
            client = paramiko.SFTPClient.from_transport(transport)
            if client is None:
                raise paramiko.SSHException("the server has no SFTP")
            channel = client.get_channel()
            if channel is not None:
                channel.settimeout(timeout)
        except BaseException:
            transport.close()
            raise
        return client

    def _explain(self, error: Exception, key: str, *, is_lost: bool) -> StoreError:
        if isinstance(error, paramiko.AuthenticationException):
            return StoreError(
                f"{self.label} refuses the login", hint="Correct the store's user, key file or password."
            )
        if isinstance(error, IncompatiblePeer):
            return _HostKeyError(
                f"{self.label} has no host key of the kind {self._host_key[0]}",
                hint="Ask the server's administrator for its key before you change the store's host key.",
            )
        if is_lost or isinstance(error, (TimeoutError, EOFError, paramiko.SSHException)):
            reason = " ".join(str(error).split()) or "the connection was lost"
            return StoreUnreachableError(
                f"{self.label} cannot be reached: {reason}",
                hint="Check the store's host and port, and the network between.",
            )
        code = error.errno if isinstance(error, OSError) else None
        about = f" for {key}" if key else ""
        if code in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}:
            return KeyMissingError(f"{self.label} holds no {key}")
        if code == errno.EACCES:
            return StoreError(
                f"{self.label} refuses access{about}", hint="Check owner and permissions of the folder."
            )
        return StoreError(
            f"{self.label} refused a request{about}: {error}",
            hint="Check free space and quota of the store, and the permissions of the folder.",
        )


def _read_host_key(location: StoreLocation) -> tuple[str, bytes]:
    """Return kind and bytes of the server's expected public key."""
    words = location.host_key.split()
    try:
        kind, data = words[0], base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error):
        raise ConfigurationError(
            f"the host key of {location.url} is missing or not one",
            hint="Set it to two words of the server's public key, such as `ssh-ed25519 AAAA…`. "
            "`ssh-keyscan HOST` shows it; compare it with what the administrator says.",
        ) from None
    return kind, data


def _load_login_key(location: StoreLocation) -> paramiko.PKey | None:
    if location.key_file is None:
        if not location.secret_key:
            raise ConfigurationError(
                f"{location.url} has neither a key file nor a password", hint="Set one of them."
            )
        return None
    library: Any = paramiko  # its types are of an older version
    try:
        passphrase = location.secret_key.encode() or None
        return library.PKey.from_path(location.key_file, passphrase)
    except (OSError, ValueError, TypeError, library.SSHException, library.UnknownKeyType) as error:
        raise ConfigurationError(
            f"the key file of {location.url} cannot be used: {type(error).__name__}",
            hint="Set the path of a private key. If it has a passphrase, set that as the password.",
        ) from error


def _is_alive(client: paramiko.SFTPClient) -> bool:
    channel = client.get_channel()
    transport = channel.get_transport() if channel is not None else None
    return channel is not None and not channel.closed and transport is not None and transport.is_active()


def _close(client: paramiko.SFTPClient) -> None:
    channel = client.get_channel()
    transport = channel.get_transport() if channel is not None else None
    if transport is not None:
        transport.close()


def _sync(client: paramiko.SFTPClient, file: paramiko.SFTPFile) -> None:
    """Have the server write the file to disk, where it has OpenSSH's extension for that."""
    file.flush()
    sender: Any = client
    # A server without it answers "operation unsupported", which is an OSError.
    with suppress(OSError):
        sender._request(CMD_EXTENDED, "fsync@openssh.com", file.handle)  # noqa: SLF001 - paramiko has no call for it


def _exists(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        client.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _is_folder(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        return stat.S_ISDIR(client.stat(path).st_mode or 0)
    except FileNotFoundError:
        return False


def _check_regular(status: paramiko.SFTPAttributes) -> None:
    if not stat.S_ISREG(status.st_mode or 0):
        raise FileNotFoundError(errno.ENOENT, "not a file")


def _is_directory(entry: paramiko.SFTPAttributes) -> bool:
    return stat.S_ISDIR(entry.st_mode or 0)


def _describe(key: str, status: paramiko.SFTPAttributes) -> StoredObject:
    return StoredObject(
        key, status.st_size or 0, datetime.fromtimestamp(status.st_mtime or 0, tz=timezone.utc)
    )
