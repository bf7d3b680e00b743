"""Reads how the database and the bucket are reached, by variables or by a URL."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schedgen_backups.config.reader import Reader
from schedgen_backups.config.variables import CERTIFICATES_VARIABLE, LIBPQ_VARIABLES
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's words, the weakest first (PostgreSQL manual, section 34.19)."""
_DEFAULT_PORT = 5432
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65535
_LABEL = "(?![-_])[A-Za-z0-9_-]{1,63}(?<![-_])"
_ENDPOINT = re.compile(
    rf"(?P<host>\[(?P<address>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?"
)
"""A host as the minio SDK takes it. What other software reads as another host, such as one with a backslash,
is not in it."""
_CONNECTION_TEXT = re.compile(r"://|:.*@|(?:password|passwd|pwd|secret)\s*=", re.IGNORECASE | re.DOTALL)
_BUCKET_NAME = re.compile("[A-Za-z0-9._:-]+")


def read_database(reader: Reader, *, password_name: str = "POSTGRES_PASSWORD") -> DatabaseSettings:  # noqa: S107 - a variable's name
    """Return how the database is reached, with the password of this variable."""
    return DatabaseSettings(
        host=reader.host("POSTGRES_HOST"),
        port=reader.number("POSTGRES_PORT", 1, 65535),
        user=reader.parsed("POSTGRES_USER", parse_name, "the name of a role", ""),
        password=reader.required(password_name),
        database=reader.parsed("POSTGRES_DB", parse_name, "the name of a database", ""),
        ssl_mode=read_ssl_mode(reader),
        libpq_variables=_read_libpq_variables(reader),
    )


def read_bucket(reader: Reader, *, prefix: str = "", bucket: str | None = None) -> BucketSettings:
    """Return how the bucket is reached: by MINIO_… or, with a prefix such as DRILL_, by that one's variables."""
    return BucketSettings(
        endpoint=reader.parsed(f"{prefix}MINIO_ENDPOINT", parse_endpoint, "host:port without http://", ""),
        access_key=reader.required(f"{prefix}MINIO_ACCESS_KEY"),
        secret_key=reader.required(f"{prefix}MINIO_SECRET_KEY"),
        bucket=reader.parsed("MINIO_BUCKET", parse_name, "the name of a bucket", "")
        if bucket is None
        else bucket,
        is_secure=reader.yes_or_no(f"{prefix}MINIO_SECURE"),
        region=reader.parsed("MINIO_REGION", parse_name, "the name of a region", ""),
        certificates_path=reader.path(CERTIFICATES_VARIABLE),
    )


def parse_database_url(url: str, password: str, reader: Reader, *, user: str = "") -> DatabaseSettings:
    """Return the database that `postgresql://user@host:port/name` means, with this password and user unless
    the URL has its own.

    ValueError says what is wrong.
    """
    try:
        parts = conninfo_to_dict(url)
        port = str(parts.get("port") or _DEFAULT_PORT)
    except (psycopg.ProgrammingError, ValueError):
        raise ValueError("is no URL that PostgreSQL understands") from None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _LAST_PORT:
        raise ValueError(f"names a port that is not from 1 to {_LAST_PORT}")
    if "://" not in url:
        raise ValueError("is no URL that PostgreSQL understands")
    if not parts.get("dbname") or not (parts.get("user") or user):
        raise ValueError("names no user or no database")
    if str(parts.get("sslmode") or SSL_MODES[0]) not in SSL_MODES:
        raise ValueError(f"names an sslmode that is none of {', '.join(SSL_MODES)}")
    return DatabaseSettings(
        host=str(parts.get("host") or "127.0.0.1"),
        port=int(port),
        user=str(parts.get("user") or user),
        password=str(parts.get("password") or password),
        database=str(parts["dbname"]),
        ssl_mode=str(parts.get("sslmode") or read_ssl_mode(reader)),
        libpq_variables=_read_libpq_variables(reader),
    )


def parse_name(text: str) -> str:
    """Return the name as it is.

    ValueError for a URL or a connection string, which may hold a password and is no name to anybody.
    """
    if _CONNECTION_TEXT.search(text):
        raise ValueError
    return text


def parse_bucket_url(url: str) -> tuple[str, str, bool]:
    """Return endpoint, bucket and whether it is encrypted of `http(s)://host:port/bucket`.

    ValueError says what is wrong and quotes nothing.
    """
    # Not by urllib's `urlsplit`: it leaves out line breaks and tabs, and quotes what it refuses.
    if not url.isascii() or not url.isprintable() or any(sign in url for sign in " \\"):
        raise ValueError("holds spaces, backslashes or other characters that no such URL has")
    if "?" in url or "#" in url:
        raise ValueError("holds a query or a fragment")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("does not begin with http:// or https://")
    endpoint, _, path = rest.partition("/")
    host, port = _split_endpoint(endpoint)
    bucket = path.removesuffix("/")
    if not _BUCKET_NAME.fullmatch(bucket):
        raise ValueError("does not end with the name of one bucket")
    return f"{host.lower()}:{port or _DEFAULT_PORTS[scheme]}", bucket, scheme == "https"


def parse_endpoint(text: str) -> str:
    """Return `host:port` as it is, or `[address]:port` for an address of IPv6.

    ValueError says what is wrong and quotes nothing.
    """
    _host, port = _split_endpoint(text)
    if not port:
        raise ValueError("names no port")
    return text


def _split_endpoint(text: str) -> tuple[str, int]:
    """Return host and port, 0 where there is none; ValueError when it is not just that."""
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError("names no host, or more than host and port")
    if address := found["address"]:
        try:
            IPv6Address(address)
        except ValueError:
            raise ValueError("names an address of IPv6 that is none") from None
    if found["port"] is None:
        return found["host"], 0
    port = int(found["port"])
    if not 1 <= port <= _LAST_PORT:
        raise ValueError(f"names a port that is not from 1 to {_LAST_PORT}")
    return found["host"], port


def read_ssl_mode(reader: Reader) -> str:
    """Return libpq's word for how connections to the database are encrypted."""
    return reader.parsed("PGSSLMODE", _parse_ssl_mode, f"one of {', '.join(sorted(SSL_MODES))}", "prefer")


def _parse_ssl_mode(text: str) -> str:
    if text not in SSL_MODES:
        raise ValueError(text)
    return text


def _read_libpq_variables(reader: Reader) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name in LIBPQ_VARIABLES if (value := reader.text(name)))
