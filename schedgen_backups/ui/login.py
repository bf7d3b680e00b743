"""The optional login of the UI: a user name from a reverse proxy, or HTTP Basic with password hashes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from base64 import b64decode
from ipaddress import ip_address

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from starlette.datastructures import Headers
from starlette.types import Scope

from schedgen_backups.config.ui import ProxyLogin, UiSettings

_MAX_REMEMBERED = 1000


class Login:
    """Who may use the UI: any user if no login is configured, otherwise users that a login accepts."""

    def __init__(self, settings: UiSettings) -> None:
        self._proxy = settings.proxy_login
        self._passwords = Passwords(settings.password_hashes) if settings.password_hashes else None

    async def accepts(self, scope: Scope) -> bool:
        """Return whether the sender of this request is logged in."""
        headers = Headers(scope=scope)
        if self._proxy is None and self._passwords is None:
            return True
        if self._proxy is not None and _is_named_by_proxy(self._proxy, scope, headers):
            return True
        return self._passwords is not None and await self._passwords.accept(headers.getlist("authorization"))


class Passwords:
    """Verifies HTTP Basic credentials against argon2 hashes, one at a time: computing one takes 64 MiB."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes
        self._hasher = PasswordHasher()
        self._unknown_user_hash = self._hasher.hash(secrets.token_hex())
        self._lock = asyncio.Lock()
        self._key = secrets.token_bytes()
        self._accepted: set[bytes] = set()
        """Keyed digests of accepted credentials: a page of the UI makes dozens of requests."""

    async def accept(self, authorizations: list[str]) -> bool:
        """Return whether this is exactly one header, with a known user and the right password."""
        if len(authorizations) != 1:
            return False
        digest = hmac.digest(self._key, authorizations[0].encode(), hashlib.sha256)
        if digest in self._accepted:
            return True
        async with self._lock:
            is_right = digest in self._accepted or await asyncio.to_thread(self._verify, authorizations[0])
        if is_right and len(self._accepted) < _MAX_REMEMBERED:
            self._accepted.add(digest)
        return is_right

    def _verify(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            user, separator, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
        except ValueError:
            return False
        if scheme.lower() != "basic" or not separator:
            return False
        try:
            # The check of an unknown user takes as long as that of a known one.
            return (
                self._hasher.verify(self._hashes.get(user, self._unknown_user_hash), password)
                and user in self._hashes
            )
        except (VerificationError, InvalidHashError):
            return False


def _is_named_by_proxy(proxy: ProxyLogin, scope: Scope, headers: Headers) -> bool:
    """Return whether the connection comes from a configured proxy and names one user."""
    client = scope.get("client")
    try:
        address = ip_address(client[0]) if client else None
    except ValueError:
        return False
    names = headers.getlist(proxy.header)
    return (
        address is not None
        and any(address in network for network in proxy.networks)
        and len(names) == 1
        and bool(names[0].strip())
    )
