"""Settings of the Dagster UI: its host names, and who may log in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from schedgen_backups.config.reader import Reader

_HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
_ARGON2_HASH = re.compile(r"\$argon2(id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A host name or IP address in lower case, IPv6 in brackets, with its port if one is given."""

    host: str
    port: int | None = None


@dataclass(frozen=True)
class ProxyLogin:
    """Login by a reverse proxy, which sends the user's name in this header."""

    header: str
    networks: tuple[IPv4Network | IPv6Network, ...]
    """Addresses of the proxy; the header of any other client is ignored."""


@dataclass(frozen=True)
class UiSettings:
    """Host names of the UI besides loopback names, and who may log in. No login by default."""

    addresses: tuple[Address, ...] = ()
    """Without a port: any port."""
    proxy_login: ProxyLogin | None = None
    password_hashes: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """User name → argon2 hash."""


def parse_address(text: str) -> Address:
    """Return host and port of `host`, `host:port`, `[::1]` or `[::1]:port`; raise ValueError otherwise."""
    found = _HOST.fullmatch(text.lower())
    if found is None:
        raise ValueError(text)
    return Address(found["host"], int(found["port"]) if found["port"] else None)


def parse_origin(text: str) -> Address:
    """Return host and port of an http or https address, by default the scheme's port.

    Raise ValueError if it is not such an address.
    """
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(text)
    address = parse_address(parts.netloc)
    return Address(address.host, address.port or _DEFAULT_PORTS[parts.scheme])


def read_ui(reader: Reader) -> UiSettings:
    """Return the settings of the UI."""
    named = reader.parsed("BACKUP_UI_HOSTS", _parse_addresses, "host or host:port, separated by commas", ())
    own = reader.parsed("DAGSTER_WEBSERVER_URL", _parse_own_address, "an http or https address", ())
    header = reader.parsed("BACKUP_UI_USER_HEADER", _parse_header, "the name of a header", "")
    networks = reader.parsed(
        "BACKUP_UI_PROXIES", _parse_networks, "IP addresses or networks, separated by commas", ()
    )
    if header and not networks:
        reader.required("BACKUP_UI_PROXIES")
    if networks and not header:
        reader.required("BACKUP_UI_USER_HEADER")
    return UiSettings(
        addresses=(*named, *own),
        proxy_login=ProxyLogin(header, networks) if header and networks else None,
        password_hashes=reader.parsed(
            "BACKUP_UI_PASSWORD", _parse_passwords, "lines of user:hash with argon2 hashes", {}
        ),
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_addresses(text: str) -> tuple[Address, ...]:
    return tuple(parse_address(part) for part in _split(text))


def _parse_own_address(text: str) -> tuple[Address, ...]:
    return (parse_origin(text),) if text else ()


def _parse_header(text: str) -> str:
    if text and not _HEADER_NAME.fullmatch(text):
        raise ValueError(text)
    return text.lower()


def _parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part) for part in _split(text))


def _parse_passwords(text: str) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        user, separator, password_hash = line.partition(":")
        if not separator or not user or user in hashes or not _ARGON2_HASH.fullmatch(password_hash):
            raise ValueError("a line is not user:hash")
        hashes[user] = password_hash
    return hashes
